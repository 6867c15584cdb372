//! Options of the commands that bring a mesh up on this machine.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// The id of the demo's run where none is given, hence the names under /run and /run/netns.
pub const DEMO_ID: &str = "demo";

/// Developer commands.
///
/// Those of `leyline-local`.
#[derive(Clone, Debug, Subcommand)]
pub enum Local {
    /// Build all, run an encrypted and authorized mesh on this machine, check it, take it down. Needs root.
    Demo(DemoArgs),
    /// Measure the mesh beside plain veth, and print the figures with Istio's. Needs root.
    Bench(BenchArgs),
}

/// Options of the demo.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Leave it up and say how to look around.
    #[arg(long, conflicts_with = "down")]
    pub keep: bool,
    /// Remove what `--keep` left up.
    #[arg(long)]
    pub down: bool,
    /// Name of the run, for several at once.
    #[arg(long, default_value = DEMO_ID)]
    pub id: String,
}

/// Options of the benchmark.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// Measure our waypoint and Envoy, which do the same in turn, instead of the node proxies.
    #[arg(long)]
    pub waypoint: bool,
    /// Only these, separated by commas: memory, bulk, latency, closed, connections, tunnels, local; of waypoints: closed,
    /// latency, bodies, scale.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// Length of each measurement.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// How often each is made, by turns.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Write every figure of every round to this file.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Write profiles of the proxies by `perf` into this directory; they make the proxies slower.
    #[arg(long)]
    pub profiles: Option<PathBuf>,
    /// Take the programs of this directory, as they are, instead of building them; to compare two builds.
    #[arg(long)]
    pub binaries: Option<PathBuf>,
}
