//! Measures our waypoint beside Envoy in the same place: `cargo xtask bench --waypoint` calls [`run`].
//!
//! Client, node proxies, application and control plane are the same programs for both, and the measurements take turns. What each
//! figure is to be is in the report; none makes it fail.

mod documents;
mod h2load;
mod report;
mod scene;

use std::{path::PathBuf, str::FromStr, time::Duration};

use anyhow::{Context, Error, Result};
use http::response::Parts;
use tokio::time::{Instant, sleep, timeout};

pub use report::Report;

use self::{
    documents::{HTTP1, HTTP2, MARK},
    h2load::Protocol,
    scene::{Load, Proxy, Scene},
};
use super::{by_name, load::timing::Repeated, other_work, usage};
use crate::run::Run;

/// Services of the larger configuration, and routes of the largest.
const SERVICES: usize = 1000;
const ROUTES: usize = 10_000;
/// Edits of one route, of which the median and the range are told.
const EDITS: usize = 9;
/// Between two looks at whether an edit has arrived: what the figure may be wrong by.
const LOOK: Duration = Duration::from_millis(1);
/// For what an edit still moves after it is in force.
const AFTER_EDIT: Duration = Duration::from_millis(300);
const EDIT_DEADLINE: Duration = Duration::from_secs(30);
/// Streams over which 1 GB goes.
const STREAMS: usize = 256;
const BODIES_DEADLINE: Duration = Duration::from_secs(60);
/// Connections are set up, and the last replies come, besides the time that is measured.
const SLACK: Duration = Duration::from_secs(20);
/// After a measurement, and after a change of configuration.
const SETTLE: Duration = Duration::from_millis(300);
const MEMORY_SETTLE: Duration = Duration::from_secs(2);
/// So that neither is measured cold.
const WARM_UP: Duration = Duration::from_secs(1);
const MICROS: f64 = 1e6;
const MILLIS: f64 = 1e3;

/// A group of figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Requests per second in a closed loop.
    Closed,
    /// At given rates.
    Latency,
    /// Large bodies.
    Bodies,
    /// Many services and routes, and a change of one route.
    Scale,
}

impl Phase {
    /// Every one, in the order in which they run.
    pub const ALL: [Self; 4] = [Self::Closed, Self::Latency, Self::Bodies, Self::Scale];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Latency => "latency",
            Self::Bodies => "bodies",
            Self::Scale => "scale",
        }
    }

    /// Whether it is done in every round.
    fn is_repeated(self) -> bool {
        matches!(self, Self::Closed | Self::Latency)
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
    /// Where Envoy is, or is to be installed.
    pub peers: PathBuf,
    /// Groups of figures.
    pub phases: Vec<Phase>,
    /// For each measurement.
    pub duration: Duration,
    /// How often each is done.
    pub rounds: usize,
    /// Where to put profiles of our waypoint by `perf`, which makes it slower.
    pub profiles: Option<PathBuf>,
}

/// Brings the mesh up, measures, takes it down. Cancelled, it takes it down at once.
pub async fn run(options: Options, progress: impl Fn(&str)) -> Result<Report> {
    let Options {
        run,
        binaries,
        peers,
        phases,
        duration,
        rounds,
        profiles,
    } = options;
    let scene = Box::pin(Scene::start(run, &binaries, peers, profiles, &progress)).await?;
    let mut bench = Bench {
        scene,
        duration,
        report: Report::default(),
    };
    bench.report.other_work = other_work().await?;
    sleep(MEMORY_SETTLE).await;
    for proxy in Proxy::BOTH {
        bench.add_resident("rss-idle", proxy)?;
    }
    for round in 1..=rounds {
        // By turns, so that neither always has the warmer machine.
        let turns = match round % 2 {
            1 => [Proxy::Leyline, Proxy::Envoy],
            _ => [Proxy::Envoy, Proxy::Leyline],
        };
        for phase in phases.iter().filter(|phase| phase.is_repeated()) {
            progress(&format!("round {round} of {rounds}: {}", phase.name()));
            for proxy in turns {
                bench.measure(*phase, proxy, round).await?;
            }
        }
    }
    // Once and last: what is left of them would be in the other figures of memory.
    for phase in phases.iter().filter(|phase| !phase.is_repeated()) {
        for proxy in Proxy::BOTH {
            progress(&format!("{}: {proxy:?}", phase.name()));
            bench.measure(*phase, proxy, 1).await?;
        }
    }
    Box::pin(bench.scene.stop()).await?;
    Ok(bench.report)
}

