//! Builds what the demo and the benchmark run.

use std::{ffi::OsString, path::Path};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

const PACKAGES: [&str; 4] = [
    "leyline-ztunnel",
    "leyline-waypoint",
    "leyline-controlplane",
    "leyline-tests",
];

/// Profiles of `Cargo.toml`.
#[derive(Clone, Copy)]
pub(crate) enum Profile {
    /// Built in a few minutes: for trying it.
    Release,
    /// Optimised as a whole, which takes many minutes: for measuring it.
    Dist,
}

impl Profile {
    /// As cargo names the profile and its directory below `target`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dist => "dist",
        }
    }
}

/// `cargo build --profile`, with cargo's own progress on the terminal.
pub(crate) async fn programs(root: &Path, profile: Profile) -> Result<()> {
    // The cargo that runs us, as it tells every program that it runs.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command
        .current_dir(root)
        .args([
            "build",
            "--profile",
            profile.name(),
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
