//! The binary: `controlplane serve` and `controlplane token`.
//!
//! Options only become the library's configuration here; everything else is the library's.

mod cli;

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use clap::Parser;
use leyline_controlplane::{ControlPlane, StateDir, TokenKey};
use leyline_runtime::{Drain, DrainOutcome, signal::ShutdownSignals};
use leyline_telemetry::{
    log::{self, Format, LogConfig},
    metrics,
};
use tracing::info;

use cli::{Cli, Command, ServeArgs, TokenArgs};

/// Streams end at once when asked; certificates being signed take milliseconds.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// The last lines of the log.
const LOG_FLUSH: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => serve(args),
        Command::Token(args) => match token(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
    }
}

#[expect(
    clippy::print_stderr,
    reason = "it did not start: whoever started it is told, apart from any log"
)]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("controlplane: {error:#}");
    ExitCode::FAILURE
}

#[expect(
    clippy::print_stdout,
    reason = "the token is the output of the command"
)]
fn token(args: &TokenArgs) -> anyhow::Result<()> {
    let key = TokenKey::open(&StateDir::open(&args.state_dir)?)?;
    let token = key.issue(&args.caller(), args.ttl, std::time::SystemTime::now());
    println!("{token}");
    Ok(())
}

fn serve(args: ServeArgs) -> ExitCode {
    let format = if args.log_json {
        Format::Json
    } else {
        Format::Plain
    };
    let filter = args.log.clone();
    let log = match log::init(LogConfig { format, filter }).context("log") {
        Ok(log) => log,
        Err(error) => return fail(&error),
    };
    let outcome = run(args);
    log.flush(LOG_FLUSH);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure),
    }
}

fn run(args: ServeArgs) -> anyhow::Result<()> {
    leyline_runtime::threads::raise_open_files_limit()
        .context("raising the limit of open files")?;
    let metrics = metrics::install()?;
    let runtime = leyline_runtime::threads::worker_runtime(args.threads, "controlplane")?;
    runtime.block_on(async {
        let mut signals = ShutdownSignals::listen().context("listening for signals")?;
        let drain = Drain::new();
        let render = Arc::new(move || {
            metrics.upkeep();
            metrics.render()
        });
        ControlPlane::start(args.into_config(), render, &drain).await?;
        let signal = signals.next().await;
        info!(?signal, "draining");
        match drain.run(DRAIN_DEADLINE).await {
            DrainOutcome::Finished => info!("drained"),
            DrainOutcome::Forced { tasks } => info!(tasks, "cut at the drain deadline"),
        }
        Ok(())
    })
}
