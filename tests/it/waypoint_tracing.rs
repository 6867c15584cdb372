//! Spans of a waypoint, at a collector made of OpenTelemetry's own protos for Python.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use leyline_tests::{eventually::eventually, mesh::Mesh, peers, process::Process};
use serde_json::Value;

use crate::{
    support::{SOON, python_in, root},
    waypoint::{CANARY, mesh_with_waypoint},
    waypoint_limits::ask,
    waypoint_policy::with_policy,
};

/// The collector is a pod of another namespace of the mesh.
const POD: &str = "office/worker";
const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: otel, namespace: office}
spec:
  clusterIP: 10.96.0.78
  selector: {app: worker}
  ports: [{name: grpc-otlp, port: 4317}, {name: http-otlp, port: 4318}]
";
const BY_GRPC: &str = "port: 4317, grpc: {initialMetadata: [{name: x-api-key, value: k1}]}";
const BY_HTTP: &str =
    "port: 4318, http: {path: /v1/traces, timeout: 2s, headers: [{name: x-api-key, value: k2}]}";

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn provider(how: &str) -> String {
    format!(
        "apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data:
  mesh: |
    extensionProviders:
    - name: otel
      opentelemetry: {{service: otel.office.svc.cluster.local, {how}}}
"
    )
}

fn telemetry(rest: &str) -> String {
    format!(
        "apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {{name: spans, namespace: shop}}
spec:
  tracing:
  - providers: [{{name: otel}}]
    customTags:
      stage: {{literal: {{value: test}}}}
      user: {{header: {{name: X-User, defaultValue: nobody}}}}
      pod: {{environment: {{name: POD_NAME}}}}
    {rest}
"
    )
}

async fn start(mesh: &Mesh) -> Process {
    let environment = root().join("target/venv-otlp");
    let python = peers::otlp_python(&environment).await.unwrap();
    let args = ["tests/peers/otlp_server.py", "4317", "4318"];
    python_in(mesh, POD, &python, &args).await
}

/// The span of the request with this path.
async fn span(collector: &Process, path: &str) -> Result<Value> {
    let found = eventually(format!("the span of {path}"), SOON, || async {
        spans(collector, path)?.pop().context("not there")
    });
    Ok(found.await?.0)
}

fn spans(collector: &Process, path: &str) -> Result<Vec<Value>> {
    let lines = collector.log().lines()?;
    let all = lines
        .iter()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let url = format!("http://canary{path}");
    Ok(all
        .filter(|span| span["attributes"]["http.url"] == url.as_str())
        .collect())
}

/// A header that the application got.
fn received(reply: &str, name: &str) -> Option<String> {
    let (_, body) = reply.split_once("\r\n\r\n")?;
    let description: Value = serde_json::from_str(body).ok()?;
    let headers = description["headers"].as_array()?;
    let pair = headers.iter().find(|pair| pair[0] == name)?;
    Some(pair[1].as_str()?.to_owned())
}

