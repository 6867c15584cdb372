//! A limit of requests for each reader.

use anyhow::{Result, ensure};
use http::StatusCode;

use super::{Document, document, get};
use crate::mesh::Mesh;

const LIMIT: Document = document!("RateLimit", "limit.rate-limit.yaml");
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
