//! TestTraffic: connections, balancing, protocols and addresses.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use leyline_tests::{eventually::eventually, session::Session};

use crate::{
    case::get,
    matrix::{PROTOCOLS, curl},
    traffic::any,
    world::{SOON, World},
};

/// A DestinationRule of the service `echo`, with its subsets.
fn policy(policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: row, namespace: apps}}
spec:
  host: echo-v1
  trafficPolicy: {policy}
"
    )
}

/// The connections of one client to one endpoint are closed when nobody used them.
pub(crate) async fn idle_timeout(world: &World) -> Result<()> {
    let text = policy("{connectionPool: {http: {idleTimeout: 100ms}}}");
    world.apply(&text)?;
    eventually("connections are not kept", SOON, || async {
        let client = world.client()?;
        let target = world.target("echo-v1:80")?;
        let mut session = Session::open(&client, target, SOON).await?;
        let first = session.get("/", &[]).await?.description()?.peer;
        let started = tokio::time::Instant::now();
        let (_, waited) = eventually("another connection", SOON, || async {
            ensure!(started.elapsed().as_millis() > 300, "too early");
            Ok(())
        })
        .await?;
        let second = session.get("/", &[]).await?.description()?.peer;
        ensure!(first != second, "{first} still after {waited:?}");
        Ok(())
    })
    .await
    .map(|_| ())
}

pub(crate) async fn use_client_protocol(world: &World) -> Result<()> {
    let text = policy("{connectionPool: {http: {useClientProtocol: true}}}");
    world.apply(&text)?;
    let grpc = world.grpc("echo-v1:7070", &["/demo.Echo/Say"]).await?;
    ensure!(grpc == ["/demo.Echo/Say v1"], "{grpc:?}");
    // Each client's own protocol, where the port is declared and where it is not.
    for port in [80, 8090] {
        let target = world.target(&format!("echo-v1:{port}"))?;
        for (option, protocol) in PROTOCOLS {
            let url = format!("http://{target}/");
            let args = [option, url.as_str()];
            eventually(
                "the application hears what the client says",
                SOON,
                || async {
                    let seen = curl(world, "apps/client", &args).await?;
                    ensure!(seen.protocol == protocol, "{option} {port}: {seen:?}");
                    Ok(())
                },
            )
            .await?;
        }
    }
    // The same requests, upgraded, and back.
    let http1 = |text: &str| policy(&format!("{{connectionPool: {{http: {{{text}}}}}}}"));
    for (setting, protocol) in [
        ("h2UpgradePolicy: UPGRADE", "HTTP/2.0"),
        ("h2UpgradePolicy: DO_NOT_UPGRADE", "HTTP/1.1"),
        (
            "h2UpgradePolicy: UPGRADE, useClientProtocol: true",
            "HTTP/1.1",
        ),
    ] {
        let expected = get("echo-v1:80", "/").spoken_to_in(protocol);
        world.applied(&http1(setting), &[expected]).await?;
    }
    Ok(())
}

/// Requests that hash alike stay with one endpoint, and not all are at one.
async fn stays(
    world: &World,
    hash: &str,
    vary: impl Fn(u32) -> (String, String, String),
) -> Result<()> {
    world.apply(&format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: row, namespace: apps}}
spec:
  host: captured
  trafficPolicy: {{loadBalancer: {{consistentHash: {hash}}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: row, namespace: apps}}
spec:
  hosts: [echo]
  http:
  - headers: {{response: {{set: {{x-row: hashed}}}}}}
    route: [{{destination: {{host: captured, port: {{number: 80}}}}}}]
"
    ))?;
    let client = world.client()?;
    let target = world.target("echo:80")?;
    eventually("each stays with its endpoint", SOON, || async {
        let mut all = BTreeSet::new();
        let mut session = Session::open(&client, target, SOON).await?;
        for key in 0..12 {
            let (path, name, value) = vary(key);
            let mut versions = BTreeSet::new();
            for _ in 0..4 {
                let answer = session.get(&path, &[(&name, &value)]).await?;
                ensure!(answer.headers.contains_key("x-row"), "not yet");
                versions.insert(answer.version()?);
            }
            ensure!(versions.len() == 1, "{key}: {versions:?}");
            all.extend(versions);
        }
        ensure!(
            all.len() == 2 || hash.contains("useSourceIp"),
            "all at {all:?}"
        );
        Ok(())
    })
    .await
    .map(|_| ())
}

pub(crate) async fn consistent_hash_source_ip(world: &World) -> Result<()> {
    stays(world, "{useSourceIp: true}", |key| {
        ("/".into(), "x-any".into(), key.to_string())
    })
    .await
}

