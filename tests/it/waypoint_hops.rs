//! Traffic that goes through a waypoint. In its place stands Envoy, which takes the tunnel and opens another one to the
//! pod, or a Python script behind our own node proxy.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use leyline_tests::{
    access_log,
    certificates::Authority,
    cluster::Family,
    eventually::eventually,
    mesh::{Enrolment, Mesh},
    peers::{ENVOY_OUT, Peers, Server},
    process::Process,
};

use crate::support::{SOON, addr, mesh};

const CLIENT_ID: &str = "spiffe://cluster.local/ns/shop/sa/client";
const SERVER_ID: &str = "spiffe://cluster.local/ns/shop/sa/server";
const WAYPOINT_ID: &str = "spiffe://cluster.local/ns/shop/sa/wp";
const REFUSED: &str = "leyline_connections_refused_total";

/// The Gateway, and what a controller would make for it.
const WAYPOINT: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: wp
  namespace: shop
  labels: {istio.io/waypoint-for: service}
  annotations: {}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Service
metadata: {name: wp, namespace: shop, labels: {gateway.istio.io/managed: istio.io-mesh-controller}}
spec:
  clusterIP: 10.96.0.90
  clusterIPs: [10.96.0.90]
  selector: {gateway.networking.k8s.io/gateway-name: wp}
  ports: [{name: mesh, port: 15008, appProtocol: hbone}]
---
apiVersion: v1
kind: Pod
metadata:
  name: wp
  namespace: shop
  labels: {gateway.networking.k8s.io/gateway-name: wp, istio.io/dataplane-mode: none}
spec:
  nodeName: node-b
  serviceAccountName: wp
  containers: [{name: app, image: leyline-echo, args: [--http=8080]}]
";

/// The demo's mesh with `shop` enrolled, a waypoint, and the service `server-v1` going through it.
async fn mesh_with(waypoint: &str) -> Mesh {
    let mut mesh = mesh().await;
    mesh.set_enrolment("shop", Enrolment::Ambient)
        .await
        .unwrap();
    let config = mesh.cluster().config();
    config.write("waypoint.yaml", waypoint).unwrap();
    label_service(&mesh, "istio.io/use-waypoint: wp");
    mesh.cluster_mut().follow_pods().await.unwrap();
    service_has_waypoint(&mesh, true).await;
    mesh
}

/// Gives the service `server-v1` these labels.
fn label_service(mesh: &Mesh, labels: &str) {
    let config = mesh.cluster().config();
    let old = config.read("shop.yaml").unwrap();
    let (before, service) = old
        .split_once("\n  name: server-v1\n  namespace: shop\nspec:\n  clusterIP:")
        .unwrap();
    let service = service.trim_start();
    let new = format!(
        "{before}\n  name: server-v1\n  labels: {{{labels}}}\n  namespace: shop\nspec:\n  clusterIP: {service}"
    );
    config.write("shop.yaml", &new).unwrap();
}

/// Waits until every proxy knows the waypoint of `server-v1`, and its instance, or neither.
async fn service_has_waypoint(mesh: &Mesh, expected: bool) {
    let seen = eventually("the waypoint is known", SOON, || async {
        for node in ["node-a", "node-b"] {
            let dump = mesh.ztunnel(node)?.config_dump().await?;
            let services = dump["services"].to_string();
            let workloads = dump["workloads"].to_string();
            let known = services.contains("\"waypoint\":{\"destination\"")
                && workloads.contains("//Pod/shop/wp");
            ensure!(known == expected, "on {node}: {known} {services}");
        }
        Ok(())
    });
    seen.await.unwrap();
}

async fn peers(mesh: &Mesh) -> Peers {
    let peers = Peers::install(mesh.peers_dir()).await.unwrap();
    assert!(peers.has_envoy(), "these tests need Envoy");
    peers
}

fn root(mesh: &Mesh) -> PathBuf {
    mesh.cluster().run().state_dir().join("root-cert.pem")
}