async fn is_traced(mesh: &Mesh, vip: SocketAddr, path: &str) -> Result<String> {
    let reply = ask(mesh, vip, path, "x-user: alice\r\n").await?;
    ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    let traceparent = received(&reply, "traceparent").context("no traceparent")?;
    ensure!(traceparent.ends_with("-01"), "{traceparent}");
    Ok(reply)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_are_collected_with_parents_and_attributes() {
    let all = telemetry("randomSamplingPercentage: 100");
    let documents = [CANARY, SERVICE, &provider(BY_GRPC), &all];
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&documents)).await;
    let collector = start(&mesh).await;
    let traced = eventually("a request is traced", SOON, || {
        is_traced(&mesh, vip, "/first")
    });
    traced.await.unwrap();

    // What the upstream is told is what the collector gets.
    let reply = is_traced(&mesh, vip, "/traced?x=1").await.unwrap();
    let traceparent = received(&reply, "traceparent").unwrap();
    let found = span(&collector, "/traced?x=1").await.unwrap();
    let (trace, id) = (
        found["trace"].as_str().unwrap(),
        found["span"].as_str().unwrap(),
    );
    assert_eq!(traceparent, format!("00-{trace}-{id}-01"));
    let expected = serde_json::json!({
        "wire": "grpc", "key": "k1", "service": "waypoint.shop", "parent": "", "kind": 2,
        "name": "canary.shop.svc.cluster.local:80/*", "status": 0,
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&found[name], value, "{name}: {found}");
    }
    assert!(found["nanoseconds"].as_i64() > Some(0), "{found}");
    for (name, value) in [
        ("http.method", "GET"),
        ("http.status_code", "200"),
        ("http.protocol", "HTTP/1.1"),
        ("component", "proxy"),
        ("response_flags", "-"),
        (
            "upstream_cluster",
            "inbound-vip|80|http|canary.shop.svc.cluster.local",
        ),
        ("stage", "test"),
        ("user", "alice"),
        ("pod", "waypoint"),
        ("istio.canonical_service", "waypoint"),
        ("istio.mesh_id", "cluster.local"),
        ("istio.source_workload", "client"),
        ("istio.source_namespace", "shop"),
        ("istio.destination_namespace", "shop"),
    ] {
        assert_eq!(found["attributes"][name], value, "{name}: {found}");
    }
    let id = found["attributes"]["guid:x-request-id"].as_str().unwrap();
    assert_eq!(id.chars().nth(14), Some('9'), "{id}");
    assert_eq!(received(&reply, "x-request-id").as_deref(), Some(id));

    // The trace that a request comes with goes on, in its own form.
    let headers = format!("traceparent: 00-{TRACE}-{SPAN}-01\r\ntracestate: a=1\r\n");
    let reply = ask(&mesh, vip, "/w3c", &headers).await.unwrap();
    let found = span(&collector, "/w3c").await.unwrap();
    assert_eq!(
        (&found["trace"], &found["parent"]),
        (&TRACE.into(), &SPAN.into())
    );
    let id = found["span"].as_str().unwrap();
    let passed = received(&reply, "traceparent");
    assert_eq!(passed, Some(format!("00-{TRACE}-{id}-01")));
    assert_eq!(received(&reply, "tracestate").as_deref(), Some("a=1"));
    let headers = format!("b3: {TRACE}-{SPAN}-1\r\n");
    let reply = ask(&mesh, vip, "/b3", &headers).await.unwrap();
    let found = span(&collector, "/b3").await.unwrap();
    assert_eq!(
        (&found["trace"], &found["parent"]),
        (&TRACE.into(), &SPAN.into())
    );
    let id = found["span"].as_str().unwrap();
    assert_eq!(
        received(&reply, "b3"),
        Some(format!("{TRACE}-{id}-1-{SPAN}"))
    );
    assert_eq!(received(&reply, "traceparent"), None);

    // Who began the trace has decided against it.
    let headers = format!("traceparent: 00-{TRACE}-{SPAN}-00\r\n");
    let reply = ask(&mesh, vip, "/unsampled", &headers).await.unwrap();
    let passed = received(&reply, "traceparent").unwrap();
    assert!(passed.starts_with(&format!("00-{TRACE}-")), "{passed}");
    assert!(passed.ends_with("-00"), "{passed}");
    is_traced(&mesh, vip, "/after").await.unwrap();
    span(&collector, "/after").await.unwrap();
    assert!(spans(&collector, "/unsampled").unwrap().is_empty());
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sampling_decides_and_a_collector_that_is_gone_harms_nothing() {
    let none = telemetry("randomSamplingPercentage: 0");
    let documents = [CANARY, SERVICE, &provider(BY_HTTP), &none];
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&documents)).await;
    let mut collector = start(&mesh).await;
    let unsampled = eventually("requests are not sampled", SOON, || async {
        let reply = ask(&mesh, vip, "/plain", "").await?;
        let traceparent = received(&reply, "traceparent").context("no traceparent")?;
        ensure!(traceparent.ends_with("-00"), "{traceparent}");
        Ok(())
    });
    unsampled.await.unwrap();
    let forced = "x-envoy-force-trace: 1\r\n";
    ask(&mesh, vip, "/forced", forced).await.unwrap();
    let found = span(&collector, "/forced").await.unwrap();
    assert_eq!(
        (&found["wire"], &found["key"]),
        (&"http".into(), &"k2".into())
    );
    let id = found["attributes"]["guid:x-request-id"].as_str().unwrap();
    assert_eq!(id.chars().nth(14), Some('a'), "{id}");
    assert_eq!(found["attributes"]["user"], "nobody");
    assert!(spans(&collector, "/plain").unwrap().is_empty());

    collector.kill().await.unwrap();
    let lost = eventually("spans are lost and counted", SOON, || async {
        for _ in 0..20 {
            let reply = ask(&mesh, vip, "/lost", forced).await?;
            ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        }
        let client = mesh.cluster().client("shop/waypoint")?;
        let pod = mesh.cluster().pod("shop/waypoint")?.addresses().v4;
        let target = SocketAddr::new(pod.into(), 15020);
        let page = client.get(target, "/stats/prometheus", SOON).await?;
        let page = String::from_utf8_lossy(&page.body).into_owned();
        let line = "leyline_waypoint_spans_total{result=\"failed\"}";
        ensure!(page.contains(line), "no {line}");
        Ok(())
    });
    lost.await.unwrap();

    with_policy(
        &mesh,
        &[
            SERVICE,
            &provider(BY_HTTP),
            &telemetry("disableSpanReporting: true"),
        ],
    );
    let untraced = eventually("nothing is traced", SOON, || async {
        let reply = ask(&mesh, vip, "/untraced", forced).await?;
        ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        ensure!(received(&reply, "traceparent").is_none(), "{reply}");
        Ok(())
    });
    untraced.await.unwrap();
    mesh.stop().await.unwrap();
}
