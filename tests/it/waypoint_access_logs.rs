//! Access logs that a waypoint sends to services: Envoy's own protocol at a server on grpcio and Envoy's protos, OTLP at one on
//! OpenTelemetry's.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use leyline_tests::{eventually::eventually, peers, process::Process};
use serde_json::{Value, json};

use crate::{
    support::{SOON, python_in, root},
    waypoint::{CANARY, mesh_with_waypoint},
    waypoint_limits::ask,
};

/// The services are in a pod of another namespace of the mesh.
const POD: &str = "office/worker";
const LOGS: &str = "\
apiVersion: v1
kind: Service
metadata: {name: logs, namespace: office}
spec:
  clusterIP: 10.96.0.79
  selector: {app: worker}
  ports: [{name: grpc-als, port: 9811}, {name: grpc-otlp, port: 4317}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - name: requests
      envoyHttpAls:
        service: logs.office.svc.cluster.local
        port: 9811
        additionalRequestHeadersToLog: [x-user]
        additionalResponseHeadersToLog: [content-type]
    - name: connections
      envoyTcpAls: {service: logs.office.svc.cluster.local, port: 9811, logName: tcp}
    - name: otel
      envoyOtelAls:
        service: logs.office.svc.cluster.local
        port: 4317
        logFormat:
          text: '%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE%'
          labels: {user: '%REQ(X-USER)%', fixed: 7, nested: {upstream: '%UPSTREAM_CLUSTER_RAW%'}}
    - name: gone
      envoyHttpAls: {service: gone.office.svc.cluster.local, port: 1}
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: logs, namespace: shop}
spec:
  accessLogging:
  - providers: [{name: requests}, {name: connections}, {name: otel}, {name: gone}]
";

fn events(process: &Process) -> Result<Vec<Value>> {
    let lines = process.log().lines()?;
    let lines = lines.iter();
    Ok(lines
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}

/// The first event that fits.
async fn event(process: &Process, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let found = eventually(format!("{what} is logged"), SOON, || async {
        let mut events = events(process)?.into_iter();
        events.find(&fits).context("not there")
    });
    found.await.unwrap().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_logs_at_services() {
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY, LOGS])).await;
    let target = root().join("target");
    let xds = peers::grpc_python(&target.join("venv-xds")).await.unwrap();
    let als = ["tests/peers/als_server.py", "9811"];
    let als = python_in(&mesh, POD, &xds, &als).await;
    let otlp = peers::otlp_python(&target.join("venv-otlp")).await.unwrap();
    let otel = ["tests/peers/otlp_server.py", "4317", "4318"];
    let otel = python_in(&mesh, POD, &otlp, &otel).await;
    eventually("requests are logged", SOON, || async {
        ask(&mesh, vip, "/first", "").await?;
        ensure!(!events(&als)?.is_empty() && !events(&otel)?.is_empty());
        Ok(())
    })
    .await
    .unwrap();

    let reply = ask(
        &mesh,
        vip,
        "/logged?x=1",
        "x-user: alice\r\nuser-agent: test\r\n",
    );
    let reply = reply.await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    let of_path = |event: &Value| event["entry"]["request"]["path"] == "/logged?x=1";
    let is_http = |event: &Value| of_path(event) && event["kind"] == "http";
    let logged = event(&als, "the request", is_http).await;
    assert_eq!(logged["log"], "http_envoy_accesslog");
    assert!(
        logged["node"].as_str().unwrap().starts_with("waypoint~"),
        "{logged}"
    );
    let entry = &logged["entry"];
    assert_eq!(entry["protocol_version"], "HTTP11");
    for (name, value) in [
        ("request_method", json!("GET")),
        ("authority", json!("canary")),
        ("user_agent", json!("test")),
        ("request_headers", json!({"x-user": "alice"})),
    ] {
        assert_eq!(entry["request"][name], value, "{name}: {logged}");
    }
    assert_eq!(entry["response"]["response_code"], 200);
    assert_eq!(entry["response"]["response_code_details"], "via_upstream");
    let kind = &entry["response"]["response_headers"]["content-type"];
    assert!(kind.is_string(), "{logged}");
    let common = &entry["common_properties"];
    let cluster = "inbound-vip|80|http|canary.shop.svc.cluster.local";
    assert_eq!(common["upstream_cluster"], cluster);
    let client = mesh.cluster().pod("shop/client").unwrap().addresses().v4;
    let remote = &common["downstream_remote_address"]["socket_address"]["address"];
    assert_eq!(remote, &json!(client.to_string()), "{logged}");
    let peer = &common["tls_properties"]["peer_certificate_properties"]["subject_alt_name"];
    assert_eq!(peer[0]["uri"], "spiffe://cluster.local/ns/shop/sa/client");

    let of_body = |event: &Value| event["body"] == "GET /logged?x=1 200";
    let record = event(&otel, "the record", of_body).await;
    assert_eq!(record["resource"]["log_name"], "otel_envoy_accesslog");
    assert_eq!(
        record["attributes"],
        json!([
            {"key": "fixed", "value": {"intValue": "7"}},
            {"key": "nested", "value": {"kvlistValue": {"values": [
                {"key": "upstream", "value": {"stringValue": cluster}},
            ]}}},
            {"key": "user", "value": {"stringValue": "alice"}},
        ])
    );

    let tcp = SocketAddr::new(vip.ip(), 9000);
    let client = mesh.cluster().client("shop/client").unwrap();
    let mut echo = client.connect(tcp, SOON).await.unwrap();
    echo.echo(b"through the waypoint").await.unwrap();
    drop(echo);
    let is_tcp = |event: &Value| {
        let moved = &event["entry"]["connection_properties"];
        event["kind"] == "tcp" && moved["received_bytes"] == "20" && event["log"] == "tcp"
    };
    event(&als, "the connection", is_tcp).await;

    // What cannot be logged is told.
    let log = mesh.controlplane().log().unwrap().lines().unwrap();
    let told = |line: &String| line.contains("gone.office.svc.cluster.local");
    assert!(log.iter().any(told), "{log:?}");
    mesh.stop().await.unwrap();
}
