//! Pods that shall be captured and are not yet: nobody in the mesh sends plaintext to them.

use anyhow::ensure;
use leyline_tests::{
    dump::Dump,
    eventually::eventually,
    mesh::{Enrolment, uid},
};

use crate::support::{SOON, addr, mesh};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_plaintext_reaches_a_pod_that_is_not_captured_yet() {
    let mut mesh = mesh().await;
    mesh.ztunnel_mut("node-b").unwrap().stop().await.unwrap();
    mesh.write_label("shop", Enrolment::Ambient).unwrap();
    let settled = eventually("what node-a can capture is captured", SOON, || async {
        let dump = Dump::read(&mesh.ztunnel("node-a")?.config_dump().await?)?;
        for pod in ["shop/client", "shop/server-v2"] {
            dump.check_enrolled(&uid(pod))?;
        }
        Ok(())
    });
    settled.await.unwrap();
    let client = mesh.cluster().client("shop/client").unwrap();
    let target = addr(&mesh, "shop/server-v1", 8080);
    client.get(target, "/", SOON).await.unwrap_err();
    let metrics = mesh.ztunnel("node-a").unwrap().metrics().await.unwrap();
    let labels = [("reason", "enrolment_pending")];
    let refused = metrics.sum("leyline_connections_refused_total", &labels);
    assert!(refused >= 1.0, "not counted");
    // By service, the call goes to the endpoint that is captured.
    let service = mesh
        .cluster()
        .vip("shop/server", leyline_tests::cluster::Family::V4, 80)
        .unwrap();
    for _ in 0..8 {
        client.get(service, "/", SOON).await.unwrap();
    }

    mesh.start_ztunnel("node-b").unwrap();
    mesh.ztunnel_ready("node-b").await.unwrap();
    let reached = eventually("it is captured and reached", SOON * 2, || async {
        client.get(target, "/", SOON).await?;
        for dump in mesh.dumps().await?.values() {
            ensure!(
                dump.check_enrolled(&uid("shop/server-v1")).is_ok(),
                "not yet"
            );
        }
        Ok(())
    });
    reached.await.unwrap();
    mesh.stop().await.unwrap();
}
