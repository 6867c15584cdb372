//! Parts of a captured pod that its owner keeps out of capture, by Istio's annotations.

use anyhow::{bail, ensure};
use leyline_tests::{
    access_log,
    client::End,
    eventually::eventually,
    mesh::{Enrolment, Mesh},
};
use tokio::{sync::watch, task::JoinSet};

use crate::support::{SOON, addr, enrolled_with, hold, load};

const SERVER: &str = "shop/server-v1";
const CLIENT_ID: &str = "spiffe://cluster.local/ns/shop/sa/client";
const STRICT: &str = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

/// The shop with the pod as it is, and with the annotation.
fn shop(mesh: &Mesh) -> [String; 2] {
    let plain = mesh.cluster().config().read("shop.yaml").unwrap();
    let pod = "kind: Pod\nmetadata:\n  name: server-v1\n";
    let annotation = "  annotations: {ambient.istio.io/bypass-inbound-capture: \"true\"}\n";
    let exempt = plain.replacen(pod, &format!("{pod}{annotation}"), 1);
    assert_ne!(exempt, plain);
    [plain, exempt]
}

/// Waits until plaintext from outside the mesh reaches the server, or is refused.
async fn plaintext(mesh: &Mesh, expected: End) {
    let what = format!("plaintext of strangers: {expected:?}");
    let outsider = mesh.cluster().client("legacy/legacy").unwrap();
    let target = addr(mesh, SERVER, 8080);
    let done = eventually(what, SOON, || async {
        match (outsider.get(target, "/", SOON).await, expected) {
            (Ok(_), End::Finished) | (Err(_), End::Reset) => Ok(()),
            (Ok(_), End::Reset) => bail!("it is answered"),
            (Err(error), End::Finished) => Err(error),
        }
    });
    done.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_may_take_plaintext_itself_and_keeps_its_tunnels() {
    let mesh = enrolled_with(&[], &[]).await;
    mesh.write_check_file("strict", STRICT).unwrap();
    let config = mesh.cluster().config();
    let [plain, exempt] = shop(&mesh);
    plaintext(&mesh, End::Reset).await;
    let mut held = hold(&mesh, "shop/client", SERVER).await;
    let (stop, stopped) = watch::channel(false);
    let mut calls = JoinSet::new();
    let client = mesh.cluster().client("shop/client").unwrap();
    let target = addr(&mesh, SERVER, 8080);
    calls.spawn(load(client.clone(), target, stopped));

    config.write("shop.yaml", &exempt).unwrap();
    plaintext(&mesh, End::Finished).await;
    // Who is in the mesh comes by a tunnel as before.
    let log = mesh.ztunnel("node-b").unwrap().log().unwrap();
    let log = log.from_now().unwrap();
    client.get(target, "/", SOON).await.unwrap();
    let wanted = [
        ("direction", "inbound"),
        ("src.identity", CLIENT_ID),
        ("dst.workload", "server-v1"),
    ];
    access_log::find(&log, &wanted, SOON).await.unwrap();
    held.echo(b"still there").await.unwrap();

    config.write("shop.yaml", &plain).unwrap();
    plaintext(&mesh, End::Reset).await;
    held.echo(b"still there").await.unwrap();
    stop.send(true).unwrap();
    let made: usize = calls.join_all().await.into_iter().sum();
    assert!(made > 0, "nobody called meanwhile");
    // Nothing of it outlives the enrolment.
    mesh.set_enrolment("shop", Enrolment::None).await.unwrap();
    plaintext(&mesh, End::Finished).await;
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pod_keeps_out_is_remembered_by_the_next_proxy() {
    let mut mesh = enrolled_with(&[], &[]).await;
    mesh.write_check_file("strict", STRICT).unwrap();
    let [_, exempt] = shop(&mesh);
    let config = mesh.cluster().config();
    config.write("shop.yaml", &exempt).unwrap();
    plaintext(&mesh, End::Finished).await;
    mesh.restart_ztunnel("node-b", &[]).await.unwrap();
    plaintext(&mesh, End::Finished).await;
    let client = mesh.cluster().client("shop/client").unwrap();
    let reached = eventually("tunnels are taken again", SOON, || async {
        let reply = client.get(addr(&mesh, SERVER, 8080), "/", SOON).await?;
        ensure!(reply.status == 200, "{}", reply.status);
        Ok(())
    });
    reached.await.unwrap();
    mesh.stop().await.unwrap();
}
