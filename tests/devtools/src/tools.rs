//! Programs of others, from Debian.

use std::{
    io::{self, Write},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// A program that is there, or comes with a Debian package.
pub struct Tool {
    /// Succeeds where the program is there.
    pub probe: &'static [&'static str],
    /// The package.
    pub package: &'static str,
}

/// Installs the Debian packages of tools that are missing, and says so.
///
/// # Errors
/// When apt fails, with the packages that are missing.
pub fn ensure_tools(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&str> = tools
        .iter()
        .filter(|tool| !tool.is_there())
        .map(|tool| tool.package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    writeln!(io::stdout(), "installing {}", missing.join(", "))?;
    let apt = |args: &[&str]| -> Result<()> {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(args);
        let status = command.status().context("starting apt-get")?;
        ensure!(
            status.success(),
            "apt-get {}: {status}; install {} yourself",
            args.join(" "),
            missing.join(" ")
        );
        Ok(())
    };
    apt(&["update", "-q"])?;
    let mut install = vec!["install", "-y", "-q", "--no-install-recommends"];
    install.extend(&missing);
    apt(&install)
}

impl Tool {
    fn is_there(&self) -> bool {
        let Some((program, args)) = self.probe.split_first() else {
            return false;
        };
        let output = Command::new(program).args(args).output();
        output.is_ok_and(|output| output.status.success())
    }
}
