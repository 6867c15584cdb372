//! Certificates of workloads over time: renewed under traffic, with the control plane away, and with a stranger in its place.

use std::{collections::HashSet, net::SocketAddr, time::Duration};

use anyhow::{Context, ensure};
use bytes::Bytes;
use leyline_tests::{
    access_log,
    client::Client,
    eventually::eventually,
    mesh::{Enrolment, Mesh},
    sniffer::Sniffer,
};
use tokio::{sync::watch, task::JoinSet};

use crate::{
    peer::{Peer, SERVER_ID},
    support::{SOON, addr, enrolled_with, hold, mesh},
};

/// A few renewals, or the life of a short certificate and the back-off of its renewal.
pub(crate) const LATER: Duration = Duration::from_secs(40);
pub(crate) const NODES: [&str; 2] = ["node-a", "node-b"];
const SECRET: &[u8] = b"open sesame, said Ali Baba";
/// Tunnels close as soon as they are idle, so that a call mostly needs a new one, with the certificate of that moment.
pub(crate) const NO_IDLE_TUNNELS: (&str, &str) = ("POOL_UNUSED_RELEASE_TIMEOUT", "1ms");

/// Calls that never pause and must all be answered.
pub(crate) struct Load {
    stop: watch::Sender<bool>,
    callers: JoinSet<usize>,
}

impl Load {
    pub(crate) fn start(pairs: &[(Client, SocketAddr)]) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut callers = JoinSet::new();
        for (client, target) in pairs {
            callers.spawn(call(client.clone(), *target, stopped.clone()));
        }
        Self { stop, callers }
    }

    /// Fails if a call has failed.
    pub(crate) async fn end(self) -> usize {
        self.stop.send_replace(true);
        self.callers.join_all().await.into_iter().sum()
    }
}

async fn call(client: Client, target: SocketAddr, stop: watch::Receiver<bool>) -> usize {
    let mut calls = 0;
    while !*stop.borrow() {
        let reply = client
            .post(target, "/", Bytes::from_static(SECRET), SOON)
            .await;
        assert!(
            reply.is_ok(),
            "call {calls} to {target}: {:#}",
            reply.unwrap_err()
        );
        calls += 1;
    }
    calls
}

