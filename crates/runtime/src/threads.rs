//! Threads and file descriptors of a process.
//!
//! A proxy has two runtimes on purpose: the main thread runs admin, metrics, xDS and the CA client; a pool of workers
//! runs the data plane, so that a scrape or a big configuration push does not hold up traffic.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};

use crate::env::Reader;

/// More worker threads than any machine has cores; a larger setting is a mistake.
const MAX_WORKERS: usize = 1024;

/// The share of the machine's cores that a node proxy takes when nothing is said.
const AUTOMATIC_SHARE: f64 = 0.25;

/// Even on a small machine one busy worker must not hold up everything else.
const AUTOMATIC_MINIMUM: usize = 2;

/// A multi-threaded runtime whose threads are named `<name>-<number>`.
pub fn worker_runtime(threads: usize, name: &'static str) -> io::Result<Runtime> {
    let next = AtomicUsize::new(0);
    Builder::new_multi_thread()
        .worker_threads(threads.max(1))
        .thread_name_fn(move || format!("{name}-{}", next.fetch_add(1, Ordering::Relaxed)))
        .enable_all()
        .build()
}

/// How many worker threads the node proxy runs. In this order: `ZTUNNEL_WORKER_THREADS` (a number, `NN%` of the
/// cores, `0` for all), the mesh's `concurrency` (0 for all), a share of the cores that follows the container's CPU
/// request and limit (`ZTUNNEL_RESOURCE_CPU_REQUEST`, `ZTUNNEL_RESOURCE_CPU_LIMIT`, `ZTUNNEL_CPU_LIMIT`).
pub fn worker_threads(
    env: &mut Reader<'_>,
    concurrency: Option<u32>,
    logical_cores: usize,
) -> usize {
    let limit = env.parse_with("ZTUNNEL_RESOURCE_CPU_LIMIT", parse_cpus);
    let downward = env.parse_with("ZTUNNEL_CPU_LIMIT", parse_cpus);
    let request = env.parse_with("ZTUNNEL_RESOURCE_CPU_REQUEST", parse_cpus);
    let cores = limit.or(downward).unwrap_or(logical_cores).max(1);

    let set = env.parse_with("ZTUNNEL_WORKER_THREADS", |text| parse_workers(text, cores));
    let threads = match (set, concurrency, limit) {
        (Some(set), _, _) => set,
        (None, Some(0), _) => cores,
        (None, Some(concurrency), _) => usize::try_from(concurrency).unwrap_or(MAX_WORKERS),
        (None, None, Some(limit)) => limit.max(request.unwrap_or(0)),
        (None, None, None) => share(cores, AUTOMATIC_SHARE)
            .max(request.unwrap_or(0))
            .max(AUTOMATIC_MINIMUM),
    };
    threads.clamp(1, MAX_WORKERS)
}

/// Raises the limit of open files to what the process may have: every proxied connection takes two or three.
/// Returns the limits before and after.
pub fn raise_open_files_limit() -> io::Result<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    tracing::info!("set file descriptor limits from {soft} to {hard}");
    Ok((soft, hard))
}

/// A number, `NN%` of `cores`, or `0` for all of them.
fn parse_workers(text: &str, cores: usize) -> Result<usize, String> {
    if let Some(percent) = text.strip_suffix('%') {
        let percent: u32 = percent.parse().map_err(|e| format!("{e}"))?;
        if !(1..=100).contains(&percent) {
            return Err("must be between 1% and 100%".to_owned());
        }
        return Ok(share(cores, f64::from(percent) / 100.0));
    }
    match text.parse().map_err(|e| format!("{e}"))? {
        0 => Ok(cores),
        threads if threads > MAX_WORKERS => Err(format!("must not exceed {MAX_WORKERS}")),
        threads => Ok(threads),
    }
}

/// A Kubernetes CPU quantity (`2`, `1.5`, `500m`), rounded up to whole cores.
fn parse_cpus(text: &str) -> Result<usize, String> {
    let number = |text: &str| match text.parse::<f64>() {
        Ok(cpus) if cpus.is_finite() && cpus >= 0.0 => Ok(cpus),
        Ok(_) | Err(_) => Err("expected a CPU quantity such as 2, 1.5 or 500m".to_owned()),
    };
    let cpus = match text.strip_suffix('m') {
        Some(millis) => number(millis)? / 1000.0,
        None => number(text)?,
    };
    Ok(round_up(cpus))
}

fn share(cores: usize, of: f64) -> usize {
    let cores = u32::try_from(cores).unwrap_or(u32::MAX);
    round_up(f64::from(cores) * of).max(1)
}

fn round_up(cpus: f64) -> usize {
    // The conversion saturates, and no machine comes near the bound.
    cpus.ceil() as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::MapEnv;

    const LIMIT: &str = "ZTUNNEL_RESOURCE_CPU_LIMIT";
    const DOWNWARD: &str = "ZTUNNEL_CPU_LIMIT";
    const REQUEST: &str = "ZTUNNEL_RESOURCE_CPU_REQUEST";
    const THREADS: &str = "ZTUNNEL_WORKER_THREADS";

    fn check<const N: usize>(vars: [(&str, &str); N], concurrency: Option<u32>, expected: usize) {
        let env = MapEnv::from(vars);
        let mut reader = Reader::new(&env);
        let threads = worker_threads(&mut reader, concurrency, 16);
        reader.finish().unwrap();
        assert_eq!(threads, expected, "{vars:?} {concurrency:?}");
    }

    #[test]
    fn thread_counts_follow_their_sources_in_order() {
        check([], None, 4);
        check([(DOWNWARD, "4")], None, 2);
        check([(REQUEST, "6")], None, 6);
        check([(REQUEST, "200m")], None, 4);
        check([(LIMIT, "1500m")], None, 2);
        check([(LIMIT, "1"), (REQUEST, "3")], None, 3);
        check([(LIMIT, "8"), (THREADS, "0")], None, 8);
        check([(THREADS, "0")], None, 16);
        check([(THREADS, "7")], Some(3), 7);
        check([(THREADS, "10%")], None, 2);
        check([(THREADS, "100%")], None, 16);
        check([], Some(3), 3);
        check([], Some(0), 16);
    }

    #[test]
    fn bad_quantities_are_reported() {
        for (name, value) in [
            (THREADS, "0%"),
            (THREADS, "101%"),
            (THREADS, "-1"),
            (THREADS, "many"),
            (THREADS, "5000"),
            (LIMIT, "2G"),
            (REQUEST, "-1"),
            (DOWNWARD, "NaN"),
        ] {
            let env = MapEnv::from([(name, value)]);
            let mut reader = Reader::new(&env);
            worker_threads(&mut reader, None, 16);
            assert!(reader.finish().is_err(), "{name}={value}");
        }
    }

    #[test]
    fn worker_threads_carry_their_name() {
        let runtime = worker_runtime(1, "data").unwrap();
        let task = runtime.spawn(async { std::thread::current().name().map(str::to_owned) });
        let name = runtime.block_on(task).unwrap().unwrap();
        assert!(name.starts_with("data-"), "{name}");
    }

    #[test]
    fn raises_the_limit_to_the_hard_one() {
        let (_, after) = raise_open_files_limit().unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!((soft, hard), (after, after));
    }
}
