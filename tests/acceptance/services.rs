//! Rows of `tests/integration/ambient` about who reaches which service or pod, and how.

use anyhow::{Context, Result, ensure};
use leyline_tests::{eventually::eventually, process::Program, session::Session};

use crate::{
    case::get,
    world::{SOON, World},
};

pub(crate) async fn pod_ip(world: &World) -> Result<()> {
    world
        .expect(&[
            // A waypoint of services alone is not for who calls a pod, and the other way round.
            get("apps/echo-v1:8080", "/").version("v1").past_waypoint(),
            get("apps/addressed:8080", "/")
                .status(200)
                .through_waypoint(),
            get("addressed:80", "/").status(200).past_waypoint(),
            get("outside/stranger:8080", "/")
                .version("outside")
                .past_waypoint(),
        ])
        .await
}

/// The requests of one connection reach all endpoints.
pub(crate) async fn server_side_lb(world: &World) -> Result<()> {
    let target = world.target("echo:80")?;
    let mut session = Session::open(&world.client()?, target, SOON).await?;
    let mut versions = std::collections::BTreeSet::new();
    for _ in 0..40 {
        versions.insert(session.get("/", &[]).await?.version()?);
    }
    ensure!(versions.len() == 2, "{versions:?}");
    Ok(())
}

/// What the mesh does not know is reached as without it.
pub(crate) async fn outbound_policy_allow_any(world: &World) -> Result<()> {
    let mesh = &world.mesh;
    let address = leyline_tests::fabric::CONTROL_PLANE[0];
    let port = "18081";
    let bind = address.to_string();
    let args = ["python3", "-u", "-m", "http.server", "--bind", &bind, port];
    let program = Program::of_machine("elsewhere", args, mesh.cluster().fabric().infra());
    let mut server = leyline_tests::process::Process::start(mesh.cluster().run(), &program)?;
    server.wait_for_line("Serving HTTP", SOON).await?;
    let target = format!("{address}:{port}").parse()?;
    let reply = world.client()?.get(target, "/", SOON).await?;
    ensure!(reply.status == 200, "{}", reply.status);
    server.kill().await
}

fn entry(rest: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: row, namespace: apps, labels: {{}}}}
spec:
  hosts: [entry.example]
  addresses: [10.97.3.1]
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8080}}]
{rest}"
    )
}

fn with_waypoint(entry: &str) -> String {
    entry.replace("labels: {}", "labels: {istio.io/use-waypoint: waypoint}")
}

const ENTRY: &str = "10.97.3.1:80";

/// With a waypoint and without.
async fn both(world: &World, entry: &str, version: &'static str) -> Result<()> {
    world
        .applied(entry, &[get(ENTRY, "/").version(version).past_waypoint()])
        .await?;
    world
        .applied(
            &with_waypoint(entry),
            &[get(ENTRY, "/").version(version).through_waypoint()],
        )
        .await
}

pub(crate) async fn service_entry_inlined_workload_entry(world: &World) -> Result<()> {
    let address = world.target("apps/echo-v1:8080")?.ip();
    let text = entry(&format!(
        "  resolution: STATIC\n  endpoints: [{{address: {address}}}]\n"
    ));
    both(world, &text, "v1").await
}

pub(crate) async fn service_entry_selects_workload_entry(world: &World) -> Result<()> {
    let address = world.target("outside/stranger:8080")?.ip();
    let text = entry("  resolution: STATIC\n  workloadSelector: {labels: {app: selected}}\n");
    let workload = format!(
        "---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: row, namespace: apps, labels: {{app: selected}}}}
spec: {{address: {address}, labels: {{app: selected}}}}
"
    );
    both(world, &(text + &workload), "outside").await
}

