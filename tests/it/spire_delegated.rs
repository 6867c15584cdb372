//! Certificates of all pods of a node from SPIRE's Delegated Identity API, served by a program that shares no code with ours.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicI64, Ordering},
};

use anyhow::{Context, ensure};
use leyline_net::Redirection;
use leyline_tests::{
    access_log,
    cni::cni_uid,
    eventually::eventually,
    mesh::{Enrolment, Mesh},
};
use serde_json::{Value, json};

use crate::{
    certificates::{Load, NO_IDLE_TUNNELS, NODES, pairs},
    cni::Scene,
    spire::{Agent, CLIENT, Ca, SERVER, WORKER, ca, leaves, replaced, svid},
    support::{SOON, addr, hold, mesh},
};

const SCRIPT: &str = "delegated_identity.py";

/// A registration entry with a fresh SVID, which expires after all that were made before.
fn entry(ca: &Ca, id: &str, selectors: &[&str]) -> Value {
    static EXPIRES_AT: AtomicI64 = AtomicI64::new(2_000_000_000);
    let mut entry = svid(ca, id, "");
    entry["selectors"] = json!(selectors);
    entry["expires_at"] = json!(EXPIRES_AT.fetch_add(1, Ordering::Relaxed));
    entry
}

fn server(ca: &Ca) -> Value {
    entry(ca, SERVER, &["k8s:ns:shop", "k8s:sa:server"])
}

fn worker(ca: &Ca) -> Value {
    entry(ca, WORKER, &["k8s:ns:office", "k8s:sa:worker"])
}

/// Of the pod itself, on its node.
fn client(ca: &Ca) -> Value {
    let selectors = ["k8s:ns:shop", "k8s:pod-name:client", "k8s:node-name:node-a"];
    entry(ca, CLIENT, &selectors)
}

/// What the agent says; it knows of another trust domain, too.
fn document(bundle: &str, entries: &[Value]) -> Value {
    let stranger = ca("stranger").pem();
    let bundles = json!({"spiffe://cluster.local": bundle, "spiffe://other.example": stranger});
    json!({"bundles": bundles, "entries": entries})
}

fn all(ca: &Ca, bundle: &str) -> Value {
    document(bundle, &[server(ca), worker(ca), client(ca)])
}

async fn restart(mesh: &mut Mesh, agent: &Agent) {
    let endpoint = format!("unix://{}", agent.socket.display());
    let env = [
        ("SPIRE_ADMIN_ENDPOINT_SOCKET", endpoint.as_str()),
        // Nobody is there: it is not asked.
        ("CA_ADDRESS", "https://127.0.0.1:1"),
        NO_IDLE_TUNNELS,
    ];
    for node in NODES {
        mesh.restart_ztunnel(node, &env).await.unwrap();
    }
}

/// Waits until a node's proxy tells this of the certificate of an identity.
async fn state(mesh: &Mesh, node: &str, identity: &str, expected: &str) {
    let told = eventually(format!("{identity}: {expected}"), SOON, || async {
        let dump = mesh.ztunnel(node)?.config_dump().await?;
        let listed = dump["certificates"].as_array().context("no list")?;
        let ours = listed.iter().find(|one| one["identity"] == identity);
        let state = ours.context("not listed")?["state"].to_string();
        ensure!(state.contains(expected), "{state}");
        Ok(())
    });
    told.await.unwrap();
}

async fn called(mesh: &Mesh, from: &str, to: &str) {
    let (client, target) = (mesh.cluster().client(from).unwrap(), addr(mesh, to, 8080));
    let called = eventually(format!("{from} calls {to}"), SOON, || async {
        client.get(target, "/", SOON).await.map(drop)
    });
    called.await.unwrap();
}

