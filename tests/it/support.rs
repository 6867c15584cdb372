//! What the tests have in common.

use std::path::{Path, PathBuf};

use leyline_tests::{
    cluster::{Binaries, Cluster},
    mesh::{Limits, Mesh, Options},
    preflight,
    run::{self, Run},
};

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
