//! `cargo xtask bench`: measures the mesh beside plain veth on this machine and prints the figures with Istio's; with
//! `--waypoint`, the waypoint beside Envoy in its place.

use std::{fs, path::Path, path::PathBuf, process::ExitCode, str::FromStr, time::Duration};

use anyhow::{Context, Error, Result, ensure};
use leyline_devtools::{
    options::BenchArgs,
    tools::{Tool, ensure_tools},
};
use leyline_tests::{
    bench::{self, Phase, waypoint},
    preflight,
    run::{self, Run},
};
use tokio::runtime::Builder;

use crate::{console::Console, interrupted};

/// The id of a bench's run, hence the names under /run and /run/netns.
const ID: &str = "bench";
/// A server or client that is measured for less gives figures of its start.
const SHORTEST: f64 = 0.5;

/// What the comparison of waypoints needs besides Envoy: a client and a server that share no code with them.
const WAYPOINT_TOOLS: [Tool; 3] = [
    Tool {
        probe: &["h2load", "--version"],
        package: "nghttp2-client",
    },
    Tool {
        probe: &["/usr/sbin/nginx", "-v"],
        package: "nginx-light",
    },
    Tool {
        probe: &["ss", "-V"],
        package: "iproute2",
    },
];

pub(crate) fn run(root: &Path, args: &BenchArgs) -> Result<ExitCode> {
    let console = Console::new();
    // One thread: the cores are for the proxies and their load.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Dropping the bench at Ctrl-C removes what it has made: the run is a guard.
        tokio::select! {
            measured = measure(root, args, &console) => {
                let (table, figures) = measured?;
                console.line(format!("\n{table}"));
                save(args, &figures)?;
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

/// The table, and the figures for other programs.
async fn measure(root: &Path, args: &BenchArgs, console: &Console) -> Result<(String, String)> {
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
    let built = || std::env::current_exe().map(|program| program.with_file_name(""));
    let binaries = args.binaries.clone().map_or_else(built, Ok)?;
    if args.waypoint {
        ensure_tools(&WAYPOINT_TOOLS)?;
        let report = waypoints(root, binaries, args, console).await?;
        return Ok((report.to_string(), format!("{:#}\n", report.json())));
    }
    let options = bench::Options {
        run: Run::claim(ID)?,
        binaries,
        phases: phases(&Phase::ALL, args)?,
        duration: Duration::from_secs_f64(args.seconds),
        rounds: args.rounds,
        profiles: args.profiles.clone(),
    };
    let report = Box::pin(bench::run(options, |step| console.step(step))).await?;
    Ok((report.to_string(), format!("{:#}\n", report.json())))
}

async fn waypoints(
    root: &Path,
    binaries: PathBuf,
    args: &BenchArgs,
    console: &Console,
) -> Result<waypoint::Report> {
    let options = waypoint::Options {
        run: Run::claim(ID)?,
        binaries,
        peers: root.join("target/peers-venv"),
        phases: phases(&waypoint::Phase::ALL, args)?,
        duration: Duration::from_secs_f64(args.seconds),
        rounds: args.rounds,
        profiles: args.profiles.clone(),
    };
    Box::pin(waypoint::run(options, |step| console.step(step))).await
}

/// Those that are asked for; all when none is.
fn phases<P: Clone + FromStr<Err = Error>>(all: &[P], args: &BenchArgs) -> Result<Vec<P>> {
    if args.only.is_empty() {
        return Ok(all.to_vec());
    }
    args.only.iter().map(|name| name.parse()).collect()
}

fn save(args: &BenchArgs, figures: &str) -> Result<()> {
    let Some(path) = &args.json else {
        return Ok(());
    };
    fs::write(path, figures).with_context(|| format!("writing {}", path.display()))
}