pub(crate) fn pairs(mesh: &Mesh) -> Vec<(Client, SocketAddr)> {
    let pairs = [
        ("shop/client", "shop/server-v1"),
        ("shop/client", "shop/server-v2"),
        ("office/worker", "shop/server-v2"),
    ];
    pairs
        .iter()
        .map(|(from, to)| {
            let client = mesh.cluster().client(from).unwrap();
            (client, addr(mesh, to, 8080))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_without_a_failed_call() {
    const RENEWALS: usize = 3;
    let mesh = enrolled_with(&NODES, &[("SECRET_TTL", "4s"), NO_IDLE_TUNNELS]).await;
    let mut held = hold(&mesh, "shop/client", "shop/server-v1").await;
    let load = Load::start(&pairs(&mesh));
    let peer = Peer::new(&mesh);
    let target = addr(&mesh, "shop/server-v1", 0).ip();
    let mut seen = HashSet::new();
    while seen.len() <= RENEWALS {
        drop(peer.tls(target).await.unwrap());
        let dump = mesh.ztunnel("node-b").unwrap().config_dump().await.unwrap();
        let all = dump["certificates"].as_array().unwrap();
        let ours = all.iter().find(|one| one["identity"] == SERVER_ID).unwrap();
        assert_eq!(ours["state"], "Available");
        seen.insert(ours["certChain"][0]["serialNumber"].to_string());
        held.echo(b"through all renewals").await.unwrap();
    }
    let calls = load.end().await;
    assert!(calls > 50, "only {calls} calls");
    for node in NODES {
        let metrics = mesh.ztunnel(node).unwrap().metrics().await.unwrap();
        let failed = metrics.sum("istio_tcp_connections_failed_total", &[]);
        assert_eq!(failed, 0.0, "on {node}");
    }
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_ca_a_certificate_serves_until_it_expires() {
    // The client's alone: the server's of the same age may expire first, and then it is the server that refuses.
    let env = [("SECRET_TTL", "6s"), NO_IDLE_TUNNELS];
    let mut mesh = enrolled_with(&["node-a"], &env).await;
    let target = addr(&mesh, "shop/server-v1", 8080);
    let client = mesh.cluster().client("shop/client").unwrap();
    let mut held = hold(&mesh, "shop/client", "shop/server-v2").await;
    client.get(target, "/", SOON).await.unwrap();
    let log = mesh
        .ztunnel("node-a")
        .unwrap()
        .log()
        .unwrap()
        .from_now()
        .unwrap();
    mesh.stop_controlplane().await.unwrap();
    client.get(target, "/", SOON).await.unwrap();

    // A call that fails does so for this reason only.
    let wanted = [("direction", "outbound"), ("dst.workload", "server-v1")];
    let expired = eventually("the certificate has expired", LATER, || async {
        let reply = client.get(target, "/", SOON).await;
        ensure!(reply.is_err(), "answered");
        Ok(())
    });
    expired.await.unwrap();
    let failed = |entry: &access_log::Entry| entry.field("error").map(str::to_owned);
    let error = eventually("the failure is logged", SOON, || async {
        let entries = access_log::entries(&log)?;
        entries.iter().find_map(failed).context("no error yet")
    });
    let (error, _) = error.await.unwrap();
    assert!(
        error.contains("identity error: no certificate for"),
        "{error}"
    );
    access_log::find(&log, &wanted, SOON).await.unwrap();
    let metrics = mesh.ztunnel("node-a").unwrap().metrics().await.unwrap();
    let labels = [("response_flags", "IDENTITY_ERROR")];
    assert!(metrics.sum("istio_tcp_connections_failed_total", &labels) > 0.0);
    held.echo(b"a tunnel outlives its certificates")
        .await
        .unwrap();

    mesh.start_controlplane().await.unwrap();
    let back = eventually("calls work again", LATER, || async {
        client.get(target, "/", SOON).await
    });
    back.await.unwrap();
    held.echo(b"and is still there").await.unwrap();
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_control_plane_is_not_noticed() {
    let mut mesh = enrolled_with(&NODES, &[NO_IDLE_TUNNELS]).await;
    let mut held = [
        hold(&mesh, "shop/client", "shop/server-v1").await,
        hold(&mesh, "office/worker", "shop/server-v2").await,
    ];
    let fabric = mesh.cluster().fabric();
    let sniffer = Sniffer::start(fabric.infra(), SECRET).unwrap();
    let load = Load::start(&pairs(&mesh));
    let log = mesh
        .ztunnel("node-a")
        .unwrap()
        .log()
        .unwrap()
        .from_now()
        .unwrap();
    mesh.stop_controlplane().await.unwrap();
    mesh.start_controlplane().await.unwrap();
    let back = eventually("the proxy follows again", LATER, || async {
        let lines = log.lines()?;
        for event in ["xDS stream open", "following enrolment"] {
            ensure!(
                lines.iter().any(|line| line.contains(event)),
                "no `{event}`"
            );
        }
        Ok(())
    });
    back.await.unwrap();
    for held in &mut held {
        held.echo(b"still there").await.unwrap();
    }
    let calls = load.end().await;
    assert!(calls > 20, "only {calls} calls");
    let packets = sniffer.stop().await.unwrap();
    let leaked: Vec<_> = packets.iter().filter(|packet| packet.secret).collect();
    assert!(leaked.is_empty(), "{leaked:?}");
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_control_plane_is_refused_and_changes_nothing() {
    let mut mesh = mesh().await;
    let state = mesh.cluster().run().state_dir();
    // The proxies keep the root that they were given.
    let trusted = mesh.cluster().run().secrets_dir().join("trusted-root.pem");
    std::fs::copy(state.join("root-cert.pem"), &trusted).unwrap();
    let trusted = trusted.to_str().unwrap();
    let roots = [
        ("XDS_ROOT_CA", trusted),
        ("CA_ROOT_CA", trusted),
        NO_IDLE_TUNNELS,
    ];
    for node in NODES {
        mesh.restart_ztunnel(node, &roots).await.unwrap();
    }
    mesh.set_enrolment("shop", Enrolment::Ambient)
        .await
        .unwrap();
    let mut held = hold(&mesh, "shop/client", "shop/server-v1").await;
    let load = Load::start(&pairs(&mesh));

    mesh.stop_controlplane().await.unwrap();
    for file in ["ca-key.pem", "root-cert.pem"] {
        std::fs::remove_file(state.join(file)).unwrap();
    }
    let log = mesh
        .ztunnel("node-a")
        .unwrap()
        .log()
        .unwrap()
        .from_now()
        .unwrap();
    mesh.start_controlplane().await.unwrap();
    for stream in ["xDS stream ended", "enrolment stream broke"] {
        let told = eventually(format!("why the {stream}"), LATER, || async {
            let lines = log.lines()?;
            let about = lines.iter().rev().find(|line| line.contains(stream));
            let about = about.context("not told yet")?;
            ensure!(about.contains("UnknownIssuer"), "{about}");
            Ok(())
        });
        told.await.unwrap();
    }
    held.echo(b"still there").await.unwrap();
    let calls = load.end().await;
    assert!(calls > 20, "only {calls} calls");
    mesh.stop().await.unwrap();
}