struct Bench {
    scene: Scene,
    duration: Duration,
    report: Report,
}

impl Bench {
    async fn measure(&mut self, phase: Phase, proxy: Proxy, round: usize) -> Result<()> {
        match phase {
            Phase::Closed => self.closed(proxy, round == 1).await,
            Phase::Latency => self.latency(proxy).await,
            Phase::Bodies => self.bodies(proxy).await,
            Phase::Scale => self.scale(proxy).await,
        }
    }

    async fn closed(&mut self, proxy: Proxy, is_first: bool) -> Result<()> {
        for (protocol, port) in [(Protocol::Http1, HTTP1), (Protocol::Http2, HTTP2)] {
            let target = self.scene.target(proxy, port);
            if is_first {
                let args = protocol.closed(target, WARM_UP.as_millis());
                let load = self.scene.measure(proxy, Load::H2load, &args, SLACK);
                load.await?;
            }
            let args = protocol.closed(target, self.duration.as_millis());
            let deadline = self.duration + SLACK;
            let measured = self.scene.measure(proxy, Load::H2load, &args, deadline);
            let (printed, cpu) = measured.await?;
            let done = h2load::read(&printed)?;
            let key = protocol.name();
            let (requests, failed) = (done.succeeded as f64, done.failed as f64);
            self.report
                .add(&format!("{key}-rate"), proxy, requests / done.seconds);
            self.report
                .add(&format!("{key}-cpu"), proxy, cpu * MICROS / requests);
            self.report.add("failed", proxy, failed);
            if done.failed > 0 {
                self.report
                    .note(format!("{proxy:?}, {key}: {}", done.requests));
            }
            self.add_resident("rss-load", proxy)?;
            sleep(SETTLE).await;
        }
        Ok(())
    }

    async fn latency(&mut self, proxy: Proxy) -> Result<()> {
        for rate in [1000_u32, 5000] {
            let target = self.scene.target(proxy, HTTP1);
            let seconds = self.duration.as_secs_f64();
            let args = format!(
                "latency {} --port {} --protocol proxied --connections 16 --rate {rate} --seconds {seconds}",
                target.ip(),
                target.port(),
            );
            let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
            let deadline = self.duration + SLACK;
            let measured = self.scene.measure(proxy, Load::Leyline, &args, deadline);
            let (printed, cpu) = measured.await?;
            let done: Repeated =
                serde_json::from_str(&printed).with_context(|| format!("reading `{printed}`"))?;
            self.report
                .add(&format!("{rate}-p50"), proxy, done.latency.p50);
            self.report
                .add(&format!("{rate}-p99"), proxy, done.latency.p99);
            let each = cpu * MICROS / done.count as f64;
            self.report.add(&format!("{rate}-cpu"), proxy, each);
            sleep(SETTLE).await;
        }
        Ok(())
    }

