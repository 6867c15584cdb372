//! Certificates from a SPIFFE Workload API in place of a CA, served by a program that shares no code with ours.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use leyline_tests::{
    eventually::eventually,
    mesh::{Enrolment, Mesh},
    peers,
    process::{Process, Program},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};

use crate::{
    certificates::{LATER, Load, NO_IDLE_TUNNELS, NODES, pairs},
    support::{SOON, addr, hold, mesh, root},
};

pub(crate) const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
pub(crate) const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/server";
pub(crate) const WORKER: &str = "spiffe://cluster.local/ns/office/sa/worker";
/// Speaks HBONE itself, which is why its node has a certificate for it ready.
const GATEWAY: &str = "spiffe://cluster.local/ns/partner/sa/gateway";
const ALL: [&str; 4] = [CLIENT, SERVER, WORKER, GATEWAY];
/// Python loads gRPC.
const START_DEADLINE: Duration = Duration::from_secs(20);

pub(crate) type Ca = CertifiedIssuer<'static, KeyPair>;

pub(crate) fn ca(name: &str) -> Ca {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// As SPIRE writes it.
pub(crate) fn svid(ca: &Ca, id: &str, bundle: &str) -> Value {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyAgreement,
    ];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, ca).unwrap();
    json!({"id": id, "chain": certificate.pem(), "key": key.serialize_pem(), "bundle": bundle})
}

/// An agent with its socket, played by a script of `tests/peers`.
pub(crate) struct Agent {
    pub(crate) socket: PathBuf,
    svids: PathBuf,
    program: Program,
    process: Option<Process>,
}

impl Agent {
    pub(crate) async fn new(mesh: &Mesh, script: &str) -> Self {
        let python = peers::grpc_python(&root().join("target/venv-xds"))
            .await
            .unwrap();
        let directory = mesh.cluster().run().secrets_dir();
        let (socket, svids) = (directory.join("agent.sock"), directory.join("svids.json"));
        let program = Program {
            name: "spire-agent".to_owned(),
            path: python,
            args: vec![
                root().join("tests/peers").join(script).into(),
                "--socket".into(),
                socket.clone().into(),
                "--svids".into(),
                svids.clone().into(),
            ],
            env: BTreeMap::new(),
            namespace: mesh.cluster().fabric().infra().clone(),
        };
        Self {
            socket,
            svids,
            program,
            process: None,
        }
    }

    pub(crate) async fn start(&mut self, mesh: &Mesh) {
        let mut process = Process::start(mesh.cluster().run(), &self.program).unwrap();
        process
            .wait_for_line("listening", START_DEADLINE)
            .await
            .unwrap();
        self.process = Some(process);
    }

    pub(crate) async fn kill(&mut self) {
        self.process.take().unwrap().kill().await.unwrap();
    }

    /// Gives out fresh SVIDs of these identities from now on.
    fn give(&self, ca: &Ca, bundle: &str, identities: &[&str]) {
        let svids: Vec<Value> = identities.iter().map(|id| svid(ca, id, bundle)).collect();
        self.say(&json!({ "svids": svids }));
    }

    /// What it gives out from now on, as the script reads it.
    pub(crate) fn say(&self, document: &Value) {
        let aside = self.svids.with_extension("new");
        fs::write(&aside, document.to_string()).unwrap();
        fs::rename(aside, &self.svids).unwrap();
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.process.as_ref().unwrap().log().lines().unwrap()
    }
}

/// Serial numbers of the leaves by identity, and how many roots there are, when they all are as wanted.
pub(crate) async fn leaves(mesh: &Mesh, roots: usize) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for node in NODES {
        let dump = mesh.ztunnel(node)?.config_dump().await?;
        for one in dump["certificates"].as_array().context("no list")? {
            ensure!(one["state"] == "Available", "{one:#}");
            let got = one["rootCerts"].as_array().map_or(0, Vec::len);
            ensure!(got == roots, "{got} roots on {node}");
            let key = format!("{node} {}", one["identity"]);
            found.insert(key, one["certChain"][0]["serialNumber"].to_string());
        }
    }
    ensure!(found.len() >= ALL.len(), "{found:?}");
    Ok(found)
}

