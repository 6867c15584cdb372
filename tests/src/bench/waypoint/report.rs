//! The figures of both waypoints, their ratio, and what it is to be (issue 4, "Speed and size").

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
};

use serde_json::{Value, json};

use super::scene::Proxy;
use crate::bench::{
    busy,
    spread::{Spread, number},
};

/// One row.
struct Metric {
    key: &'static str,
    label: &'static str,
    unit: &'static str,
    goal: Goal,
}

/// What a figure is to be.
#[derive(Clone, Copy)]
enum Goal {
    None,
    /// At least Envoy's.
    Above,
    /// At most Envoy's.
    Below,
    /// At most half of Envoy's.
    Half,
    /// Below this.
    Under(f64),
}

use Goal::{Above, Below, Half, Under};

const fn row(key: &'static str, label: &'static str, unit: &'static str, goal: Goal) -> Metric {
    Metric {
        key,
        label,
        unit,
        goal,
    }
}

/// Milliseconds until a changed route is in force, with a thousand services.
const LIVE: Goal = Under(100.0);
/// Resident MB while 1 GB goes through 256 streams.
const BOUNDED: Goal = Under(200.0);

/// All rows, in the order of the table.
const METRICS: &[Metric] = &[
    row("h1-rate", "HTTP/1.1, 32 connections", "req/s", Above),
    row("h1-cpu", "  CPU of the waypoint", "us/req", Below),
    row(
        "h2-rate",
        "HTTP/2, 4 connections, 32 streams",
        "req/s",
        Above,
    ),
    row("h2-cpu", "  CPU of the waypoint", "us/req", Below),
    row("1000-p50", "HTTP/1.1 at 1,000 req/s: p50", "us", Below),
    row("1000-p99", "  p99", "us", Below),
    row("1000-cpu", "  CPU of the waypoint", "us/req", Below),
    row("5000-p50", "HTTP/1.1 at 5,000 req/s: p50", "us", Below),
    row("5000-p99", "  p99", "us", Below),
    row("5000-cpu", "  CPU of the waypoint", "us/req", Below),
    row("failed", "failed requests, each run", "", Under(1.0)),
    row("rss-idle", "RSS idle", "MB", Half),
    row("rss-load", "RSS after each closed loop", "MB", Half),
    row("rss-services", "RSS with 1,000 services", "MB", Half),
    row("rss-routes", "RSS with 10,000 routes besides", "MB", Half),
    row(
        "body-up-peak",
        "1 GB up in 256 streams: peak RSS",
        "MB",
        BOUNDED,
    ),
    row("body-up-seconds", "  time", "s", Goal::None),
    row("body-up-cpu", "  CPU of the waypoint", "s", Goal::None),
    row(
        "body-down-peak",
        "1 GB down in 256 streams: peak RSS",
        "MB",
        BOUNDED,
    ),
    row("body-down-seconds", "  time", "s", Goal::None),
    row("body-down-cpu", "  CPU of the waypoint", "s", Goal::None),
    row("edit-1", "route change, 1 service", "ms", LIVE),
    row("edit-1-bytes", "  pushed", "bytes", Goal::None),
    row("edit-services", "route change, 1,000 services", "ms", LIVE),
    row("edit-services-bytes", "  pushed", "bytes", Goal::None),
    row(
        "edit-routes",
        "route change, 10,000 routes besides",
        "ms",
        Goal::None,
    ),
    row("edit-routes-bytes", "  pushed", "bytes", Goal::None),
];

/// Everything measured.
#[derive(Debug, Default)]
pub struct Report {
    /// The share of the cores that was in use before anything was measured.
    pub(super) other_work: f64,
    samples: BTreeMap<(&'static str, Proxy), Vec<f64>>,
    /// What a reader must know besides.
    notes: Vec<String>,
}

impl Report {
    /// Adds a figure. Figures without a row of the table are a mistake in this module.
    pub(super) fn add(&mut self, key: &str, proxy: Proxy, value: f64) {
        let metric = METRICS.iter().find(|metric| metric.key == key);
        debug_assert!(metric.is_some(), "{key} has no row");
        if let Some(metric) = metric {
            let samples = self.samples.entry((metric.key, proxy)).or_default();
            samples.push(value);
        }
    }

