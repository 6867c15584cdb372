//! What a request may do is decided by its method.

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::StatusCode;

use super::{Document, document, session};
use crate::mesh::Mesh;

const VIEWER: Document = document!("AuthorizationPolicy", "viewer.authorization-policy.yaml");
const CALLS: usize = 20;

pub(in crate::checks) async fn check(mesh: &Mesh) -> Result<String> {
    let status = |method: &'static str| async move {
        let body = Bytes::new();
        let mut session = session(mesh, "reviews").await?;
        let answer = session.request(method, "/", &[], body).await?;
        anyhow::Ok(answer.status)
    };
    let before = status("POST").await?;
    ensure!(before == StatusCode::OK, "without a policy: {before}");
    let after = VIEWER
        .apply(mesh, || async {
            let seen = status("POST").await?;
            ensure!(seen == StatusCode::FORBIDDEN, "POST is answered {seen}");
            Ok(())
        })
        .await?;
    // On one connection: it is the request that is judged.
    let mut session = session(mesh, "reviews").await?;
    for _ in 0..CALLS {
        let read = session.get("/", &[]).await?;
        ensure!(read.status == StatusCode::OK, "GET: {}", read.status);
        let write = session.request("POST", "/", &[], Bytes::new()).await?;
        ensure!(
            write.status == StatusCode::FORBIDDEN && write.body == "RBAC: access denied",
            "POST: {} {:?}",
            write.status,
            write.body
        );
    }
    Ok(format!(
        "on one connection {CALLS} GET answered 200 and {CALLS} POST 403; in force within {} ms",
        after.as_millis()
    ))
}
