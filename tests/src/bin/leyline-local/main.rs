//! The mesh on one machine: brings it up to be shown or measured. `cargo xtask demo` and `cargo xtask bench` build the
//! programs and then become this one, which stands on what the end-to-end tests stand on.

mod bench;
mod console;
mod demo;

use std::{path::Path, process::ExitCode};

use anyhow::Result;
use clap::Parser;
use leyline_devtools::options::Local;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Local,
}

fn main() -> Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()?;
    match Args::parse().command {
        Local::Demo(args) => demo::run(&root, &args),
        Local::Bench(args) => bench::run(&root, &args),
    }
}

/// Ctrl-C, or the signal to end.
async fn interrupted() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _received = interrupt.recv() => {}
        _received = terminate.recv() => {}
    }
    Ok(())
}