/// Waits until every leaf is another one.
pub(crate) async fn replaced(
    mesh: &Mesh,
    what: &str,
    roots: usize,
    old: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let new = eventually(what, LATER, || async {
        let new = leaves(mesh, roots).await?;
        let same = new.iter().find(|(key, leaf)| old.get(*key) == Some(*leaf));
        ensure!(same.is_none(), "{same:?}");
        Ok(new)
    });
    new.await.unwrap().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn svids_and_bundles_rotate_and_the_agent_may_be_away() {
    let mut mesh = mesh().await;
    let mut agent = Agent::new(&mesh, "workload_api.py").await;
    let (old, new) = (ca("old"), ca("new"));
    // The client has no entry yet.
    agent.give(&old, &old.pem(), &[SERVER, WORKER, GATEWAY]);
    agent.start(&mesh).await;
    let endpoint = format!("unix://{}", agent.socket.display());
    let env = [
        ("SPIFFE_ENDPOINT_SOCKET", endpoint.as_str()),
        // Nobody is there: it is not asked.
        ("CA_ADDRESS", "https://127.0.0.1:1"),
        NO_IDLE_TUNNELS,
    ];
    for node in NODES {
        mesh.restart_ztunnel(node, &env).await.unwrap();
    }
    mesh.set_enrolment("shop", Enrolment::Ambient)
        .await
        .unwrap();
    let client = mesh.cluster().client("shop/client").unwrap();
    let target = addr(&mesh, "shop/server-v1", 8080);
    assert!(client.get(target, "/", SOON).await.is_err());
    let dump = mesh.ztunnel("node-a").unwrap().config_dump().await.unwrap();
    let listed = dump["certificates"].as_array().unwrap();
    let ours = listed.iter().find(|one| one["identity"] == CLIENT);
    let state = ours.unwrap()["state"].as_str().unwrap();
    assert!(state.contains("is it registered?"), "{state}");

    // An entry works as soon as the agent tells of it.
    agent.give(&old, &old.pem(), &ALL);
    eventually("the client has its SVID", SOON, || async {
        client.get(target, "/", SOON).await.map(drop)
    })
    .await
    .unwrap();
    let mut held = hold(&mesh, "shop/client", "shop/server-v1").await;
    let load = Load::start(&pairs(&mesh));
    let first = replaced(&mesh, "the first SVIDs", 1, &BTreeMap::new()).await;

    agent.give(&old, &old.pem(), &ALL);
    let second = replaced(&mesh, "other SVIDs", 1, &first).await;
    let both = old.pem() + &new.pem();
    agent.give(&old, &both, &ALL);
    let third = replaced(&mesh, "the bundle of two", 2, &second).await;
    agent.give(&new, &both, &ALL);
    let fourth = replaced(&mesh, "the new authority", 2, &third).await;
    agent.give(&new, &new.pem(), &ALL);
    let fifth = replaced(&mesh, "the new authority alone", 1, &fourth).await;
    held.echo(b"through all of it").await.unwrap();

    agent.kill().await;
    let log = mesh.ztunnel("node-a").unwrap().log().unwrap();
    eventually("the proxy has noticed", SOON, || async {
        let lines = log.lines()?;
        let noticed = |line: &String| line.contains("the SPIFFE agent is not followed");
        ensure!(lines.iter().any(noticed), "not told");
        Ok(())
    })
    .await
    .unwrap();
    client.get(target, "/", SOON).await.unwrap();
    assert_eq!(leaves(&mesh, 1).await.unwrap(), fifth);
    agent.give(&new, &new.pem(), &ALL);
    agent.start(&mesh).await;
    replaced(&mesh, "SVIDs of the agent that is back", 1, &fifth).await;
    held.echo(b"and the agent away and back").await.unwrap();
    let calls = load.end().await;
    assert!(calls > 50, "only {calls} calls");
    mesh.stop().await.unwrap();
}
