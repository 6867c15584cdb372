//! The end of a node proxy: in order, at the deadline, by mistake, and what follows it.

use std::{net::SocketAddr, time::Duration};

use anyhow::ensure;
use bytes::Bytes;
use leyline_tests::{
    access_log,
    client::{Client, End},
    eventually::eventually,
    mesh::{Enrolment, uid},
    process::Process,
    sniffer::Sniffer,
};
use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::{
    peer::Peer,
    support::{SOON, addr, enrolled_with, hold},
};

/// What a drain may take beyond its deadline, and what it may be early by: the clock of the test is not the proxy's.
const SLACK: Duration = Duration::from_secs(1);
const SECRET: &[u8] = b"open sesame, said Ali Baba";

async fn refused_soon(client: &Client, target: SocketAddr) {
    let refused = eventually(format!("{target} is refused"), SOON, || async {
        let reply = client.get(target, "/", SOON).await;
        ensure!(reply.is_err(), "answered");
        Ok(())
    });
    refused.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_carries_live_connections_to_the_deadline_and_no_further() {
    const DEADLINE: Duration = Duration::from_secs(3);
    let mut mesh = enrolled_with(&["node-a"], &[("CONNECTION_TERMINATION_DEADLINE", "3s")]).await;
    // Out of a pod of this node, into one, and past one end of it in plaintext.
    let mut held = [
        hold(&mesh, "shop/client", "shop/server-v1").await,
        hold(&mesh, "office/worker", "shop/server-v2").await,
        hold(&mesh, "shop/client", "legacy/legacy").await,
        hold(&mesh, "legacy/legacy", "shop/server-v2").await,
    ];
    let log = mesh.ztunnel("node-a").unwrap().log().unwrap().clone();

    let start = Instant::now();
    let ztunnel = mesh.ztunnel("node-a").unwrap();
    ztunnel.signal(Signal::SIGTERM).unwrap();
    let client = mesh.cluster().client("shop/client").unwrap();
    let worker = mesh.cluster().client("office/worker").unwrap();
    refused_soon(&client, addr(&mesh, "shop/server-v1", 8080)).await;
    refused_soon(&worker, addr(&mesh, "shop/server-v2", 8080)).await;
    assert!(start.elapsed() < DEADLINE, "not refused at once");
    // Whoever has tunnels to it is told to open no more streams.
    let told = eventually("the other node counts the GOAWAY", SOON, || async {
        let metrics = mesh.ztunnel("node-b")?.metrics().await?;
        let labels = [("direction", "received"), ("code", "no_error")];
        ensure!(metrics.sum("leyline_hbone_goaways_total", &labels) >= 1.0);
        Ok(())
    });
    told.await.unwrap();
    for held in &mut held {
        held.echo(b"still there").await.unwrap();
    }
    for (number, held) in held.iter_mut().enumerate() {
        let end = held.ended(DEADLINE + SLACK).await.unwrap();
        assert_eq!(end, End::Reset, "connection {number} looks complete");
    }
    let cut = start.elapsed();
    assert!(cut + SLACK > DEADLINE, "cut after {cut:?}");
    let ztunnel = mesh.ztunnel_mut("node-a").unwrap();
    let status = ztunnel.ended_by_itself(SOON).await.unwrap();
    let ended = start.elapsed();
    assert!(status.success(), "{status}");
    assert!(ended < DEADLINE + SLACK, "ended after {ended:?}");

    let error = "connection closed due to connection drain";
    for direction in ["outbound", "inbound"] {
        let wanted = [("direction", direction), ("error", error)];
        access_log::find(&log, &wanted, SOON).await.unwrap();
    }
    let lines = log.lines().unwrap();
    let last = lines.last().unwrap();
    assert!(last.contains("forcefully shutting down"), "{last}");
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_refused_until_a_new_proxy_takes_over() {
    let mut mesh = enrolled_with(&["node-a"], &[]).await;
    let target = addr(&mesh, "shop/server-v1", 8080);
    let client = mesh.cluster().client("shop/client").unwrap();
    client.get(target, "/", SOON).await.unwrap();
    let fabric = mesh.cluster().fabric();
    let sniffer = Sniffer::start(fabric.infra(), SECRET).unwrap();

    let secret = || Bytes::from_static(SECRET);
    mesh.ztunnel_mut("node-a").unwrap().stop().await.unwrap();
    for to in [
        target,
        addr(&mesh, "shop/server-v2", 8080),
        addr(&mesh, "legacy/legacy", 8080),
    ] {
        let start = Instant::now();
        let reply = client.post(to, "/", secret(), SOON).await;
        assert!(reply.is_err(), "{to} answered");
        assert!(start.elapsed() < SOON, "{to} was not refused but silent");
    }
    let into = addr(&mesh, "shop/server-v2", 8080);
    let worker = mesh.cluster().client("office/worker").unwrap();
    assert!(worker.get(into, "/", SOON).await.is_err());

    // Nothing leaks while the new one takes over either.
    mesh.start_ztunnel("node-a").unwrap();
    let back = eventually("calls work again", SOON, || async {
        client.post(target, "/", secret(), SOON).await
    });
    back.await.unwrap();
    mesh.ztunnel_ready("node-a").await.unwrap();
    let packets = sniffer.stop().await.unwrap();
    let leaked: Vec<_> = packets.iter().filter(|packet| packet.secret).collect();
    assert!(leaked.is_empty(), "{leaked:?}");
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_without_connections_does_not_wait_for_its_deadline() {
    let mut mesh = enrolled_with(
        &["node-a"],
        &[
            ("CONNECTION_TERMINATION_DEADLINE", "10m"),
            ("LEYLINE_HANDSHAKE_DEADLINE", "5m"),
        ],
    )
    .await;
    // Idle tunnels in both directions, a handshake that nobody goes on with, and a pod that is just being released.
    let client = mesh.cluster().client("shop/client").unwrap();
    let worker = mesh.cluster().client("office/worker").unwrap();
    let out = addr(&mesh, "shop/server-v1", 8080);
    let into = addr(&mesh, "shop/server-v2", 8080);
    client.get(out, "/", SOON).await.unwrap();
    worker.get(into, "/", SOON).await.unwrap();
    let _silent = Peer::new(&mesh).silent(into.ip()).await.unwrap();
    mesh.write_label("shop", Enrolment::None).unwrap();
    let leaving = eventually("a pod is being released", SOON, || async {
        let dumps = mesh.dumps().await?;
        ensure!(!dumps["node-a"].up.contains(&uid("shop/client")), "up");
        Ok(())
    });
    leaving.await.unwrap();

    let ztunnel = mesh.ztunnel_mut("node-a").unwrap();
    ztunnel.signal(Signal::SIGTERM).unwrap();
    let start = Instant::now();
    let status = ztunnel.ended_by_itself(SOON).await.unwrap();
    assert!(status.success(), "{status}");
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_interrupt_ends_the_drain() {
    let mut mesh = enrolled_with(&["node-a"], &[("CONNECTION_TERMINATION_DEADLINE", "10m")]).await;
    let mut held = hold(&mesh, "shop/client", "shop/server-v1").await;
    let client = mesh.cluster().client("shop/client").unwrap();
    let ztunnel = mesh.ztunnel("node-a").unwrap();
    ztunnel.signal(Signal::SIGINT).unwrap();
    refused_soon(&client, addr(&mesh, "shop/server-v1", 8080)).await;
    held.echo(b"carried").await.unwrap();
    let ztunnel = mesh.ztunnel_mut("node-a").unwrap();
    ztunnel.signal(Signal::SIGINT).unwrap();
    let status = ztunnel.ended_by_itself(SOON).await.unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(held.ended(SOON).await.unwrap(), End::Reset);
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_proxy_by_mistake_harms_nothing() {
    let mut mesh = enrolled_with(&["node-a"], &[]).await;
    let target = addr(&mesh, "shop/server-v1", 8080);
    let client = mesh.cluster().client("shop/client").unwrap();
    let mut held = hold(&mesh, "shop/client", "shop/server-v1").await;

    let mut program = mesh.ztunnel_mut("node-a").unwrap().program_mut().clone();
    program.name = "ztunnel-by-mistake".to_owned();
    let mut second = Process::start(mesh.cluster().run(), &program).unwrap();
    let status = second.ended_by_itself(SOON).await.unwrap();
    assert!(!status.success(), "{status}");
    let lines = second.log().lines().unwrap();
    let reason = lines.last().unwrap();
    assert!(reason.contains("cannot listen on port 15000"), "{reason}");

    held.echo(b"still there").await.unwrap();
    for _ in 0..20 {
        client.get(target, "/", SOON).await.unwrap();
    }
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quitquitquit_drains() {
    let mut mesh = enrolled_with(&["node-a"], &[("CONNECTION_TERMINATION_DEADLINE", "10m")]).await;
    let mut held = hold(&mesh, "shop/client", "shop/server-v1").await;
    let client = mesh.cluster().client("shop/client").unwrap();
    let ztunnel = mesh.ztunnel("node-a").unwrap();
    let refused = ztunnel.ask("GET", 15000, "/quitquitquit").await.unwrap();
    assert_eq!(refused.status, 405);
    client
        .get(addr(&mesh, "shop/server-v1", 8080), "/", SOON)
        .await
        .unwrap();
    let told = ztunnel.ask("POST", 15000, "/quitquitquit").await.unwrap();
    assert_eq!(
        (told.status.as_u16(), &told.body[..]),
        (200, &b"shutdown now\n"[..])
    );
    refused_soon(&client, addr(&mesh, "shop/server-v1", 8080)).await;
    held.echo(b"carried").await.unwrap();
    held.finish().await.unwrap();
    assert_eq!(held.ended(SOON).await.unwrap(), End::Finished);
    let ztunnel = mesh.ztunnel_mut("node-a").unwrap();
    assert!(ztunnel.ended_by_itself(SOON).await.unwrap().success());
    mesh.stop().await.unwrap();
}