    /// 1 GB up and 1 GB down, in 256 streams of the client's one connection at once.
    async fn bodies(&mut self, proxy: Proxy) -> Result<()> {
        let body = self.scene.body(proxy).display().to_string();
        // To HTTP/1.1: nginx takes a connection of HTTP/2 that has carried a gigabyte for a flood.
        let url = format!("http://{}/bodies/", self.scene.target(proxy, HTTP1));
        let up = [url.as_str(), "up"].concat();
        let down = [url.as_str(), "down"].concat();
        let put = ["-d", &body, "-H", ":method: PUT"];
        let ways: [(&str, &str, &[&str]); 2] = [("up", &up, &put), ("down", &down, &[])];
        for (way, url, more) in ways {
            let pid = self.scene.pid(proxy)?;
            usage::forget_peak(pid)?;
            let args = h2load::at_once(STREAMS, url, more);
            let measured = self
                .scene
                .measure(proxy, Load::H2load, &args, BODIES_DEADLINE);
            let (printed, cpu) = measured.await?;
            let done = h2load::read(&printed)?;
            self.report.add("failed", proxy, done.failed as f64);
            if done.failed > 0 {
                let requests = done.requests;
                self.report
                    .note(format!("{proxy:?}, bodies {way}: {requests}"));
            }
            let peak = usage::peak_mb(pid)?;
            self.report.add(&format!("body-{way}-peak"), proxy, peak);
            self.report
                .add(&format!("body-{way}-seconds"), proxy, done.seconds);
            self.report.add(&format!("body-{way}-cpu"), proxy, cpu);
            sleep(SETTLE).await;
        }
        Ok(())
    }

    async fn scale(&mut self, proxy: Proxy) -> Result<()> {
        self.edits(proxy, "edit-1").await?;
        let services = documents::services(proxy, SERVICES);
        self.scene.write(proxy, "services", &services)?;
        let answers = |head: &Parts| head.status.is_success();
        self.scene.serves(proxy, SERVICES, "/", answers).await?;
        self.scene.is_in_step(proxy).await?;
        sleep(MEMORY_SETTLE).await;
        self.add_resident("rss-services", proxy)?;
        self.edits(proxy, "edit-services").await?;

        let each = ROUTES / SERVICES;
        let routes = documents::routes(proxy, SERVICES, each);
        self.scene.write(proxy, "routes", &routes)?;
        let (path, mark) = (format!("/route-{each}/"), SERVICES);
        let serves = self
            .scene
            .serves(proxy, SERVICES, &path, |head| is_marked(head, mark));
        serves.await?;
        self.scene.is_in_step(proxy).await?;
        sleep(MEMORY_SETTLE).await;
        self.add_resident("rss-routes", proxy)?;
        self.edits(proxy, "edit-routes").await?;

        // The other waypoint is to be measured as this one was.
        for name in ["routes", "services", "changed"] {
            self.scene.remove(proxy, name)?;
        }
        self.scene.is_in_step(proxy).await
    }

    /// Changes one route several times: until the first request sees it, and what the waypoint is sent for it.
    async fn edits(&mut self, proxy: Proxy, key: &str) -> Result<()> {
        let mut client = self.scene.keep(proxy, 0).await?;
        // The first makes the route; it is no change.
        for number in 0..=EDITS {
            sleep(AFTER_EDIT).await;
            let before = self.scene.pushed(proxy).await?;
            let text = documents::changed(proxy, number);
            let start = Instant::now();
            self.scene.write(proxy, "changed", &text)?;
            let arrives = async {
                while !is_marked(&client.get("/changed/").await?, number) {
                    sleep(LOOK).await;
                }
                anyhow::Ok(start.elapsed())
            };
            let took = timeout(EDIT_DEADLINE, arrives)
                .await
                .context("a changed route is not in force")??;
            sleep(AFTER_EDIT).await;
            let pushed = self.scene.pushed(proxy).await? - before;
            if number > 0 {
                self.report.add(key, proxy, took.as_secs_f64() * MILLIS);
                self.report
                    .add(&format!("{key}-bytes"), proxy, pushed as f64);
            }
        }
        Ok(())
    }

    fn add_resident(&mut self, key: &str, proxy: Proxy) -> Result<()> {
        let resident = usage::resident_mb(self.scene.pid(proxy)?)?;
        self.report.add(key, proxy, resident);
        Ok(())
    }
}

/// Whether a route has answered that bears this number.
fn is_marked(head: &Parts, number: usize) -> bool {
    let mark = head.headers.get(MARK);
    mark.is_some_and(|mark| mark.as_bytes() == number.to_string().as_bytes())
}
