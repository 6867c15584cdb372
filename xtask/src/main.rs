//! Developer commands. `cargo xtask help` lists them.

mod codegen;

use std::path::Path;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Regenerate proto/src/gen, or with --check fail when it differs.
    Codegen {
        #[arg(long)]
        check: bool,
    },
}

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()?;
    match Args::parse().command {
        Command::Codegen { check } => codegen::run(
            &root,
            if check {
                codegen::Mode::Check
            } else {
                codegen::Mode::Write
            },
        ),
    }
}
