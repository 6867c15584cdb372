//! A version for some: by header, by weight, and as a mirror. With VirtualService and with HTTPRoute.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::StatusCode;

use super::{Document, REVIEWS_V2, check_share, document, get, many, requests_of, version};
use crate::{eventually::eventually, mesh::Mesh};

const BY_HEADER: [Document; 2] = [
    document!("VirtualService", "canary.virtual-service.yaml"),
    document!("HTTPRoute", "canary.http-route.yaml"),
];
const BY_WEIGHT: [Document; 2] = [
    document!("VirtualService", "weights.virtual-service.yaml"),
    document!("HTTPRoute", "weights.http-route.yaml"),
];
const MIRROR: [Document; 2] = [
    document!("VirtualService", "mirror.virtual-service.yaml"),
    document!("HTTPRoute", "mirror.http-route.yaml"),
];
const TESTER: [(&str, &str); 1] = [("x-tester", "yes")];
const WEIGHED: usize = 1000;
const MIRRORED: u64 = 50;

pub(in crate::checks) async fn check(mesh: &Mesh) -> Result<String> {
    let mut slowest = Duration::ZERO;
    for route in &BY_HEADER {
        let after = route.apply(mesh, || by_header(mesh)).await;
        slowest = slowest.max(after.context("by header")?);
    }
    let mut shares = Vec::new();
    for route in &BY_WEIGHT {
        let after = route.apply(mesh, || both_answer(mesh)).await;
        slowest = slowest.max(after.with_context(|| format!("{} by weight", route.kind))?);
        let mut canary = 0;
        for timed in many(mesh, "reviews", WEIGHED).await? {
            ensure!(timed.answer.status == StatusCode::OK, "{:?}", timed.answer);
            canary += usize::from(timed.answer.version()? == "v2");
        }
        check_share(route.kind, canary, WEIGHED, 10)?;
        shares.push(format!("{canary} with {}", route.kind));
    }
    Ok(format!(
        "a header chooses the version; 10 % of {WEIGHED}: {}; each route in force within {} ms",
        shares.join(", "),
        slowest.as_millis()
    ))
}

async fn by_header(mesh: &Mesh) -> Result<()> {
    for (headers, expected) in [(&TESTER[..], "v2"), (&[][..], "v1")] {
        let seen = version(mesh, "reviews", headers).await?;
        ensure!(seen == expected, "{seen} answered {headers:?}");
    }
    Ok(())
}

/// Testers are no longer told apart: of their requests one in ten is answered by version 2.
async fn both_answer(mesh: &Mesh) -> Result<()> {
    for _ in 0..3 {
        let seen = version(mesh, "reviews", &TESTER).await?;
        if seen == "v1" {
            return Ok(());
        }
    }
    anyhow::bail!("testers still get version 2")
}

/// Version 2 is sent a copy of each request.
pub(in crate::checks) async fn mirror(mesh: &Mesh) -> Result<String> {
    let mut slowest = Duration::ZERO;
    for route in &MIRROR {
        let after = route.apply(mesh, || is_mirrored(mesh)).await;
        slowest = slowest.max(after.with_context(|| route.kind)?);
        let before = requests_of(mesh, REVIEWS_V2).await?;
        for _ in 0..MIRRORED {
            let seen = version(mesh, "reviews", &[]).await?;
            ensure!(seen == "v1", "{seen} answered");
        }
        let asked = std::sync::atomic::AtomicU64::new(0);
        let all = format!("{} copies of {MIRRORED} requests", route.kind);
        eventually(all, mesh.limits().call, || async {
            let own = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
            let copies = requests_of(mesh, REVIEWS_V2).await? - before - own;
            ensure!(copies == MIRRORED, "{copies} copies");
            Ok(())
        })
        .await?;
        mesh.remove_check_file("route")?;
    }
    Ok(format!(
        "{MIRRORED} requests and {MIRRORED} copies, with VirtualService and with HTTPRoute; in force within {} ms",
        slowest.as_millis()
    ))
}

/// Looks at the mirror until it has seen one more request than ours.
async fn is_mirrored(mesh: &Mesh) -> Result<()> {
    let before = requests_of(mesh, REVIEWS_V2).await?;
    let answer = get(mesh, "reviews", "/", &[]).await?;
    ensure!(answer.version()? == "v1", "version 2 answers itself");
    let after = requests_of(mesh, REVIEWS_V2).await?;
    ensure!(after == before + 2, "no copy arrived");
    Ok(())
}
