//! `cargo xtask demo` and `bench`: builds the programs, and `leyline-local` that brings a mesh of them up, and becomes it.

use std::{
    ffi::OsStr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, ensure};
use leyline_devtools::{
    machine,
    options::{BenchArgs, Local},
};

/// Brings a mesh up.
const LOCAL: &str = "leyline-tests";
const PACKAGES: [&str; 4] = [
    "leyline-ztunnel",
    "leyline-waypoint",
    "leyline-controlplane",
    LOCAL,
];

/// Profiles of `Cargo.toml`.
#[derive(Clone, Copy)]
enum Profile {
    /// Built in a few minutes: for trying it.
    Release,
    /// Optimised as a whole, which takes many minutes: for measuring it.
    Dist,
}

impl Profile {
    /// As cargo names the profile and its directory below `target`.
    fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dist => "dist",
        }
    }

    fn directory(self, root: &Path) -> PathBuf {
        root.join("target").join(self.name())
    }
}

/// Returns only where there is nothing to become.
pub(crate) fn run(root: &Path, command: &Local) -> Result<ExitCode> {
    // Before minutes of building.
    machine::check()?;
    let (profile, packages) = match command {
        // What is to be removed was built by whoever left it.
        Local::Demo(args) if args.down => (Profile::Release, &[LOCAL][..]),
        Local::Demo(_) => (Profile::Release, &PACKAGES[..]),
        Local::Bench(BenchArgs {
            binaries: Some(_), ..
        }) => (Profile::Release, &[LOCAL][..]),
        Local::Bench(_) => (Profile::Dist, &PACKAGES[..]),
    };
    build(root, profile, packages)?;
    let program = profile.directory(root).join("leyline-local");
    // In its place, so that it alone is told of Ctrl-C and takes down what it has made.
    let error = Command::new(&program)
        .args(std::env::args_os().skip(1))
        .exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}

/// `cargo build`, with cargo's own progress on the terminal.
fn build(root: &Path, profile: Profile, packages: &[&str]) -> Result<()> {
    // The cargo that runs us, as it tells every program that it runs.
    let cargo = std::env::var_os("CARGO");
    let mut command = Command::new(cargo.as_deref().unwrap_or_else(|| OsStr::new("cargo")));
    command
        .current_dir(root)
        .args(["build", "--bins", "--locked", "--target-dir", "target"])
        .args(["--profile", profile.name()])
        .args(packages.iter().flat_map(|package| ["-p", package]));
    let status = command.status().context("running cargo")?;
    ensure!(
        status.success(),
        "the programs cannot be built: cargo says why above"
    );
    Ok(())
}
