//! Retries, timeouts and faults.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use tokio::time::Instant;

use super::{Document, check_share, document, get, many, requests_of};
use crate::mesh::Mesh;

const RETRY: Document = document!("VirtualService", "retry.virtual-service.yaml");
const TIMEOUT: [Document; 2] = [
    document!("VirtualService", "timeout.virtual-service.yaml"),
    document!("HTTPRoute", "timeout.http-route.yaml"),
];
const FAULTS: Document = document!("VirtualService", "faults.virtual-service.yaml");
/// Of `ratings`; answers 503.
const BROKEN: &str = "bookstore/ratings-v2";
const RETRIED: usize = 200;
const FAULTY: usize = 1000;
/// Milliseconds of an answer that is too late. A request of before the edit takes as long, and then another must still
/// begin within the time that an edit may take.
const SLOW: u64 = 600;
const DELAY: Duration = Duration::from_millis(400);

pub(in crate::checks) async fn check(mesh: &Mesh) -> Result<String> {
    let hidden = retries(mesh).await.context("retries")?;
    let cut = timeouts(mesh).await.context("timeouts")?;
    Ok(format!("{hidden}; {cut}"))
}

/// One of two endpoints fails, and clients do not notice.
async fn retries(mesh: &Mesh) -> Result<String> {
    let before = failures(mesh).await?;
    check_share("answers of the broken endpoint", before, RETRIED, 50)?;
    RETRY
        .apply(mesh, || async {
            for _ in 0..10 {
                let answer = get(mesh, "ratings", "/", &[]).await?;
                ensure!(answer.status == StatusCode::OK, "{}", answer.status);
            }
            Ok(())
        })
        .await?;
    let asked = requests_of(mesh, BROKEN).await?;
    let after = failures(mesh).await?;
    ensure!(after == 0, "{after} of {RETRIED} requests failed");
    let asked = requests_of(mesh, BROKEN).await? - asked - 1;
    ensure!(asked > 0, "the broken endpoint was not even asked");
    Ok(format!(
        "{before} of {RETRIED} requests failed, with retries none ({asked} were answered by another endpoint)"
    ))
}

async fn failures(mesh: &Mesh) -> Result<usize> {
    let answers = many(mesh, "ratings", RETRIED).await?;
    let failed = answers
        .iter()
        .filter(|it| it.answer.status != StatusCode::OK);
    Ok(failed.count())
}

async fn timeouts(mesh: &Mesh) -> Result<String> {
    let mut slowest = Duration::ZERO;
    for route in &TIMEOUT {
        mesh.remove_check_file("route")?;
        let slow = || async {
            let answer = get(mesh, "reviews", &format!("/slow/{SLOW}"), &[]).await?;
            let expected = StatusCode::GATEWAY_TIMEOUT;
            ensure!(answer.status == expected, "{}", answer.status);
            Ok(())
        };
        route.apply(mesh, slow).await.context(route.kind)?;
        let start = Instant::now();
        slow().await?;
        slowest = slowest.max(start.elapsed());
        let quick = get(mesh, "reviews", "/", &[]).await?;
        ensure!(quick.status == StatusCode::OK, "{}", quick.status);
    }
    ensure!(
        (Duration::from_millis(300)..Duration::from_millis(SLOW)).contains(&slowest),
        "504 after {slowest:?}"
    );
    Ok(format!(
        "a timeout of 300 ms answers 504 after {} ms",
        slowest.as_millis()
    ))
}

/// Delays and aborts, each for its share.
pub(in crate::checks) async fn faults(mesh: &Mesh) -> Result<String> {
    let after = FAULTS
        .apply(mesh, || async {
            let answers = many(mesh, "reviews", 100).await?;
            let aborted = |it: &super::Timed| it.answer.status != StatusCode::OK;
            ensure!(answers.iter().any(aborted), "none of 100 is aborted");
            Ok(())
        })
        .await?;
    let (mut delayed, mut aborted) = (0, 0);
    for timed in many(mesh, "reviews", FAULTY).await? {
        delayed += usize::from(timed.took >= DELAY);
        match timed.answer.status {
            StatusCode::OK => {}
            StatusCode::INTERNAL_SERVER_ERROR => aborted += 1,
            other => anyhow::bail!("status {other}"),
        }
    }
    check_share("delays", delayed, FAULTY, 10)?;
    check_share("aborts", aborted, FAULTY, 5)?;
    Ok(format!(
        "of {FAULTY} requests {delayed} were {} ms late and {aborted} answered 500; in force within {} ms",
        DELAY.as_millis(),
        after.as_millis()
    ))
}
