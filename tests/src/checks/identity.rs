//! Check 3: source and destination SPIFFE ids are in the access logs and in `istio_tcp_connections_opened_total` of both
//! sides.

use anyhow::{Context, Result, ensure};

use super::{
    calls::answered,
    names::{CLIENT, HTTP, HTTP_SERVICE, SERVER_V1, SHOP},
};
use crate::{
    access_log,
    cluster::Family,
    eventually::eventually,
    mesh::{Enrolment, Mesh},
};

const OPENED: &str = "istio_tcp_connections_opened_total";
const CLIENT_ID: &str = "spiffe://cluster.local/ns/shop/sa/client";
const SERVER_ID: &str = "spiffe://cluster.local/ns/shop/sa/server";

pub(super) async fn check(mesh: &Mesh) -> Result<String> {
    mesh.set_enrolment(SHOP, Enrolment::Ambient).await?;
    one_call(mesh).await
}

/// Makes one call from the client to the server on the other node and looks at it from both sides.
pub(super) async fn one_call(mesh: &Mesh) -> Result<String> {
    let cluster = mesh.cluster();
    let vip = cluster.vip(SERVER_V1, Family::V4, HTTP_SERVICE)?;
    let target = cluster.pod_addr(SERVER_V1, Family::V4, HTTP)?.to_string();
    let server = mesh.ztunnel_of(SERVER_V1)?;
    let client = mesh.ztunnel_of(CLIENT)?;
    let logs = [
        ("inbound", server.log()?.from_now()?),
        ("outbound", client.log()?.from_now()?),
    ];
    let before = opened(mesh).await?;
    answered(mesh, CLIENT, vip).await?;

    for (direction, log) in &logs {
        let wanted = [
            ("direction", *direction),
            ("src.identity", CLIENT_ID),
            ("dst.identity", SERVER_ID),
            ("dst.hbone_addr", target.as_str()),
            ("dst.service", "server-v1.shop.svc.cluster.local"),
        ];
        access_log::find(log, &wanted, mesh.limits().call)
            .await
            .with_context(|| format!("the {direction} side"))?;
    }
    let counted = eventually(
        format!("{OPENED} counts the call"),
        mesh.limits().call,
        || async {
            let now = opened(mesh).await?;
            for side in 0..2 {
                ensure!(
                    now[side] > before[side],
                    "reporter {}: {} before, {} after",
                    REPORTERS[side],
                    before[side],
                    now[side]
                );
            }
            Ok(now)
        },
    );
    counted.await?;
    Ok(format!(
        "{CLIENT_ID} -> {SERVER_ID} in both access logs and in {OPENED}"
    ))
}

const REPORTERS: [&str; 2] = ["source", "destination"];

async fn opened(mesh: &Mesh) -> Result<[f64; 2]> {
    let mut sums = [0.0; 2];
    for (side, pod) in [CLIENT, SERVER_V1].into_iter().enumerate() {
        let labels = [
            ("reporter", REPORTERS[side]),
            ("source_principal", CLIENT_ID),
            ("destination_principal", SERVER_ID),
            ("connection_security_policy", "mutual_tls"),
        ];
        sums[side] = mesh.ztunnel_of(pod)?.metrics().await?.sum(OPENED, &labels);
    }
    Ok(sums)
}