pub(crate) async fn consistent_hash_query(world: &World) -> Result<()> {
    stays(world, "{httpQueryParameterName: key}", |key| {
        (format!("/?key={key}&x=y"), "x-any".into(), "a".into())
    })
    .await
}

pub(crate) async fn consistent_hash_header(world: &World) -> Result<()> {
    stays(world, "{httpHeaderName: x-key}", |key| {
        ("/".into(), "x-key".into(), key.to_string())
    })
    .await
}

pub(crate) async fn consistent_hash_cookie(world: &World) -> Result<()> {
    stays(world, "{httpCookie: {name: session, ttl: 60s}}", |key| {
        ("/".into(), "cookie".into(), format!("session={key}"))
    })
    .await?;
    // Who has none is given one.
    let answer = any().ask(world).await?;
    let cookie = answer.headers.get("set-cookie");
    let cookie = cookie.map(|value| value.to_str().unwrap_or_default().to_owned());
    ensure!(
        cookie
            .as_deref()
            .is_some_and(|it| it.starts_with("session=") && it.contains("Max-Age=60")),
        "{cookie:?}"
    );
    Ok(())
}

/// A pod calls its own service and its own address.
pub(crate) async fn self_calls(world: &World) -> Result<()> {
    let calls = [
        get("echo-v1:80", "/")
            .from("apps/echo-v1")
            .version("v1")
            .through_waypoint(),
        get("apps/echo-v1:8080", "/")
            .from("apps/echo-v1")
            .version("v1")
            .past_waypoint(),
        get("127.0.0.1:8080", "/")
            .from("apps/echo-v1")
            .version("v1")
            .past_waypoint(),
    ];
    world.expect(&calls).await
}

/// A port without a declared protocol: HTTP is understood, HTTP/1.0 too, and what is neither is carried.
pub(crate) async fn protocol_sniffing(world: &World) -> Result<()> {
    world
        .expect(&[get("echo:8090", "/").status(200).through_waypoint()])
        .await?;
    let client = world.client()?;
    let mut connection = client.connect(world.target("echo:8090")?, SOON).await?;
    connection
        .write(b"GET /old HTTP/1.0\r\nhost: echo\r\n\r\n")
        .await?;
    let reply = String::from_utf8(connection.read_to_end().await?)?;
    ensure!(reply.contains(" 200 OK"), "{reply}");
    ensure!(reply.contains("\"path\": \"/old\""), "{reply}");
    Ok(())
}

pub(crate) async fn services_with_differing_target_ports(world: &World) -> Result<()> {
    world
        .expect(&[
            get("echo:80", "/").status(200).through_waypoint(),
            get("echo:8080", "/").status(200).through_waypoint(),
            get("echo:8090", "/").status(200).through_waypoint(),
        ])
        .await?;
    // The same port of two services leads to two ports, of two protocols, of the same pods.
    let service = |name: &str, vip: &str, protocol: &str, target: u16| {
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: row-{name}, namespace: apps, labels: {{istio.io/use-waypoint: waypoint}}}}
spec:
  clusterIP: {vip}
  clusterIPs: [{vip}]
  selector: {{app: echo}}
  ports: [{{name: {protocol}, port: 80, targetPort: {target}}}]
---
"
        )
    };
    let text = [
        service("http", "10.96.2.93", "http", 8080),
        service("tcp", "10.96.2.94", "tcp", 9000),
        service("auto-http", "10.96.2.95", "auto", 8080),
        service("auto-tcp", "10.96.2.96", "auto", 9000),
        service("grpc", "10.96.2.97", "grpc", 7070),
    ];
    let http = ["10.96.2.93:80", "10.96.2.95:80"];
    let http = http.map(|to| get(to, "/").status(200).through_waypoint());
    world.applied(&text.concat(), &http).await?;
    world.echoes("apps/client", "10.96.2.94:80").await?;
    world.echoes("apps/client", "10.96.2.96:80").await?;
    let answers = world.grpc("10.96.2.97:80", &["/demo.Echo/Say"; 2]).await?;
    ensure!(answers.iter().all(|it| it.contains("Say v")), "{answers:?}");
    Ok(())
}

/// One entry with many addresses, all behind the waypoint.
pub(crate) async fn service_entry_many_vips(world: &World) -> Result<()> {
    let text = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: row, namespace: apps, labels: {istio.io/use-waypoint: waypoint}}
spec:
  hosts: [many.example]
  addresses: [10.97.2.1, 10.97.2.2, 10.97.2.3]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  resolution: STATIC
  workloadSelector: {labels: {app: echo}}
";
    let cases = ["10.97.2.1:80", "10.97.2.2:80", "10.97.2.3:80"]
        .map(|vip| get(vip, "/").status(200).through_waypoint());
    world.applied(text, &cases).await
}
