//! The figures of a run: what is measured, what Istio's proxy gives for it, and the table.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
};

use serde_json::{Value, json};

use super::{
    busy,
    scene::Route,
    spread::{Spread, number},
};

/// One row.
struct Metric {
    key: &'static str,
    label: &'static str,
    unit: &'static str,
    /// Istio's ztunnel on such a machine, from and to.
    istio: Option<(f64, f64)>,
    better: Better,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Better {
    Higher,
    Lower,
}

use Better::{Higher, Lower};

const fn row(
    key: &'static str,
    label: &'static str,
    unit: &'static str,
    istio: Option<(f64, f64)>,
    better: Better,
) -> Metric {
    Metric {
        key,
        label,
        unit,
        istio,
        better,
    }
}

/// Istio's CPU time per MB at the client's and the server's proxy.
const MB_CLIENT: Option<(f64, f64)> = Some((0.87, 1.09));
const MB_SERVER: Option<(f64, f64)> = Some((0.77, 1.0));
/// Both proxies of Istio's take part in a connection inside a node, as one process.
const BOTH_MB: Option<(f64, f64)> = Some((1.64, 2.09));
const GBIT: Option<(f64, f64)> = Some((3.9, 5.4));
const PER_CONNECTION: Option<(f64, f64)> = Some((174.0, 212.0));
const REQUEST: Option<(f64, f64)> = Some((35.0, 35.0));
const TUNNEL: Option<(f64, f64)> = Some((0.9, 0.9));

/// All rows, in the order of the table. Istio's figures are those of issue 2.
const METRICS: &[Metric] = &[
    row("up-1", "1 stream up", "Gbit/s", GBIT, Higher),
    row(
        "up-1-cpu-a",
        "  CPU client proxy",
        "ms/MB",
        MB_CLIENT,
        Lower,
    ),
    row(
        "up-1-cpu-b",
        "  CPU server proxy",
        "ms/MB",
        MB_SERVER,
        Lower,
    ),
    row("down-1", "1 stream down", "Gbit/s", GBIT, Higher),
    row(
        "down-1-cpu-a",
        "  CPU client proxy",
        "ms/MB",
        MB_CLIENT,
        Lower,
    ),
    row(
        "down-1-cpu-b",
        "  CPU server proxy",
        "ms/MB",
        MB_SERVER,
        Lower,
    ),
    row("up-8", "8 streams up", "Gbit/s", GBIT, Higher),
    row(
        "up-8-cpu-a",
        "  CPU client proxy",
        "ms/MB",
        MB_CLIENT,
        Lower,
    ),
    row(
        "up-8-cpu-b",
        "  CPU server proxy",
        "ms/MB",
        MB_SERVER,
        Lower,
    ),
    row("down-8", "8 streams down", "Gbit/s", GBIT, Higher),
    row(
        "down-8-cpu-a",
        "  CPU client proxy",
        "ms/MB",
        MB_CLIENT,
        Lower,
    ),
    row(
        "down-8-cpu-b",
        "  CPU server proxy",
        "ms/MB",
        MB_SERVER,
        Lower,
    ),
    row(
        "latency-p50",
        "2,000 req/s over 16: p50",
        "us",
        Some((260.0, 281.0)),
        Lower,
    ),
    row("latency-p90", "  p90", "us", None, Lower),
    row("latency-p99", "  p99", "us", Some((1900.0, 3900.0)), Lower),
    row("latency-max", "  max", "us", None, Lower),
    row(
        "closed-1",
        "closed loop, 1 connection",
        "req/s",
        None,
        Higher,
    ),
    row(
        "closed-1-cpu-a",
        "  CPU client proxy",
        "us/req",
        None,
        Lower,
    ),
    row(
        "closed-1-cpu-b",
        "  CPU server proxy",
        "us/req",
        None,
        Lower,
    ),
    row(
        "closed-16",
        "closed loop, 16 connections",
        "req/s",
        Some((14_000.0, 18_600.0)),
        Higher,
    ),
    row(
        "closed-16-cpu-a",
        "  CPU client proxy",
        "us/req",
        REQUEST,
        Lower,
    ),
    row(
        "closed-16-cpu-b",
        "  CPU server proxy",
        "us/req",
        REQUEST,
        Lower,
    ),
    row(
        "connections",
        "new connections",
        "1/s",
        Some((3000.0, 3700.0)),
        Higher,
    ),
    row("connections-p50", "  p50", "us", None, Lower),
    row("connections-p99", "  p99", "us", None, Lower),
    row(
        "connections-cpu-a",
        "  CPU client proxy",
        "us/conn",
        PER_CONNECTION,
        Lower,
    ),
    row(
        "connections-cpu-b",
        "  CPU server proxy",
        "us/conn",
        PER_CONNECTION,
        Lower,
    ),
    row("connections-failed", "  failed", "", None, Lower),
    row(
        "tunnels",
        "new tunnels",
        "1/s",
        Some((570.0, 600.0)),
        Higher,
    ),
    row(
        "tunnels-cpu-a",
        "  CPU client (same crates)",
        "ms/tunnel",
        TUNNEL,
        Lower,
    ),
    row(
        "tunnels-cpu-b",
        "  CPU server proxy",
        "ms/tunnel",
        TUNNEL,
        Lower,
    ),
    row("tunnels-failed", "  failed", "", None, Lower),
    row("local-up-1", "same node: 1 stream", "Gbit/s", GBIT, Higher),
    row("local-up-1-cpu", "  CPU proxy", "ms/MB", BOTH_MB, Lower),
    row("local-up-8", "same node: 8 streams", "Gbit/s", GBIT, Higher),
    row("local-up-8-cpu", "  CPU proxy", "ms/MB", BOTH_MB, Lower),
    row(
        "local-closed-16",
        "same node: closed loop, 16 connections",
        "req/s",
        None,
        Higher,
    ),
    row("local-closed-16-cpu", "  CPU proxy", "us/req", None, Lower),
    row(
        "local-connections",
        "same node: new connections",
        "1/s",
        None,
        Higher,
    ),
    row(
        "local-connections-cpu",
        "  CPU proxy",
        "us/conn",
        None,
        Lower,
    ),
    row(
        "tunnel-kb",
        "memory per idle inbound tunnel",
        "kB",
        None,
        Lower,
    ),
    row(
        "connection-kb-1000-a",
        "memory per connection of 1,000, client proxy",
        "kB",
        None,
        Lower,
    ),
    row("connection-kb-1000-b", "  server proxy", "kB", None, Lower),
    row(
        "connection-kb-8000-a",
        "memory per connection of 8,000, client proxy",
        "kB",
        None,
        Lower,
    ),
    row("connection-kb-8000-b", "  server proxy", "kB", None, Lower),
    row(
        "rss-0-a",
        "RSS idle, client proxy",
        "MB",
        Some((15.0, 15.0)),
        Lower,
    ),
    row("rss-0-b", "  server proxy", "MB", Some((15.0, 15.0)), Lower),
    row(
        "rss-1000-a",
        "RSS 1,000 connections, client proxy",
        "MB",
        Some((22.0, 22.0)),
        Lower,
    ),
    row(
        "rss-1000-b",
        "  server proxy",
        "MB",
        Some((22.0, 22.0)),
        Lower,
    ),
    row(
        "rss-8000-a",
        "RSS 8,000 connections, client proxy",
        "MB",
        Some((60.0, 60.0)),
        Lower,
    ),
    row(
        "rss-8000-b",
        "  server proxy",
        "MB",
        Some((60.0, 60.0)),
        Lower,
    ),
    row(
        "rss-end-a",
        "RSS at the end, client proxy",
        "MB",
        None,
        Lower,
    ),
    row("rss-end-b", "  server proxy", "MB", None, Lower),
];

/// Everything measured.
#[derive(Debug, Default)]
pub struct Report {
    /// The share of the cores that was in use before anything was measured.
    pub(super) other_work: f64,
    samples: BTreeMap<(&'static str, Route), Vec<f64>>,
}

impl Report {
    /// Adds the figure of one round. Figures without a row of the table are a mistake in this module.
    pub(super) fn add(&mut self, key: &str, route: Route, value: f64) {
        let metric = METRICS.iter().find(|metric| metric.key == key);
        debug_assert!(metric.is_some(), "{key} has no row");
        if let Some(metric) = metric {
            self.samples
                .entry((metric.key, route))
                .or_default()
                .push(value);
        }
    }

