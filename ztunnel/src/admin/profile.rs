//! CPU profiles for `pprof` (facts A17): where the process spends its time, sampled by the kernel while somebody waits for the
//! answer. Nothing runs and nothing is kept between two of them.
//!
//! No signal interrupts anything: the kernel copies registers and the top of the stack of whichever of our threads is on a CPU,
//! and the stacks are walked here, from the copies, by the unwind tables of the program's own file.

mod encode;
pub(super) mod heap;
mod sampler;
mod stacks;

use std::{collections::HashMap, io, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use leyline_runtime::http as server;
use tokio::{
    sync::Mutex,
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval, timeout_at},
};

use self::{
    encode::encode,
    sampler::Sampler,
    stacks::{Program, ProgramError},
};

/// The longest profile, as Istio's; the answer comes that late.
pub(super) const LONGEST: Duration = Duration::from_secs(300);
/// How often samples are taken out of the kernel's buffers: at 1000 Hz they are a quarter full then.
const COLLECT: Duration = Duration::from_millis(5);
/// Different stacks that are kept; more are counted under one name. A node proxy has some thousands.
const MOST_STACKS: usize = 65_536;
const USAGE: &str = "usage: /debug/pprof/profile[?seconds=1..300][&frequency=1..1000]\n";

/// One at a time: a second one would only sample the first.
static RUNNING: Mutex<()> = Mutex::const_new(());

/// How often each stack of each thread was seen; addresses, the innermost first.
#[derive(Debug, Default)]
struct Counts {
    stacks: HashMap<(u32, Box<[u64]>), i64>,
    threads: HashMap<u32, String>,
    lost: u64,
}

#[derive(Debug, thiserror::Error)]
enum ProfileError {
    #[error(
        "the kernel gives no samples, which wants CAP_PERFMON or CAP_SYS_ADMIN, and a seccomp profile that lets perf_event_open through: {0}"
    )]
    Sampler(#[source] io::Error),
    #[error("the program cannot be read: {0}")]
    Program(#[from] ProgramError),
    #[error("the profile was not finished: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// `/debug/pprof/profile`. Cancel safe: dropped, it samples no more.
pub(super) async fn cpu(query: &str) -> Response<Full<Bytes>> {
    let Some((duration, frequency)) = settings(query) else {
        return server::text(StatusCode::BAD_REQUEST, USAGE);
    };
    let Ok(_running) = RUNNING.try_lock() else {
        let busy = "a profile is being taken\n";
        return server::text(StatusCode::CONFLICT, busy);
    };
    match profile(duration, frequency).await {
        Ok(body) => server::typed(StatusCode::OK, "application/octet-stream", body),
        Err(error) => server::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn settings(query: &str) -> Option<(Duration, u64)> {
    let (mut seconds, mut frequency) = (10, 100);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=')? {
            ("seconds", value) => seconds = value.parse().ok()?,
            ("frequency", value) => frequency = value.parse().ok()?,
            _ => return None,
        }
    }
    let duration = Duration::from_secs(seconds);
    let fits = seconds >= 1 && duration <= LONGEST && (1..=1000).contains(&frequency);
    fits.then_some((duration, frequency))
}

async fn profile(duration: Duration, frequency: u64) -> Result<Vec<u8>, ProfileError> {
    // Files are read, and names looked up in them, where that keeps nobody waiting.
    let program = spawn_blocking(Program::running).await??;
    let mut sampler = Sampler::start(frequency).map_err(ProfileError::Sampler)?;
    let mut unwinder = program.unwinder();
    let mut counts = Counts {
        threads: sampler.threads(),
        ..Counts::default()
    };
    let end = Instant::now() + duration;
    let mut due = interval(COLLECT);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while timeout_at(end, due.tick()).await.is_ok() {
        let stacks = &mut counts.stacks;
        counts.lost += sampler.collect(|sample| {
            let stack = unwinder.walk(&sample);
            add(stacks, sample.thread, stack);
        });
    }
    drop(sampler);
    let period = 1_000_000_000 / frequency;
    let body = spawn_blocking(move || {
        let addresses = counts.stacks.keys().flat_map(|(_, stack)| stack.iter());
        let names = program.names(addresses.copied());
        encode(&counts, duration, period, &names)
    });
    Ok(body.await?)
}

fn add(stacks: &mut HashMap<(u32, Box<[u64]>), i64>, thread: u32, stack: Vec<u64>) {
    let mut key = (thread, stack.into_boxed_slice());
    if stacks.len() >= MOST_STACKS && !stacks.contains_key(&key) {
        key.1 = Box::default();
    }
    *stacks.entry(key).or_default() += 1;
}

#[cfg(test)]
mod tests;
