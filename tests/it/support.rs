//! What the tests have in common.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use leyline_tests::{
    client::Client,
    cluster::{Binaries, Cluster},
    mesh::{Limits, Mesh, Options},
    preflight,
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
    Cluster::start(Run::unique().unwrap(), &binaries, &manifests())
        .await
        .unwrap()
}

/// The demo's mesh.
pub(crate) async fn mesh() -> Mesh {
    preflight::check_machine().unwrap();
    run::remove_abandoned().unwrap();
    let options = Options {
        run: Run::unique().unwrap(),
        binaries: Binaries::beside_this_test().unwrap(),
        manifests: manifests(),
        limits: Limits::TEST,
        peers: root().join("target/peers-venv"),
    };
    Mesh::start(options, |_step| {}).await.unwrap()
}

/// For one small call, however busy the machine is.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// Calls without a pause until told to stop; any failure is the test's.
pub(crate) async fn load(
    client: Client,
    target: SocketAddr,
    mut stop: watch::Receiver<bool>,
) -> usize {
    let mut calls = 0;
    while !*stop.borrow_and_update() {
        let reply = client.get(target, "/bytes/2000", CALL_DEADLINE).await;
        assert!(
            reply.is_ok(),
            "call {calls} to {target}: {:#}",
            reply.unwrap_err()
        );
        calls += 1;
    }
    calls
}
