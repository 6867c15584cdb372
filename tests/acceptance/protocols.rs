//! What users of Istio's waypoints have besides its tests (facts E): gRPC-Web, headers that proxies set and how names are written,
//! and requests that go to the very address that the client called.

use anyhow::{Result, ensure};
use leyline_tests::{eventually::eventually, process::Process};
use serde_json::json;

use crate::{
    case::get,
    world::{SOON, World},
};

const WEB: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: apps, labels: {istio.io/use-waypoint: waypoint}}
spec:
  clusterIP: 10.96.2.60
  clusterIPs: [10.96.2.60]
  selector: {app: echo, version: v1}
  ports: [{name: grpc-web, port: 7070}, {name: web, port: 80, targetPort: 7070, appProtocol: grpc-web}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: apps}
spec:
  hosts: [web]
  http:
  - match: [{uri: {exact: /demo.Echo/Refused}}]
    fault: {abort: {httpStatus: 503, percentage: {value: 100}}}
    route: [{destination: {host: web}}]
  - route: [{destination: {host: web}}]
";

/// Browsers' gRPC, by a client that has the protocol from its description, against a server that knows gRPC alone.
pub(crate) async fn grpc_web(world: &World) -> Result<()> {
    world.apply(WEB)?;
    let expected = "\
binary /demo.Echo/Say 200 application/grpc-web+proto ['v1 heard hello'] trailers: 0
text /demo.Echo/Say 200 application/grpc-web-text+proto ['v1 heard hello'] trailers: 0
binary /demo.Echo/Repeat 200 application/grpc-web+proto ['\\n\\x02v1', '\\n\\x02v1', '\\n\\x02v1'] trailers: 0
text /demo.Echo/Chat 200 application/grpc-web-text+proto ['0', '1', '2'] trailers: 0
binary /demo.Echo/Chat 200 application/grpc-web+proto ['0', '1', '2'] trailers: 0
text /demo.Echo/Fail 200 application/grpc-web-text+proto [] head: 9 as asked for
binary /demo.Echo/Refused 503 application/grpc-web+proto [] head: 14 fault filter abort
broken /demo.Echo/Say 400 application/grpc-web-text+proto [] head: 13 Bad gRPC-web request, invalid base64 data.
";
    for target in ["10.96.2.60:7070", "10.96.2.60:80"] {
        let calls = expected.lines().flat_map(|line| line.split(' ').take(2));
        let args = Vec::from_iter(std::iter::once(target).chain(calls));
        eventually("the client is answered in gRPC-Web", SOON, || async {
            let client = world.mesh.cluster().pod("apps/client")?.namespace();
            let script = "grpc_web_call.py";
            let printed = world.peers.run_script(client, script, &args).await?;
            ensure!(printed == expected, "{printed}");
            Ok(())
        })
        .await?;
        // Who speaks gRPC is served as well.
        let answers = world.grpc(target, &["/demo.Echo/Say"]).await?;
        ensure!(answers == ["/demo.Echo/Say v1"], "{answers:?}");
    }
    let waypoint = world.mesh.waypoint("apps/waypoint")?;
    let unsupported = waypoint.admin("/unsupported").await?;
    ensure!(unsupported == json!({}), "{unsupported}");
    // A request is counted when its connection is done with it, which the client does not wait for.
    eventually("the status of gRPC is counted", SOON, || async {
        let metrics = waypoint.metrics().await?;
        let of_web = |status: &'static str| {
            let labels = [
                ("destination_service_name", "web"),
                ("request_protocol", "grpc"),
                ("grpc_response_status", status),
            ];
            metrics.sum("istio_requests_total", &labels)
        };
        let (ok, failed) = (of_web("0"), of_web("9"));
        ensure!(ok >= 10.0 && failed >= 2.0, "{ok} {failed}");
        let refused = metrics.sum("leyline_waypoint_grpc_web_refused_total", &[]);
        ensure!(refused >= 2.0, "{refused}");
        Ok(())
    })
    .await
    .map(|_| ())
}

const CASED: &str = "apiVersion: v1
kind: Service
metadata: {name: cased, namespace: apps, labels: {istio.io/use-waypoint: waypoint}}
spec:
  clusterIP: 10.96.2.61
  clusterIPs: [10.96.2.61]
  selector: {app: echo, version: v1}
  ports: [{name: http, port: 80, targetPort: 7072}]
";

fn mesh_config(proxy_headers: &str) -> String {
    format!(
        "apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data:
  mesh: |
    defaultConfig: {{proxyHeaders: {{{proxy_headers}}}}}
"
    )
}

