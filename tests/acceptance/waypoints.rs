//! Rows of `tests/integration/ambient` about waypoints: which one serves whom, and what is routed at it.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use leyline_tests::{
    certificates::Authority,
    eventually::eventually,
    peers::{Call, Manner},
    session::Session,
};

use crate::{
    case::get,
    world::{SOON, World},
};

pub(crate) const ROW: &str = "10.96.2.90:80";

/// A Service of its own for a row, whose labels and annotations change.
pub(crate) fn service(labels: &str) -> String {
    labelled(labels, "")
}

fn labelled(labels: &str, annotations: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: row, namespace: apps, labels: {{{labels}}}, annotations: {{{annotations}}}}}
spec:
  clusterIP: 10.96.2.90
  clusterIPs: [10.96.2.90]
  selector: {{app: echo}}
  ports:
  - {{name: http, port: 80, targetPort: 8080}}
  - {{name: tcp-server-first, port: 9001}}
  - {{name: tls, port: 443, targetPort: 8443}}
"
    )
}

fn address(world: &World, pod: &str) -> Result<IpAddr> {
    Ok(world.mesh.cluster().pod(pod)?.addresses().v4.into())
}

/// Who connected to the application.
async fn came_from(world: &World, target: &str) -> Result<IpAddr> {
    let mut session = Session::open(&world.client()?, world.target(target)?, SOON).await?;
    Ok(session.get("/", &[]).await?.description()?.peer.ip())
}

pub(crate) async fn comes_from(world: &World, pod: &str) -> Result<()> {
    let expected = address(world, pod)?;
    eventually(format!("requests come from {pod}"), SOON, || async {
        for _ in 0..4 {
            let from = came_from(world, ROW).await?;
            ensure!(from == expected, "{from}");
        }
        Ok(())
    })
    .await
    .map(|_| ())
}

pub(crate) async fn remove_add_waypoint(world: &World) -> Result<()> {
    let with = service("istio.io/use-waypoint: waypoint");
    let through = [get(ROW, "/").status(200).through_waypoint()];
    world.applied(&with, &through).await?;
    world
        .applied(&service(""), &[get(ROW, "/").status(200).past_waypoint()])
        .await?;
    world.applied(&with, &through).await
}

/// Istio goes around a waypoint that does not exist. We do not: what the waypoint was to refuse would pass.
pub(crate) async fn bogus_use_waypoint(world: &World) -> Result<()> {
    world
        .applied(
            &service("istio.io/use-waypoint: bogus"),
            &[get(ROW, "/").refused()],
        )
        .await?;
    world
        .applied(&service(""), &[get(ROW, "/").status(200).past_waypoint()])
        .await
}

pub(crate) async fn server_routing(world: &World) -> Result<()> {
    let text = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: row, namespace: apps}
spec:
  hosts: [echo]
  http:
  - match: [{uri: {prefix: /param}}]
    headers: {request: {set: {x-row: server-routing}}}
    route: [{destination: {host: echo, subset: v2}}]
  - route: [{destination: {host: echo, subset: v1}}]
";
    world
        .applied(
            text,
            &[
                get("echo:80", "/param")
                    .version("v2")
                    .sent("x-row", "server-routing"),
                get("echo:80", "/").version("v1").not_sent("x-row"),
            ],
        )
        .await
}

pub(crate) async fn traffic_split(world: &World) -> Result<()> {
    let text = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: row, namespace: apps}
spec:
  hosts: [echo.apps.svc.cluster.local]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: echo.apps.svc.cluster.local, subset: v2}}]
  - route: [{destination: {host: echo.apps.svc.cluster.local, subset: v1}}]
";
    world
        .applied(
            text,
            &[
                get("echo:80", "/").with("end-user", "jason").version("v2"),
                get("echo:80", "/").version("v1"),
            ],
        )
        .await
}

/// An HBONE client that goes straight to the waypoint.
pub(crate) async fn direct(world: &World) -> Result<()> {
    let run = world.mesh.cluster().run();
    let authority = Authority::of_mesh(&run.state_dir())?;
    let identity = "spiffe://cluster.local/ns/apps/sa/client";
    let credential = authority.issue(&run.secrets_dir(), "direct", identity)?;
    let root = run.state_dir().join("root-cert.pem");
    let namespace = world.mesh.cluster().pod("apps/client")?.namespace();
    let call = async |waypoint: &str, asked: String| -> Result<(String, Option<u16>)> {
        let call = Call {
            connect: address(world, waypoint)?,
            authority: asked,
            root: &root,
            credential: Some(&credential),
            manner: Manner::Good,
        };
        let outcome = world.peers.call(namespace, &call).await?;
        Ok((outcome.outcome, outcome.status))
    };
    let echo = world.target("echo:80")?;
    let pod = world.target("apps/addressed:8080")?;
    let unserved = world.target("captured:80")?;
    let own = address(world, "apps/waypoint")?;
    let served = [("apps/waypoint", echo), ("apps/other", pod)];
    for (waypoint, asked) in served {
        let (outcome, status) = call(waypoint, asked.to_string()).await?;
        ensure!(
            outcome == "answered",
            "{asked} of {waypoint}: {outcome} {status:?}"
        );
    }
    let refused = [
        ("an unknown port", format!("{}:12345", echo.ip())),
        ("a service of no waypoint", unserved.to_string()),
        ("a pod of another waypoint", pod.to_string()),
        ("its own pages", format!("{own}:15000")),
        ("a name", "echo.apps.svc.cluster.local:12345".to_owned()),
    ];
    for (what, asked) in refused {
        let (outcome, status) = call("apps/waypoint", asked).await?;
        ensure!(outcome == "status", "{what}: {outcome}");
        ensure!(status.is_some_and(|code| code >= 400), "{what}: {status:?}");
    }
    Ok(())
}

