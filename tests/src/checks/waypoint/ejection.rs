//! An endpoint that fails is left alone for a while, and asked again after it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use tokio::time::Instant;

use super::{Document, document, session};
use crate::{eventually::eventually, mesh::Mesh, session::Session};

const EJECTION: Document = document!("DestinationRule", "ejection.destination-rule.yaml");
/// Requests in a row without a failure: by chance, with one of two endpoints broken, once in a billion.
const GOOD: usize = 30;
/// How long an endpoint is left alone.
const EJECTED: Duration = Duration::from_secs(1);

pub(in crate::checks) async fn check(mesh: &Mesh) -> Result<String> {
    mesh.write_check_file("route", EJECTION.yaml)?;
    let mut session = session(mesh, "ratings").await?;
    let limits = mesh.limits();
    let mut failed = 0;
    let mut rounds = 0;
    // Until then the broken endpoint answers every other request.
    let ejected = async {
        while !is_good(&mut session, &mut failed).await? {
            rounds += 1;
        }
        anyhow::Ok(Instant::now())
    };
    let ejected = tokio::time::timeout(limits.edit + limits.call, ejected)
        .await
        .with_context(|| format!("never ejected, in {rounds} rounds"))??;
    let returns = eventually("it is asked again", EJECTED + limits.edit, || {
        let session = super::session(mesh, "ratings");
        async move {
            let answer = session.await?.get("/", &[]).await?;
            ensure!(answer.status != StatusCode::OK, "another one answers");
            Ok(())
        }
    });
    let ((), _) = returns.await?;
    let after = ejected.elapsed();
    Ok(format!(
        "left alone after {failed} failed requests, {GOOD} in a row were answered, asked again {:.1} s later",
        after.as_secs_f64()
    ))
}

/// Asks until one fails, or so many were answered.
async fn is_good(session: &mut Session, failed: &mut usize) -> Result<bool> {
    for _ in 0..GOOD {
        let answer = session.get("/", &[]).await?;
        if answer.status != StatusCode::OK {
            *failed += 1;
            return Ok(false);
        }
    }
    Ok(true)
}
