//! Peers of other trust domains, with certificates of the mesh's own root: those of MeshConfig's `trustDomainAliases` are
//! of the mesh, for node proxies, for waypoints and for the principals of policies. A third trust domain is not.

use std::{net::IpAddr, path::Path};

use anyhow::{Context, Result, ensure};
use leyline_tests::{
    certificates::{Authority, Credential},
    cluster::Family,
    eventually::eventually,
    mesh::Mesh,
    peers::{Call, Manner, Peers},
};
use tokio::time::timeout;

use crate::{
    peer::Peer,
    support::SOON,
    waypoint::{CANARY, mesh_with_waypoint},
};

const ALIAS_ID: &str = "spiffe://old.example/ns/partner/sa/gateway";
const THIRD_ID: &str = "spiffe://third.example/ns/partner/sa/gateway";
const GATEWAY: &str = "partner/gateway";
const SERVER: &str = "shop/server-v2";

/// Of a pod and of a service with a waypoint, each by the name of the mesh's own trust domain.
const POLICIES: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: pod, namespace: shop}
spec:
  selector: {matchLabels: {app: server, version: v2}}
  rules:
  - from:
    - source: {principals: [cluster.local/ns/partner/sa/gateway]}
    - source: {namespaces: [shop]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: service, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: \"\", name: canary}]
  rules:
  - from: [{source: {principals: [cluster.local/ns/partner/sa/gateway]}}]
    to: [{operation: {paths: [/foreign]}}]
";

const MESH_CONFIG: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    trustDomainAliases: [old.example]
";

/// The same service account of the partner, certified in three trust domains.
struct Partner<'a> {
    mesh: &'a Mesh,
    peers: Peers,
    own: Credential,
    alias: Credential,
    third: Credential,
}

impl<'a> Partner<'a> {
    async fn new(mesh: &'a Mesh) -> Self {
        let peers = Peers::install(mesh.peers_dir()).await.unwrap();
        let run = mesh.cluster().run();
        let authority = Authority::of_mesh(&run.state_dir()).unwrap();
        let issue = |name: &str, id: &str| {
            let issued = authority.issue(&run.secrets_dir(), name, id);
            issued.unwrap()
        };
        Self {
            mesh,
            peers,
            own: issue("own", "spiffe://cluster.local/ns/partner/sa/gateway"),
            alias: issue("alias", ALIAS_ID),
            third: issue("third", THIRD_ID),
        }
    }

    /// What comes of a request in a tunnel: its answer's first line, or how it failed.
    async fn call(&self, proxy: IpAddr, authority: &str, who: &Credential) -> Result<String> {
        let root = self.mesh.cluster().run().state_dir();
        let call = Call {
            connect: proxy,
            authority: authority.to_owned(),
            root: &Path::join(&root, "root-cert.pem"),
            credential: Some(who),
            manner: Manner::Good,
        };
        let namespace = self.mesh.cluster().pod(GATEWAY)?.namespace();
        let outcome = self.peers.call(namespace, &call).await?;
        if outcome.outcome == "answered" {
            let line = outcome.body.lines().next().context("no answer")?;
            return Ok(line.to_owned());
        }
        Ok(outcome.outcome)
    }

    /// Waits until a call comes to this.
    async fn comes_to(&self, proxy: IpAddr, authority: &str, who: &Credential, expected: &[&str]) {
        let what = format!("a call to {authority} at {proxy} comes to {expected:?}");
        let done = eventually(what, SOON, || async {
            let found = self.call(proxy, authority, who).await?;
            ensure!(expected.contains(&found.as_str()), "{found}");
            Ok(())
        });
        done.await.unwrap();
    }
}

const SERVED: [&str; 1] = ["HTTP/1.1 200 OK"];
/// In TLS 1.3 a client hears of its refusal once it reads.
const REFUSED: [&str; 2] = ["tls", "closed"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aliases_of_the_trust_domain_are_of_the_mesh_and_a_third_one_is_not() {
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY, POLICIES])).await;
    let partner = Partner::new(&mesh).await;
    let pod = mesh.cluster().pod_addr(SERVER, Family::V4, 8080).unwrap();
    let waypoint = mesh.cluster().pod("shop/waypoint").unwrap();
    let waypoint = IpAddr::from(waypoint.addresses().v4);
    let ways = [(pod.ip(), pod.to_string()), (waypoint, vip.to_string())];
    let Partner {
        own, alias, third, ..
    } = &partner;

    for (proxy, authority) in &ways {
        partner.comes_to(*proxy, authority, own, &SERVED).await;
        partner.comes_to(*proxy, authority, alias, &REFUSED).await;
        partner.comes_to(*proxy, authority, third, &REFUSED).await;
    }

    let config = mesh.cluster().config();
    config.write("mesh.yaml", MESH_CONFIG).unwrap();
    for (proxy, authority) in &ways {
        // With the principals that the policies allow, though they name another trust domain.
        partner.comes_to(*proxy, authority, alias, &SERVED).await;
        partner.comes_to(*proxy, authority, own, &SERVED).await;
        partner.comes_to(*proxy, authority, third, &REFUSED).await;
    }
    let client = mesh.cluster().client("shop/client").unwrap();
    let others = client.get(vip, "/", SOON).await.unwrap();
    assert_eq!(others.status, http::StatusCode::FORBIDDEN);

    // What came in by the alias does not outlive it.
    let peer = Peer::named(&mesh, ALIAS_ID);
    let tunnel = peer.tunnel(pod.ip()).await.unwrap();
    let held = tunnel.connect(&pod.to_string()).await.unwrap();
    assert_eq!(held.status, http::StatusCode::OK);
    config.remove("mesh.yaml").unwrap();
    let ended = timeout(SOON, held.ended()).await;
    assert!(ended.is_ok(), "the connection is still there");
    for (proxy, authority) in &ways {
        partner.comes_to(*proxy, authority, alias, &REFUSED).await;
        partner.comes_to(*proxy, authority, own, &SERVED).await;
    }
    mesh.stop().await.unwrap();
}
