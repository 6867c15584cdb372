//! Istio's metrics of requests and connections (facts A.10), as this waypoint sees them: `reporter="waypoint"`.
//!
//! Series follow the mesh, so there is a bound, and those that nothing counts in are forgotten. Who holds a series (an
//! open connection) keeps it. A request finds its series by a small cache of its connection; only the first of a kind
//! writes its labels out.

pub(crate) mod labels;
mod metric;

use std::{
    collections::HashMap,
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use leyline_telemetry::metrics::Samples;
use metrics::counter;
use parking_lot::RwLock;

use self::labels::Labels;
pub(crate) use self::metric::Metric;

/// Series at once, about 2 KiB each with its labels.
const MAX_SERIES: usize = 50_000;
/// Of milliseconds and of bytes alike: Envoy's, which Istio's dashboards expect.
const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// All series of this process.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    series: RwLock<HashMap<Key, Arc<Series>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    metric: Metric,
    /// As the page shows them.
    labels: String,
}

/// One series.
#[derive(Debug)]
pub(crate) struct Series {
    value: Value,
    /// Since the last sweep.
    is_used: AtomicBool,
}

#[derive(Debug)]
enum Value {
    Counter(AtomicU64),
    Histogram(Box<Histogram>),
}

#[derive(Debug, Default)]
struct Histogram {
    /// Not cumulative; the last is beyond all bounds.
    counts: [AtomicU64; BUCKETS.len() + 1],
    /// In thousandths.
    sum: AtomicU64,
}

impl Series {
    fn new(metric: Metric) -> Self {
        Self {
            value: if metric.is_histogram() {
                Value::Histogram(Box::default())
            } else {
                Value::Counter(AtomicU64::new(0))
            },
            is_used: AtomicBool::new(true),
        }
    }

    /// Counts up; of a histogram, records one value.
    pub(crate) fn add(&self, value: f64) {
        self.is_used.store(true, Ordering::Relaxed);
        match &self.value {
            // Never negative; whole.
            Value::Counter(counter) => drop(counter.fetch_add(value as u64, Ordering::Relaxed)),
            Value::Histogram(histogram) => {
                let bucket = BUCKETS.partition_point(|bound| *bound < value);
                if let Some(count) = histogram.counts.get(bucket) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                let thousandths = (value * 1000.0) as u64;
                histogram.sum.fetch_add(thousandths, Ordering::Relaxed);
            }
        }
    }
}

impl Stats {
    /// The series of a metric with these labels.
    pub(crate) fn series(&self, metric: Metric, labels: &Labels) -> Arc<Series> {
        let key = Key {
            metric,
            labels: labels.rendered(),
        };
        if let Some(known) = self.series.read().get(&key) {
            return known.clone();
        }
        let mut all = self.series.write();
        let key = if all.len() < MAX_SERIES || all.contains_key(&key) {
            key
        } else {
            counter!("leyline_metric_series_overflow_total").increment(1);
            Key {
                metric,
                labels: Labels::default().rendered(),
            }
        };
        all.entry(key)
            .or_insert_with(|| Arc::new(Series::new(metric)))
            .clone()
    }

    /// Forgets what nobody holds and nothing was counted in since the last sweep.
    pub(crate) fn sweep(&self) {
        let mut all = self.series.write();
        let before = all.len();
        all.retain(|_, series| {
            series.is_used.swap(false, Ordering::Relaxed) || Arc::strong_count(series) > 1
        });
        let expired = before - all.len();
        drop(all);
        counter!("leyline_metric_series_expired_total").increment(expired as u64);
    }

    /// Adds all of it to a page.
    pub(crate) fn collect(&self, samples: &mut Samples) {
        let all: Vec<(Key, Arc<Series>)> = self
            .series
            .read()
            .iter()
            .map(|(key, series)| (key.clone(), series.clone()))
            .collect();
        for (Key { metric, labels }, series) in all {
            let (name, help) = (metric.name(), metric.help());
            match &series.value {
                Value::Counter(counter) => {
                    samples.rendered(name, help, "counter", |lines| {
                        let value = counter.load(Ordering::Relaxed);
                        // A string takes everything.
                        writeln!(lines, "{name}{{{labels}}} {value}").ok();
                    });
                }
                Value::Histogram(histogram) => {
                    samples.rendered(name, help, "histogram", |lines| {
                        histogram.write(lines, name, &labels);
                    });
                }
            }
        }
    }
}

impl Histogram {
    fn write(&self, lines: &mut String, name: &str, labels: &str) {
        let bounds = BUCKETS.iter().map(f64::to_string);
        let bounds = bounds.chain(std::iter::once("+Inf".to_owned()));
        let mut count = 0;
        for (bound, bucket) in bounds.zip(&self.counts) {
            count += bucket.load(Ordering::Relaxed);
            writeln!(lines, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}").ok();
        }
        let sum = self.sum.load(Ordering::Relaxed);
        let (whole, fraction) = (sum / 1000, sum % 1000);
        writeln!(lines, "{name}_sum{{{labels}}} {whole}.{fraction:03}").ok();
        writeln!(lines, "{name}_count{{{labels}}} {count}").ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(app: &str) -> Labels {
        let mut labels = Labels::default();
        labels.set("source_app", app);
        labels
    }

    #[test]
    fn histograms_are_cumulative_and_bounds_belong_below() {
        let stats = Stats::default();
        let series = stats.series(Metric::RequestDuration, &labels("a"));
        for value in [0.2, 1.0, 1.5, 7_200_000.0] {
            series.add(value);
        }
        let mut samples = Samples::default();
        stats.collect(&mut samples);
        let text = samples.text();
        let value = |end: &str| {
            let line = text.lines().find(|line| line.contains(end)).unwrap();
            line.rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!(value("le=\"0.5\""), "1");
        assert_eq!(value("le=\"1\""), "2");
        assert_eq!(value("le=\"5\""), "3");
        assert_eq!(value("le=\"3600000\""), "3");
        assert_eq!(value("le=\"+Inf\""), "4");
        assert_eq!(value("_sum{"), "7200002.700");
        assert_eq!(value("_count{"), "4");
        assert!(text.contains("# TYPE istio_request_duration_milliseconds histogram"));
    }

    #[test]
    fn what_nobody_uses_is_forgotten() {
        let stats = Stats::default();
        let held = stats.series(Metric::Requests, &labels("held"));
        stats.series(Metric::Requests, &labels("gone")).add(1.0);
        stats.sweep();
        assert_eq!(stats.series.read().len(), 2, "both are fresh");
        stats.sweep();
        assert_eq!(stats.series.read().len(), 1);
        held.add(1.0);
        assert!(Arc::ptr_eq(
            &held,
            &stats.series(Metric::Requests, &labels("held"))
        ));
    }

    #[test]
    fn beyond_the_bound_counting_goes_on_without_names() {
        let stats = Stats::default();
        for number in 0..MAX_SERIES + 10 {
            stats
                .series(Metric::Requests, &labels(&number.to_string()))
                .add(1.0);
        }
        assert!(stats.series.read().len() <= MAX_SERIES + 1);
        let rest = stats.series(Metric::Requests, &Labels::default());
        let Value::Counter(count) = &rest.value else {
            panic!("no counter");
        };
        assert_eq!(count.load(Ordering::Relaxed), 10);
    }
}
