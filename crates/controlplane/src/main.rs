//! The binary: `controlplane serve`, `token`, `validate` and `status`.
//!
//! Options only become the library's configuration here; everything else is the library's.

mod cli;
mod commands;

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use clap::Parser;
use leyline_controlplane::ControlPlane;
use leyline_runtime::{Drain, DrainOutcome, signal::ShutdownSignals};
use leyline_telemetry::{
    log::{self, Format, LogConfig},
    metrics,
};
use tracing::info;

use cli::{Cli, Command, ServeArgs};

/// Streams end at once when asked; certificates being signed take milliseconds.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// The last lines of the log.
const LOG_FLUSH: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(args) => return serve(args),
        Command::Token(args) => commands::token(&args),
        Command::Validate(args) => commands::validate(args),
        Command::Status(args) => commands::status(&args),
    };
    outcome.unwrap_or_else(|error| fail(&error))
}

#[expect(
    clippy::print_stderr,
    reason = "it did not start: whoever started it is told, apart from any log"
)]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("controlplane: {error:#}");
    ExitCode::FAILURE
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