    /// All figures for other programs.
    pub fn json(&self) -> Value {
        let rows = METRICS.iter().filter_map(|metric| {
            let samples = |route| self.samples.get(&(metric.key, route));
            let (direct, mesh) = (samples(Route::Direct), samples(Route::Mesh));
            (direct.is_some() || mesh.is_some()).then(|| {
                json!({
                    "key": metric.key,
                    "label": metric.label.trim(),
                    "unit": metric.unit,
                    "direct": direct,
                    "mesh": mesh,
                    "istio": metric.istio.map(|(low, high)| [low, high]),
                })
            })
        });
        json!({ "other_work": self.other_work, "figures": rows.collect::<Vec<_>>() })
    }

    fn spread(&self, key: &'static str, route: Route) -> Option<Spread> {
        Spread::of(self.samples.get(&(key, route))?)
    }
}

impl Metric {
    /// How the mesh stands against Istio's range.
    fn verdict(&self, mesh: Spread) -> &'static str {
        let Some((low, high)) = self.istio else {
            return "";
        };
        match self.better {
            _ if (low..=high).contains(&mesh.median) => "equal",
            Higher if mesh.median > high => "better",
            Lower if mesh.median < low => "better",
            Higher | Lower => "worse",
        }
    }

    fn istio(&self) -> String {
        match self.istio {
            None => String::new(),
            Some((low, high)) if low == high => number(low),
            Some((low, high)) => format!("{}-{}", number(low), number(high)),
        }
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<36} {:<9} {:<24} {:<24} {:>11} {:>15}",
            "", "", "direct", "two ztunnels", "mesh/direct", "Istio"
        )?;
        for metric in METRICS {
            let direct = self.spread(metric.key, Route::Direct);
            let mesh = self.spread(metric.key, Route::Mesh);
            if direct.is_none() && mesh.is_none() {
                continue;
            }
            let text = |spread: Option<Spread>| spread.map(|s| s.to_string()).unwrap_or_default();
            let ratio = match (direct, mesh) {
                (Some(direct), Some(mesh)) if direct.median > 0.0 => {
                    number(mesh.median / direct.median)
                }
                _ => String::new(),
            };
            let line = format!(
                "{:<36} {:<9} {:<24} {:<24} {:>11} {:>15} {}",
                metric.label,
                metric.unit,
                text(direct),
                text(mesh),
                ratio,
                metric.istio(),
                mesh.map(|mesh| metric.verdict(mesh)).unwrap_or_default(),
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        write!(f, "{}", busy(self.other_work))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_median_range_ratio_and_verdict() {
        let mut report = Report::default();
        for value in [20.0, 10.0] {
            report.add("up-1", Route::Direct, value);
        }
        for value in [3.0, 9.0, 6.0] {
            report.add("up-1", Route::Mesh, value);
        }
        report.add("latency-p50", Route::Mesh, 300.0);
        let table = report.to_string();
        let rows: Vec<Vec<&str>> = table
            .lines()
            .skip(1)
            .map(|row| row.split_whitespace().collect())
            .collect();
        let expected = "1 stream up Gbit/s 15.0 (10.0-20.0) 6.00 (3.00-9.00) 0.40 3.90-5.40 better";
        assert_eq!(rows[0].join(" "), expected);
        assert_eq!(rows[1].last(), Some(&"worse"));
        assert_eq!(report.json()["figures"][0]["mesh"], json!([3.0, 9.0, 6.0]));
    }

    #[test]
    fn keys_are_unique() {
        let keys: std::collections::BTreeSet<_> = METRICS.iter().map(|metric| metric.key).collect();
        assert_eq!(keys.len(), METRICS.len());
    }
}