    /// Adds a line below the table.
    pub(super) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// All figures for other programs.
    pub fn json(&self) -> Value {
        let rows = METRICS.iter().filter_map(|metric| {
            let samples = |proxy| self.samples.get(&(metric.key, proxy));
            let (leyline, envoy) = (samples(Proxy::Leyline), samples(Proxy::Envoy));
            (leyline.is_some() || envoy.is_some()).then(|| {
                json!({
                    "key": metric.key,
                    "label": metric.label.trim(),
                    "unit": metric.unit,
                    "leyline": leyline,
                    "envoy": envoy,
                })
            })
        });
        json!({ "other_work": self.other_work, "figures": rows.collect::<Vec<_>>() })
    }

    fn spread(&self, metric: &Metric, proxy: Proxy) -> Option<Spread> {
        Spread::of(self.samples.get(&(metric.key, proxy))?)
    }
}

impl Goal {
    fn text(self) -> String {
        match self {
            Self::None => String::new(),
            Self::Above => ">= 1".to_owned(),
            Self::Below => "<= 1".to_owned(),
            Self::Half => "<= 0.5".to_owned(),
            Self::Under(limit) => format!("< {limit}"),
        }
    }

    /// `None` where there is nothing to reach.
    fn is_reached(self, leyline: Spread, envoy: Option<Spread>) -> Option<bool> {
        let ratio = envoy.map(|envoy| leyline.median / envoy.median);
        match self {
            Self::None => None,
            Self::Above => ratio.map(|ratio| ratio >= 1.0),
            Self::Below => ratio.map(|ratio| ratio <= 1.0),
            Self::Half => ratio.map(|ratio| ratio <= 0.5),
            Self::Under(limit) => Some(leyline.median < limit),
        }
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<36} {:<7} {:<26} {:<26} {:>7} {:>7}",
            "median (lowest-highest)", "", "Leyline", "Envoy", "ratio", "goal"
        )?;
        for metric in METRICS {
            let leyline = self.spread(metric, Proxy::Leyline);
            let envoy = self.spread(metric, Proxy::Envoy);
            if leyline.is_none() && envoy.is_none() {
                continue;
            }
            let text = |spread: Option<Spread>| spread.map(|s| s.to_string()).unwrap_or_default();
            let ratio = match (leyline, envoy) {
                (Some(leyline), Some(envoy)) if envoy.median > 0.0 => {
                    number(leyline.median / envoy.median)
                }
                _ => String::new(),
            };
            let reached = leyline.and_then(|leyline| metric.goal.is_reached(leyline, envoy));
            let line = format!(
                "{:<36} {:<7} {:<26} {:<26} {ratio:>7} {:>7} {}",
                metric.label,
                metric.unit,
                text(leyline),
                text(envoy),
                metric.goal.text(),
                match reached {
                    Some(true) => "reached",
                    Some(false) => "missed",
                    None => "",
                },
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        write!(f, "{}", busy(self.other_work))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_both_figures_their_ratio_and_whether_the_goal_is_reached() {
        let mut report = Report::default();
        for (key, leyline, envoy) in [
            ("h1-rate", 9.0, 10.0),
            ("h1-cpu", 9.0, 10.0),
            ("rss-idle", 5.0, 10.0),
            ("edit-services", 101.0, 10.0),
        ] {
            report.add(key, Proxy::Leyline, leyline);
            report.add(key, Proxy::Envoy, envoy);
        }
        let table = report.to_string();
        let last: Vec<&str> = table
            .lines()
            .skip(1)
            .filter_map(|row| row.split_whitespace().last())
            .collect();
        assert_eq!(last, ["missed", "reached", "reached", "missed"]);
        assert!(table.contains("0.90"), "{table}");
        assert_eq!(report.json()["figures"][0]["envoy"], json!([10.0]));
    }

    #[test]
    fn keys_are_unique() {
        let keys: std::collections::BTreeSet<_> = METRICS.iter().map(|metric| metric.key).collect();
        assert_eq!(keys.len(), METRICS.len());
    }
}
