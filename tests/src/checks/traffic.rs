//! Check 6: same node, other node, pod address, VIP, to itself by VIP, by pod address and by loopback, IPv4 and IPv6; 50 MB each
//! way intact, half close, a server that speaks first, 200 connections at once.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::StatusCode;
use tokio::time::Instant;

use super::{
    calls::answered,
    names::{BANNER, CLIENT, HTTP, HTTP_SERVICE, SERVER, SERVER_V1, SERVER_V2, SHOP, SUMMARY, TCP},
};
use crate::{
    cluster::Family,
    mesh::{Enrolment, Mesh},
    payload::{hash, pattern},
};

const LARGE: usize = 50_000_000;
const PARALLEL: usize = 200;
/// Enough calls that both endpoints of a service are chosen, but for one run in a million.
const BALANCED: usize = 20;

pub(super) async fn check(mesh: &Mesh) -> Result<String> {
    mesh.set_enrolment(SHOP, Enrolment::Ambient).await?;
    all(mesh, LARGE).await
}

/// Everything; `size` is that of the large transfers.
pub(super) async fn all(mesh: &Mesh, size: usize) -> Result<String> {
    let mut paths = 0;
    for family in Family::ALL {
        paths += every_path(mesh, family)
            .await
            .with_context(|| format!("{family:?}"))?;
        both_endpoints(mesh, family)
            .await
            .with_context(|| format!("{family:?}"))?;
        half_close(mesh, family).await.context("half close")?;
        server_first(mesh, family)
            .await
            .context("a server that speaks first")?;
    }
    let cluster = mesh.cluster();
    let other_node = cluster.vip(SERVER_V1, Family::V4, HTTP_SERVICE)?;
    let same_node = cluster.vip(SERVER_V2, Family::V6, HTTP_SERVICE)?;
    let took = large(mesh, other_node, size).await? + large(mesh, same_node, size).await?;
    parallel(mesh)
        .await
        .with_context(|| format!("{PARALLEL} connections at once"))?;
    Ok(format!(
        "{paths} paths, half close, server first, {PARALLEL} connections at once, 4 x {} MB intact in {:.1} s",
        size / 1_000_000,
        took.as_secs_f64()
    ))
}

async fn every_path(mesh: &Mesh, family: Family) -> Result<usize> {
    let cluster = mesh.cluster();
    let loopback: IpAddr = match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    let own = cluster.pod_addr(CLIENT, family, HTTP)?;
    let paths = [
        (
            "same node, pod",
            cluster.pod_addr(SERVER_V2, family, HTTP)?,
            "server-v2",
        ),
        (
            "other node, pod",
            cluster.pod_addr(SERVER_V1, family, HTTP)?,
            "server-v1",
        ),
        (
            "same node, VIP",
            cluster.vip(SERVER_V2, family, HTTP_SERVICE)?,
            "server-v2",
        ),
        (
            "other node, VIP",
            cluster.vip(SERVER_V1, family, HTTP_SERVICE)?,
            "server-v1",
        ),
        (
            "itself, VIP",
            cluster.vip(CLIENT, family, HTTP_SERVICE)?,
            "client",
        ),
        ("itself, pod", own, "client"),
        (
            "itself, loopback",
            SocketAddr::new(loopback, HTTP),
            "client",
        ),
    ];
    for (what, target, expected) in paths {
        let seen = answered(mesh, CLIENT, target).await.context(what)?;
        ensure!(seen.pod == expected, "{what}: {} answered", seen.pod);
        let peer = seen.peer.ip();
        ensure!(
            peer == own.ip() || (peer == loopback && expected == "client"),
            "{what}: the app saw {peer}, and the client has {}",
            own.ip()
        );
    }
    Ok(paths.len())
}

async fn both_endpoints(mesh: &Mesh, family: Family) -> Result<()> {
    let vip = mesh.cluster().vip(SERVER, family, HTTP_SERVICE)?;
    let mut versions = BTreeSet::new();
    for _ in 0..BALANCED {
        versions.insert(answered(mesh, CLIENT, vip).await?.version);
    }
    ensure!(
        versions.len() == 2,
        "{BALANCED} calls reached only {versions:?}"
    );
    Ok(())
}

async fn half_close(mesh: &Mesh, family: Family) -> Result<()> {
    let data = pattern(300_000);
    let client = mesh.cluster().client(CLIENT)?;
    for server in [SERVER_V1, SERVER_V2] {
        let target = mesh.cluster().vip(server, family, SUMMARY)?;
        let mut connection = client.connect(target, mesh.limits().call).await?;
        connection.write(&data).await?;
        connection.finish().await?;
        let answer = String::from_utf8(connection.read_to_end().await?)?;
        let expected = format!("{} {}\n", data.len(), hash(&data));
        ensure!(
            answer == expected,
            "{server} answered `{}` after our end",
            answer.trim()
        );
    }
    Ok(())
}

async fn server_first(mesh: &Mesh, family: Family) -> Result<()> {
    let client = mesh.cluster().client(CLIENT)?;
    for (server, name) in [(SERVER_V1, "server-v1"), (SERVER_V2, "server-v2")] {
        let target = mesh.cluster().vip(server, family, BANNER)?;
        let mut connection = client.connect(target, mesh.limits().call).await?;
        let expected = format!("220 {name} ready\r\n");
        let greeting = connection.read(expected.len()).await?;
        ensure!(greeting == expected.as_bytes(), "another greeting");
        connection.echo(b"thank you").await?;
    }
    Ok(())
}

/// Down and up. Returns how long the transfers took, without making and hashing the bytes here.
async fn large(mesh: &Mesh, target: SocketAddr, size: usize) -> Result<Duration> {
    let (client, deadline) = (mesh.cluster().client(CLIENT)?, mesh.limits().transfer);
    let data: Bytes = pattern(size);
    let sent = hash(&data);

    let start = Instant::now();
    let down = client
        .get(target, &format!("/bytes/{size}"), deadline)
        .await?;
    let up = client
        .post(target, "/upload", data.clone(), deadline)
        .await?;
    let took = start.elapsed();
    ensure!(down.status == StatusCode::OK, "status {}", down.status);
    ensure!(
        down.body == data,
        "{} other bytes came down",
        down.body.len()
    );
    let up = up.description()?;
    ensure!(
        up.body_sha256 == sent,
        "{} other bytes came up",
        up.body_bytes
    );
    Ok(took)
}

/// All open at the same time, each used twice.
async fn parallel(mesh: &Mesh) -> Result<()> {
    let client = mesh.cluster().client(CLIENT)?;
    let target = mesh.cluster().vip(SERVER, Family::V4, TCP)?;
    let deadline = mesh.limits().call;
    let opened = (0..PARALLEL).map(|number| {
        let client = client.clone();
        async move {
            let mut connection = client.connect(target, deadline).await?;
            connection
                .echo(format!("number {number}").as_bytes())
                .await?;
            anyhow::Ok(connection)
        }
    });
    let mut connections = futures::future::try_join_all(opened).await?;
    let again = connections
        .iter_mut()
        .map(|connection| connection.echo(b"all are open"));
    futures::future::try_join_all(again).await?;
    Ok(())
}
