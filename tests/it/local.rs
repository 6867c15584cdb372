//! Connections between two pods of one node: carried inside the process, and in all else as by the wire.

use anyhow::{Result, ensure};
use leyline_tests::{
    access_log,
    client::End,
    eventually::eventually,
    mesh::{Enrolment, Mesh},
};

use crate::support::{SOON, addr, enrolled_with, hold, in_force, inbound_of};

const CLIENT: &str = "shop/client";
/// On the client's node.
const SERVER: &str = "shop/server-v2";
const CLIENT_ID: &str = "spiffe://cluster.local/ns/shop/sa/client";
const SERVER_ID: &str = "spiffe://cluster.local/ns/shop/sa/server";
pub(crate) const ONLY_STRANGERS: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-strangers, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  rules:
  - from: [{source: {principals: [\"*/sa/stranger\"]}}]
";
const LATE: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: late, namespace: shop, labels: {app: late}}
spec:
  nodeName: node-a
  serviceAccountName: server
  containers: [{name: app, image: leyline-echo, args: [--http=8080, --tcp=9000]}]
";

/// What the node's proxy has counted: tunnels dialled, and connections opened by reporter.
async fn counted(mesh: &Mesh) -> Result<(f64, [f64; 2])> {
    let metrics = mesh.ztunnel_of(CLIENT)?.metrics().await?;
    let opened = ["source", "destination"].map(|reporter| {
        let labels = [
            ("reporter", reporter),
            ("source_principal", CLIENT_ID),
            ("destination_principal", SERVER_ID),
            ("connection_security_policy", "mutual_tls"),
        ];
        metrics.sum("istio_tcp_connections_opened_total", &labels)
    });
    Ok((metrics.sum("leyline_hbone_dials_total", &[]), opened))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_node_talk_inside_it_and_are_reported_like_others() {
    let mesh = enrolled_with(&[], &[]).await;
    let log = mesh.ztunnel_of(CLIENT).unwrap().log().unwrap().clone();
    let (dials, [out, into]) = counted(&mesh).await.unwrap();
    let server = addr(&mesh, SERVER, 8080);
    let client = mesh.cluster().client(CLIENT).unwrap();
    let reply = client.get(server, "/bytes/3000000", SOON).await.unwrap();
    assert_eq!(reply.body.len(), 3_000_000);
    // The application sees who calls.
    let seen = client.get(server, "/", SOON).await.unwrap();
    let peer = seen.description().unwrap().peer.ip();
    assert_eq!(peer, addr(&mesh, CLIENT, 0).ip());

    for (direction, received) in [("outbound", "bytes_recv"), ("inbound", "bytes_sent")] {
        let server = server.to_string();
        let wanted = [
            ("direction", direction),
            ("path", "node-local"),
            ("src.identity", CLIENT_ID),
            ("dst.identity", SERVER_ID),
            ("src.workload", "client"),
            ("dst.workload", "server-v2"),
            ("dst.addr", server.as_str()),
        ];
        let line = access_log::find(&log, &wanted, SOON).await.unwrap();
        let bytes: u64 = line.field(received).unwrap().parse().unwrap();
        assert!(bytes > 0, "{line:?}");
    }
    let (now, [out_now, into_now]) = counted(&mesh).await.unwrap();
    assert_eq!(now, dials, "a tunnel was made");
    assert_eq!((out_now - out, into_now - into), (2.0, 2.0));
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_hold_between_pods_of_a_node() {
    let mesh = enrolled_with(&[], &[]).await;
    let log = mesh.ztunnel_of(CLIENT).unwrap().log().unwrap().clone();
    let mut held = hold(&mesh, CLIENT, SERVER).await;
    assert_eq!(inbound_of(&mesh, SERVER).await.unwrap(), 1);
    mesh.write_check_file("policy", ONLY_STRANGERS).unwrap();
    assert_eq!(held.ended(SOON).await.unwrap(), End::Reset);
    in_force(&mesh, "node-a", "shop/only-strangers").await;
    let client = mesh.cluster().client(CLIENT).unwrap();
    let server = addr(&mesh, SERVER, 9000);
    // The reset may come before the connect has returned.
    if let Ok(mut refused) = client.connect(server, SOON).await {
        assert_eq!(refused.ended(SOON).await.unwrap(), End::Reset);
    }
    let denial = "allow policies exist, but none allowed";
    for direction in ["outbound", "inbound"] {
        for why in ["change", "rejection"] {
            let error = format!("connection closed due to policy {why}: {denial}");
            let wanted = [
                ("direction", direction),
                ("path", "node-local"),
                ("error", error.as_str()),
            ];
            access_log::find(&log, &wanted, SOON).await.unwrap();
        }
    }
    assert_eq!(inbound_of(&mesh, SERVER).await.unwrap(), 0);
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_inside_a_node_outlive_a_release_and_not_the_pod() {
    let mut mesh = enrolled_with(&[], &[]).await;
    mesh.cluster().config().write("late.yaml", LATE).unwrap();
    mesh.cluster_mut().follow_pods().await.unwrap();
    let served = eventually("the late pod is served", SOON, || async {
        let dump = mesh.ztunnel("node-a")?.config_dump().await?;
        let state = &dump["workloadState"]["Kubernetes//Pod/shop/late"]["state"];
        ensure!(*state == "Up", "{state}");
        let mut first = mesh
            .cluster()
            .client(CLIENT)?
            .connect(addr(&mesh, "shop/late", 9000), SOON)
            .await?;
        first.echo(b"served").await
    });
    served.await.unwrap();
    let mut held = hold(&mesh, CLIENT, "shop/late").await;
    mesh.set_enrolment("shop", Enrolment::None).await.unwrap();
    held.echo(b"carried on").await.unwrap();
    assert_eq!(inbound_of(&mesh, "shop/late").await.unwrap(), 1);
    mesh.cluster().config().remove("late.yaml").unwrap();
    mesh.cluster_mut().follow_pods().await.unwrap();
    // Its process closed it, or the proxy cut it.
    held.ended(SOON).await.unwrap();
    let forgotten = eventually("the pod's proxy is gone", SOON, || async {
        let dump = mesh.ztunnel("node-a")?.config_dump().await?;
        let state = dump["workloadState"].get("Kubernetes//Pod/shop/late");
        ensure!(state.is_none(), "{state:?}");
        Ok(())
    });
    forgotten.await.unwrap();
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_path_inside_a_node_can_be_switched_off() {
    let mesh = enrolled_with(&["node-a"], &[("LEYLINE_NODE_LOCAL", "false")]).await;
    let log = mesh.ztunnel_of(CLIENT).unwrap().log().unwrap().clone();
    let (dials, _) = counted(&mesh).await.unwrap();
    drop(hold(&mesh, CLIENT, SERVER).await);
    let (now, _) = counted(&mesh).await.unwrap();
    assert_eq!(now - dials, 1.0);
    let wanted = [("direction", "outbound"), ("dst.workload", "server-v2")];
    let line = access_log::find(&log, &wanted, SOON).await.unwrap();
    assert_eq!(line.field("path"), None);
    assert!(line.field("dst.hbone_addr").is_some());
    mesh.stop().await.unwrap();
}
