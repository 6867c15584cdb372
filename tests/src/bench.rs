//! Measures the mesh beside plain veth, in the same run and by turns. `cargo xtask bench` calls [`run`].
//!
//! It is no test: no figure makes it fail. What is measured and how is in [`load`], what the figures are compared with in
//! the report.

pub mod load;
mod profile;
mod report;
mod scene;
mod spread;
mod usage;
pub mod waypoint;

use std::{path::PathBuf, str::FromStr, time::Duration};

use anyhow::{Error, Result, bail};
use tokio::time::sleep;

pub use report::Report;

use self::{
    load::{bulk::Moved, timing::Repeated},
    scene::{Measured, Route, Scene},
};
use crate::run::Run;

/// After a phase the kernel and the proxies still take connections down; the next phase should not pay for it.
const SETTLE: Duration = Duration::from_millis(500);
/// For the proxies to put away what they only needed while connections were opened or closed.
const MEMORY_SETTLE: Duration = Duration::from_secs(2);
/// How long the machine is watched before anything is measured.
const LOOK: Duration = Duration::from_secs(1);
/// Other work that a reader of the table must know of; an idle mesh and a quiet system stay below.
const MUCH_OTHER_WORK: f64 = 0.15;
const MICROS: f64 = 1e6;
const MILLIS: f64 = 1e3;
/// Memory is told in 2^20 and 2^10 bytes.
const KB_PER_MB: f64 = 1024.0;
/// As many as one source may have into one pod, nearly.
const HELD_TUNNELS: usize = 500;
/// What CPU time is told per: 10^6 bytes.
const MB: f64 = 1e6;

/// A group of figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Resident memory of the proxies, once and first: later it would show what other phases have left.
    Memory,
    /// Gbit/s.
    Bulk,
    /// At a given rate.
    Latency,
    /// Requests per second.
    Closed,
    /// New connections per second.
    Connections,
    /// New tunnels per second.
    Tunnels,
    /// Between two pods of one node.
    Local,
}

impl Phase {
    /// Every one, in the order in which they run.
    pub const ALL: [Self; 7] = [
        Self::Memory,
        Self::Bulk,
        Self::Latency,
        Self::Closed,
        Self::Connections,
        Self::Tunnels,
        Self::Local,
    ];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Bulk => "bulk",
            Self::Latency => "latency",
            Self::Closed => "closed",
            Self::Connections => "connections",
            Self::Tunnels => "tunnels",
            Self::Local => "local",
        }
    }
}

impl FromStr for Phase {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        by_name(Self::ALL, Self::name, text)
    }
}

/// What to measure.
#[derive(Debug)]
pub struct Options {
    /// Claimed id and directory.
    pub run: Run,
    /// Where the release binaries are.
    pub binaries: PathBuf,
    /// Groups of figures.
    pub phases: Vec<Phase>,
    /// For each measurement.
    pub duration: Duration,
    /// How often each is done.
    pub rounds: usize,
    /// Where to put profiles of the proxies by `perf`, which makes them slower.
    pub profiles: Option<PathBuf>,
}

/// Brings the mesh up, measures, takes it down. Cancelled, it takes it down at once.
pub async fn run(options: Options, progress: impl Fn(&str)) -> Result<Report> {
    let Options {
        run,
        binaries,
        phases,
        duration,
        rounds,
        profiles,
    } = options;
    let scene = Box::pin(Scene::start(run, &binaries, profiles, &progress)).await?;
    let mut bench = Bench {
        scene,
        duration,
        report: Report::default(),
    };
    bench.report.other_work = other_work().await?;
    if phases.contains(&Phase::Memory) {
        progress("memory");
        bench.memory().await?;
    }
    for round in 1..=rounds {
        // By turns, so that neither always has the warmer machine.
        let routes = match round % 2 {
            1 => [Route::Direct, Route::Mesh],
            _ => [Route::Mesh, Route::Direct],
        };
        for phase in &phases {
            progress(&format!("round {round} of {rounds}: {}", phase.name()));
            match phase {
                Phase::Memory => {}
                Phase::Bulk => bench.bulk(routes).await?,
                Phase::Latency => bench.latency(routes).await?,
                Phase::Closed => bench.closed(routes).await?,
                Phase::Connections => bench.connections(routes).await?,
                Phase::Tunnels => bench.tunnels().await?,
                Phase::Local => bench.local().await?,
            }
        }
    }
    if phases.contains(&Phase::Memory) {
        sleep(MEMORY_SETTLE).await;
        bench.add_resident("rss-end")?;
    }
    bench.scene.stop().await?;
    Ok(bench.report)
}

