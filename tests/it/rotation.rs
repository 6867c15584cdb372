//! The root of the mesh is replaced under traffic: old root, both, a new issuer, the new root alone.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use leyline_tests::{client::End, eventually::eventually, mesh::Mesh};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use serde_json::Value;

use crate::{
    certificates::{LATER, Load, NO_IDLE_TUNNELS, NODES, pairs},
    peer::Peer,
    support::{addr, enrolled_with, hold},
};

/// The files of an operator's CA, as istiod names them.
const FILES: [&str; 4] = [
    "ca-cert.pem",
    "ca-key.pem",
    "cert-chain.pem",
    "root-cert.pem",
];

/// Time for what is under way, none to wait for.
const GRACE: (&str, &str) = ("LEYLINE_WITHDRAWN_ROOT_GRACE", "1s");

/// A root and an intermediate that signs for it.
struct NewCa {
    root: CertifiedIssuer<'static, KeyPair>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
}

impl NewCa {
    fn new() -> Self {
        let params = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params
        };
        let key = || KeyPair::generate().unwrap();
        let root = CertifiedIssuer::self_signed(params("new root"), key()).unwrap();
        let intermediate = CertifiedIssuer::signed_by(params("new issuer"), key(), &root).unwrap();
        Self { root, intermediate }
    }
}

/// The control plane's own CA becomes that of a directory, as its manual says.
async fn hand_over(mesh: &mut Mesh) -> PathBuf {
    mesh.stop_controlplane().await.unwrap();
    let run = mesh.cluster().run();
    let (state, directory) = (run.state_dir(), run.secrets_dir().join("cacerts"));
    fs::create_dir(&directory).unwrap();
    fs::rename(state.join("ca-key.pem"), directory.join("ca-key.pem")).unwrap();
    for file in ["ca-cert.pem", "root-cert.pem"] {
        fs::copy(state.join("root-cert.pem"), directory.join(file)).unwrap();
    }
    mesh.controlplane_mut().set_ca_dir(&directory);
    mesh.start_controlplane().await.unwrap();
    directory
}

/// One file after the other, as by a person with an editor.
fn write(directory: &Path, files: [Option<String>; 4]) {
    for (name, text) in FILES.iter().zip(files) {
        if let Some(text) = text {
            fs::write(directory.join(name), text).unwrap();
        }
    }
}

/// What tells one state of the rotation from another in a proxy's dump.
fn lengths(certificate: &Value) -> (usize, usize) {
    let count = |key: &str| certificate[key].as_array().map_or(0, Vec::len);
    (count("certChain"), count("rootCerts"))
}

/// Waits until all certificates of all proxies are as long and have as many roots. Returns the first root of them.
async fn until(mesh: &Mesh, what: &str, wanted: (usize, usize)) -> String {
    let all = eventually(what, LATER, || async {
        let mut roots = Vec::new();
        for node in NODES {
            let dump = mesh.ztunnel(node)?.config_dump().await?;
            let certificates = dump["certificates"].as_array().context("no list")?;
            ensure!(!certificates.is_empty(), "{node} has no certificate");
            for certificate in certificates {
                let got = lengths(certificate);
                ensure!(
                    got == wanted,
                    "{got:?} on {node}, not {wanted:?}: {certificate:#}"
                );
                roots.push(certificate["rootCerts"][0]["serialNumber"].to_string());
            }
        }
        roots.dedup();
        let [root] = &roots[..] else {
            anyhow::bail!("{} roots", roots.len())
        };
        Ok(root.clone())
    });
    all.await.unwrap().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_is_replaced_under_load_without_a_failed_call() {
    // Certificates last for a day: what is renewed is renewed for the rotation.
    let mut mesh = enrolled_with(&NODES, &[NO_IDLE_TUNNELS, GRACE]).await;
    let old = fs::read_to_string(mesh.cluster().run().state_dir().join("root-cert.pem")).unwrap();
    let peer = Peer::new(&mesh);
    let target = addr(&mesh, "shop/server-v1", 0).ip();
    drop(peer.tls(target).await.unwrap());
    let mut held = hold(&mesh, "shop/client", "shop/server-v1").await;
    let load = Load::start(&pairs(&mesh));
    let directory = hand_over(&mut mesh).await;

    let first = until(&mesh, "the old root", (1, 1)).await;
    let new = NewCa::new();
    let both = old.clone() + &new.root.pem();
    write(&directory, [None, None, None, Some(both.clone())]);
    assert_eq!(until(&mesh, "both roots", (1, 2)).await, first);
    held.echo(b"with both roots").await.unwrap();

    let issuer = &new.intermediate;
    let key = issuer.key().serialize_pem();
    write(
        &directory,
        [Some(issuer.pem()), Some(key), Some(issuer.pem()), None],
    );
    let second = until(&mesh, "the new issuer", (2, 2)).await;
    assert_ne!(first, second);
    held.echo(b"with the new issuer").await.unwrap();
    // In a new tunnel, although there is one that is in use.
    let mut younger = hold(&mesh, "shop/client", "shop/server-v1").await;

    write(&directory, [None, None, None, Some(new.root.pem())]);
    assert_eq!(until(&mesh, "the new root alone", (2, 1)).await, second);
    // What nobody vouches for any more ends; all else goes on.
    assert_eq!(held.ended(LATER).await.unwrap(), End::Reset);
    younger.echo(b"with the new root").await.unwrap();
    let stranger = peer.tls(target).await;
    assert!(
        stranger.is_err(),
        "certificates of the old root are still there"
    );
    let calls = load.end().await;
    assert!(calls > 50, "only {calls} calls");
    // One end of its tunnel was the first; nothing else has failed.
    let (mut judged, mut told) = (0.0, 0.0);
    for node in NODES {
        let metrics = mesh.ztunnel(node).unwrap().metrics().await.unwrap();
        judged += metrics.sum("leyline_root_withdrawn_tunnels_total", &[]);
        let failed = |labels: &[_]| metrics.sum("istio_tcp_connections_failed_total", labels);
        let withdrawn = failed(&[("response_flags", "CERT_REVOKED")]);
        assert_eq!(failed(&[]), withdrawn, "on {node}");
        told += withdrawn;
    }
    assert!(judged >= 1.0 && told >= 1.0, "{judged} judged, {told} told");
    // Proxies that start now find the new root, too.
    mesh.restart_ztunnel(NODES[1], &[]).await.unwrap();
    until(&mesh, "a proxy after the rotation", (2, 1)).await;
    mesh.stop().await.unwrap();
}
