//! Metrics that are read when somebody asks: the process's files and memory, tokio's workers, lines lost by the log.
//!
//! They are written as text directly, because a counter of the registry holds only whole numbers.

use std::{
    fmt::{Display, Write},
    fs,
};

use tokio::runtime::{Handle, RuntimeMetrics};

use crate::log;

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

/// Appends all of them to a page.
pub(super) fn append(text: &mut String, runtimes: &[Handle]) {
    use Kind::{Counter, Gauge};
    let open = fs::read_dir("/proc/self/fd").ok().map(Iterator::count);
    let dropped = Some(log::dropped_lines());
    single(
        text,
        Gauge,
        "process_open_fds",
        "Open file descriptors.",
        open,
    );
    single(
        text,
        Gauge,
        "process_max_fds",
        "File descriptors that may be open.",
        max_open_files(),
    );
    single(
        text,
        Gauge,
        "process_resident_memory_bytes",
        "Resident memory.",
        resident_bytes(),
    );
    single(
        text,
        Counter,
        "leyline_log_lines_dropped_total",
        "Log lines that found the queue full.",
        dropped,
    );
    append_runtimes(text, runtimes);
}

fn append_runtimes(text: &mut String, runtimes: &[Handle]) {
    let mut sum = |name: &str, help: &str, value: fn(&RuntimeMetrics) -> usize| {
        let all = runtimes.iter().map(|runtime| value(&runtime.metrics()));
        let sum = (!runtimes.is_empty()).then(|| all.sum::<usize>());
        single(text, Kind::Gauge, name, help, sum);
    };
    sum("tokio_num_workers", "Worker threads.", |m| m.num_workers());
    sum("tokio_num_alive_tasks", "Tasks that have not ended.", |m| {
        m.num_alive_tasks()
    });
    sum(
        "tokio_global_queue_depth",
        "Tasks that wait for any worker.",
        |m| m.global_queue_depth(),
    );

    let workers: Vec<_> = runtimes
        .iter()
        .map(Handle::metrics)
        .flat_map(|metrics| (0..metrics.num_workers()).map(move |worker| (metrics.clone(), worker)))
        .collect();
    let mut per_worker = |name: &str, help: &str, value: fn(&RuntimeMetrics, usize) -> f64| {
        if !workers.is_empty() {
            head(text, Kind::Counter, name, help);
        }
        for (number, (metrics, worker)) in workers.iter().enumerate() {
            let value = value(metrics, *worker);
            line(text, format_args!("{name}{{worker=\"{number}\"}} {value}"));
        }
    };
    per_worker(
        "tokio_worker_total_busy_duration_seconds_total",
        "Time that a worker was busy.",
        |m, worker| m.worker_total_busy_duration(worker).as_secs_f64(),
    );
    // Exact up to 2^53, which no counter of a process's life reaches.
    per_worker(
        "tokio_worker_park_count_total",
        "How often a worker went to sleep.",
        |m, worker| m.worker_park_count(worker) as f64,
    );
    per_worker(
        "tokio_worker_park_unpark_count_total",
        "How often a worker went to sleep or woke up.",
        |m, worker| m.worker_park_unpark_count(worker) as f64,
    );
}

/// A metric without labels, left out when it cannot be read.
fn single(text: &mut String, kind: Kind, name: &str, help: &str, value: Option<impl Display>) {
    if let Some(value) = value {
        head(text, kind, name, help);
        line(text, format_args!("{name} {value}"));
    }
}

fn head(text: &mut String, kind: Kind, name: &str, help: &str) {
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
    };
    line(
        text,
        format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"),
    );
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    // A string takes everything.
    writeln!(text, "{content}").ok();
}

/// The soft limit of open files, from the line `Max open files  <soft>  <hard>  files`.
fn max_open_files() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// From the line `VmRSS:  <number> kB`.
fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_types_and_labels() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .build()
            .unwrap();
        let mut text = String::new();
        append(&mut text, &[runtime.handle().clone()]);
        for expected in [
            "# TYPE process_open_fds gauge\nprocess_open_fds ",
            "# TYPE process_max_fds gauge\nprocess_max_fds ",
            "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes ",
            "# TYPE leyline_log_lines_dropped_total counter\nleyline_log_lines_dropped_total ",
            "# TYPE tokio_num_workers gauge\ntokio_num_workers 2\n",
            "# TYPE tokio_num_alive_tasks gauge\ntokio_num_alive_tasks 0\n",
            "# TYPE tokio_global_queue_depth gauge\ntokio_global_queue_depth 0\n",
            "# TYPE tokio_worker_total_busy_duration_seconds_total counter\ntokio_worker_total_busy_duration_seconds_total{worker=\"0\"} ",
            "# TYPE tokio_worker_park_count_total counter\ntokio_worker_park_count_total{worker=\"0\"} ",
            "\ntokio_worker_park_unpark_count_total{worker=\"1\"} ",
        ] {
            assert!(text.contains(expected), "{expected} not in {text}");
        }
    }
}
