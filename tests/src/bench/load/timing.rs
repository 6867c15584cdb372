//! Latencies, and the CPU time of this process.

use std::time::Duration;

use anyhow::Result;
use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};

/// Latencies of many operations, kept in full: a run has some 100,000 of them.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    nanos: Vec<u64>,
}

/// What is told of them, in microseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Quantiles {
    /// Median.
    pub p50: f64,
    /// One in ten is above.
    pub p90: f64,
    /// One in a hundred is above.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

/// The result of a client that repeats an operation.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Repeated {
    /// How often it was done.
    pub count: u64,
    /// How often it failed.
    pub failed: u64,
    /// In which time.
    pub seconds: f64,
    /// How long each took, in microseconds.
    pub latency: Quantiles,
    /// CPU time of the client.
    pub cpu_seconds: f64,
}

impl Repeated {
    /// Operations per second.
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.seconds
    }
}

impl Latencies {
    /// Adds one.
    pub fn add(&mut self, latency: Duration) {
        self.nanos
            .push(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds those of another thread.
    pub fn append(&mut self, mut other: Self) {
        self.nanos.append(&mut other.nanos);
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.nanos.len() as u64
    }

    /// Quantiles by nearest rank; zeros without any latency.
    pub fn quantiles(mut self) -> Quantiles {
        self.nanos.sort_unstable();
        let at = |quantile: f64| {
            let rank = (quantile * self.nanos.len() as f64).ceil() as usize;
            let nanos = self
                .nanos
                .get(rank.saturating_sub(1))
                .copied()
                .unwrap_or_default();
            nanos as f64 / 1e3
        };
        Quantiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

/// CPU time that this process has used so far, in seconds.
pub fn cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let mut latencies = Latencies::default();
        for micros in (1..=100).rev() {
            latencies.add(Duration::from_micros(micros));
        }
        let expected = Quantiles {
            p50: 50.0,
            p90: 90.0,
            p99: 99.0,
            max: 100.0,
        };
        assert_eq!(latencies.quantiles(), expected);
        assert_eq!(Latencies::default().quantiles(), Quantiles::default());
    }
}