async fn not_called(mesh: &Mesh, from: &str, to: &str) {
    let (client, target) = (mesh.cluster().client(from).unwrap(), addr(mesh, to, 8080));
    assert!(client.get(target, "/", SOON).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_served_when_there_is_an_entry_for_it_and_refused_until_then() {
    let mut mesh = mesh().await;
    let mut agent = Agent::new(&mesh, SCRIPT).await;
    let ca = ca("spire");
    let bundle = ca.pem();
    let mut nobody = all(&ca, &bundle);
    nobody["authorized"] = json!(false);
    agent.say(&nobody);
    agent.start(&mesh).await;
    restart(&mut mesh, &agent).await;
    mesh.set_enrolment("shop", Enrolment::Ambient)
        .await
        .unwrap();
    let log = mesh.ztunnel("node-a").unwrap().log().unwrap();
    let log = log.from_now().unwrap();
    not_called(&mesh, "shop/client", "shop/server-v1").await;
    state(&mesh, "node-a", CLIENT, "authorized_delegates").await;

    // An entry that is missing is the trouble of its pod alone.
    agent.say(&document(&bundle, &[server(&ca), worker(&ca)]));
    called(&mesh, "shop/server-v2", "shop/server-v1").await;
    state(&mesh, "node-a", CLIENT, "check the registration entry").await;
    not_called(&mesh, "shop/client", "shop/server-v1").await;
    let told = eventually("the reason is logged", SOON, || async {
        let entries = access_log::entries(&log)?;
        let mut errors = entries.iter().filter_map(|entry| entry.field("error"));
        ensure!(errors.any(|error| error.contains("check the registration entry")));
        Ok(())
    });
    told.await.unwrap();

    // Another's certificate under its name.
    let mut false_one = server(&ca);
    false_one["selectors"] = json!(["k8s:ns:shop", "k8s:sa:client"]);
    false_one["says"] = json!(CLIENT);
    agent.say(&document(&bundle, &[server(&ca), worker(&ca), false_one]));
    state(&mesh, "node-a", CLIENT, &format!("certifies {SERVER}")).await;
    not_called(&mesh, "shop/client", "shop/server-v1").await;
    let elsewhere = "spiffe://other.example/ns/shop/sa/client";
    let of_another = entry(&ca, elsewhere, &["k8s:sa:client"]);
    agent.say(&document(&bundle, &[server(&ca), worker(&ca), of_another]));
    state(&mesh, "node-a", CLIENT, "of another trust domain").await;
    not_called(&mesh, "shop/client", "shop/server-v1").await;

    agent.say(&all(&ca, &bundle));
    called(&mesh, "shop/client", "shop/server-v1").await;
    let seen = eventually("the server's proxy sees who calls", SOON, || async {
        let lines = mesh.ztunnel("node-b")?.log()?.lines()?.join("\n");
        for id in [CLIENT, SERVER] {
            ensure!(lines.contains(&format!("src.identity=\"{id}\"")), "{id}");
        }
        Ok(())
    });
    seen.await.unwrap();
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn svids_and_bundles_rotate_and_the_agent_may_be_away() {
    let mut mesh = mesh().await;
    let mut agent = Agent::new(&mesh, SCRIPT).await;
    let (old, new) = (ca("old"), ca("new"));
    agent.say(&all(&old, &old.pem()));
    agent.start(&mesh).await;
    restart(&mut mesh, &agent).await;
    mesh.set_enrolment("shop", Enrolment::Ambient)
        .await
        .unwrap();
    called(&mesh, "shop/client", "shop/server-v1").await;
    let mut held = hold(&mesh, "shop/client", "shop/server-v1").await;
    let load = Load::start(&pairs(&mesh));

    let mut last = replaced(&mesh, "the first SVIDs", 1, &BTreeMap::new()).await;
    let both = old.pem() + &new.pem();
    for (what, ca, bundle, roots) in [
        ("other SVIDs", &old, old.pem(), 1),
        ("the bundle of two", &old, both.clone(), 2),
        ("the new authority", &new, both, 2),
        ("the new authority alone", &new, new.pem(), 1),
    ] {
        agent.say(&all(ca, &bundle));
        last = replaced(&mesh, what, roots, &last).await;
        held.echo(b"through all of it").await.unwrap();
    }

    agent.kill().await;
    let noticed = eventually("the proxy has noticed", SOON, || async {
        let metrics = mesh.ztunnel("node-a")?.metrics().await?;
        let name = "leyline_delegated_identity_failures_total";
        ensure!(metrics.sum(name, &[("of", "agent")]) >= 1.0, "not counted");
        Ok(())
    });
    noticed.await.unwrap();
    called(&mesh, "shop/client", "shop/server-v1").await;
    assert_eq!(leaves(&mesh, 1).await.unwrap(), last);
    agent.say(&all(&new, &new.pem()));
    agent.start(&mesh).await;
    replaced(&mesh, "SVIDs of the agent that is back", 1, &last).await;
    held.echo(b"and the agent away and back").await.unwrap();
    let calls = load.end().await;
    assert!(calls > 50, "only {calls} calls");
    mesh.stop().await.unwrap();
}

/// As spire-controller-manager makes them: an entry for each pod, by its uid.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_of_single_pods_match_by_uid_and_end_with_the_pod() {
    let mut scene = Box::pin(Scene::start(Redirection::Rewritten)).await;
    let mut agent = Agent::new(&scene.mesh, SCRIPT).await;
    let ca = ca("spire");
    let of = |pod: &str, id: &str| {
        let selector = format!("k8s:pod-uid:{}", cni_uid(pod));
        entry(&ca, id, &[selector.as_str()])
    };
    let mut entries = vec![of("shop/client", CLIENT), of("shop/server-v1", SERVER)];
    agent.say(&document(&ca.pem(), &entries));
    agent.start(&scene.mesh).await;
    restart(&mut scene.mesh, &agent).await;
    called(&scene.mesh, "shop/client", "shop/server-v1").await;
    // The same service account on another node is no entry for this pod.
    not_called(&scene.mesh, "shop/server-v2", "shop/server-v1").await;
    state(
        &scene.mesh,
        "node-a",
        SERVER,
        "check the registration entry",
    )
    .await;
    entries.push(of("shop/server-v2", SERVER));
    agent.say(&document(&ca.pem(), &entries));
    called(&scene.mesh, "shop/server-v2", "shop/server-v1").await;

    scene.node_a.delete("shop/server-v2").await.unwrap();
    let uid = cni_uid("shop/server-v2");
    let dropped = eventually("nothing is asked for it any more", SOON, || async {
        let log = agent.log();
        let ended = |line: &String| line.starts_with("ended ") && line.contains(&uid);
        ensure!(log.iter().any(ended), "still subscribed");
        let dump = scene.mesh.ztunnel("node-a")?.config_dump().await?;
        let listed = dump["certificates"].as_array().context("no list")?;
        ensure!(listed.iter().all(|one| one["identity"] != SERVER), "kept");
        Ok(())
    });
    dropped.await.unwrap();
    called(&scene.mesh, "shop/client", "shop/server-v1").await;
    scene.mesh.stop().await.unwrap();
}
