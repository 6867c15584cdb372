//! Admin pages of a waypoint that programs for Envoy read, read by Envoy's own protos for Python; and log levels.

use std::{collections::BTreeMap, fs, net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use http::StatusCode;
use leyline_tests::{
    eventually::eventually,
    mesh::Mesh,
    peers,
    process::{Program, output},
    session::Session,
};
use serde_json::Value;

use crate::{
    support::{SOON, root},
    waypoint::{CANARY, mesh_with_waypoint},
};

/// Thousands of generated modules are imported.
const READING: Duration = Duration::from_secs(60);
const CHAIN: &str = "inbound-vip|80|http|canary.shop.svc.cluster.local";
/// What an EnvoyFilter and RequestAuthentication put into a chain, and what comes as a struct.
const MORE: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: canary, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: \"\", name: canary}]
  rules: [{from: [{source: {namespaces: [shop]}}]}]
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: canary, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: \"\", name: canary}]
  accessLogging: [{filter: {expression: 'response.code >= 500'}}]
  metrics: [{overrides: [{match: {metric: REQUEST_COUNT}, tagOverrides: {stage: {value: \"'test'\"}}}]}]
";

async fn page(mesh: &Mesh, method: &str, path: &str) -> Result<(StatusCode, String)> {
    let client = mesh.cluster().client("shop/waypoint")?;
    let target = SocketAddr::from(([127, 0, 0, 1], 15000));
    let mut session = Session::open(&client, target, SOON).await?;
    let answer = session.request(method, path, &[], bytes::Bytes::new());
    let answer = answer.await?;
    let text = String::from_utf8(answer.body.to_vec())?;
    Ok((answer.status, text))
}

/// What Envoy's protos find in a page.
async fn read(mesh: &Mesh, path: &str) -> Result<Value> {
    let (status, text) = page(mesh, "GET", path).await?;
    ensure!(status == StatusCode::OK, "{status}");
    let file = mesh.cluster().run().dir().join("config_dump.json");
    fs::write(&file, text)?;
    let program = Program {
        name: "config_dump".to_owned(),
        path: peers::grpc_python(&root().join("target/venv-xds")).await?,
        args: vec![
            root().join("tests/peers/config_dump.py").into(),
            file.into(),
        ],
        env: BTreeMap::new(),
        namespace: mesh.cluster().pod("shop/waypoint")?.namespace().clone(),
    };
    Ok(serde_json::from_str(&output(&program, READING).await?)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoys_own_protos_read_the_config_dump() {
    let (mesh, _vip) = Box::pin(mesh_with_waypoint(&[CANARY, MORE])).await;
    eventually("the service is there", SOON, || async {
        let (_, listeners) = page(&mesh, "GET", "/listeners").await?;
        ensure!(listeners.contains(CHAIN), "{listeners}");
        Ok(())
    })
    .await
    .unwrap();
    let dump = read(&mesh, "/config_dump?include_eds").await.unwrap();
    let node = dump["BootstrapConfigDump"].as_str().unwrap();
    assert!(node.starts_with("waypoint~10."), "{node}");
    let chains = &dump["ListenersConfigDump"]["main_internal"];
    for (part, name) in [
        (chains, CHAIN),
        (&dump["ClustersConfigDump"], CHAIN),
        (&dump["RoutesConfigDump"], CHAIN),
        (&dump["EndpointsConfigDump"], CHAIN),
    ] {
        let names = part.as_array().unwrap();
        assert!(names.iter().any(|known| known == name), "{name}: {dump}");
    }
    let dump = read(&mesh, "/config_dump").await.unwrap();
    assert!(dump.get("EndpointsConfigDump").is_none(), "{dump}");
    let only = "/config_dump?resource=dynamic_listeners";
    let dump = read(&mesh, only).await.unwrap();
    let names = ["connect_originate", "connect_terminate", "main_internal"];
    assert_eq!(dump, serde_json::json!({ "DynamicListener": names }));
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_levels_at_run_time() {
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY])).await;
    let levels = |method: &'static str, query: &'static str| {
        let mesh = &mesh;
        async move {
            let path = format!("/logging{query}");
            page(mesh, method, &path).await.unwrap()
        }
    };
    assert_eq!(
        levels("GET", "").await,
        (StatusCode::OK, "current log level is info\n".to_owned())
    );
    let (status, text) = levels("POST", "?level=access=debug").await;
    assert_eq!(status, StatusCode::OK, "{text}");
    assert!(
        text.contains("access=debug") && text.contains("info"),
        "{text}"
    );
    let client = mesh.cluster().client("shop/client").unwrap();
    let told = || {
        let lines = mesh.waypoint("shop/waypoint").unwrap().log().unwrap();
        let lines = lines.lines().unwrap();
        lines.iter().any(|line| line.contains("request complete"))
    };
    assert!(!told());
    eventually("requests are told", SOON, || async {
        client.get(vip, "/", SOON).await?;
        ensure!(told());
        Ok(())
    })
    .await
    .unwrap();
    for (query, expected) in [
        ("?level=loud", StatusCode::BAD_REQUEST),
        ("?what=1", StatusCode::BAD_REQUEST),
        ("?reset", StatusCode::OK),
    ] {
        assert_eq!(levels("POST", query).await.0, expected, "{query}");
    }
    let (_, text) = levels("GET", "").await;
    assert_eq!(text, "current log level is info\n");
    mesh.stop().await.unwrap();
}
