//! How requests through a waypoint end when one side does not play by the rules: a client that is still sending, a pod that is
//! gone without a word.

use anyhow::ensure;
use leyline_tests::{cni, eventually::eventually, process::output};
use tokio::time::{Duration, Instant};

use crate::{
    support::SOON,
    waypoint::{CANARY, mesh_with_waypoint},
};

/// More than a client can get rid of before it is answered, and more than is read of it.
const STILL_SENDING: usize = 600 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY])).await;
    let client = mesh.cluster().client("shop/client").unwrap();
    eventually("the service is served", SOON, || async {
        let reply = client.get(vip, "/", SOON).await?;
        ensure!(reply.status == 200, "{}", reply.status);
        Ok(())
    })
    .await
    .unwrap();
    let mut request =
        b"GET / HTTP/1.1\r\nhost: canary\r\nconnection: upgrade\r\nupgrade: leyline\r\n\r\n"
            .to_vec();
    request.resize(request.len() + STILL_SENDING, b'x');
    for turn in 0..20 {
        let mut connection = client.connect(vip, SOON).await.unwrap();
        connection.write(&request).await.unwrap();
        let reply = connection.read_to_end().await;
        let reply = reply.unwrap_or_else(|error| panic!("turn {turn}: {error:#}"));
        let reply = String::from_utf8_lossy(&reply);
        assert!(reply.starts_with("HTTP/1.1 403"), "turn {turn}: {reply}");
    }
    mesh.stop().await.unwrap();
}

/// Nobody is told that the pod is gone: its packets are lost from one moment to the next, in tunnels that are open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_vanishes_costs_its_requests_seconds() {
    let rule = CANARY.replace(
        "  host: canary\n",
        "  host: canary\n  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN, localityLbSetting: {enabled: false}}}\n",
    );
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[&rule])).await;
    let client = mesh.cluster().client("shop/client").unwrap();
    eventually("both pods answer", SOON, || async {
        let mut pods = std::collections::BTreeSet::new();
        for _ in 0..4 {
            let reply = client.get(vip, "/", SOON).await?;
            pods.insert(reply.description()?.pod);
        }
        ensure!(pods.len() == 2, "{pods:?}");
        Ok(())
    })
    .await
    .unwrap();
    let namespace = mesh.cluster().pod("shop/server-v1").unwrap().namespace();
    for chain in ["PREROUTING", "OUTPUT"] {
        let rule = format!("-w -t raw -A {chain} -p tcp -j DROP");
        let rule: Vec<&str> = rule.split(' ').collect();
        output(&cni::tool("iptables", &rule, namespace), SOON)
            .await
            .unwrap();
    }
    // In turn, so that the second at the latest is sent into the dead tunnel.
    let mut lost = None;
    for _ in 0..2 {
        let began = Instant::now();
        let reply = client.get(vip, "/", SOON * 3).await.unwrap();
        if reply.status == 503 {
            lost = Some(began.elapsed());
            break;
        }
        assert_eq!(reply.status, 200);
    }
    let lost = lost.expect("a request was sent to the pod that is gone");
    assert!(lost < Duration::from_secs(9), "{lost:?}");
    // Nobody connects to it any more: the default policy tries the other.
    for _ in 0..2 {
        let reply = client.get(vip, "/", SOON * 3).await.unwrap();
        assert_eq!(reply.status, 200);
        assert_eq!(reply.description().unwrap().pod, "server-v2");
    }
    mesh.stop().await.unwrap();
}
