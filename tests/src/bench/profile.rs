//! Profiles of the programs under load by `perf`, which makes them slower.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};

const END_DEADLINE: Duration = Duration::from_secs(10);

/// A profile that is being taken.
pub(super) struct Profile(Child);

impl Profile {
    /// By the software clock, for virtual machines have no counters.
    pub(super) fn start(file: &Path, pids: &[u32]) -> Result<Self> {
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        let perf = Command::new("perf")
            .args(["record", "--quiet", "-e", "cpu-clock", "-F", "1999", "-g"])
            .args(["-p", &pids.join(","), "-o"])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("starting perf (Debian package linux-perf)")?;
        Ok(Self(perf))
    }

    /// Waits until it is written.
    pub(super) async fn end(mut self) -> Result<()> {
        if let Some(pid) = self.0.id() {
            kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGINT)?;
        }
        tokio::time::timeout(END_DEADLINE, self.0.wait())
            .await
            .context("perf does not end")??;
        Ok(())
    }
}