/// Envoy in the waypoint's pod: each CONNECT ends there and goes on in a tunnel to `server-v1`.
async fn envoy_as_waypoint(mesh: &Mesh) -> Process {
    let run = mesh.cluster().run();
    let authority = Authority::of_mesh(&run.state_dir()).unwrap();
    let credential = authority
        .issue(&run.secrets_dir(), "wp", WAYPOINT_ID)
        .unwrap();
    let pod = mesh.cluster().pod("shop/wp").unwrap();
    let server = Server {
        namespace: pod.namespace(),
        listen: pod.addresses().v4.into(),
        app_port: ENVOY_OUT,
        credential: &credential,
        root: &root(mesh),
        upstream: addr(mesh, "shop/server-v1", 8080),
        expected: SERVER_ID,
    };
    peers(mesh).await.serve(run, &server).await.unwrap()
}

/// Calls and says which pod answered.
async fn get(mesh: &Mesh, from: &str, to: std::net::SocketAddr) -> Result<String> {
    let client = mesh.cluster().client(from)?;
    Ok(client.get(to, "/", SOON).await?.description()?.pod)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_is_reached_through_its_waypoint_and_no_other_way_if_it_says_so() {
    let mesh = mesh_with(WAYPOINT).await;
    let mut envoy = envoy_as_waypoint(&mesh).await;
    let vip = mesh
        .cluster()
        .vip("shop/server-v1", Family::V4, 80)
        .unwrap();
    let pod = addr(&mesh, "shop/server-v1", 8080);
    let client_log = mesh
        .ztunnel("node-a")
        .unwrap()
        .log()
        .unwrap()
        .from_now()
        .unwrap();
    let server_log = mesh
        .ztunnel("node-b")
        .unwrap()
        .log()
        .unwrap()
        .from_now()
        .unwrap();

    assert_eq!(get(&mesh, "shop/client", vip).await.unwrap(), "server-v1");
    let line = format!("HBONE CONNECT {vip} peer={CLIENT_ID} code=200");
    envoy.wait_for_line(&line, SOON).await.unwrap();
    let hop = [
        ("direction", "outbound"),
        ("dst.workload", "wp"),
        ("dst.hbone_addr", &vip.to_string()),
        ("dst.service", "server-v1.shop.svc.cluster.local"),
        ("dst.identity", WAYPOINT_ID),
    ];
    access_log::find(&client_log, &hop, SOON).await.unwrap();
    let arrived = [
        ("direction", "inbound"),
        ("src.workload", "wp"),
        ("src.identity", WAYPOINT_ID),
        ("dst.workload", "server-v1"),
    ];
    access_log::find(&server_log, &arrived, SOON).await.unwrap();

    // By its address the pod is still reached past the waypoint, also in plaintext, until the service forbids it.
    assert_eq!(get(&mesh, "shop/client", pod).await.unwrap(), "server-v1");
    assert_eq!(get(&mesh, "legacy/legacy", pod).await.unwrap(), "server-v1");
    label_required(&mesh).await;
    for from in ["shop/client", "legacy/legacy"] {
        let outcome = get(&mesh, from, pod).await;
        assert!(
            outcome.is_err(),
            "{from} was answered by {}",
            outcome.unwrap()
        );
    }
    let denial = "connection closed due to policy rejection: explicitly denied by: shop/leyline-require-waypoint.shop.wp";
    access_log::find(
        &server_log,
        &[("error", denial), ("src.identity", CLIENT_ID)],
        SOON,
    )
    .await
    .unwrap();
    let metrics = mesh.ztunnel("node-b").unwrap().metrics().await.unwrap();
    let denied = [("reporter", "destination"), ("response_flags", "DENY")];
    assert!(metrics.sum("istio_tcp_connections_failed_total", &denied) >= 2.0);
    assert_eq!(get(&mesh, "shop/client", vip).await.unwrap(), "server-v1");

    // Without the waypoint nothing gets through, rather than going around it.
    envoy.kill().await.unwrap();
    mesh.cluster().config().remove("waypoint.yaml").unwrap();
    let unknown = [(
        "error",
        "unknown waypoint: shop/wp.shop.svc.cluster.local (for 10.96.0.21:80)",
    )];
    let gone = eventually("the waypoint is unknown", SOON, || async {
        ensure!(get(&mesh, "shop/client", vip).await.is_err(), "answered");
        let metrics = mesh.ztunnel("node-a")?.metrics().await?;
        let refused = metrics.sum(REFUSED, &[("reason", "unknown_waypoint")]);
        ensure!(refused > 0.0, "not counted as unknown");
        Ok(())
    });
    gone.await.unwrap();
    access_log::find(&client_log, &unknown, SOON).await.unwrap();
    mesh.stop().await.unwrap();
}

async fn label_required(mesh: &Mesh) {
    let config = mesh.cluster().config();
    let old = config.read("shop.yaml").unwrap();
    let new = old.replace(
        "istio.io/use-waypoint: wp",
        "istio.io/use-waypoint: wp, leyline.io/require-waypoint: 'true'",
    );
    config.write("shop.yaml", &new).unwrap();
    let known = eventually("the policy is known", SOON, || async {
        let dump = mesh.ztunnel("node-b")?.config_dump().await?;
        // The policy and the pod that names it come as resources of two types.
        let policies = dump["policies"].to_string();
        let workloads = dump["workloads"].as_array().into_iter().flatten();
        let server = workloads
            .filter(|one| one["name"] == "server-v1")
            .map(|one| one["authorizationPolicies"].to_string())
            .collect::<String>();
        for text in [policies, server] {
            ensure!(text.contains("leyline-require-waypoint.shop.wp"), "{text}");
        }
        Ok(())
    });
    known.await.unwrap();
}

/// TestSimpleHTTPSandwich: a waypoint behind a node proxy is told who calls, and what.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simple_http_sandwich() {
    let captured = WAYPOINT
        .replace(", istio.io/dataplane-mode: none", "")
        .replace(
            "annotations: {}",
            "annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/15088}",
        );
    let mesh = mesh_with(&captured).await;
    let enrolled = eventually("the waypoint's pod is captured", SOON, || async {
        mesh.dumps().await?["node-a"].check_enrolled("Kubernetes//Pod/shop/wp")
    });
    enrolled.await.unwrap();
    let run = mesh.cluster().run();
    let pod = mesh.cluster().pod("shop/wp").unwrap();
    let script = peers(&mesh).await;
    let script = script.start_script(
        run,
        pod.namespace(),
        "proxy_waypoint.py",
        &["--port", "15088"],
    );
    let mut waypoint = script.await.unwrap();
    let server_log = mesh
        .ztunnel("node-b")
        .unwrap()
        .log()
        .unwrap()
        .from_now()
        .unwrap();

    for family in Family::ALL {
        let vip = mesh.cluster().vip("shop/server-v1", family, 80).unwrap();
        assert_eq!(get(&mesh, "shop/client", vip).await.unwrap(), "server-v1");
        let line = format!("\"destination\": \"{} 80\"", vip.ip());
        let told = waypoint.wait_for_line(&line, SOON);
        let told: serde_json::Value = serde_json::from_str(&told.await.unwrap()).unwrap();
        assert_eq!(told["identity"], CLIENT_ID, "{told}");
        assert_eq!(
            told["service"], "server-v1.shop.svc.cluster.local",
            "{told}"
        );
        let client = mesh
            .cluster()
            .pod("shop/client")
            .unwrap()
            .addresses()
            .v4
            .to_string();
        assert!(
            told["source"].as_str().unwrap().starts_with(&client),
            "{told}"
        );
    }
    // What the waypoint sends to the same service is not sent to itself again.
    let arrived = [
        ("direction", "inbound"),
        ("src.workload", "wp"),
        ("src.identity", WAYPOINT_ID),
        ("dst.workload", "server-v1"),
    ];
    access_log::find(&server_log, &arrived, SOON).await.unwrap();
    mesh.stop().await.unwrap();
}