/// The one of `all` that has the name `text`.
fn by_name<T: Copy, const N: usize>(
    all: [T; N],
    name: fn(T) -> &'static str,
    text: &str,
) -> Result<T> {
    let Some(found) = all.into_iter().find(|one| name(*one) == text) else {
        bail!("`{text}` is none of {}", all.map(name).join(", "));
    };
    Ok(found)
}

/// What is said below figures that others' work has made worse.
fn busy(other_work: f64) -> String {
    if other_work <= MUCH_OTHER_WORK {
        return String::new();
    }
    format!(
        "\nOther programs used {:.0}% of the cores when this began: times and rates are worse than on an idle \
         machine,\nCPU times less so.\n",
        other_work * 100.0
    )
}

/// The share of the cores that something else is using: figures of a busy machine are lower than it could give.
async fn other_work() -> Result<f64> {
    let (busy_before, idle_before) = usage::machine_seconds()?;
    sleep(LOOK).await;
    let (busy, idle) = usage::machine_seconds()?;
    let (busy, idle) = (busy - busy_before, idle - idle_before);
    Ok(if busy + idle > 0.0 {
        busy / (busy + idle)
    } else {
        0.0
    })
}

struct Bench {
    scene: Scene,
    duration: Duration,
    report: Report,
}

impl Bench {
    async fn memory(&mut self) -> Result<()> {
        sleep(MEMORY_SETTLE).await;
        let idle = self.add_resident("rss-0")?;
        // Tunnels first: freed memory of the connections would hide what they take.
        let credential = self.scene.credential()?;
        let mut held = self.scene.hold_tunnels(&credential, HELD_TUNNELS).await?;
        sleep(MEMORY_SETTLE).await;
        let [_, with_tunnels] = self.scene.resident()?;
        let each = (with_tunnels - idle[1]) * KB_PER_MB / HELD_TUNNELS as f64;
        self.report.add("tunnel-kb", Route::Mesh, each);
        held.kill().await?;
        sleep(MEMORY_SETTLE).await;
        for connections in [1000_u32, 8000] {
            let mut held = self.scene.hold(connections as usize).await?;
            sleep(MEMORY_SETTLE).await;
            let full = self.add_resident(&format!("rss-{connections}"))?;
            for (side, (full, idle)) in ["a", "b"].into_iter().zip(full.into_iter().zip(idle)) {
                let each = (full - idle) * KB_PER_MB / f64::from(connections);
                let key = format!("connection-kb-{connections}-{side}");
                self.report.add(&key, Route::Mesh, each);
            }
            held.kill().await?;
            sleep(MEMORY_SETTLE).await;
        }
        Ok(())
    }

    /// All CPU time is that of the one proxy.
    async fn local(&mut self) -> Result<()> {
        for streams in ["1", "8"] {
            let args = [
                "bulk",
                "{server}",
                "--direction",
                "up",
                "--streams",
                streams,
            ];
            let moved: Measured<Moved> = self.measure(Route::Local, &args).await?;
            let key = format!("local-up-{streams}");
            let megabytes = moved.result.bytes as f64 / MB;
            self.report
                .add(&key, Route::Mesh, moved.result.gbit_per_second);
            self.report.add(
                &format!("{key}-cpu"),
                Route::Mesh,
                moved.cpu[1] * MILLIS / megabytes,
            );
        }
        let args = ["closed", "{server}", "--connections", "16"];
        let measured: Measured<Repeated> = self.measure(Route::Local, &args).await?;
        self.add_local("local-closed-16", &measured);
        let measured: Measured<Repeated> = self
            .measure(Route::Local, &["connections", "{server}"])
            .await?;
        self.add_local("local-connections", &measured);
        Ok(())
    }

    fn add_local(&mut self, key: &str, measured: &Measured<Repeated>) {
        let result = &measured.result;
        self.report.add(key, Route::Mesh, result.rate());
        let each = measured.cpu[1] * MICROS / result.count as f64;
        self.report.add(&format!("{key}-cpu"), Route::Mesh, each);
    }

