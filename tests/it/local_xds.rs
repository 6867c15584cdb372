//! Proxies that have no control plane for xDS: what they know is in a file, pods come from istio-cni.

use anyhow::ensure;
use leyline_net::Redirection;
use leyline_tests::{cluster::Family, eventually::eventually};

use crate::{
    cni::Scene,
    support::{SOON, addr},
};

/// The client, one server, its service, and who may call.
const FILE: &str = r#"
workloads:
- uid: Kubernetes//Pod/shop/client
  name: client
  namespace: shop
  serviceAccount: client
  workloadIps: [CLIENT]
  protocol: HBONE
  node: node-a
  services: {}
- uid: Kubernetes//Pod/shop/server-v1
  name: server-v1
  namespace: shop
  serviceAccount: server
  workloadIps: [SERVER]
  protocol: HBONE
  node: node-b
  services: {"shop/named.example": {80: 8080}}
services:
- {name: named, namespace: shop, hostname: named.example, vips: ["/10.99.0.7"], ports: {80: 8080}}
policies:
- {name: viewer, namespace: shop, scope: Namespace, action: Allow, dryRun: false,
   rules: [[[{principals: [!Exact cluster.local/ns/shop/sa/client]}]]]}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_all_that_is_needed() {
    let Scene { mut mesh, .. } = Box::pin(Scene::start(Redirection::Rewritten)).await;
    let ip = |pod| addr(&mesh, pod, 0).ip().to_string();
    let text = FILE.replace("CLIENT", &ip("shop/client"));
    let text = text.replace("SERVER", &ip("shop/server-v1"));
    let path = mesh.cluster().run().dir().join("local.yaml");
    std::fs::write(&path, text).unwrap();
    let path = path.display().to_string();
    for node in ["node-a", "node-b"] {
        let env = [("XDS_ADDRESS", ""), ("LOCAL_XDS_PATH", path.as_str())];
        mesh.restart_ztunnel(node, &env).await.unwrap();
    }

    let client = mesh.cluster().client("shop/client").unwrap();
    let service = "10.99.0.7:80".parse().unwrap();
    let reply = client.get(service, "/", SOON).await.unwrap();
    let own = mesh.cluster().pod_addr("shop/client", Family::V4, 0);
    assert_eq!(reply.description().unwrap().peer.ip(), own.unwrap().ip());
    let seen = eventually("the call came in a tunnel", SOON, || async {
        let log = mesh.ztunnel("node-b")?.log()?.lines()?.join("\n");
        let identity = "src.identity=\"spiffe://cluster.local/ns/shop/sa/client\"";
        ensure!(log.contains(identity), "{log}");
        Ok(())
    });
    seen.await.unwrap();
    // Who is not named by the policy.
    let legacy = mesh.cluster().client("legacy/legacy").unwrap();
    let server = addr(&mesh, "shop/server-v1", 8080);
    legacy.get(server, "/", SOON).await.unwrap_err();
    mesh.stop().await.unwrap();
}
