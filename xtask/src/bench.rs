//! `cargo xtask bench`: measures the mesh beside plain veth on this machine and prints the figures with Istio's.

use std::{fs, path::Path, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Args;
use leyline_tests::{
    bench::{self, Phase, Report},
    preflight,
    run::{self, Run},
};
use tokio::runtime::Builder;

use crate::demo::{build, console::Console, interrupted};

/// The id of a bench's run, hence the names under /run and /run/netns.
const ID: &str = "bench";
/// A server or client that is measured for less gives figures of its start.
const SHORTEST: f64 = 0.5;

/// Options of the command.
#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Only these, separated by commas: memory, bulk, latency, closed, connections, tunnels, local.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Phase>,
    /// Length of each measurement.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// How often each is made, direct and mesh by turns.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Write every figure of every round to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write profiles of the proxies by `perf` into this directory; they make the proxies slower.
    #[arg(long)]
    profiles: Option<PathBuf>,
    /// Take the programs of this directory, as they are, instead of building them; to compare two builds.
    #[arg(long)]
    binaries: Option<PathBuf>,
}

pub(crate) fn run(root: &Path, args: BenchArgs) -> Result<ExitCode> {
    let console = Console::new();
    // One thread: the cores are for the proxies and their load.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Dropping the bench at Ctrl-C removes what it has made: the run is a guard.
        tokio::select! {
            measured = measure(root, &args, &console) => {
                let report = measured?;
                console.line(format!("\n{report}"));
                save(&args, &report)?;
                Ok(ExitCode::SUCCESS)
            }
            interrupted = interrupted() => {
                interrupted?;
                console.line("interrupted: everything is removed");
                Ok(ExitCode::FAILURE)
            }
        }
    })
}

async fn measure(root: &Path, args: &BenchArgs, console: &Console) -> Result<Report> {
    ensure!(
        args.seconds >= SHORTEST && args.rounds > 0,
        "at least {SHORTEST} seconds and one round"
    );
    preflight::check_machine()?;
    run::remove_abandoned()?;
    preflight::check(ID)?;
    if let Some(directory) = &args.profiles {
        fs::create_dir_all(directory)?;
    }
    let binaries = match &args.binaries {
        Some(directory) => directory.clone(),
        None => {
            console.step("building the release programs");
            build::release(root).await?;
            root.join("target/release")
        }
    };
    let options = bench::Options {
        run: Run::claim(ID)?,
        binaries,
        phases: if args.only.is_empty() {
            Phase::ALL.to_vec()
        } else {
            args.only.clone()
        },
        duration: Duration::from_secs_f64(args.seconds),
        rounds: args.rounds,
        profiles: args.profiles.clone(),
    };
    Box::pin(bench::run(options, |step| console.step(step))).await
}

fn save(args: &BenchArgs, report: &Report) -> Result<()> {
    let Some(path) = &args.json else {
        return Ok(());
    };
    let text = format!("{:#}\n", report.json());
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