pub(crate) async fn service_entry_selects_uncaptured_pod(world: &World) -> Result<()> {
    let text = entry("  resolution: STATIC\n  workloadSelector: {labels: {app: stranger}}\n");
    let text = text.replace("namespace: apps", "namespace: outside");
    world
        .applied(&text, &[get(ENTRY, "/").version("outside").past_waypoint()])
        .await?;
    let labels = "labels: {istio.io/use-waypoint: waypoint, istio.io/use-waypoint-namespace: apps}";
    world
        .applied(
            &text.replace("labels: {}", labels),
            &[get(ENTRY, "/").version("outside").through_waypoint()],
        )
        .await
}

/// The client asks for the name, is told an address that was made for it, and reaches the endpoint.
pub(crate) async fn service_entry_dns_with_auto_assign(world: &World) -> Result<()> {
    let address = world.target("outside/stranger:8080")?.ip();
    let text = entry(&format!(
        "  resolution: DNS\n  endpoints: [{{address: {address}}}]\n"
    ));
    world.apply(&text.replace("  addresses: [10.97.3.1]\n", ""))?;
    let (answer, _) = eventually("the name has an address of its own", SOON, || async {
        let answer = world.resolve("entry.example").await?;
        // The row before this one had the same name with an address that the user gave.
        ensure!(answer.to_string().starts_with("240.240."), "{answer}");
        Ok(std::net::SocketAddr::new(answer, 80))
    })
    .await?;
    let reply = world.client()?.get(answer, "/", SOON).await?;
    ensure!(reply.description()?.version == "outside");
    Ok(())
}

/// Who sees a host: nobody, everybody, its own namespace, those that are named. The client asks by address, which nobody
/// has whom it is not told, and by name.
pub(crate) async fn service_entry_visibility(world: &World) -> Result<()> {
    let address = world.target("apps/echo-v1:8080")?.ip();
    // In turn, so that each is seen to take effect.
    for (owner, export_to, is_seen) in [
        ("apps", "", true),
        ("outside", "['.']", false),
        ("apps", "['*']", true),
        ("outside", "[outside]", false),
        ("apps", "['.']", true),
        // The wire to node proxies knows all namespaces or the own one; the author is told.
        ("outside", "[apps]", false),
        ("outside", "", true),
        ("outside", "[outside, apps]", false),
        ("apps", "[apps]", true),
        ("apps", "[outside]", false),
        ("outside", "['*']", true),
        ("apps", "[outside, apps]", true),
    ] {
        let mut text = entry(&format!(
            "  resolution: STATIC\n  endpoints: [{{address: {address}}}]\n"
        ));
        if !export_to.is_empty() {
            text.push_str(&format!("  exportTo: {export_to}\n"));
        }
        world.apply(&text.replace("namespace: apps", &format!("namespace: {owner}")))?;
        let what = format!("{owner} exports to {export_to:?}");
        let known = eventually(&what, SOON, || async {
            let answer = world.resolve("entry.example").await;
            let is_known = answer.is_ok_and(|address| address.to_string() == "10.97.3.1");
            ensure!(is_known == is_seen, "known by name: {is_known}");
            Ok(())
        });
        known.await?;
        // Who does not know the address waits for an answer from nowhere: once is enough.
        let address = match (is_seen, export_to) {
            (true, _) => get(ENTRY, "/").version("v1"),
            (false, "['.']") => get(ENTRY, "/").refused(),
            (false, _) => continue,
        };
        world.expect(&[address]).await.context(what)?;
    }
    // Of two of a name each namespace has its own before that of another.
    let other = world.target("apps/echo-v2:8080")?.ip();
    let of = |namespace: &str, address: std::net::IpAddr| {
        let rest = format!("  resolution: STATIC\n  endpoints: [{{address: {address}}}]\n");
        entry(&rest).replace("namespace: apps", &format!("namespace: {namespace}"))
    };
    let both = format!("{}---\n{}", of("outside", address), of("apps", other));
    world.applied(&both, &[get(ENTRY, "/").version("v2")]).await
}
