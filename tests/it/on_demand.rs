//! A node proxy that asks about destinations when they are called (`XDS_ON_DEMAND`).

use std::net::SocketAddr;

use anyhow::ensure;
use leyline_net::{ListenOptions, accept, listen};
use leyline_tests::{access_log, client::End, eventually::eventually, mesh::Mesh};
use tokio::{io::AsyncWriteExt, time::timeout};

use crate::support::{SOON, addr, enrolled_with};

/// On the node that asks.
const SOURCE: &str = "shop/server-v1";
/// Of the mesh, on the other node.
const PEER: &str = "shop/client";
/// Not of the mesh, there too.
const LEGACY: &str = "legacy/legacy";
const ENV: [(&str, &str); 2] = [
    ("XDS_ON_DEMAND", "true"),
    ("ISTIO_META_DNS_CAPTURE", "false"),
];

async fn knows(mesh: &Mesh, pod: &str) -> bool {
    let dumps = mesh.dumps().await.unwrap();
    let uid = leyline_tests::mesh::uid(pod);
    dumps["node-b"].workloads.contains_key(&uid)
}

/// An address that nobody of the mesh has, outside of its pods.
async fn call_outside(mesh: &Mesh) {
    let fabric = mesh.cluster().fabric();
    let namespace = fabric.node("node-a").unwrap();
    let port = 9777;
    let listener = listen(namespace, port, &ListenOptions::default()).unwrap();
    let target = SocketAddr::new(fabric.node_addresses("node-a").unwrap().v4.into(), port);
    let client = mesh.cluster().client(SOURCE).unwrap();
    let mut connection = client.connect(target, SOON).await.unwrap();
    let accepted = timeout(SOON, accept(&listener)).await.unwrap();
    accepted
        .unwrap()
        .stream
        .write_all(b"outside")
        .await
        .unwrap();
    assert_eq!(connection.read(7).await.unwrap(), b"outside");
}

/// The demo's mesh, with the node of the source asking.
async fn asking() -> Mesh {
    let mut mesh = enrolled_with(&[], &[]).await;
    mesh.restart_ztunnel("node-b", &ENV).await.unwrap();
    let served = eventually("the pod is served", SOON, || async {
        let dumps = mesh.dumps().await?;
        ensure!(
            dumps["node-b"]
                .up
                .contains(&leyline_tests::mesh::uid(SOURCE)),
            "not yet"
        );
        Ok(())
    });
    served.await.unwrap();
    mesh
}

/// Nobody waits for the answer: it is for what is told of the next call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_are_asked_about_too() {
    let mesh = Box::pin(asking()).await;
    let log = mesh.ztunnel("node-b").unwrap().log().unwrap().clone();
    let target = addr(&mesh, SOURCE, 8080);
    // In a tunnel, and in plaintext.
    for (caller, name) in [(PEER, "client"), (LEGACY, "legacy")] {
        assert!(!knows(&mesh, caller).await);
        let client = mesh.cluster().client(caller).unwrap();
        let named = eventually("the caller has a name", SOON, || async {
            client.get(target, "/", SOON).await?;
            let entries = access_log::entries(&log)?;
            let named = entries.iter().any(|entry| {
                entry.field("direction") == Some("inbound")
                    && entry.field("src.workload") == Some(name)
            });
            ensure!(named, "not yet");
            Ok(())
        });
        named.await.unwrap();
        assert!(knows(&mesh, caller).await);
    }
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn destinations_are_asked_about_when_they_are_called() {
    let mut mesh = Box::pin(asking()).await;
    // Its own pods and what they belong to, and nobody else.
    assert!(knows(&mesh, SOURCE).await && knows(&mesh, "shop/server-v2").await);
    assert!(!knows(&mesh, PEER).await && !knows(&mesh, LEGACY).await);

    let client = mesh.cluster().client(SOURCE).unwrap();
    let peer = addr(&mesh, PEER, 8080);
    client.get(peer, "/", SOON).await.unwrap();
    let hbone = peer.to_string();
    let wanted = [
        ("direction", "outbound"),
        ("dst.hbone_addr", hbone.as_str()),
        ("dst.workload", "client"),
        ("dst.identity", "spiffe://cluster.local/ns/shop/sa/client"),
    ];
    let log = mesh.ztunnel("node-b").unwrap().log().unwrap().clone();
    access_log::find(&log, &wanted, SOON).await.unwrap();
    assert!(knows(&mesh, PEER).await && !knows(&mesh, LEGACY).await);
    call_outside(&mesh).await;

    // Nobody to ask: what is known goes on, and the rest may be in the mesh.
    mesh.stop_controlplane().await.unwrap();
    let legacy = addr(&mesh, LEGACY, 8080);
    let mut refused = client.connect(legacy, SOON).await.unwrap();
    client.get(peer, "/", SOON).await.unwrap();
    call_outside(&mesh).await;
    assert_eq!(refused.ended(SOON).await.unwrap(), End::Reset);
    let why = eventually("the reason is logged", SOON, || async {
        let lines = log.lines()?.join("\n");
        ensure!(
            lines.contains("the control plane has not said within 5s who is at "),
            "{lines}"
        );
        Ok(())
    });
    why.await.unwrap();
    let metrics = mesh.ztunnel("node-b").unwrap().metrics().await.unwrap();
    let late = [("outcome", "deadline")];
    assert_eq!(metrics.sum("leyline_xds_on_demand_total", &late), 1.0);
    mesh.start_controlplane().await.unwrap();
    let answered = eventually("the question is answered", SOON, || async {
        client.get(legacy, "/", SOON).await.map(drop)
    });
    answered.await.unwrap();
    mesh.stop().await.unwrap();
}
