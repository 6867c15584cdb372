//! Hostile peers and limits: whatever one does, the process stays bounded and the others are served.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use futures::future::{join_all, try_join_all};
use leyline_tests::{access_log, client::End, eventually::eventually, mesh::Mesh};
use tokio::time::{Instant, timeout};

use crate::{
    certificates::{LATER, NODES},
    peer::{
        DATA, END_HEADERS, HEADERS, PING, Peer, RST_STREAM, SETTINGS, WINDOW_UPDATE, connect_block,
        frame, silent,
    },
    support::{SOON, addr, enrolled_with, hold, inbound_of},
};

const REFUSED: &str = "leyline_connections_refused_total";
/// What a debug build may grow by under one hostile peer.
const GROWTH_MB: u64 = 96;

/// What a process without connections may have more than before.
const SLACK_MB: u64 = 4;

/// Resident memory of the proxy of a node.
fn resident_mb(mesh: &Mesh, node: &str) -> u64 {
    let pid = mesh.ztunnel(node).unwrap().pid().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes / 1024
}

async fn refused(mesh: &Mesh, node: &str, labels: &[(&str, &str)]) -> Result<f64> {
    let metrics = mesh.ztunnel(node)?.metrics().await?;
    Ok(metrics.sum(REFUSED, labels))
}

/// The pods of the attacked node, and those behind it, are served at once.
async fn others_are_served(mesh: &Mesh) {
    let start = Instant::now();
    for (from, to) in [
        ("shop/client", "shop/server-v1"),
        ("shop/client", "office/worker"),
        ("office/worker", "shop/server-v2"),
    ] {
        let client = mesh.cluster().client(from).unwrap();
        let target = addr(mesh, to, 8080);
        let reply = client.get(target, "/bytes/100000", SOON).await;
        assert_eq!(reply.unwrap().body.len(), 100_000);
    }
    assert!(start.elapsed() < SOON / 2, "{:?}", start.elapsed());
}

