//! Builds what the demo runs.

use std::{ffi::OsString, path::Path};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

const PACKAGES: [&str; 4] = [
    "leyline-ztunnel",
    "leyline-waypoint",
    "leyline-controlplane",
    "leyline-tests",
];

/// `cargo build --release`, with cargo's own progress on the terminal.
pub(crate) async fn release(root: &Path) -> Result<()> {
    // The cargo that runs us, as it tells every program that it runs.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command
        .current_dir(root)
        .args([
            "build",
            "--release",
            "--bins",
            "--locked",
            "--target-dir",
            "target",
        ])
        .args(PACKAGES.iter().flat_map(|package| ["-p", package]))
        .kill_on_drop(true);
    let status = command.status().await.context("running cargo")?;
    ensure!(
        status.success(),
        "the programs cannot be built: cargo says why above"
    );
    Ok(())
}
