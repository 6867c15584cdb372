//! Services outside of the mesh behind a waypoint: their endpoints are found by DNS, or the client says where it wants to go.
//! The name server is dnsmasq, in a pod that is not in the mesh.

use std::{fs, net::SocketAddr};

use anyhow::{Result, ensure};
use leyline_tests::{
    cni,
    eventually::eventually,
    mesh::Mesh,
    process::{Process, Program, output},
};

use crate::{
    support::SOON,
    waypoint::{CANARY, mesh_with_waypoint},
    waypoint_session::Session,
};

const ENTRIES: &str = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: named, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec:
  hosts: [api.outside.example]
  addresses: [10.97.0.9]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: direct, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec:
  hosts: [direct.outside.example]
  addresses: [DIRECT/32]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  resolution: NONE
";

fn dnsmasq(mesh: &Mesh, records: &[String]) -> Process {
    let options = ["--log-queries", "--local-ttl=1", "--local=/example/"];
    let options = options
        .into_iter()
        .chain(records.iter().map(String::as_str));
    let namespace = mesh.cluster().pod("legacy/legacy").unwrap().namespace();
    let program = Program::dnsmasq(namespace, options);
    Process::start(mesh.cluster().run(), &program).unwrap()
}

/// The pod that answers.
async fn answers(mesh: &Mesh, target: SocketAddr) -> Result<String> {
    let mut session = Session::open(mesh, target).await?;
    let answer = session.get("/", &[]).await?;
    Ok(answer.description()?.pod)
}

async fn is_answered_by(mesh: &Mesh, target: SocketAddr, pod: &str) {
    eventually(format!("{target} is answered by {pod}"), SOON, || async {
        let answering = answers(mesh, target).await?;
        ensure!(answering == pod, "{answering}");
        Ok(())
    })
    .await
    .unwrap();
}

/// TestWaypointDNS: endpoints are found by name, or by what the client asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waypoint_dns() {
    let (mesh, _vip) = Box::pin(mesh_with_waypoint(&[CANARY])).await;
    let address = |pod: &str| mesh.cluster().pod(pod).unwrap().addresses().v4;
    let legacy = address("legacy/legacy");
    let server = |ip| dnsmasq(&mesh, &[format!("--host-record=api.outside.example,{ip}")]);
    let mut names = server(legacy);
    let resolv_conf = mesh.cluster().run().state_dir().join("resolv.conf");
    fs::write(resolv_conf, format!("nameserver {legacy}\n")).unwrap();
    let entries = ENTRIES.replace("DIRECT", &legacy.to_string());
    let text = [CANARY, &entries].join("---\n");
    mesh.cluster().config().write("canary.yaml", &text).unwrap();

    let named = SocketAddr::from(([10, 97, 0, 9], 80));
    is_answered_by(&mesh, named, "legacy").await;

    // Nothing listens on the port that is called, but for the waypoint.
    is_answered_by(&mesh, SocketAddr::from((legacy, 80)), "legacy").await;

    // Answers live for a second; then the name leads to another.
    names.kill().await.unwrap();
    let worker = address("office/worker");
    let mut names = server(worker);
    is_answered_by(&mesh, named, "worker").await;
    // Without a name server, what is known stays.
    names.kill().await.unwrap();
    for _ in 0..5 {
        assert_eq!(answers(&mesh, named).await.unwrap(), "worker");
    }
    let unsupported = mesh.waypoint("shop/waypoint").unwrap();
    let unsupported = unsupported.admin("/unsupported").await.unwrap();
    assert_eq!(unsupported, serde_json::json!({}));
    mesh.stop().await.unwrap();
}

/// Two addresses of which the first, by order, never answers.
const RACED: &str = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: raced
  namespace: shop
  labels: {istio.io/use-waypoint: waypoint}
  annotations: {istio.io/connect-strategy: RACE_FIRST_TCP_CONNECT}
spec:
  hosts: [raced.outside.example]
  addresses: [10.97.0.10]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  resolution: DNS
";

/// TestWaypointDNSConnectStrategy: of the addresses of a name the first that answers is taken, for each connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waypoint_dns_connect_strategy() {
    let (mesh, _vip) = Box::pin(mesh_with_waypoint(&[CANARY])).await;
    let legacy = mesh.cluster().pod("legacy/legacy").unwrap().addresses().v4;
    // On the way to it packets are lost; it sorts before the other.
    let silent = "10.0.0.66";
    let hosts = mesh.cluster().run().state_dir().join("hosts");
    let records = [silent.to_owned(), legacy.to_string()];
    let records = records.map(|ip| format!("{ip} raced.outside.example\n"));
    fs::write(&hosts, records.concat()).unwrap();
    let mut names = dnsmasq(&mesh, &[format!("--addn-hosts={}", hosts.display())]);
    let waypoint = mesh.cluster().pod("shop/waypoint").unwrap().namespace();
    let lost = format!("-w -t raw -A OUTPUT -d {silent} -j DROP");
    let lost: Vec<&str> = lost.split(' ').collect();
    output(&cni::tool("iptables", &lost, waypoint), SOON)
        .await
        .unwrap();
    let resolv_conf = mesh.cluster().run().state_dir().join("resolv.conf");
    fs::write(resolv_conf, format!("nameserver {legacy}\n")).unwrap();
    let text = [CANARY, RACED].join("---\n");
    mesh.cluster().config().write("canary.yaml", &text).unwrap();

    let raced = SocketAddr::from(([10, 97, 0, 10], 80));
    is_answered_by(&mesh, raced, "legacy").await;
    for _ in 0..10 {
        assert_eq!(answers(&mesh, raced).await.unwrap(), "legacy");
    }
    names.kill().await.unwrap();
    mesh.stop().await.unwrap();
}