/// The share of a backend that does not exist gets 500.
pub(crate) async fn waypoint_with_invalid_backend(world: &World) -> Result<()> {
    let text = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: row, namespace: apps}
spec:
  parentRefs: [{group: '', kind: Service, name: echo}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /all}}]
    backendRefs: [{name: nowhere, port: 80}]
  - backendRefs: [{name: echo-v1, port: 80, weight: 50}, {name: nowhere, port: 80, weight: 50}]
";
    world
        .applied(text, &[get("echo:80", "/all").status(500)])
        .await?;
    let (mut good, mut bad) = (0, 0);
    for _ in 0..100 {
        match get("echo:80", "/").ask(world).await?.status.as_u16() {
            200 => good += 1,
            500 => bad += 1,
            other => anyhow::bail!("{other}"),
        }
    }
    ensure!(good >= 30 && bad >= 30, "{good} of 100 were good");
    Ok(())
}

const CANARY: &str = "istio.io/use-waypoint: waypoint, istio.io/use-waypoint-canary: other";

fn weight(percent: u32) -> String {
    labelled(
        CANARY,
        &format!("istio.io/use-waypoint-canary-weight: '{percent}'"),
    )
}

pub(crate) async fn weighted_waypoint_traffic_shift(world: &World) -> Result<()> {
    world.apply(&weight(0))?;
    comes_from(world, "apps/waypoint").await?;
    world.apply(&weight(100))?;
    comes_from(world, "apps/other").await?;
    world.apply(&weight(50))?;
    let (primary, canary) = (
        address(world, "apps/waypoint")?,
        address(world, "apps/other")?,
    );
    eventually("both are used", SOON, || async {
        let mut shares = [0, 0];
        for _ in 0..40 {
            let from = came_from(world, ROW).await?;
            ensure!(from == primary || from == canary, "{from}");
            shares[usize::from(from == canary)] += 1;
        }
        ensure!(shares.iter().all(|share| *share >= 8), "{shares:?}");
        Ok(())
    })
    .await
    .map(|_| ())
}

pub(crate) async fn weighted_waypoint_canary_not_ready(world: &World) -> Result<()> {
    world.apply(&weight(100))?;
    comes_from(world, "apps/other").await?;
    world.apply(&weight(100).replace("canary: other", "canary: nowhere"))?;
    comes_from(world, "apps/waypoint").await
}

/// A policy of the service holds at both waypoints.
pub(crate) async fn weighted_waypoint_policy_propagation(world: &World) -> Result<()> {
    let policy = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: row, namespace: apps}
spec:
  targetRefs: [{kind: Service, group: '', name: row}]
  action: DENY
  rules: [{to: [{operation: {paths: [/forbidden]}}]}]
";
    for percent in [0, 100] {
        let text = weight(percent) + policy;
        let waypoint = if percent == 0 {
            "apps/waypoint"
        } else {
            "apps/other"
        };
        world
            .applied(&text, &[get(ROW, "/forbidden").status(403)])
            .await?;
        comes_from(world, waypoint).await?;
        world
            .expect(&vec![get(ROW, "/forbidden").status(403); 4])
            .await?;
    }
    Ok(())
}

pub(crate) async fn cross_namespace_waypoint(world: &World) -> Result<()> {
    let case = get("uncaptured:80", "/")
        .version("outside")
        .through_waypoint();
    world.expect(&[case]).await
}

/// What became of Gateways and of routes.
pub(crate) async fn waypoint_status(world: &World) -> Result<()> {
    eventually("the Gateway is programmed", SOON, || async {
        let status = world.mesh.controlplane().status().await?;
        let conditions = &status["conditions"]["Gateway apps/waypoint"];
        let conditions = conditions
            .as_array()
            .context(status["conditions"].to_string())?;
        for condition in ["Accepted", "Programmed"] {
            let holds = |it: &serde_json::Value| it["type"] == condition && it["status"] == "True";
            ensure!(conditions.iter().any(holds), "{conditions:?}");
        }
        Ok(())
    })
    .await
    .map(|_| ())
}

