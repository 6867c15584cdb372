//! Developer commands. `cargo xtask help` lists them.

mod bench;
mod codegen;
mod demo;
mod ebpf;
mod test;
mod tidy;

use std::{path::Path, process::ExitCode};

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build all, run an encrypted and authorized mesh on this machine, check it, take it down. Needs root.
    Demo {
        /// Leave it up and say how to look around.
        #[arg(long, conflicts_with = "down")]
        keep: bool,
        /// Remove what `--keep` left up.
        #[arg(long)]
        down: bool,
        /// Name of the run, for several at once.
        #[arg(long, default_value = demo::ID)]
        id: String,
    },
    /// Measure the mesh beside plain veth, and print the figures with Istio's. Needs root.
    Bench(bench::BenchArgs),
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
        Command::Demo { keep, down, id } => {
            let mode = match (keep, down) {
                (true, _) => demo::Mode::Keep,
                (false, true) => demo::Mode::Down,
                (false, false) => demo::Mode::Check,
            };
            return demo::run(&root, &id, mode);
        }
        Command::Bench(args) => return bench::run(&root, args),
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
