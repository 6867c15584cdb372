//! Two networks: the pods of node b cannot be reached from node a, only their gateway on node b can. Envoy is the gateway.

use anyhow::{Result, ensure};
use leyline_tests::{
    access_log,
    certificates::Authority,
    cluster::Family,
    eventually::eventually,
    mesh::{Enrolment, Mesh},
    peers::Peers,
    process::Process,
};

use crate::{
    peer::Peer,
    support::{SOON, addr, mesh},
};

const CLIENT_ID: &str = "spiffe://cluster.local/ns/shop/sa/client";
const SERVER_ID: &str = "spiffe://cluster.local/ns/shop/sa/server";
const GATEWAY_ID: &str = "spiffe://cluster.local/ns/istio-system/sa/eastwest";
const IMPOSTOR_ID: &str = "spiffe://cluster.local/ns/partner/sa/gateway";
const SERVICE: &str = "server-v1.shop.svc.cluster.local";

/// Node b is the network `east`, everything else is `west`.
async fn two_networks() -> Mesh {
    let mut mesh = mesh().await;
    for (node, network) in [("node-a", "west"), ("node-b", "east")] {
        mesh.restart_ztunnel(node, &[("NETWORK", network)])
            .await
            .unwrap();
    }
    let cluster = mesh.cluster();
    let address = cluster.fabric().node_addresses("node-b").unwrap().v4;
    let networks = format!(
        "\
apiVersion: v1
kind: Namespace
metadata: {{name: istio-system, labels: {{topology.istio.io/network: west}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: eastwest
  namespace: istio-system
  labels: {{topology.istio.io/network: east}}
spec:
  gatewayClassName: istio-east-west
  addresses: [{{value: {address}}}]
  listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]
"
    );
    let config = cluster.config();
    config.write("networks.yaml", &networks).unwrap();
    let nodes = config.read("nodes.yaml").unwrap();
    let zone = "    topology.kubernetes.io/zone: zone-2\n";
    let label = "    topology.istio.io/network: east\n";
    let nodes = nodes.replace(zone, &format!("{zone}{label}"));
    assert!(nodes.contains(label), "{nodes}");
    config.write("nodes.yaml", &nodes).unwrap();
    cluster.fabric().separate("node-b").await.unwrap();
    mesh.set_enrolment("shop", Enrolment::Ambient)
        .await
        .unwrap();
    let known = eventually("the gateway is known", SOON, || async {
        let dump = mesh.ztunnel("node-a")?.config_dump().await?;
        let workloads = dump["workloads"].to_string();
        ensure!(workloads.contains("NetworkGateway/east/"), "{workloads}");
        Ok(())
    });
    known.await.unwrap();
    mesh
}

/// Envoy on node b itself, as a gateway with this identity.
async fn gateway(mesh: &Mesh, id: &str) -> Process {
    let peers = Peers::install(mesh.peers_dir()).await.unwrap();
    let cluster = mesh.cluster();
    let (run, fabric) = (cluster.run(), cluster.fabric());
    let authority = Authority::of_mesh(&run.state_dir()).unwrap();
    let issued = authority.issue(&run.secrets_dir(), "eastwest", id).unwrap();
    let listen = fabric.node_addresses("node-b").unwrap().v4;
    let upstream = addr(mesh, "shop/server-v1", 15008).ip();
    let root = run.state_dir().join("root-cert.pem");
    let values = [
        ("LISTEN", listen.to_string()),
        ("CERT", issued.certificate.display().to_string()),
        ("KEY", issued.key.display().to_string()),
        ("ROOT", root.display().to_string()),
        ("AUTHORITY", format!("{SERVICE}:80")),
        ("UPSTREAM", upstream.to_string()),
    ];
    let node = fabric.node("node-b").unwrap();
    let started = peers.start_envoy(run, node, "envoy_eastwest.yaml", &values);
    started.await.unwrap()
}

async fn get(mesh: &Mesh, from: &str, to: std::net::SocketAddr) -> Result<String> {
    let client = mesh.cluster().client(from)?;
    Ok(client.get(to, "/", SOON).await?.description()?.pod)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_network_is_reached_in_two_tunnels_and_no_other_way() {
    let mesh = two_networks().await;
    let log = |node| {
        mesh.ztunnel(node)
            .unwrap()
            .log()
            .unwrap()
            .from_now()
            .unwrap()
    };
    let (client_log, server_log) = (log("node-a"), log("node-b"));
    let vip = mesh
        .cluster()
        .vip("shop/server-v1", Family::V4, 80)
        .unwrap();

    // Nobody there, and somebody who is not the gateway: refused, and nothing is sent another way.
    assert!(get(&mesh, "shop/client", vip).await.is_err());
    let mut impostor = gateway(&mesh, IMPOSTOR_ID).await;
    assert!(get(&mesh, "shop/client", vip).await.is_err());
    let wanted = [("direction", "outbound"), ("dst.service", SERVICE)];
    let failed = eventually("the impostor is refused", SOON, || async {
        let entries = access_log::entries(&client_log)?;
        let errors: Vec<_> = entries.iter().filter_map(|e| e.field("error")).collect();
        let refused = errors
            .iter()
            .any(|e| e.starts_with("network gateway ") && e.contains("tls"));
        ensure!(refused, "{errors:?}");
        Ok(())
    });
    failed.await.unwrap();
    access_log::find(&client_log, &wanted, SOON).await.unwrap();
    impostor.kill().await.unwrap();

    let mut envoy = gateway(&mesh, GATEWAY_ID).await;
    assert_eq!(get(&mesh, "shop/client", vip).await.unwrap(), "server-v1");
    let authority = format!("{SERVICE}:80");
    // The gateway sees where to, not from which network.
    let line = format!("OUTER CONNECT {authority} peer={CLIENT_ID} network=- code=200");
    envoy.wait_for_line(&line, SOON).await.unwrap();
    let sent = [
        ("direction", "outbound"),
        ("dst.identity", SERVER_ID),
        ("dst.workload", "server-v1"),
        ("dst.hbone_addr", authority.as_str()),
        ("dst.service", SERVICE),
    ];
    access_log::find(&client_log, &sent, SOON).await.unwrap();
    // The endpoint sees the client, not the gateway; what its identity does not say comes from its baggage.
    let arrived = [
        ("direction", "inbound"),
        ("src.identity", CLIENT_ID),
        ("src.namespace", "shop"),
        ("src.workload", "client"),
        ("src.cluster", "Kubernetes"),
        ("dst.hbone_addr", authority.as_str()),
        ("dst.service", SERVICE),
    ];
    access_log::find(&server_log, &arrived, SOON).await.unwrap();

    // In the network itself there is no gateway to go through, and its addresses mean nothing outside.
    assert_eq!(get(&mesh, "office/worker", vip).await.unwrap(), "server-v1");
    let pod = addr(&mesh, "shop/server-v1", 8080);
    assert!(get(&mesh, "shop/client", pod).await.is_err());

    // Much goes through, both ways, and ends as it should.
    let client = mesh.cluster().client("shop/client").unwrap();
    let reply = client.get(vip, "/bytes/20000000", SOON).await.unwrap();
    assert_eq!(reply.body.len(), 20_000_000);
    envoy.kill().await.unwrap();
    assert!(get(&mesh, "shop/client", vip).await.is_err());
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_peer_says_of_itself_is_not_believed() {
    let mesh = mesh().await;
    mesh.set_enrolment("shop", Enrolment::Ambient)
        .await
        .unwrap();
    let log = mesh.ztunnel("node-b").unwrap().log().unwrap();
    let log = log.from_now().unwrap();
    let target = addr(&mesh, "shop/server-v1", 8080);
    let peer = Peer::new(&mesh);
    let tunnel = peer.tunnel(target.ip()).await.unwrap();
    let lies = [
        (
            "baggage",
            "k8s.cluster.name=far,k8s.namespace.name=bank,k8s.deployment.name=till",
        ),
        ("x-forwarded-network", "far"),
        (
            "forwarded",
            "for=\"192.0.2.66:6\";host=client.shop.svc.cluster.local",
        ),
    ];
    let stream = tunnel.connect_saying(&target.to_string(), &lies).await;
    assert_eq!(stream.unwrap().status, 200);
    drop(tunnel);
    let seen = [
        ("direction", "inbound"),
        ("src.identity", IMPOSTOR_ID),
        ("src.namespace", "partner"),
        ("src.workload", "gateway"),
        ("src.cluster", "Kubernetes"),
    ];
    let seen = access_log::find(&log, &seen, SOON).await.unwrap();
    let pod = mesh.cluster().pod("partner/gateway").unwrap();
    let address = pod.addresses().v4.to_string();
    assert!(seen.field("src.addr").unwrap().starts_with(&address));
    assert_eq!(
        seen.field("dst.service"),
        None,
        "it does not serve that one"
    );
    mesh.stop().await.unwrap();
}