/// A route of connections with two backends of these weights, and the backends: a version each.
fn stream_route(kind: &str, parent: &str, (first, second): (u32, u32)) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1alpha2
kind: {kind}
metadata: {{name: row, namespace: apps}}
spec:
  parentRefs: [{{group: '', kind: Service, name: row, {parent}}}]
  rules:
  - backendRefs: [{{name: first, port: 9001, weight: {first}}}, {{name: second, port: 9001, weight: {second}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: first, namespace: apps}}
spec: {{clusterIP: 10.96.2.91, clusterIPs: [10.96.2.91], selector: {{app: echo, version: v1}}, ports: [{{name: tcp, port: 9001}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: second, namespace: apps}}
spec: {{clusterIP: 10.96.2.92, clusterIPs: [10.96.2.92], selector: {{app: echo, version: v2}}, ports: [{{name: tcp, port: 9001}}]}}
---
{}",
        service("istio.io/use-waypoint: waypoint")
    )
}

/// Four connections in a row are answered by one of these.
async fn greeted(world: &World, port: u16, by: &[&str]) -> Result<()> {
    let target = format!("10.96.2.90:{port}");
    eventually("connections go where the route says", SOON, || async {
        for _ in 0..4 {
            let greeting = world.greeting("apps/client", &target).await?;
            let expected = by.iter().any(|one| greeting.contains(one));
            ensure!(expected, "{greeting}");
        }
        Ok(())
    })
    .await
    .map(|_| ())
}

pub(crate) async fn tcp_route(world: &World) -> Result<()> {
    for (weights, expected) in [((1, 0), "echo-v1"), ((0, 1), "echo-v2")] {
        world.apply(&stream_route("TCPRoute", "port: 9001", weights))?;
        greeted(world, 9001, &[expected]).await?;
    }
    Ok(())
}

/// A port of TLS is passed through. Only the service's own name counts, as in Istio: what the client asks for is not read.
pub(crate) async fn tls_route(world: &World) -> Result<()> {
    let route = |weights, names: &str| {
        stream_route("TLSRoute", "sectionName: tls", weights)
            .replace("  rules:", &format!("{names}  rules:"))
            .replace("port: 443, targetPort: 8443", "port: 443, targetPort: 9001")
    };
    let own = "  hostnames: [row.apps.svc.cluster.local]\n";
    for (weights, names, expected) in [
        ((1, 0), "", "echo-v1"),
        ((0, 1), "", "echo-v2"),
        ((1, 0), own, "echo-v1"),
    ] {
        world.apply(&route(weights, names))?;
        greeted(world, 443, &[expected]).await?;
    }
    // The service itself has both versions.
    world.apply(&route((1, 0), "  hostnames: [elsewhere.example]\n"))?;
    eventually("a route for another name has no say", SOON, || async {
        let mut greetings = Vec::new();
        for _ in 0..16 {
            greetings.push(world.greeting("apps/client", "10.96.2.90:443").await?);
        }
        for version in ["echo-v1", "echo-v2"] {
            let seen = greetings.iter().any(|one| one.contains(version));
            ensure!(seen, "{greetings:?}");
        }
        Ok(())
    })
    .await
    .map(|_| ())
}

/// The application is told who the client is by the waypoint that its Gateway says so of, and by nobody else.
pub(crate) async fn waypoint_xfcc_client_identity(world: &World) -> Result<()> {
    const XFCC: &str = "x-forwarded-client-cert";
    let told =
        "By=spiffe://cluster.local/ns/apps/sa/other;URI=spiffe://cluster.local/ns/apps/sa/client";
    let forged = "URI=spiffe://cluster.local/ns/apps/sa/admin";
    world
        .applied(
            &service("istio.io/use-waypoint: other"),
            &[
                get(ROW, "/").sent(XFCC, told),
                get(ROW, "/").with(XFCC, forged).sent(XFCC, told),
                get("apps/addressed:8080", "/").sent(XFCC, told),
            ],
        )
        .await?;
    let case = get("echo:80", "/").with(XFCC, forged);
    world.expect(&[case.not_sent(XFCC)]).await
}

/// Services outside: the client says where it wants to go, within a block; routes and policies are attached to the
/// ServiceEntry.
pub(crate) async fn waypoint_as_egress_gateway(world: &World) -> Result<()> {
    let address = world.target("outside/stranger:8080")?.ip();
    let documents = format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: row, namespace: apps, labels: {{istio.io/use-waypoint: waypoint}}}}
spec:
  hosts: [egress.example]
  addresses: [{address}/31]
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8080}}]
  resolution: NONE
  location: MESH_EXTERNAL
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: row, namespace: apps}}
spec:
  parentRefs: [{{group: networking.istio.io, kind: ServiceEntry, name: row, port: 80}}]
  rules:
  - filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{add: [{{name: x-row, value: egress}}]}}}}]
    backendRefs: [{{group: networking.istio.io, kind: Hostname, name: egress.example, port: 80}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: row, namespace: apps}}
spec:
  targetRefs: [{{group: networking.istio.io, kind: ServiceEntry, name: row}}]
  action: DENY
  rules: [{{to: [{{operation: {{paths: [/forbidden]}}}}]}}]
"
    );
    let target: &'static str = format!("{address}:80").leak();
    world
        .applied(
            &documents,
            &[
                get(target, "/")
                    .version("outside")
                    .through_waypoint()
                    .sent("x-row", "egress"),
                get(target, "/forbidden").status(403),
            ],
        )
        .await
}
