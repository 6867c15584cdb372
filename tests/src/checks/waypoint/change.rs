//! Changes while requests flow: of a route, of the waypoint's process, and one with a mistake in it.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::future::{join, try_join_all};
use http::StatusCode;

use super::{
    Document, FRONTEND, PARALLEL, WAYPOINT, document, get, in_force, service, session, version,
};
use crate::{eventually::eventually, mesh::Mesh};

const CANARY: [Document; 2] = [
    document!("VirtualService", "canary.virtual-service.yaml"),
    document!("HTTPRoute", "canary.http-route.yaml"),
];
const RETRY: Document = document!("VirtualService", "retry.virtual-service.yaml");
const BROKEN: &str =
    include_str!("../../../../manifests/demo/bookstore/routes/broken.virtual-service.yaml");
/// Edits under load, of each kind.
const EDITS: usize = 5;

/// Routes are edited again and again while requests flow: each edit acts, and no request fails.
pub(in crate::checks) async fn live(mesh: &Mesh) -> Result<String> {
    let (stop, requests) = (AtomicBool::new(false), AtomicUsize::new(0));
    let load = (0..PARALLEL).map(|_| async {
        let mut session = session(mesh, "reviews").await?;
        while !stop.load(Ordering::Relaxed) {
            let answer = session.get("/", &[]).await?;
            ensure!(answer.status == StatusCode::OK, "{answer:?}");
            requests.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    });
    let edits = async {
        let outcome = edits(mesh).await;
        stop.store(true, Ordering::Relaxed);
        outcome
    };
    let (load, slowest) = join(try_join_all(load), edits).await;
    load.context("a request failed")?;
    Ok(format!(
        "{} edits, each in force within {} ms; {} requests, none failed",
        EDITS * CANARY.len() * 2,
        slowest?.as_millis(),
        requests.load(Ordering::Relaxed)
    ))
}

async fn edits(mesh: &Mesh) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    for route in &CANARY {
        for _ in 0..EDITS {
            for (tester, expected) in [("yes", "v2"), ("no", "v1")] {
                // Who is a tester is what changes.
                let yaml = route.yaml.replace("\"yes\"", &format!("\"{tester}\""));
                mesh.write_check_file("route", &yaml)?;
                let after = in_force(mesh, route.kind, || async {
                    let seen = version(mesh, "reviews", &[("x-tester", "yes")]).await?;
                    ensure!(seen == expected, "{seen} answered");
                    Ok(())
                })
                .await?;
                slowest = slowest.max(after);
            }
        }
    }
    Ok(slowest)
}

/// Without its waypoint a service is refused and nothing goes around; with it, it is back.
pub(in crate::checks) async fn killed(mesh: &mut Mesh) -> Result<String> {
    let refusal = mesh.limits().refusal;
    version(mesh, "reviews", &[]).await?;
    mesh.kill_waypoint(WAYPOINT).await?;
    let target = service(mesh, "reviews")?;
    let client = mesh.cluster().client(FRONTEND)?;
    for _ in 0..PARALLEL {
        let reply = client.get(target, "/", refusal).await;
        ensure!(reply.is_err(), "answered without the waypoint: {reply:?}");
    }
    mesh.start_waypoint(WAYPOINT)?;
    let ((), back) = eventually("reviews is back", mesh.limits().restart, || async {
        version(mesh, "reviews", &[]).await.map(drop)
    })
    .await?;
    mesh.waypoint_mut(WAYPOINT)?.ready().await?;
    Ok(format!(
        "{PARALLEL} calls refused and none around it; back {} ms after its start",
        back.as_millis()
    ))
}

/// A VirtualService with a mistake: reported; the last good one and everything else stay in force.
pub(in crate::checks) async fn mistake(mesh: &Mesh) -> Result<String> {
    let stays = || async {
        for _ in 0..10 {
            let answer = get(mesh, "ratings", "/", &[]).await?;
            ensure!(answer.status == StatusCode::OK, "{}", answer.status);
        }
        Ok(())
    };
    RETRY.apply(mesh, stays).await?;
    let log = mesh.controlplane().log()?.from_now()?;
    mesh.write_check_file("route", BROKEN)?;
    let ((), after) = eventually("a report of the mistake", mesh.limits().edit, || async {
        let lines = log.lines()?;
        let reported =
            |line: &String| line.contains("check-route.yaml") && line.contains("timeuot");
        ensure!(lines.iter().any(reported), "{}", log.tail());
        Ok(())
    })
    .await?;
    stays().await.context("the last good version")?;
    mesh.write_check_file("other", CANARY[0].yaml)?;
    in_force(mesh, "a route of another service", || async {
        let seen = version(mesh, "reviews", &[("x-tester", "yes")]).await?;
        ensure!(seen == "v2", "{seen} answered");
        Ok(())
    })
    .await?;
    stays().await.context("the last good version, later")?;
    Ok(format!(
        "reported with file and field after {} ms, the last good version kept, another service's route goes into force",
        after.as_millis()
    ))
}
