//! What clients may do to a waypoint without others noticing.

use std::{ffi::OsString, net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use leyline_tests::{
    eventually::eventually,
    mesh::Mesh,
    process::{Program, output},
};
use serde_json::Value;
use tokio::{sync::watch, task::JoinSet, time::timeout};

use crate::{
    support::{SOON, load, root},
    waypoint::{CANARY, mesh_with_waypoint},
    waypoint_session::Session,
};

/// For everything that a waypoint does here, in a debug build.
const MAX_RESIDENT: u64 = 200 << 20;

async fn serves(mesh: &Mesh, vip: SocketAddr) -> Result<()> {
    let mut session = Session::open(mesh, vip).await?;
    session.get("/", &[]).await?.description().map(|_| ())
}

fn resident(mesh: &Mesh) -> Result<u64> {
    let pid = mesh.waypoint("shop/waypoint")?.pid()?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes: u64 = line
        .context("no VmRSS")?
        .trim()
        .trim_end_matches(" kB")
        .parse()?;
    Ok(kilobytes << 10)
}

/// What became of a flood of frames from the client's pod.
async fn flood(mesh: &Mesh, vip: SocketAddr, kind: &str) -> Value {
    let script = root().join("tests/peers/h2_flood.py");
    let command: [OsString; 5] = [
        "python3".into(),
        script.into(),
        vip.ip().to_string().into(),
        vip.port().to_string().into(),
        kind.into(),
    ];
    let namespace = mesh.cluster().pod("shop/client").unwrap().namespace();
    let program = Program::of_machine(format!("flood-{kind}"), command, namespace);
    let printed = output(&program, Duration::from_secs(60)).await.unwrap();
    serde_json::from_str(&printed).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_http2_frames_harm_nobody_else() {
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY])).await;
    eventually("the service answers", SOON, || serves(&mesh, vip))
        .await
        .unwrap();
    for kind in ["resets", "continuation", "pings", "settings", "empty-data"] {
        let (flooded, served) = tokio::join!(flood(&mesh, vip, kind), async {
            for _ in 0..20 {
                serves(&mesh, vip).await.unwrap();
            }
        });
        let () = served;
        if ["resets", "continuation"].contains(&kind) {
            assert_eq!(flooded["ended"], "closed", "{kind}: {flooded}");
        }
        let resident = resident(&mesh).unwrap();
        assert!(
            resident < MAX_RESIDENT,
            "{kind}: {resident} bytes, {flooded}"
        );
    }
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_do_not_fill_the_memory() {
    const STREAMS: usize = 256;
    const BYTES: usize = 1 << 20;
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY])).await;
    eventually("the service answers", SOON, || serves(&mesh, vip))
        .await
        .unwrap();
    let client = mesh.cluster().client("shop/client").unwrap();
    let request =
        format!("GET /bytes/{BYTES} HTTP/1.1\r\nhost: canary\r\nconnection: close\r\n\r\n");
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = client.connect(vip, Duration::from_secs(60)).await.unwrap();
        stream.write(request.as_bytes()).await.unwrap();
        streams.push(stream);
    }
    let before = resident(&mesh).unwrap();
    let mut reading = JoinSet::new();
    for mut stream in streams {
        reading.spawn(async move { stream.read_to_end().await.unwrap().len() });
    }
    let mut most = before;
    while let Some(length) = reading.join_next().await {
        assert!(length.unwrap() > BYTES);
        most = most.max(resident(&mesh).unwrap());
    }
    assert!(
        most < MAX_RESIDENT,
        "{before} bytes resident before, then {most}"
    );
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_end_in_order_when_they_are_old_and_slow_heads_in_time() {
    let (mut mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY])).await;
    let env = [
        ("LEYLINE_MAX_CONNECTION_AGE", "1s"),
        ("LEYLINE_HEADERS_DEADLINE", "1s"),
    ];
    mesh.restart_waypoint("shop/waypoint", &env).await.unwrap();
    eventually("the service answers", SOON, || serves(&mesh, vip))
        .await
        .unwrap();
    let client = mesh.cluster().client("shop/client").unwrap();
    let (stop, stopped) = watch::channel(false);
    let mut calls = JoinSet::new();
    calls.spawn(load(client.clone(), vip, stopped));

    // A connection in use comes to its end, and never in the middle of an answer.
    let mut session = Session::open(&mesh, vip).await.unwrap();
    let mut answered = 0;
    let ending = async {
        while let Ok(answer) = session.get("/", &[]).await {
            assert_eq!(answer.status, 200, "{answer:?}");
            answered += 1;
            if answer.header("connection") == Some("close") {
                return;
            }
        }
    };
    timeout(SOON, ending).await.unwrap();
    assert!(answered > 0);

    let mut slow = client.connect(vip, SOON).await.unwrap();
    slow.write(b"GET / HTTP/1.1\r\nhost: can").await.unwrap();
    slow.ended(SOON).await.unwrap();

    stop.send(true).unwrap();
    assert!(calls.join_next().await.unwrap().unwrap() > 0);
    mesh.stop().await.unwrap();
}
