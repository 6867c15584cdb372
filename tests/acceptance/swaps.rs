//! A service that changes its waypoint under load.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use leyline_tests::session::Session;

use crate::{
    case::get,
    waypoints::{ROW, comes_from, service},
    world::{SOON, World},
};

/// A service goes from one waypoint to another and back, and no call fails: neither on a new connection nor on one that the
/// client keeps for as long as it may.
pub(crate) async fn waypoint_changes(world: &World) -> Result<()> {
    let swap = |name: &str| world.apply(&service(&format!("istio.io/use-waypoint: {name}")));
    swap("waypoint")?;
    comes_from(world, "apps/waypoint").await?;
    let is_over = AtomicBool::new(false);
    let swaps = async {
        for name in ["other", "waypoint", "other", "waypoint"] {
            swap(name)?;
            comes_from(world, &format!("apps/{name}")).await?;
        }
        is_over.store(true, Ordering::Release);
        Ok::<_, anyhow::Error>(())
    };
    let fresh = async {
        let mut calls = 0;
        while !is_over.load(Ordering::Acquire) {
            let reply = get(ROW, "/").ask(world).await;
            let reply = reply.with_context(|| format!("call {calls} on a new connection"))?;
            ensure!(
                reply.status.as_u16() == 200,
                "call {calls}: {}",
                reply.status
            );
            calls += 1;
        }
        ensure!(calls >= 20, "only {calls} calls");
        Ok(())
    };
    let kept = async {
        let (mut calls, mut connections) = (0, 0);
        while !is_over.load(Ordering::Acquire) {
            let mut session = Session::open(&world.client()?, world.target(ROW)?, SOON).await?;
            connections += 1;
            while !is_over.load(Ordering::Acquire) {
                let answer = session.get("/", &[]).await;
                let answer = answer.with_context(|| format!("call {calls}, {connections}"))?;
                ensure!(answer.status == 200, "call {calls}: {}", answer.status);
                calls += 1;
                if answer
                    .headers
                    .get("connection")
                    .is_some_and(|it| it == "close")
                {
                    break;
                }
            }
        }
        ensure!(
            calls >= 20 && connections > 1,
            "{calls} calls, {connections} connections"
        );
        Ok(())
    };
    tokio::try_join!(swaps, fresh, kept).map(|_| ())
}
