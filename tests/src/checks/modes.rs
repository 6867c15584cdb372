//! Check 4: with PeerAuthentication STRICT the pod outside the mesh is refused and the client is not; with PERMISSIVE both
//! pass.

use anyhow::Result;

use super::{
    calls::{Call, Expected, settle},
    names::{CLIENT, HTTP, LEGACY, SERVER_V1, SERVER_V2, SHOP},
};
use crate::{
    cluster::Family,
    mesh::{Enrolment, Mesh},
};

pub(super) async fn check(mesh: &Mesh) -> Result<String> {
    mesh.set_enrolment(SHOP, Enrolment::Ambient).await?;
    settle(
        mesh,
        "both pass without a PeerAuthentication",
        &calls(mesh, Expected::Answer)?,
    )
    .await?;
    mesh.write_check_file("mode", &peer_authentication("STRICT"))?;
    let strict = settle(
        mesh,
        "STRICT refuses plain text only",
        &calls(mesh, Expected::Refusal)?,
    )
    .await?;
    mesh.write_check_file("mode", &peer_authentication("PERMISSIVE"))?;
    let permissive = settle(
        mesh,
        "PERMISSIVE lets both pass",
        &calls(mesh, Expected::Answer)?,
    )
    .await?;
    Ok(format!(
        "STRICT in force after {} ms: plain text refused, mutual TLS not; PERMISSIVE after {} ms: both pass",
        strict.as_millis(),
        permissive.as_millis()
    ))
}

/// The legacy pod's calls come out as `plain`, the client's always with an answer.
fn calls(mesh: &Mesh, plain: Expected) -> Result<Vec<(Call, Expected)>> {
    let mut calls = Vec::new();
    for server in [SERVER_V1, SERVER_V2] {
        for family in Family::ALL {
            let to = mesh.cluster().pod_addr(server, family, HTTP)?;
            calls.push((Call { from: LEGACY, to }, plain));
            calls.push((Call { from: CLIENT, to }, Expected::Answer));
        }
    }
    Ok(calls)
}

fn peer_authentication(mode: &str) -> String {
    format!(
        "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: default
  namespace: shop
spec:
  mtls:
    mode: {mode}
"
    )
}
