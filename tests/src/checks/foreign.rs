//! Check 9: peers that share no code with us call a pod and are called by one; bad ones are refused, each with its reason in the
//! log and in a counter.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{
    calls::answered,
    names::{CLIENT, GATEWAY, HTTP, SERVER_V2, SHOP},
};
use crate::{
    access_log,
    certificates::{Authority, Credential},
    cluster::Family,
    echo::Description,
    eventually::eventually,
    mesh::{Enrolment, Mesh},
    peers::{Call, ENVOY_OUT, Manner, Outcome, Peers, Server},
};

const REFUSED: &str = "leyline_connections_refused_total";
const GATEWAY_ID: &str = "spiffe://cluster.local/ns/partner/sa/gateway";
const CLIENT_ID: &str = "spiffe://cluster.local/ns/shop/sa/client";
const SERVER_ID: &str = "spiffe://cluster.local/ns/shop/sa/server";

/// A bad peer and the ends of reasons that fit it.
struct Bad<'a> {
    what: &'static str,
    credential: Option<&'a Credential>,
    manner: Manner,
    authority: String,
    reasons: &'static [&'static str],
}

pub(super) async fn check(mesh: &Mesh) -> Result<String> {
    mesh.set_enrolment(SHOP, Enrolment::Ambient).await?;
    let peers = Peers::install(mesh.peers_dir())
        .await
        .context("installing foreign peers")?;
    let run = mesh.cluster().run();
    let (root, secrets) = (run.state_dir().join("root-cert.pem"), run.secrets_dir());
    let mesh_ca = Authority::of_mesh(&run.state_dir())?;
    let good = mesh_ca.issue(&secrets, "gateway", GATEWAY_ID)?;
    let foreign_root = Authority::foreign()?.issue(&secrets, "foreign-root", GATEWAY_ID)?;
    let foreign_domain = mesh_ca.issue(
        &secrets,
        "foreign-domain",
        "spiffe://other.example/ns/partner/sa/gateway",
    )?;

    let server = served_by_peer(mesh, &peers, &root, &good).await?;
    calls_of_peer(mesh, &peers, &root, &good)
        .await
        .context("the Python client")?;
    let refused = refuses_bad(mesh, &peers, &root, &good, [&foreign_root, &foreign_domain]).await?;
    Ok(format!(
        "{server} called and was called, Python h2 called; refused: {refused}"
    ))
}

/// A pod calls the peer's pod, and the peer's application calls a pod of ours.
async fn served_by_peer(
    mesh: &Mesh,
    peers: &Peers,
    root: &Path,
    credential: &Credential,
) -> Result<&'static str> {
    let cluster = mesh.cluster();
    let gateway = cluster.pod(GATEWAY)?;
    let upstream = cluster.pod_addr(SERVER_V2, Family::V4, HTTP)?;
    let server = Server {
        namespace: gateway.namespace(),
        listen: gateway.addresses().v4.into(),
        app_port: HTTP,
        credential,
        root,
        upstream,
        expected: SERVER_ID,
    };
    let mut process = peers.serve(cluster.run(), &server).await?;
    let name = if peers.has_envoy() {
        "Envoy"
    } else {
        "a Python server"
    };

    let called = answered(mesh, CLIENT, gateway.v4(HTTP))
        .await
        .with_context(|| format!("calling {name}\n{}", process.log().tail()))?;
    ensure!(called.pod == "gateway", "{} answered", called.pod);
    let line = format!(
        "HBONE CONNECT {} peer={CLIENT_ID} code=200",
        gateway.v4(HTTP)
    );
    process
        .wait_for_line(&line, mesh.limits().call)
        .await
        .with_context(|| format!("{name} did not see our tunnel as it should"))?;

    if peers.has_envoy() {
        let log = mesh.ztunnel_of(SERVER_V2)?.log()?.from_now()?;
        let out = (IpAddr::from([127, 0, 0, 1]), ENVOY_OUT).into();
        let seen = answered(mesh, GATEWAY, out)
            .await
            .with_context(|| format!("Envoy calling\n{}", process.log().tail()))?;
        check_seen(mesh, &seen)?;
        let wanted = [("direction", "inbound"), ("src.identity", GATEWAY_ID)];
        access_log::find(&log, &wanted, mesh.limits().call).await?;
    }
    process.kill().await?;
    Ok(name)
}

async fn calls_of_peer(
    mesh: &Mesh,
    peers: &Peers,
    root: &Path,
    credential: &Credential,
) -> Result<()> {
    let cluster = mesh.cluster();
    let log = mesh.ztunnel_of(SERVER_V2)?.log()?.from_now()?;
    for family in Family::ALL {
        let target = cluster.pod_addr(SERVER_V2, family, HTTP)?;
        let call = Call {
            connect: target.ip(),
            authority: target.to_string(),
            root,
            credential: Some(credential),
            manner: Manner::Good,
        };
        let outcome = peers.call(cluster.pod(GATEWAY)?.namespace(), &call).await?;
        ensure!(outcome.outcome == "answered", "{outcome:?}");
        ensure!(
            outcome.peer.as_deref() == Some(SERVER_ID),
            "the server is {:?}",
            outcome.peer
        );
        let (_head, body) = outcome
            .body
            .split_once("\r\n\r\n")
            .context("no HTTP answer")?;
        check_seen(mesh, &serde_json::from_str(body)?)?;
    }
    let wanted = [("direction", "inbound"), ("src.identity", GATEWAY_ID)];
    access_log::find(&log, &wanted, mesh.limits().call).await?;
    Ok(())
}

