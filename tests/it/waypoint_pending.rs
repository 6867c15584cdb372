//! A waypoint and pods that shall be captured and are not yet: it sends them no plaintext.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use leyline_tests::{
    cluster::{Binaries, Family},
    dump::Dump,
    eventually::eventually,
    mesh::{Enrolment, Mesh, uid},
    metrics::Metrics,
};

use crate::{
    support::{SOON, mesh},
    waypoint::CANARY,
    waypoint_limits::ask,
};

/// Requests with the header go to the pod that is not captured, all others to any.
const ROUTES: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: canary, namespace: shop}
spec:
  hosts: [canary]
  http:
  - match:
    - headers: {x-version: {exact: v1}}
    route:
    - destination: {host: canary, subset: v1}
    retries: {attempts: 0}
  - route:
    - destination: {host: canary}
    retries: {attempts: 0}
";

/// The mesh with a waypoint, in which the pods of node b shall be captured, and nobody does that.
async fn half_enrolled() -> (Mesh, SocketAddr) {
    let mut mesh = mesh().await;
    mesh.ztunnel_mut("node-b").unwrap().stop().await.unwrap();
    let text = [CANARY, ROUTES].join("---\n");
    mesh.cluster().config().write("canary.yaml", &text).unwrap();
    mesh.write_label("shop", Enrolment::Ambient).unwrap();
    mesh.cluster_mut().follow_pods().await.unwrap();
    let binaries = Binaries::beside_this_test().unwrap();
    mesh.start_waypoints(&binaries.waypoint).await.unwrap();
    let settled = eventually("what node-a can capture is captured", SOON, || async {
        let dump = Dump::read(&mesh.ztunnel("node-a")?.config_dump().await?)?;
        for pod in ["shop/client", "shop/server-v2"] {
            dump.check_enrolled(&uid(pod))?;
        }
        Ok(())
    });
    settled.await.unwrap();
    let vip = mesh.cluster().vip("shop/canary", Family::V4, 80).unwrap();
    (mesh, vip)
}

async fn counted(mesh: &Mesh, result: &str) -> Result<f64> {
    let pod = mesh.cluster().pod("shop/waypoint")?;
    let page = pod.client();
    let page = page.get(pod.v4(15020), "/metrics", SOON).await?;
    let metrics = Metrics::parse(std::str::from_utf8(&page.body)?)?;
    let name = "leyline_waypoint_enrolment_pending_total";
    Ok(metrics.sum(name, &[("result", result)]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waypoint_sends_no_plaintext_to_a_pod_that_is_not_captured_yet() {
    let (mut mesh, vip) = Box::pin(half_enrolled()).await;
    // Any endpoint: the one that is captured.
    eventually("the service answers", SOON, || async {
        let reply = ask(&mesh, vip, "/", "").await?;
        ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        Ok(())
    })
    .await
    .unwrap();
    for _ in 0..20 {
        let reply = ask(&mesh, vip, "/", "").await.unwrap();
        assert!(reply.contains(r#""version": "v2""#), "{reply}");
    }
    assert_eq!(counted(&mesh, "refused").await.unwrap(), 0.0);

    // Only the other one: held, then refused, and the log says why.
    let v1 = "x-version: v1\r\n";
    let reply = ask(&mesh, vip, "/", v1).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 503"), "{reply}");
    assert_eq!(counted(&mesh, "refused").await.unwrap(), 1.0);

    // Held, and captured meanwhile.
    let before = counted(&mesh, "held").await.unwrap();
    let namespace = mesh.cluster().client("shop/client").unwrap();
    let mut held = namespace.connect(vip, SOON).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nhost: canary\r\n{v1}connection: close\r\n\r\n");
    held.write(request.as_bytes()).await.unwrap();
    eventually("it is held", SOON, || async {
        let now = counted(&mesh, "held").await?;
        ensure!(now > before, "{now} were held");
        Ok(())
    })
    .await
    .unwrap();
    mesh.start_ztunnel("node-b").unwrap();
    mesh.ztunnel_ready("node-b").await.unwrap();
    let reply = held.read_to_end().await.unwrap();
    let reply = String::from_utf8(reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    assert!(reply.contains(r#""version": "v1""#), "{reply}");
    mesh.stop().await.unwrap();
}
