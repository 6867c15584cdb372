//! A waypoint asks what is near, and what is far when that fails. The waypoint and v2 are in zone 1, v1 is in zone 2.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use leyline_tests::eventually::eventually;

use crate::{
    support::SOON,
    waypoint::{CANARY, mesh_with_waypoint},
    waypoint_session::Session,
};

fn rule(policy: &str) -> String {
    CANARY.replace(
        "  host: canary\n",
        &format!("  host: canary\n  trafficPolicy:\n{policy}"),
    )
}

async fn versions(session: &mut Session, requests: usize) -> Result<BTreeMap<String, usize>> {
    let mut versions = BTreeMap::new();
    for _ in 0..requests {
        *versions
            .entry(session.get("/", &[]).await?.version()?)
            .or_default() += 1;
    }
    Ok(versions)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn near_endpoints_are_asked_first_and_shares_are_kept() {
    let outlier = "    outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 4s, maxEjectionPercent: 100}\n";
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[&rule(outlier)])).await;
    let only = async |version: &str| {
        let mut session = Session::open(&mesh, vip).await?;
        let versions = versions(&mut session, 20).await?;
        ensure!(versions.get(version) == Some(&20), "{versions:?}");
        Ok(())
    };
    eventually("the near version answers", SOON, || only("v2"))
        .await
        .unwrap();
    let mut session = Session::open(&mesh, vip).await.unwrap();
    assert_eq!(session.get("/fail/v2/500", &[]).await.unwrap().status, 500);
    let after = versions(&mut session, 10).await.unwrap();
    assert_eq!(after, [("v1".to_owned(), 10)].into());
    eventually("the near version is back", SOON, || only("v2"))
        .await
        .unwrap();

    let shares = "    loadBalancer: {localityLbSetting: {distribute: [{from: local/zone-1/*, to: {local/zone-1/*: 25, local/zone-2/*: 75}}]}}\n";
    mesh.cluster()
        .config()
        .write("canary.yaml", &rule(shares))
        .unwrap();
    eventually("the far zone has its share", SOON, || async {
        let mut session = Session::open(&mesh, vip).await?;
        let versions = versions(&mut session, 200).await?;
        let far = versions.get("v1").copied().unwrap_or_default();
        // Three times the standard deviation of 75 % of 200.
        ensure!((131..=169).contains(&far), "{versions:?}");
        Ok(())
    })
    .await
    .unwrap();
    mesh.stop().await.unwrap();
}
