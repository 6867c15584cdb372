//! AuthorizationPolicies that a waypoint enforces.

use std::net::SocketAddr;

use anyhow::{Result, bail, ensure};
use http::StatusCode;
use leyline_tests::{client::Client, eventually::eventually, mesh::Mesh};

use crate::{
    support::SOON,
    waypoint::{CANARY, mesh_with_waypoint},
};

const ALLOW_CLIENT: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: canary, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: \"\", name: canary}]
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]
    to: [{operation: {ports: [\"80\", \"9000\"]}}]
";

const DENY_CLIENT_ON_TCP: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: canary, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: \"\", name: canary}]
  action: DENY
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]
    to: [{operation: {ports: [\"9000\"]}}]
";

/// Of TCP, nobody can say that it is a GET.
const ALLOW_GET: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: canary, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: \"\", name: canary}]
  rules:
  - to: [{operation: {methods: [GET]}}]
";

/// Writes the service again with another policy.
pub(crate) fn with_policy(mesh: &Mesh, documents: &[&str]) {
    let text = [&[CANARY], documents].concat().join("---\n");
    mesh.cluster().config().write("canary.yaml", &text).unwrap();
}

async fn echo(client: &Client, target: SocketAddr) -> Result<()> {
    let mut connection = client.connect(target, SOON).await?;
    connection.echo(b"hello").await
}

async fn refused(client: &Client, target: SocketAddr) -> Result<()> {
    match echo(client, target).await {
        Ok(()) => bail!("the connection was served"),
        Err(_closed) => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_hold_on_tcp_ports_behind_a_waypoint() {
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY, ALLOW_CLIENT])).await;
    let tcp = SocketAddr::new(vip.ip(), 9000);
    let client = mesh.cluster().client("shop/client").unwrap();
    eventually("the client is served", SOON, || echo(&client, tcp))
        .await
        .unwrap();

    let mut held = client.connect(tcp, SOON).await.unwrap();
    held.echo(b"hello").await.unwrap();
    with_policy(&mesh, &[DENY_CLIENT_ON_TCP]);
    eventually("TCP is refused", SOON, || refused(&client, tcp))
        .await
        .unwrap();
    // What was open is cut.
    held.ended(SOON).await.unwrap();
    let reply = client.get(vip, "/", SOON).await.unwrap();
    assert_eq!(reply.status, StatusCode::OK);
    let log = mesh.waypoint("shop/waypoint").unwrap().log().unwrap();
    assert!(
        log.tail()
            .contains("rbac_access_denied_matched_policy[ns[shop]-policy[canary]-rule[0]]"),
        "{}",
        log.tail()
    );

    with_policy(&mesh, &[ALLOW_GET]);
    eventually("HTTP is decided by the method", SOON, || async {
        let body = bytes::Bytes::new();
        let reply = client.post(vip, "/", body, SOON).await?;
        ensure!(reply.status == StatusCode::FORBIDDEN, "{}", reply.status);
        Ok(())
    })
    .await
    .unwrap();
    let reply = client.get(vip, "/", SOON).await.unwrap();
    assert_eq!(reply.status, StatusCode::OK);
    refused(&client, tcp).await.unwrap();
    let unsupported = mesh.waypoint("shop/waypoint").unwrap();
    let unsupported = unsupported.admin("/unsupported").await.unwrap();
    assert_eq!(unsupported, serde_json::json!({}));
    mesh.stop().await.unwrap();
}
