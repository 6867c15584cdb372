//! How a waypoint spreads requests over endpoints, and ties those together that belong together.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use anyhow::{Result, ensure};
use leyline_tests::{eventually::eventually, mesh::Mesh};

use crate::{
    support::SOON,
    waypoint::{CANARY, mesh_with_waypoint},
    waypoint_session::Session,
};

/// The service's rule with another load balancer.
fn rule(balancer: &str) -> String {
    CANARY.replace(
        "  host: canary\n",
        &format!("  host: canary\n  trafficPolicy:\n    loadBalancer: {balancer}\n"),
    )
}

/// Writes the rule and waits until a probe sees its effect.
async fn balance<F, Fut>(mesh: &Mesh, balancer: &str, probe: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<()>>,
{
    mesh.cluster()
        .config()
        .write("canary.yaml", &rule(balancer))
        .unwrap();
    eventually(format!("requests are balanced by {balancer}"), SOON, probe)
        .await
        .unwrap();
}

/// Versions that answer requests on one connection.
async fn versions(
    mesh: &Mesh,
    vip: SocketAddr,
    requests: usize,
) -> Result<BTreeMap<String, usize>> {
    let mut session = Session::open(mesh, vip).await?;
    let mut versions = BTreeMap::new();
    for _ in 0..requests {
        let reply = session.get("/", &[]).await?;
        *versions.entry(reply.version()?).or_default() += 1;
    }
    Ok(versions)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_one_connection_are_balanced_in_turn() {
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[&rule("{simple: ROUND_ROBIN}")])).await;
    eventually("requests take turns", SOON, || async {
        let versions = versions(&mesh, vip, 40).await?;
        ensure!(versions.values().eq(&[20, 20]), "{versions:?}");
        Ok(())
    })
    .await
    .unwrap();
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_a_header_a_cookie_a_parameter_or_a_client_stay_with_an_endpoint() {
    let by_header = "{consistentHash: {httpHeaderName: x-user}}";
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[&rule(by_header)])).await;
    // Which version answers each of twenty users, three times.
    let by_user = |path: fn(usize) -> String| {
        let mesh = &mesh;
        move || async move {
            let mut session = Session::open(mesh, vip).await?;
            let mut all = BTreeSet::new();
            for user in 0..20 {
                let (name, path) = (format!("user-{user}"), path(user));
                let mut versions = BTreeSet::new();
                for _ in 0..3 {
                    let reply = session.get(&path, &[("x-user", &name)]).await?;
                    versions.insert(reply.version()?);
                }
                ensure!(versions.len() == 1, "{name} is answered by {versions:?}");
                all.extend(versions);
            }
            ensure!(all.len() == 2, "only {all:?} was asked");
            Ok(())
        }
    };
    balance(&mesh, by_header, by_user(|_| "/".to_owned())).await;
    let maglev = "{consistentHash: {httpQueryParameterName: user, maglev: {tableSize: 251}}}";
    balance(&mesh, maglev, by_user(|user| format!("/?user={user}"))).await;

    // All from one client, whatever its connection.
    balance(&mesh, "{consistentHash: {useSourceIp: true}}", || async {
        let mut all = BTreeSet::new();
        for _ in 0..10 {
            all.extend(versions(&mesh, vip, 2).await?.into_keys());
        }
        ensure!(all.len() == 1, "one client is answered by {all:?}");
        Ok(())
    })
    .await;

    let cookie = "{consistentHash: {httpCookie: {name: user, path: /, ttl: 3600s}}}";
    balance(&mesh, cookie, || async {
        let mut all = BTreeSet::new();
        for _ in 0..20 {
            let mut session = Session::open(&mesh, vip).await?;
            let first = session.get("/", &[]).await?;
            let set = first.header("set-cookie").unwrap_or_default().to_owned();
            ensure!(set.contains("; Max-Age=3600; Path=/; HttpOnly"), "{set}");
            let pair = set.split(';').next().unwrap_or_default();
            for _ in 0..3 {
                let next = session.get("/", &[("cookie", pair)]).await?;
                ensure!(next.header("set-cookie").is_none(), "a second cookie");
                ensure!(
                    next.version()? == first.version()?,
                    "{pair} leads to two versions"
                );
            }
            all.insert(first.version()?);
        }
        ensure!(all.len() == 2, "only {all:?} was asked");
        Ok(())
    })
    .await;
    mesh.stop().await.unwrap();
}
