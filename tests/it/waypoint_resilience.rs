//! What a waypoint spares its endpoints: those that fail are left out for a while, and nobody gets more than the limits.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::{Result, ensure};
use leyline_tests::{eventually::eventually, mesh::Mesh};
use tokio::task::JoinSet;

use crate::{
    support::SOON,
    waypoint::{CANARY, mesh_with_waypoint},
    waypoint_session::Session,
};

/// The service's rule with more in its traffic policy.
fn rule(policy: &str) -> String {
    CANARY.replace(
        "  host: canary\n",
        &format!(
            "  host: canary\n  trafficPolicy:\n    loadBalancer: {{simple: ROUND_ROBIN, localityLbSetting: {{enabled: false}}}}\n{policy}"
        ),
    )
}

/// Access logs are written where they are asked for.
const ACCESS_LOG: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    accessLogFile: /dev/stdout
";

/// Which endpoints are ejected, as the waypoint's own page says.
async fn ejected(mesh: &Mesh) -> Result<usize> {
    let page = mesh
        .waypoint("shop/waypoint")?
        .admin("/clusters?format=json")
        .await?;
    let endpoints = page["inbound-vip|80|http|canary.shop.svc.cluster.local"].as_array();
    let endpoints = endpoints.into_iter().flatten();
    Ok(endpoints.filter(|one| one["ejected"] == true).count())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_fails_is_ejected_and_returns() {
    let outlier = "    outlierDetection: {consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 4s, maxEjectionPercent: 50}\n";
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[&rule(outlier)])).await;
    let mut session = Session::open(&mesh, vip).await.unwrap();
    eventually("both versions answer", SOON, || async {
        let mut session = Session::open(&mesh, vip).await?;
        let mut versions = BTreeSet::new();
        for _ in 0..4 {
            versions.insert(session.get("/", &[]).await?.version()?);
        }
        ensure!(versions.len() == 2, "{versions:?}");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(ejected(&mesh).await.unwrap(), 0);

    // In turn: three answers of v1, one after each of v2.
    let mut failures = 0;
    let mut in_a_row = 0;
    for _ in 0..100 {
        match session.get("/fail/v1/500", &[]).await.unwrap().status {
            500 => (failures, in_a_row) = (failures + 1, 0),
            status => {
                assert_eq!(status, 200);
                in_a_row += 1;
            }
        }
        if in_a_row == 10 {
            break;
        }
    }
    assert_eq!((failures, in_a_row), (3, 10));
    assert_eq!(ejected(&mesh).await.unwrap(), 1);
    eventually("v1 has come back", SOON, || async {
        let mut session = Session::open(&mesh, vip).await?;
        let answers = [session.get("/", &[]).await?, session.get("/", &[]).await?];
        let versions = [answers[0].version()?, answers[1].version()?];
        ensure!(versions.contains(&"v1".to_owned()), "{versions:?}");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(ejected(&mesh).await.unwrap(), 0);
    mesh.stop().await.unwrap();
}

/// Statuses of requests at the same time, each on a connection of its own, with what the header says of overload.
async fn at_once(mesh: &Mesh, vip: SocketAddr, count: usize) -> Vec<(u16, bool)> {
    let mut sessions = Vec::new();
    for _ in 0..count {
        sessions.push(Session::open(mesh, vip).await.unwrap());
    }
    let mut asking = JoinSet::new();
    for mut session in sessions {
        asking.spawn(async move {
            let answer = session.get("/slow/1500", &[]).await.unwrap();
            let overloaded = answer.header("x-envoy-overloaded") == Some("true");
            (answer.status, overloaded)
        });
    }
    asking.join_all().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_the_limits_is_refused_at_once() {
    let limits = "    connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1, maxRequestsPerConnection: 1}}\n";
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[&rule(limits), ACCESS_LOG])).await;
    eventually(
        "every request has a connection of its own",
        SOON,
        || async {
            let mut session = Session::open(&mesh, vip).await?;
            let mut peers = BTreeSet::new();
            for _ in 0..6 {
                peers.insert(session.get("/", &[]).await?.description()?.peer);
            }
            ensure!(peers.len() == 6, "{peers:?}");
            Ok(())
        },
    )
    .await
    .unwrap();
    let mut answers = at_once(&mesh, vip, 12).await;
    answers.sort_unstable();
    let served = answers.iter().filter(|(status, _)| *status == 200).count();
    // One for each endpoint, and one that waited; never more than that.
    assert!((1..=3).contains(&served), "{answers:?}");
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, (200, false) | (503, true))),
        "{answers:?}"
    );
    let log = mesh.waypoint("shop/waypoint").unwrap().log().unwrap();
    eventually("the log says UO", SOON, || async {
        ensure!(
            log.tail().contains(r#"HTTP/1.1" 503 UO "#),
            "{}",
            log.tail()
        );
        Ok(())
    })
    .await
    .unwrap();
    mesh.stop().await.unwrap();
}
