//! Endpoints that are ejected because they are worse than the others, or fail too often (Envoy's success rate and failure
//! percentage). Istio's objects have no field for either, so a control plane in Python asks for them, and brings the endpoints.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::{Result, ensure};
use leyline_tests::{eventually::eventually, mesh::Mesh};
use nix::sys::signal::Signal;

use crate::{
    support::SOON,
    waypoint::{CANARY, mesh_with_waypoint},
    waypoint_istiod::{ADDRESS, start_server},
    waypoint_session::Session,
};

/// Which endpoints answer so many requests in turn, and how many requests failed.
async fn asked(mesh: &Mesh, vip: SocketAddr, requests: u32) -> Result<(BTreeSet<String>, u32)> {
    let mut session = Session::open(mesh, vip).await?;
    let (mut seen, mut failed) = (BTreeSet::new(), 0);
    for _ in 0..requests {
        let answer = session.get("/", &[]).await?;
        failed += u32::from(answer.status != 200);
        seen.extend(answer.header("x-endpoint").map(str::to_owned));
    }
    Ok((seen, failed))
}

/// How often the waypoint has ejected an endpoint for this reason.
async fn ejections(mesh: &Mesh, reason: &str) -> Result<f64> {
    let page = mesh.waypoint("shop/waypoint")?.metrics().await?;
    let name = "leyline_waypoint_outlier_ejections_total";
    Ok(page.sum(name, &[("reason", reason)]))
}

/// The endpoint that fails every second request is left out after some intervals, and comes back later.
async fn goes_and_returns(mesh: &Mesh, vip: SocketAddr, reason: &str) {
    eventually("the bad endpoint is left out", SOON, || async {
        let (seen, failed) = asked(mesh, vip, 20).await?;
        ensure!(seen.len() == 4 && failed == 0, "{seen:?}, {failed} failed");
        ensure!(!seen.contains("0"), "{seen:?}");
        Ok(())
    })
    .await
    .unwrap();
    assert!(ejections(mesh, reason).await.unwrap() >= 1.0, "{reason}");
    eventually("it has come back", SOON, || async {
        let (seen, _) = asked(mesh, vip, 10).await?;
        ensure!(seen.len() == 5, "{seen:?}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_is_worse_than_the_others_is_ejected_and_returns() {
    let (mut mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY])).await;
    let server = start_server(&mesh, vip, "ads_outlier.py", &[]).await;
    let env = [
        ("XDS_ADDRESS", ADDRESS),
        ("ALT_XDS_HOSTNAME", "istiod.example"),
    ];
    mesh.restart_waypoint("shop/waypoint", &env).await.unwrap();
    eventually("all endpoints answer", SOON, || async {
        let (seen, _) = asked(&mesh, vip, 10).await?;
        ensure!(seen.len() == 5, "{seen:?}");
        Ok(())
    })
    .await
    .unwrap();
    goes_and_returns(&mesh, vip, "success_rate").await;
    assert_eq!(ejections(&mesh, "failure_percentage").await.unwrap(), 0.0);
    server.signal(Signal::SIGUSR1).unwrap();
    eventually("failures count by their share", SOON, || async {
        asked(&mesh, vip, 50).await?;
        ensure!(ejections(&mesh, "failure_percentage").await? >= 1.0);
        Ok(())
    })
    .await
    .unwrap();
    goes_and_returns(&mesh, vip, "failure_percentage").await;
    assert_eq!(ejections(&mesh, "consecutive_5xx").await.unwrap(), 0.0);
    mesh.stop().await.unwrap();
}
