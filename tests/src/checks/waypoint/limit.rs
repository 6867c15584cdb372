//! Limits of requests for each reader.

use anyhow::{Result, ensure};
use http::StatusCode;

use super::{Document, PARALLEL, document, get};
use crate::{
    mesh::Mesh,
    metrics::Metrics,
    rate_limit::{Installed, RateLimitService},
    session::Answer,
};

const LIMIT: Document = document!("RateLimit", "limit.rate-limit.yaml");
const GLOBAL: Document = document!("RateLimit", "global-limit.rate-limit.yaml");
/// The pods of the waypoint of `details`.
const REPLICAS: [&str; 2] = ["bookstore/details-waypoint", "bookstore/details-waypoint-2"];
/// Of each reader by the service's count.
const ALLOWED_BY_ALL: usize = 10;
/// Of each reader, as the document says.
const ALLOWED: usize = 15;
const ASKED: usize = 40;

pub(in crate::checks) async fn local(mesh: &Mesh) -> Result<String> {
    let after = LIMIT
        .apply(mesh, || async {
            let mut refused = 0;
            for _ in 0..=ALLOWED {
                let answer = get(mesh, "reviews", "/", &[("x-reader", "first")]).await?;
                refused += usize::from(answer.status == StatusCode::TOO_MANY_REQUESTS);
            }
            ensure!(refused > 0, "nobody is refused");
            Ok(())
        })
        .await?;
    for reader in ["second", "third"] {
        let mut passed = 0;
        for _ in 0..ASKED {
            let answer = get(mesh, "reviews", "/", &[("x-reader", reader)]).await?;
            match answer.status {
                StatusCode::OK => passed += 1,
                StatusCode::TOO_MANY_REQUESTS => {
                    let has = |name| answer.headers.contains_key(name);
                    ensure!(has("retry-after"), "429 without retry-after");
                }
                other => anyhow::bail!("status {other}"),
            }
        }
        ensure!(passed == ALLOWED, "{passed} of {ASKED} passed");
    }
    Ok(format!(
        "of {ASKED} requests of each of two readers {ALLOWED} passed, the others got 429 and retry-after; in force within {} ms",
        after.as_millis()
    ))
}

/// One count for both replicas of a waypoint.
pub(in crate::checks) async fn global(mesh: &Mesh) -> Result<String> {
    let installed = Installed::new(mesh.peers_dir()).await?;
    let cluster = mesh.cluster();
    let namespace = cluster.pod("bookstore/ratelimit")?.namespace();
    // Descriptors say their limits themselves.
    let mut service = installed.start(cluster.run(), namespace, "1/hour").await?;
    let seen = count(mesh, &service).await;
    service.kill().await?;
    let place = if installed.has_redis {
        "Redis"
    } else {
        "the memory of the rate limit service"
    };
    Ok(format!("{}, counted in {place}", seen?))
}

async fn count(mesh: &Mesh, service: &RateLimitService) -> Result<String> {
    let after = GLOBAL
        .apply(mesh, || async {
            let answers = ask_at_once(mesh, "first", 2 * ALLOWED_BY_ALL).await?;
            let refused = check(&answers)?;
            ensure!(refused > 0, "nobody is refused");
            for replica in REPLICAS {
                let asked = asked(mesh, replica).await?;
                ensure!(asked > 0.0, "{replica} has not asked the service");
            }
            Ok(())
        })
        .await?;
    for reader in ["second", "third"] {
        let answers = ask_at_once(mesh, reader, ASKED).await?;
        let refused = check(&answers)?;
        ensure!(
            refused == ASKED - ALLOWED_BY_ALL,
            "{refused} of {ASKED} refused"
        );
    }
    if service.has_redis() {
        let counted = service.counted().await?;
        let of_second = counted.iter().find(|(key, _)| key.contains("second"));
        let of_second = of_second.map(|(_, count)| *count);
        ensure!(of_second == Some(ASKED as u64), "Redis has {of_second:?}");
    }
    Ok(format!(
        "of {ASKED} requests of each of two readers through two replicas {ALLOWED_BY_ALL} passed, the others got 429 \
         and retry-after; in force within {} ms",
        after.as_millis()
    ))
}

/// Requests on connections of their own, which the node proxy spreads over the replicas.
async fn ask_at_once(mesh: &Mesh, reader: &str, requests: usize) -> Result<Vec<Answer>> {
    let workers = (0..PARALLEL).map(|worker| async move {
        let mut answers = Vec::new();
        for _ in (worker..requests).step_by(PARALLEL) {
            answers.push(get(mesh, "details", "/", &[("x-reader", reader)]).await?);
        }
        anyhow::Ok(answers)
    });
    let answers = futures::future::try_join_all(workers).await?;
    Ok(answers.into_iter().flatten().collect())
}

/// How many are refused; what is told must be right.
fn check(answers: &[Answer]) -> Result<usize> {
    let mut refused = 0;
    for answer in answers {
        let has = |name| answer.headers.contains_key(name);
        match answer.status {
            StatusCode::OK => {}
            StatusCode::TOO_MANY_REQUESTS => {
                refused += 1;
                ensure!(has("retry-after"), "429 without retry-after");
                ensure!(has("x-ratelimit-remaining"), "429 without x-ratelimit-*");
            }
            other => anyhow::bail!("status {other}"),
        }
    }
    Ok(refused)
}

/// How often a replica has asked the rate limit service, and got an answer.
async fn asked(mesh: &Mesh, replica: &str) -> Result<f64> {
    let pod = mesh.cluster().pod(replica)?;
    let page = pod.client();
    let page = page
        .get(
            pod.v4(leyline_types::ports::METRICS),
            "/metrics",
            mesh.limits().call,
        )
        .await?;
    let metrics = Metrics::parse(std::str::from_utf8(&page.body)?)?;
    let name = "leyline_waypoint_global_rate_limit_total";
    let of = |result| metrics.sum(name, &[("result", result)]);
    Ok(of("ok") + of("refused"))
}
