//! `cargo xtask codegen`: builds and runs `proto/codegen`, whose compilers of protos nobody needs who only tries the mesh.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};

/// Whether generated files are written or compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Write,
    Check,
}

pub(crate) fn run(root: &Path, mode: Mode) -> Result<()> {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root);
    command.args(["run", "--quiet", "--locked", "--package", "leyline-codegen"]);
    if mode == Mode::Check {
        command.args(["--", "--check"]);
    }
    let status = command.status().context("starting cargo")?;
    ensure!(status.success(), "generated code: {status}; see above");
    Ok(())
}
