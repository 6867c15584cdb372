//! The programs' lives: probes, calls to the proxy itself, shutdown, a control plane that comes back.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use leyline_tests::{client::Client, cluster::Family, eventually::eventually, mesh::Enrolment};

use crate::support::mesh;

const SOON: Duration = Duration::from_secs(10);

const DENY_ALL: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_of_the_node_pass_whatever_the_policy() {
    let mesh = mesh().await;
    mesh.set_enrolment("shop", Enrolment::Ambient)
        .await
        .unwrap();
    mesh.write_check_file("nobody", DENY_ALL).unwrap();
    let cluster = mesh.cluster();
    let target = cluster
        .pod_addr("shop/server-v1", Family::V4, 8080)
        .unwrap();
    let client = cluster.client("shop/client").unwrap();
    let denied = eventually("the policy is in force", mesh.limits().edit, || async {
        anyhow::ensure!(client.get(target, "/", SOON).await.is_err(), "answered");
        Ok(())
    });
    denied.await.unwrap();
    let fabric = cluster.fabric();
    for family in Family::ALL {
        let target = cluster.pod_addr("shop/server-v1", family, 8080).unwrap();
        let kubelet = Client::new(fabric.node("node-b").unwrap().clone());
        let seen = kubelet
            .get(target, "/", SOON)
            .await
            .unwrap()
            .description()
            .unwrap();
        let node = fabric.node_addresses("node-b").unwrap();
        assert!(node.all().contains(&seen.peer.ip()), "{seen:?}");
        // The other node is a stranger, not this pod's kubelet.
        let stranger = Client::new(fabric.node("node-a").unwrap().clone());
        assert!(stranger.get(target, "/", SOON).await.is_err());
    }
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_to_the_proxys_own_ports_do_not_loop() {
    let mesh = mesh().await;
    mesh.set_enrolment("shop", Enrolment::Ambient)
        .await
        .unwrap();
    let cluster = mesh.cluster();
    let own = cluster.pod_addr("shop/client", Family::V4, 0).unwrap().ip();
    let same_node = cluster
        .pod_addr("shop/server-v2", Family::V4, 0)
        .unwrap()
        .ip();
    let other_node = cluster
        .pod_addr("shop/server-v1", Family::V6, 0)
        .unwrap()
        .ip();
    let loopback = IpAddr::from([127, 0, 0, 1]);
    for from in ["shop/client", "legacy/legacy"] {
        let client = cluster.client(from).unwrap();
        for ip in [loopback, own, same_node, other_node] {
            for port in [15001, 15006, 15008] {
                let answer = client.get(SocketAddr::new(ip, port), "/", SOON).await;
                assert!(answer.is_err(), "{from} was answered by {ip}:{port}");
            }
        }
    }
    for node in ["node-a", "node-b"] {
        let settled = eventually("nothing circles", SOON, || async {
            let metrics = mesh.ztunnel(node)?.metrics().await?;
            let open = metrics.sum("istio_tcp_sockets_open", &[]);
            anyhow::ensure!(open < 10.0, "{open} sockets are open on {node}");
            Ok(())
        });
        settled.await.unwrap();
    }
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_made_while_the_control_plane_was_away_arrive_when_it_is_back() {
    let mut mesh = mesh().await;
    mesh.set_enrolment("shop", Enrolment::Ambient)
        .await
        .unwrap();
    let root = mesh.cluster().run().state_dir().join("root-cert.pem");
    let root_before = std::fs::read(&root).unwrap();
    let target = mesh
        .cluster()
        .pod_addr("shop/server-v1", Family::V4, 8080)
        .unwrap();
    let client = mesh.cluster().client("shop/client").unwrap();

    mesh.stop_controlplane().await.unwrap();
    mesh.write_check_file("nobody", DENY_ALL).unwrap();
    client.get(target, "/", SOON).await.unwrap();
    mesh.start_controlplane().await.unwrap();
    // The proxies come back after a pause that doubles up to 15 s.
    let denied = eventually("the edit has arrived", Duration::from_secs(20), || async {
        anyhow::ensure!(client.get(target, "/", SOON).await.is_err(), "answered");
        Ok(())
    });
    denied.await.unwrap();
    assert_eq!(
        std::fs::read(&root).unwrap(),
        root_before,
        "another root was made"
    );
    mesh.stop().await.unwrap();
}