fn check_growth(mesh: &Mesh, node: &str, before: u64, most: u64) {
    let now = resident_mb(mesh, node);
    assert!(now < before + most, "{before} MB, now {now} MB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_has_so_many_connections_and_no_more() {
    const MOST: usize = 6;
    let limit = [("LEYLINE_MAX_CONNECTIONS_PER_POD", "6")];
    let mesh = enrolled_with(&["node-a"], &limit).await;
    let log = mesh.ztunnel("node-a").unwrap().log().unwrap().clone();
    let outbound = || hold(&mesh, "shop/client", "shop/server-v1");
    let mut held = join_all((0..MOST).map(|_| outbound())).await;
    let client = mesh.cluster().client("shop/client").unwrap();
    let target = addr(&mesh, "shop/server-v1", 9000);
    // The reset may come before the connect has returned.
    if let Ok(mut excess) = client.connect(target, SOON).await {
        assert_eq!(excess.ended(SOON).await.unwrap(), End::Reset);
    }
    let labels = [("direction", "outbound"), ("reason", "limit")];
    assert_eq!(refused(&mesh, "node-a", &labels).await.unwrap(), 1.0);
    access_log::find(&log, &labels, SOON).await.unwrap();

    // Another pod of the node has its own, and a place that was given back is used again.
    let into = hold(&mesh, "office/worker", "shop/server-v2").await;
    drop(held.pop());
    let again = eventually("there is room again", SOON, || async {
        let mut again = client.connect(target, SOON).await?;
        again.echo(b"room").await
    });
    again.await.unwrap();
    drop(into);
    drop(held);

    // Inbound, the streams of a tunnel count, and so does the tunnel.
    let peer = Peer::new(&mesh);
    let server = addr(&mesh, "shop/server-v2", 9000);
    let gone = eventually("inbound connections have ended", SOON, || async {
        ensure!(
            inbound_of(&mesh, "shop/server-v2").await? == 0,
            "there are some"
        );
        Ok(())
    });
    gone.await.unwrap();
    let tunnel = peer.tunnel(server.ip()).await.unwrap();
    let mut streams = Vec::new();
    let refusal = loop {
        let stream = tunnel.connect(&server.to_string()).await.unwrap();
        if stream.status != 200 {
            break stream.status;
        }
        streams.push(stream);
        assert!(streams.len() < MOST, "no limit");
    };
    assert_eq!(refusal, 503);
    let labels = [("direction", "inbound"), ("reason", "limit")];
    assert_eq!(refused(&mesh, "node-a", &labels).await.unwrap(), 1.0);
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_peers_keep_nobody_else_from_a_handshake() {
    const SILENT: usize = 700;
    let patient = [("LEYLINE_HANDSHAKE_DEADLINE", "60s")];
    let mesh = enrolled_with(&["node-b"], &patient).await;
    let before = resident_mb(&mesh, "node-b");
    let server = addr(&mesh, "shop/server-v1", 9000);
    let legacy = mesh.cluster().pod("legacy/legacy").unwrap().namespace();
    // Those that are reset at once need not get as far as being connected.
    let silent = join_all((0..SILENT).map(|_| silent(legacy, server.ip()))).await;
    let refused = eventually("those that are too many are refused", SOON, || async {
        let labels = [("reason", "limit")];
        let refused = refused(&mesh, "node-b", &labels).await?;
        ensure!(refused >= 100.0, "only {refused}");
        Ok(())
    });
    refused.await.unwrap();

    let start = Instant::now();
    let tunnel = Peer::new(&mesh).tunnel(server.ip()).await.unwrap();
    let stream = tunnel.connect(&server.to_string()).await.unwrap();
    assert_eq!(stream.status, 200);
    others_are_served(&mesh).await;
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    check_growth(&mesh, "node-b", before, GROWTH_MB);

    drop(silent);
    let settled = eventually("no socket is left", SOON, || async {
        let metrics = mesh.ztunnel("node-b")?.metrics().await?;
        let open = metrics.sum("istio_tcp_sockets_open", &[]);
        ensure!(open < 20.0, "{open} sockets");
        Ok(())
    });
    settled.await.unwrap();
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_reads_nothing_costs_a_bounded_amount_of_memory() {
    const STREAMS: u32 = 200;
    let mesh = enrolled_with(&[], &[]).await;
    others_are_served(&mesh).await;
    let before = resident_mb(&mesh, "node-b");
    let server = addr(&mesh, "shop/server-v1", 8080);
    let mut raw = Peer::new(&mesh).raw(server.ip()).await.unwrap();
    // Windows that let the other side send without end, requests for much, and not one byte is read.
    let window: u32 = (1 << 31) - 1;
    let settings = [&[0, 4][..], &window.to_be_bytes()].concat();
    let mut frames = frame(SETTINGS, 0, 0, &settings);
    frames.extend(frame(WINDOW_UPDATE, 0, 0, &(window - 65_535).to_be_bytes()));
    let block = connect_block(&server.to_string());
    for number in 0..STREAMS {
        let id = number * 2 + 1;
        let request = b"GET /bytes/1000000 HTTP/1.1\r\nhost: a\r\n\r\n";
        frames.extend(frame(HEADERS, END_HEADERS, id, &block));
        frames.extend(frame(DATA, 0, id, request));
    }
    raw.send(&frames).await.unwrap();
    let open = eventually("all streams are carried", SOON, || async {
        let open = inbound_of(&mesh, "shop/server-v1").await?;
        ensure!(open >= STREAMS as usize, "{open} streams");
        Ok(())
    });
    open.await.unwrap();
    others_are_served(&mesh).await;
    others_are_served(&mesh).await;
    check_growth(&mesh, "node-b", before, GROWTH_MB);
    drop(raw);
    others_are_served(&mesh).await;
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_comes_back_when_connections_have_ended() {
    const CONNECTIONS: usize = 1_500;
    const AT_ONCE: usize = 50;
    let mesh = enrolled_with(&[], &[]).await;
    let open = async || {
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS / AT_ONCE {
            let more = (0..AT_ONCE).map(|_| hold(&mesh, "shop/client", "shop/server-v1"));
            held.extend(join_all(more).await);
        }
        held
    };
    // Once before: what the first load leaves behind (code, threads, tables) is not what connections cost.
    drop(open().await);
    ended(&mesh).await;
    let before = NODES.map(|node| resident_mb(&mesh, node));
    let held = open().await;
    let peak = NODES.map(|node| resident_mb(&mesh, node));
    drop(held);
    ended(&mesh).await;
    let back = eventually("memory has come back", LATER, || async {
        for (node, (before, peak)) in NODES.into_iter().zip(before.into_iter().zip(peak)) {
            let (now, most) = (
                resident_mb(&mesh, node),
                before + (peak.max(before) - before) / 4,
            );
            ensure!(
                now <= most + SLACK_MB,
                "{before} MB, then {peak}, now {now} on {node}"
            );
        }
        Ok(())
    });
    back.await.unwrap();
    mesh.stop().await.unwrap();
}

/// Waits until the proxies carry no connection.
async fn ended(mesh: &Mesh) {
    let ended = eventually("all connections have ended", LATER, || async {
        let left = inbound_of(mesh, "shop/server-v1").await?;
        ensure!(left == 0, "{left} left");
        Ok(())
    });
    ended.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_requests_are_answered_and_counted_each() {
    const REQUESTS: usize = 2_000;
    let mesh = enrolled_with(&[], &[]).await;
    let before = resident_mb(&mesh, "node-b");
    let server = addr(&mesh, "shop/server-v1", 8080);
    let tunnel = Peer::new(&mesh).tunnel(server.ip()).await.unwrap();
    let elsewhere = addr(&mesh, "office/worker", 8080).to_string();
    for _ in 0..REQUESTS / 100 {
        let flood = (0..100).map(|_| tunnel.connect(&elsewhere));
        for stream in try_join_all(flood).await.unwrap() {
            assert_eq!(stream.status, 400);
        }
    }
    let counted = refused(&mesh, "node-b", &[("reason", "wrong_target")]).await;
    assert_eq!(counted.unwrap(), REQUESTS as f64);
    for port in [15001, 15006, 15008] {
        let own = SocketAddr::new(server.ip(), port).to_string();
        let stream = tunnel.connect(&own).await.unwrap();
        assert_eq!(stream.status, 503, "port {port}");
    }
    let good = tunnel.connect(&server.to_string()).await.unwrap();
    assert_eq!(good.status, 200);
    others_are_served(&mesh).await;
    check_growth(&mesh, "node-b", before, GROWTH_MB);
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_are_too_large_end_their_request_only() {
    const TOO_LARGE: usize = 50;
    let mesh = enrolled_with(&[], &[]).await;
    let before = resident_mb(&mesh, "node-b");
    let server = addr(&mesh, "shop/server-v1", 8080);
    let authority = server.to_string();
    let tunnel = Peer::new(&mesh).tunnel(server.ip()).await.unwrap();
    let within = "x".repeat(60_000);
    let stream = tunnel.connect_with(&authority, &within).await.unwrap();
    assert_eq!(stream.status, 200);
    let beyond = "x".repeat(80_000);
    for _ in 0..TOO_LARGE {
        if let Ok(stream) = tunnel.connect_with(&authority, &beyond).await {
            assert_eq!(stream.status, 431);
        }
    }
    let counted = eventually("each is counted", SOON, || async {
        let counted = refused(&mesh, "node-b", &[("reason", "headers")]).await?;
        ensure!(counted == TOO_LARGE as f64, "{counted}");
        Ok(())
    });
    counted.await.unwrap();
    others_are_served(&mesh).await;
    check_growth(&mesh, "node-b", before, GROWTH_MB);
    mesh.stop().await.unwrap();
}

/// A flood of frames that the other side may end at any time.
async fn flood(peer: &Peer, server: SocketAddr, frames: impl Fn(u32) -> Vec<u8>) -> Result<()> {
    const ROUNDS: u32 = 400;
    const PER_ROUND: u32 = 100;
    let mut raw = peer.raw(server.ip()).await?;
    for round in 0..ROUNDS {
        let burst: Vec<u8> = (0..PER_ROUND)
            .flat_map(|number| frames(round * PER_ROUND + number))
            .collect();
        match timeout(Duration::from_secs(2), raw.send(&burst)).await {
            Ok(Ok(())) => {}
            // It was cut, or is not read any more: both are bounds.
            Ok(Err(_)) | Err(_) => return Ok(()),
        }
    }
    timeout(Duration::from_secs(1), raw.drain()).await.ok();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_frames_are_bounded() {
    let mesh = enrolled_with(&[], &[]).await;
    let before = resident_mb(&mesh, "node-b");
    let server = addr(&mesh, "shop/server-v1", 8080);
    let peer = Peer::new(&mesh);
    let block = connect_block(&server.to_string());
    let pings = flood(&peer, server, |number| {
        frame(PING, 0, 0, &u64::from(number).to_be_bytes())
    });
    let settings = flood(&peer, server, |number| {
        let value = (65_535 + number % 1000).to_be_bytes();
        frame(SETTINGS, 0, 0, &[&[0, 4][..], &value].concat())
    });
    // Rapid reset, CVE-2023-44487.
    let resets = flood(&peer, server, |number| {
        let id = number * 2 + 1;
        let open = frame(HEADERS, END_HEADERS, id, &block);
        [open, frame(RST_STREAM, 0, id, &8_u32.to_be_bytes())].concat()
    });
    let (pings, settings, resets, ()) =
        tokio::join!(pings, settings, resets, others_are_served(&mesh));
    for result in [pings, settings, resets] {
        result.unwrap();
    }
    others_are_served(&mesh).await;
    check_growth(&mesh, "node-b", before, GROWTH_MB);
    let settled = eventually("connections to the app have ended", SOON, || async {
        let left = inbound_of(&mesh, "shop/server-v1").await?;
        ensure!(left < 5, "{left} connections");
        Ok(())
    });
    settled.await.unwrap();
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_hold_up_nobody() {
    // A tunnel's window has room for all of its streams, whether they are read or not.
    let windows = [
        ("HTTP2_STREAM_WINDOW_SIZE", "262144"),
        ("HTTP2_CONNECTION_WINDOW_SIZE", "67108864"),
    ];
    let mesh = enrolled_with(&["node-a"], &windows).await;
    others_are_served(&mesh).await;
    let before = resident_mb(&mesh, "node-a");
    // Applications that ask for much and read nothing, in the same tunnel as the others.
    let client = mesh.cluster().client("shop/client").unwrap();
    let target = addr(&mesh, "shop/server-v1", 8080);
    let mut stalled = Vec::new();
    for _ in 0..30 {
        let mut connection = client.connect(target, SOON).await.unwrap();
        let request = b"GET /bytes/9000000 HTTP/1.1\r\nhost: a\r\n\r\n";
        connection.write(request).await.unwrap();
        stalled.push(connection);
    }
    others_are_served(&mesh).await;
    others_are_served(&mesh).await;
    check_growth(&mesh, "node-a", before, GROWTH_MB);
    drop(stalled);
    mesh.stop().await.unwrap();
}