/// The app behind us saw the peer's own address.
fn check_seen(mesh: &Mesh, seen: &Description) -> Result<()> {
    ensure!(seen.pod == "server-v2", "{} answered", seen.pod);
    let peer = mesh.cluster().pod(GATEWAY)?.addresses();
    ensure!(
        peer.all().contains(&seen.peer.ip()),
        "the app saw {}",
        seen.peer
    );
    Ok(())
}

/// Every bad peer, calling the application at `target`.
fn bad_peers<'a>(
    target: SocketAddr,
    elsewhere: SocketAddr,
    good: &'a Credential,
    [foreign_root, foreign_domain]: [&'a Credential; 2],
) -> [Bad<'a>; 6] {
    let bad = |what, credential, manner, reasons| Bad {
        what,
        credential,
        manner,
        authority: target.to_string(),
        reasons,
    };
    [
        bad(
            "other root",
            Some(foreign_root),
            Manner::Good,
            &["unknown_root"],
        ),
        bad(
            "other trust domain",
            Some(foreign_domain),
            Manner::Good,
            &["trust_domain"],
        ),
        bad(
            "no certificate",
            None,
            Manner::Good,
            &["no_peer_certificate", "no_certificate"],
        ),
        bad("TLS 1.2", Some(good), Manner::Tls12, &["version"]),
        bad("slow handshake", None, Manner::Silent, &["deadline"]),
        Bad {
            authority: elsewhere.to_string(),
            ..bad(
                "wrong authority",
                Some(good),
                Manner::Good,
                &["wrong_target", "authority"],
            )
        },
    ]
}

/// All bad peers at once: each is refused, and the counter of its reason has gone up by it.
async fn refuses_bad(
    mesh: &Mesh,
    peers: &Peers,
    root: &Path,
    good: &Credential,
    foreign: [&Credential; 2],
) -> Result<String> {
    let target = mesh.cluster().pod_addr(SERVER_V2, Family::V4, HTTP)?;
    let elsewhere = mesh.cluster().pod_addr(CLIENT, Family::V4, HTTP)?;
    let all = bad_peers(target, elsewhere, good, foreign);
    let ztunnel = mesh.ztunnel_of(SERVER_V2)?;
    let log = ztunnel.log()?.from_now()?;
    let before = ztunnel.metrics().await?.by_label(REFUSED, "reason");
    let namespace = mesh.cluster().pod(GATEWAY)?.namespace();
    let calls = all.iter().map(|bad| async {
        let call = Call {
            connect: target.ip(),
            authority: bad.authority.clone(),
            root,
            credential: bad.credential,
            manner: bad.manner,
        };
        let outcome = peers.call(namespace, &call).await.context(bad.what)?;
        check_refused(&outcome, bad).with_context(|| format!("{}: {outcome:?}", bad.what))
    });
    futures::future::try_join_all(calls).await?;

    let (reasons, _) = eventually("each refusal is counted", mesh.limits().call, || async {
        let now = ztunnel.metrics().await?.by_label(REFUSED, "reason");
        all.iter()
            .map(|bad| counted(bad, &before, &now))
            .collect::<Result<Vec<_>>>()
    })
    .await?;
    let entries = access_log::entries(&log)?;
    for (bad, reason) in all.iter().zip(&reasons) {
        ensure!(
            entries
                .iter()
                .any(|entry| entry.field("reason") == Some(reason)),
            "no line of the access log has the reason {reason} of {}",
            bad.what
        );
    }
    Ok(all.map(|bad| bad.what).join(", "))
}

fn check_refused(outcome: &Outcome, bad: &Bad<'_>) -> Result<()> {
    /// A handshake deadline above this would let a peer hold sockets for nothing.
    const SILENT: Duration = Duration::from_secs(12);
    match outcome.outcome.as_str() {
        "status" => ensure!(outcome.status == Some(400), "another status"),
        "tls" | "closed" => {}
        _ => anyhow::bail!("not refused"),
    }
    if bad.manner == Manner::Silent {
        let after = Duration::from_secs_f64(outcome.after.context("no time")?);
        ensure!(after < SILENT, "held for {after:?}");
    }
    Ok(())
}

/// The reason whose counter went up for this bad peer.
fn counted(
    bad: &Bad<'_>,
    before: &BTreeMap<String, f64>,
    now: &BTreeMap<String, f64>,
) -> Result<String> {
    let risen = now.iter().find(|(reason, count)| {
        bad.reasons.iter().any(|end| reason.ends_with(end))
            && **count > before.get(*reason).copied().unwrap_or(0.0)
    });
    let (reason, _) = risen.with_context(|| {
        format!(
            "{} is counted nowhere: before {before:?}, now {now:?}",
            bad.what
        )
    })?;
    Ok(reason.clone())
}