    async fn bulk(&mut self, routes: [Route; 2]) -> Result<()> {
        for streams in ["1", "8"] {
            for direction in ["up", "down"] {
                let key = format!("{direction}-{streams}");
                for route in routes {
                    let args = [
                        "bulk",
                        "{server}",
                        "--direction",
                        direction,
                        "--streams",
                        streams,
                    ];
                    let moved: Measured<Moved> = self.measure(route, &args).await?;
                    self.report.add(&key, route, moved.result.gbit_per_second);
                    let megabytes = moved.result.bytes as f64 / MB;
                    self.add_cpu(&key, route, moved.cpu, MILLIS / megabytes);
                }
            }
        }
        Ok(())
    }

    async fn latency(&mut self, routes: [Route; 2]) -> Result<()> {
        for route in routes {
            let args = [
                "latency",
                "{server}",
                "--rate",
                "2000",
                "--connections",
                "16",
            ];
            let measured: Measured<Repeated> = self.measure(route, &args).await?;
            let latency = measured.result.latency;
            self.report.add("latency-p50", route, latency.p50);
            self.report.add("latency-p90", route, latency.p90);
            self.report.add("latency-p99", route, latency.p99);
            self.report.add("latency-max", route, latency.max);
        }
        Ok(())
    }

    async fn closed(&mut self, routes: [Route; 2]) -> Result<()> {
        for connections in ["1", "16"] {
            let key = format!("closed-{connections}");
            for route in routes {
                let args = ["closed", "{server}", "--connections", connections];
                let measured: Measured<Repeated> = self.measure(route, &args).await?;
                self.report.add(&key, route, measured.result.rate());
                let requests = measured.result.count as f64;
                self.add_cpu(&key, route, measured.cpu, MICROS / requests);
            }
        }
        Ok(())
    }

    async fn connections(&mut self, routes: [Route; 2]) -> Result<()> {
        let key = "connections";
        for route in routes {
            let args = ["connections", "{server}"];
            let measured: Measured<Repeated> = self.measure(route, &args).await?;
            let result = measured.result;
            self.report.add(key, route, result.rate());
            self.report
                .add("connections-p50", route, result.latency.p50);
            self.report
                .add("connections-p99", route, result.latency.p99);
            self.report
                .add("connections-failed", route, result.failed as f64);
            self.add_cpu(key, route, measured.cpu, MICROS / result.count as f64);
        }
        Ok(())
    }

    async fn tunnels(&mut self) -> Result<()> {
        let credential = self.scene.credential()?;
        let measured: Measured<Repeated> = self
            .scene
            .measure_tunnels(&credential, self.duration)
            .await?;
        sleep(SETTLE).await;
        let result = measured.result;
        let tunnels = result.count as f64;
        self.report.add("tunnels", Route::Mesh, result.rate());
        self.report
            .add("tunnels-failed", Route::Mesh, result.failed as f64);
        let cpu = [result.cpu_seconds, measured.cpu[1]];
        self.add_cpu("tunnels", Route::Mesh, cpu, MILLIS / tunnels);
        Ok(())
    }

    async fn measure<T: serde::de::DeserializeOwned>(
        &self,
        route: Route,
        args: &[&str],
    ) -> Result<Measured<T>> {
        let seconds = self.duration.as_secs_f64().to_string();
        let args = [args, &["--seconds", &seconds]].concat();
        let measured = self.scene.measure(route, &args, self.duration).await?;
        sleep(SETTLE).await;
        Ok(measured)
    }

    /// The proxies' CPU time per unit; without them there is none.
    fn add_cpu(&mut self, key: &str, route: Route, cpu: [f64; 2], factor: f64) {
        if route == Route::Mesh && factor.is_finite() {
            self.report
                .add(&format!("{key}-cpu-a"), route, cpu[0] * factor);
            self.report
                .add(&format!("{key}-cpu-b"), route, cpu[1] * factor);
        }
    }

    fn add_resident(&mut self, key: &str) -> Result<[f64; 2]> {
        let [a, b] = self.scene.resident()?;
        self.report.add(&format!("{key}-a"), Route::Mesh, a);
        self.report.add(&format!("{key}-b"), Route::Mesh, b);
        Ok([a, b])
    }
}
