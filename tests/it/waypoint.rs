//! Through a waypoint: client, node proxy, waypoint, node proxy, server.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Result, ensure};
use http::StatusCode;
use leyline_tests::{
    cluster::{Binaries, Family},
    eventually::eventually,
    mesh::Mesh,
};

use crate::support::{SOON, enrolled_with};

/// A waypoint, and a service that goes through it whose pods are those of the service `server`.
pub(crate) const CANARY: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: waypoint
  namespace: shop
spec:
  gatewayClassName: istio-waypoint
  listeners:
  - {name: mesh, port: 15008, protocol: HBONE}
---
apiVersion: v1
kind: Service
metadata:
  name: canary
  namespace: shop
  labels: {istio.io/use-waypoint: waypoint}
spec:
  clusterIP: 10.96.0.90
  clusterIPs: [10.96.0.90]
  selector: {app: server}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: tcp-echo, port: 9000, targetPort: tcp-echo}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: canary, namespace: shop}
spec:
  host: canary
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
";

const BY_HEADER: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: canary, namespace: shop}
spec:
  hosts: [canary]
  http:
  - match:
    - headers: {x-version: {exact: v2}}
    rewrite: {uri: /new/}
    route:
    - destination: {host: canary, subset: v2}
  - match:
    - uri: {prefix: /teapot}
    directResponse: {status: 418}
  - route:
    - destination: {host: canary, subset: v1}
";

const BY_WEIGHT: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: canary, namespace: shop}
spec:
  hosts: [canary]
  http:
  - route:
    - {destination: {host: canary, subset: v1}, weight: 90}
    - {destination: {host: canary, subset: v2}, weight: 10}
";

/// The demo's mesh, enrolled, with these documents and the waypoint that they ask for.
pub(crate) async fn mesh_with_waypoint(documents: &[&str]) -> (Mesh, SocketAddr) {
    let mut mesh = enrolled_with(&[], &[]).await;
    let text = documents.join("---\n");
    mesh.cluster().config().write("canary.yaml", &text).unwrap();
    mesh.cluster_mut().follow_pods().await.unwrap();
    let binaries = Binaries::beside_this_test().unwrap();
    mesh.start_waypoints(&binaries.waypoint).await.unwrap();
    let vip = mesh.cluster().vip("shop/canary", Family::V4, 80).unwrap();
    (mesh, vip)
}

/// One call; the version that answered.
async fn call(mesh: &Mesh, target: SocketAddr, path: &str, version: &str) -> Result<String> {
    let headers = format!("x-version: {version}\r\n");
    let mut connection = mesh
        .cluster()
        .client("shop/client")?
        .connect(target, SOON)
        .await?;
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: canary\r\n{headers}connection: close\r\n\r\n");
    connection.write(request.as_bytes()).await?;
    let reply = String::from_utf8(connection.read_to_end().await?)?;
    ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    Ok(reply)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_chooses_the_version_behind_a_waypoint() {
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY, BY_HEADER])).await;
    let waypoint = mesh.cluster().pod("shop/waypoint").unwrap().addresses().v4;
    eventually("the call is answered by v2", SOON, || async {
        let reply = call(&mesh, vip, "/old?x=1", "v2").await?;
        ensure!(reply.contains(r#""version": "v2""#), "{reply}");
        ensure!(reply.contains(r#""path": "/new/old?x=1""#), "{reply}");
        ensure!(
            reply.contains(&format!(r#""peer": "{waypoint}:"#)),
            "{reply}"
        );
        ensure!(reply.contains("server: istio-envoy"), "{reply}");
        Ok(())
    })
    .await
    .unwrap();
    for _ in 0..20 {
        let reply = call(&mesh, vip, "/", "v1").await.unwrap();
        assert!(reply.contains(r#""version": "v1""#), "{reply}");
    }
    let client = mesh.cluster().client("shop/client").unwrap();
    let reply = client.get(vip, "/teapot", SOON).await.unwrap();
    assert_eq!(reply.status, StatusCode::IM_A_TEAPOT);
    let body = bytes::Bytes::from(vec![7; 300_000]);
    let reply = client.post(vip, "/upload", body, SOON).await.unwrap();
    assert_eq!(reply.description().unwrap().body_bytes, 300_000);

    let tcp = SocketAddr::new(vip.ip(), 9000);
    let mut echo = client.connect(tcp, SOON).await.unwrap();
    echo.echo(b"through the waypoint").await.unwrap();
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_and_a_change_of_routes_behind_a_waypoint() {
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY, BY_HEADER])).await;
    eventually("the call is answered", SOON, || call(&mesh, vip, "/", "v1"))
        .await
        .unwrap();
    let text = [CANARY, BY_WEIGHT].join("---\n");
    mesh.cluster().config().write("canary.yaml", &text).unwrap();
    eventually("the header counts no more", SOON, || async {
        let reply = call(&mesh, vip, "/", "v2").await?;
        ensure!(reply.contains(r#""version": "v1""#), "{reply}");
        Ok(())
    })
    .await
    .unwrap();
    let client = mesh.cluster().client("shop/client").unwrap();
    let mut versions: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..300 {
        let reply = client.get(vip, "/", SOON).await.unwrap();
        *versions
            .entry(reply.description().unwrap().version)
            .or_default() += 1;
    }
    // Three times the standard deviation of 10 % of 300.
    let canary = versions.get("v2").copied().unwrap_or_default();
    assert!((14..=46).contains(&canary), "{versions:?}");
    let unsupported = mesh.waypoint("shop/waypoint").unwrap();
    let unsupported = unsupported.admin("/unsupported").await.unwrap();
    assert_eq!(unsupported, serde_json::json!({}));
    mesh.stop().await.unwrap();
}
