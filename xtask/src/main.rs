//! Developer commands. `cargo xtask help` lists them.

mod codegen;
mod ebpf;
mod local;
mod test;
mod tidy;

use std::{path::Path, process::ExitCode};

use clap::{Parser, Subcommand};
use leyline_devtools::options::Local;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Local(Local),
    /// Run every check and test; CI runs exactly this. Needs root.
    Test,
    /// Check crate edges, dependencies, lengths and forbidden patterns.
    Tidy,
    /// Run the property tests with new random input for a while.
    Fuzz {
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Regenerate proto/src/gen, or with --check fail when it differs.
    Codegen {
        #[arg(long)]
        check: bool,
    },
    /// Rebuild ebpf/leyline.bpf.o, or with --check fail when it differs.
    Ebpf {
        #[arg(long)]
        check: bool,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()?;
    match Args::parse().command {
        Command::Local(command) => return local::run(&root, &command),
        Command::Test => return test::run(&root),
        Command::Tidy => tidy::run(&root)?,
        Command::Fuzz { seconds } => return test::fuzz(&root, seconds),
        Command::Codegen { check } => codegen::run(
            &root,
            if check {
                codegen::Mode::Check
            } else {
                codegen::Mode::Write
            },
        )?,
        Command::Ebpf { check } => ebpf::run(
            &root,
            if check {
                ebpf::Mode::Check
            } else {
                ebpf::Mode::Write
            },
        )?,
    }
    Ok(ExitCode::SUCCESS)
}
