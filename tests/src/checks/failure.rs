//! Check 7: while a proxy is dead no plain text leaves and calls are refused at once; after its restart calls work again within
//! a second. With the control plane stopped, everything goes on.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use tokio::time::Instant;

use super::{
    calls::{Call, Expected, answered, refused, settle},
    identity,
    names::{CLIENT, HTTP, HTTP_SERVICE, SERVER_V1, SERVER_V2, SHOP, TCP, WORKER},
    policy::policy,
    traffic,
    wire::{self, SECRET},
};
use crate::{
    cluster::Family,
    eventually::eventually,
    mesh::{Enrolment, Mesh},
    sniffer::Sniffer,
};

/// The large transfers were measured by the check of traffic.
const SMALLER: usize = 5_000_000;

pub(super) async fn check(mesh: &mut Mesh) -> Result<String> {
    mesh.set_enrolment(SHOP, Enrolment::Ambient).await?;
    let node = mesh.cluster().pod(CLIENT)?.spec().node.clone();
    let fabric = mesh.cluster().fabric();
    let sniffers = [
        Sniffer::start(fabric.infra(), SECRET)?,
        Sniffer::start(fabric.node(&node)?, SECRET)?,
    ];
    let (refusals, slowest) = dead_proxy(mesh, &node)
        .await
        .context("while the proxy is dead")?;
    let back = restart(mesh, &node)
        .await
        .context("after the restart of the proxy")?;
    // A call to a VIP that is not captured would be seen too, although nobody answers it.
    for sniffer in sniffers {
        wire::check_hidden(&wire::of_pods(sniffer.stop().await?))
            .context("while the proxy was dead or starting")?;
    }
    control_plane_stopped(mesh)
        .await
        .context("with the control plane stopped")?;
    Ok(format!(
        "killed proxy: {refusals} calls refused within {:.1} ms, no plain text; back {} ms after its start; \
         without control plane all traffic and policy as before",
        slowest.as_secs_f64() * 1000.0,
        back.as_millis()
    ))
}

/// Kills the proxy of `node` and tries to get anything through.
async fn dead_proxy(mesh: &mut Mesh, node: &str) -> Result<(usize, Duration)> {
    let limits = mesh.limits();
    let echo = mesh.cluster().pod_addr(SERVER_V1, Family::V4, TCP)?;
    let client = mesh.cluster().client(CLIENT)?;
    let mut open = client.connect(echo, limits.call).await?;
    open.echo(b"through the proxy").await?;

    mesh.kill_ztunnel(node).await?;
    open.ended(limits.refusal)
        .await
        .context("a connection through the dead proxy")?;
    let outbound = targets(mesh)?;
    // Into a pod of the dead proxy's node: from the other node, whose proxy lives.
    let inbound = Family::ALL.map(|family| mesh.cluster().pod_addr(SERVER_V2, family, HTTP));
    let mut slowest = Duration::ZERO;
    let refusals = outbound.len() + inbound.len();
    for to in outbound {
        slowest = slowest.max(refused_with_secret(mesh, to).await?);
    }
    for to in inbound {
        refused(mesh, WORKER, to?).await?;
    }
    Ok((refusals, slowest))
}

/// Other node, same node, VIP and pod address, both families.
fn targets(mesh: &Mesh) -> Result<Vec<SocketAddr>> {
    let cluster = mesh.cluster();
    let mut targets = Vec::new();
    for family in Family::ALL {
        for server in [SERVER_V1, SERVER_V2] {
            targets.push(cluster.vip(server, family, HTTP_SERVICE)?);
            targets.push(cluster.pod_addr(server, family, HTTP)?);
        }
    }
    Ok(targets)
}

async fn refused_with_secret(mesh: &Mesh, to: SocketAddr) -> Result<Duration> {
    let deadline = mesh.limits().refusal;
    let start = Instant::now();
    let client = mesh.cluster().client(CLIENT)?;
    let reply = client
        .post(to, "/", Bytes::from_static(SECRET), deadline)
        .await;
    ensure!(reply.is_err(), "a call to {to} was answered");
    let took = start.elapsed();
    ensure!(
        took < deadline,
        "a call to {to} was not refused within {deadline:?}"
    );
    Ok(took)
}

async fn restart(mesh: &mut Mesh, node: &str) -> Result<Duration> {
    let limits = mesh.limits();
    mesh.start_ztunnel(node)?;
    let to = mesh.cluster().vip(SERVER_V1, Family::V4, HTTP_SERVICE)?;
    let call = Call { from: CLIENT, to };
    let ((), back) = eventually("a call works again", limits.restart, || async {
        call.get(mesh, limits.call).await.map(drop)
    })
    .await?;
    mesh.ztunnel_ready(node).await?;
    Ok(back)
}

/// A policy that was in force stays so, and all traffic goes on.
async fn control_plane_stopped(mesh: &mut Mesh) -> Result<()> {
    let to = mesh.cluster().pod_addr(SERVER_V1, Family::V4, HTTP)?;
    let calls = [
        (Call { from: WORKER, to }, Expected::Refusal),
        (Call { from: CLIENT, to }, Expected::Answer),
    ];
    let deny = policy(
        "not-the-worker",
        "DENY",
        "- from: [{source: {namespaces: [office]}}]",
    );
    mesh.write_check_file("failure", &deny)?;
    settle(mesh, "a policy before the stop", &calls).await?;
    mesh.stop_controlplane().await?;
    refused(mesh, WORKER, to).await.context("by the policy")?;
    answered(mesh, CLIENT, to).await.context("by the policy")?;
    traffic::all(mesh, SMALLER).await?;
    identity::one_call(mesh).await?;
    let sniffer = Sniffer::start(mesh.cluster().fabric().infra(), SECRET)?;
    wire::send_secret_to_pods(mesh).await?;
    wire::check_hidden(&wire::of_pods(sniffer.stop().await?))?;
    Ok(())
}
