//! What the tests have in common.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, ensure};
use leyline_runtime::env::{EnvSource, OsEnv};
use leyline_tests::{
    client::{Client, Connection},
    cluster::{Binaries, Cluster, Family},
    eventually::eventually,
    mesh::{Enrolment, Limits, Mesh, Options},
    preflight,
    process::{Process, Program},
    run::{self, Run},
};
use tokio::sync::watch;

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn manifests() -> PathBuf {
    root().join("manifests/demo")
}

/// The demo's nodes and pods without a mesh.
pub(crate) async fn cluster() -> Cluster {
    preflight::check_machine().unwrap();
    run::remove_abandoned().unwrap();
    let binaries = Binaries::beside_this_test().unwrap();
    Cluster::start(Run::unique().unwrap(), &binaries, &[manifests()])
        .await
        .unwrap()
}

/// The demo's mesh, without its waypoint.
pub(crate) async fn mesh() -> Mesh {
    mesh_of(vec![manifests()]).await
}

/// The demo's mesh with the bookstore and its waypoint.
pub(crate) async fn bookstore() -> Mesh {
    Box::pin(mesh_of(vec![manifests(), manifests().join("bookstore")])).await
}

async fn mesh_of(manifests: Vec<PathBuf>) -> Mesh {
    preflight::check_machine().unwrap();
    run::remove_abandoned().unwrap();
    let options = Options {
        run: Run::unique().unwrap(),
        binaries: Binaries::beside_this_test().unwrap(),
        manifests,
        limits: Limits::TEST,
        peers: root().join("target/peers-venv"),
    };
    Mesh::start(options, |_step| {}).await.unwrap()
}

/// For what happens at once, however busy the machine is.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// How often a test replaces the proxy: a few times, or as often as `LEYLINE_UPGRADES` says.
pub(crate) fn upgrades() -> usize {
    let asked = OsEnv.get("LEYLINE_UPGRADES");
    asked.map_or(3, |count| count.parse().unwrap())
}

/// Calls without a pause until told to stop; any failure is the test's.
pub(crate) async fn load(
    client: Client,
    target: SocketAddr,
    mut stop: watch::Receiver<bool>,
) -> usize {
    let mut calls = 0;
    while !*stop.borrow_and_update() {
        let reply = client.get(target, "/bytes/2000", SOON).await;
        assert!(
            reply.is_ok(),
            "call {calls} to {target}: {:#}",
            reply.unwrap_err()
        );
        calls += 1;
    }
    calls
}

/// The demo's mesh with its pods enrolled, after the proxies of these nodes were given settings.
pub(crate) async fn enrolled_with(nodes: &[&str], env: &[(&str, &str)]) -> Mesh {
    let mut mesh = mesh().await;
    for node in nodes {
        mesh.restart_ztunnel(node, env).await.unwrap();
    }
    mesh.set_enrolment("shop", Enrolment::Ambient)
        .await
        .unwrap();
    mesh
}

/// The IPv4 address of a pod with a port.
pub(crate) fn addr(mesh: &Mesh, pod: &str, port: u16) -> SocketAddr {
    mesh.cluster().pod_addr(pod, Family::V4, port).unwrap()
}

/// A connection to the echo port of a pod, in use.
pub(crate) async fn hold(mesh: &Mesh, from: &str, to: &str) -> Connection {
    let client = mesh.cluster().client(from).unwrap();
    let mut held = client.connect(addr(mesh, to, 9000), SOON).await.unwrap();
    held.echo(b"hello").await.unwrap();
    held
}

/// Waits until a node's proxy has a policy.
pub(crate) async fn in_force(mesh: &Mesh, node: &str, policy: &str) {
    let done = eventually(format!("{policy} is in force"), SOON, || async {
        let dumps = mesh.dumps().await?;
        ensure!(dumps[node].policies.contains(policy), "not yet");
        Ok(())
    });
    done.await.unwrap();
}

/// How many connections into a pod its proxy carries.
pub(crate) async fn inbound_of(mesh: &Mesh, pod: &str) -> Result<usize> {
    let dump = mesh.ztunnel_of(pod)?.config_dump().await?;
    let state = &dump["workloadState"][format!("Kubernetes//Pod/{pod}")];
    let inbound = state["connections"]["inbound"].as_array();
    Ok(inbound.map_or(0, Vec::len))
}

/// A server in Python in the namespace of a pod; the first of `args` is its script, below the root of the project. It
/// says when it listens.
pub(crate) async fn python_in(mesh: &Mesh, pod: &str, python: &Path, args: &[&str]) -> Process {
    let (script, args) = args.split_first().unwrap();
    let program = Program {
        name: Path::new(script)
            .file_stem()
            .unwrap()
            .to_string_lossy()
            .into_owned(),
        path: python.to_owned(),
        args: std::iter::once(root().join(script).into())
            .chain(args.iter().map(Into::into))
            .collect(),
        env: BTreeMap::new(),
        namespace: mesh.cluster().pod(pod).unwrap().namespace().clone(),
    };
    let mut process = Process::start(mesh.cluster().run(), &program).unwrap();
    process.wait_for_line("listening", SOON).await.unwrap();
    process
}
