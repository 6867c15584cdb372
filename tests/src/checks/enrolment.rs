//! Check 1: labelling the namespace enrols its pods while they run, and the next call goes over HBONE; a connection that was
//! open before stays alive. Removing the label undoes it.

use anyhow::{Context, Result, ensure};

use super::{
    calls::{answered, refused},
    names::{CLIENT, HTTP, HTTP_SERVICE, SERVER_V1, SHOP, TCP},
};
use crate::{
    access_log,
    cluster::Family,
    mesh::{Enrolment, Mesh},
};

pub(super) async fn check(mesh: &Mesh) -> Result<String> {
    let limits = mesh.limits();
    let cluster = mesh.cluster();
    mesh.set_enrolment(SHOP, Enrolment::None).await?;
    let vip = cluster.vip(SERVER_V1, Family::V4, HTTP_SERVICE)?;
    let pod = cluster.pod_addr(SERVER_V1, Family::V4, HTTP)?;
    let echo = cluster.pod_addr(SERVER_V1, Family::V4, TCP)?;

    answered(mesh, CLIENT, pod)
        .await
        .context("before the label")?;
    refused(mesh, CLIENT, vip)
        .await
        .context("before the label nobody serves the VIP")?;
    let client = cluster.client(CLIENT)?;
    let mut old = client.connect(echo, limits.call).await?;
    old.echo(b"opened before the label").await?;

    let log = mesh.ztunnel_of(SERVER_V1)?.log()?.from_now()?;
    let enrolled = mesh.set_enrolment(SHOP, Enrolment::Ambient).await?;
    let seen = answered(mesh, CLIENT, vip)
        .await
        .context("after the label, by the VIP")?;
    ensure!(seen.pod == "server-v1", "{} answered", seen.pod);
    let own = cluster.pod_addr(CLIENT, Family::V4, 0)?.ip();
    ensure!(
        seen.peer.ip() == own,
        "the app saw {} and not {own}",
        seen.peer.ip()
    );
    let target = pod.to_string();
    let wanted = [
        ("direction", "inbound"),
        ("dst.hbone_addr", &target),
        ("src.identity", "spiffe://cluster.local/ns/shop/sa/client"),
    ];
    access_log::find(&log, &wanted, limits.call)
        .await
        .context("no HBONE was logged")?;
    old.echo(b"still there after the label").await?;

    let released = mesh.set_enrolment(SHOP, Enrolment::None).await?;
    refused(mesh, CLIENT, vip)
        .await
        .context("after the label was removed")?;
    answered(mesh, CLIENT, pod)
        .await
        .context("after the label was removed")?;
    old.echo(b"and after its removal").await?;
    Ok(format!(
        "enrolled after {} ms, released after {} ms, an older connection lived through both",
        enrolled.as_millis(),
        released.as_millis()
    ))
}