/// Names of headers as each side wrote them, where MeshConfig says so, and in lower case else.
pub(crate) async fn header_casing(world: &World) -> Result<()> {
    let cluster = world.mesh.cluster();
    let namespace = cluster.pod("apps/echo-v1")?.namespace();
    let server = world
        .peers
        .start_script(cluster.run(), namespace, "raw_http.py", &["7072"]);
    let mut server: Process = server.await?;
    let lower = ["host: cased", "x-client-case: 1", "x-plain: 2"];
    let preserved = ["hOST: cased", "X-Client-CASE: 1", "x-plain: 2"];
    for (documents, request, response) in [
        (CASED.to_owned(), lower, "x-answer-case: one"),
        (
            format!(
                "{CASED}---\n{}",
                mesh_config("preserveHttp1HeaderCase: true")
            ),
            preserved,
            "X-Answer-CASE: one",
        ),
        (CASED.to_owned(), lower, "x-answer-case: one"),
    ] {
        world.apply(&documents)?;
        eventually("names are written as the mesh says", SOON, || async {
            let answer = exchange(world).await?;
            let (head, seen) = answer.split_once("\r\n\r\n").unwrap_or_default();
            let has = |text: &str, line: &str| text.lines().any(|one| one == line);
            ensure!(has(head, response) && has(head, "x-plain: two"), "{head}");
            for line in request {
                ensure!(has(seen, line), "{line} in {seen}");
            }
            // What the waypoint adds is in lower case either way.
            let added = |text: &str, name: &str| text.lines().any(|line| line.starts_with(name));
            ensure!(
                added(seen, "x-request-id: ") && added(head, "server: "),
                "{answer}"
            );
            Ok(())
        })
        .await?;
    }
    server.kill().await
}

/// One request, and all that came back.
async fn exchange(world: &World) -> Result<String> {
    let target = "10.96.2.61:80".parse()?;
    let mut connection = world.client()?.connect(target, SOON).await?;
    let lines = [
        "GET / HTTP/1.1",
        "hOST: cased",
        "X-Client-CASE: 1",
        "x-plain: 2",
        "Connection: close",
    ];
    let request = lines.map(|line| format!("{line}\r\n")).concat() + "\r\n";
    connection.write(request.as_bytes()).await?;
    Ok(String::from_utf8(connection.read_to_end().await?)?)
}

/// Which headers proxies set, and how.
pub(crate) async fn proxy_headers(world: &World) -> Result<()> {
    let case = || get("echo:80", "/").status(200);
    let named = mesh_config("server: {value: shop}, requestId: {disabled: true}");
    let expected = case().answered("server", "shop").not_sent("x-request-id");
    world.applied(&named, &[expected]).await?;
    // The application has none of its own.
    let silent = mesh_config("server: {disabled: true}");
    let expected = case().not_answered("server").through_waypoint();
    world.applied(&silent, &[expected]).await?;
    world.clear()?;
    let expected = case().answered("server", "istio-envoy").through_waypoint();
    world.expect(&[expected]).await
}

/// Whatever endpoints a service has: each request goes where the client called, in a tunnel where that is in the mesh.
pub(crate) async fn passthrough(world: &World) -> Result<()> {
    let outside = world.target("outside/stranger:8080")?;
    let inside = world.target("apps/echo-v2:8080")?;
    let endpoint = world.target("apps/echo-v1:8080")?;
    let entry = format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: row, namespace: apps, labels: {{istio.io/use-waypoint: waypoint}}}}
spec:
  hosts: [row.example]
  addresses: [{}, {}]
  ports: [{{number: 8080, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: {}}}]
",
        outside.ip(),
        inside.ip(),
        endpoint.ip()
    );
    let rule = "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: row, namespace: apps}
spec: {host: row.example, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}
";
    let to = |target: std::net::SocketAddr| -> &'static str { target.to_string().leak() };
    let asked = |target, version| get(to(target), "/").version(version).through_waypoint();
    let balanced = [asked(outside, "v1"), asked(inside, "v1")];
    world.applied(&entry, &balanced).await?;
    let before = taken(world).await?;
    let passed = [asked(outside, "outside"), asked(inside, "v2")];
    world.applied(&format!("{entry}{rule}"), &passed).await?;
    for target in [outside, inside] {
        let seen = get(to(target), "/").ask(world).await?.description()?;
        ensure!(seen.local == target, "{seen:?}");
    }
    let after = taken(world).await?;
    ensure!(
        after[0] > before[0] && after[1] == before[1],
        "{before:?} {after:?}"
    );
    Ok(())
}

/// Connections to `echo-v2` that its node proxy has taken, in tunnels and in plaintext.
async fn taken(world: &World) -> Result<[f64; 2]> {
    let metrics = world.mesh.ztunnel("node-a")?.metrics().await?;
    Ok(["mutual_tls", "unknown"].map(|security| {
        let labels = [
            ("reporter", "destination"),
            ("destination_workload", "echo-v2"),
            ("connection_security_policy", security),
        ];
        metrics.sum("istio_tcp_connections_opened_total", &labels)
    }))
}
