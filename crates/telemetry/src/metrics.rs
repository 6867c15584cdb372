//! The registry of this process and its text form for Prometheus.
//!
//! [`install`] is called once at start, before anything counts; counters resolved earlier would count nowhere.
//! Names are given in full in code (`…_total`), and the exporter adds no suffix.

mod page;
mod sampled;
mod samples;

use std::sync::Arc;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::{TelemetryError, dns, mesh, traffic};
pub use samples::Samples;

pub use page::{OPEN_METRICS, Page, TEXT};

/// Appends samples that are read when somebody asks.
type Source = Arc<dyn Fn(&mut Samples) + Send + Sync>;

/// Renders the metrics of this process; clones are the same.
#[derive(Clone)]
pub struct MetricsHandle {
    exporter: PrometheusHandle,
    /// Held only to add one or to copy them.
    runtimes: Arc<Mutex<Vec<Handle>>>,
    /// Likewise.
    sources: Arc<Mutex<Vec<Source>>>,
}

/// Installs the registry. Fails when something else has installed one.
pub fn install() -> Result<MetricsHandle, TelemetryError> {
    let exporter = PrometheusBuilder::new()
        .set_buckets_for_metric(
            Matcher::Full(dns::DURATION.to_owned()),
            &dns::DURATION_BUCKETS,
        )
        .map_err(|_empty| TelemetryError::Buckets)?
        .install_recorder()
        .map_err(|_occupied| TelemetryError::AlreadyInstalled("metrics"))?;
    traffic::describe();
    mesh::describe();
    crate::endpoints::describe();
    crate::idle::describe();
    dns::describe();
    metrics::describe_counter!(
        "leyline_http_connections_refused_total",
        "Connections to the process's own pages that were closed because there were too many."
    );
    Ok(MetricsHandle {
        exporter,
        runtimes: Arc::default(),
        sources: Arc::default(),
    })
}

impl MetricsHandle {
    /// Adds a runtime whose threads and queue are to be shown; the data plane's.
    pub fn observe_runtime(&self, runtime: Handle) {
        self.runtimes.lock().push(runtime);
    }

    /// Adds metrics that are read at each scrape. They must be quick to read.
    pub fn add_source(&self, source: impl Fn(&mut Samples) + Send + Sync + 'static) {
        self.sources.lock().push(Arc::new(source));
    }

    /// All metrics, in the form and encoding that a scraper's `Accept` and `Accept-Encoding` ask for.
    pub fn page(&self, accept: Option<&str>, accept_encoding: Option<&str>) -> Page {
        Page::new(self.render(), accept, accept_encoding)
    }

    /// All metrics as Prometheus text.
    pub fn render(&self) -> String {
        let mut text = self.exporter.render();
        let runtimes = self.runtimes.lock().clone();
        sampled::append(&mut text, &runtimes);
        traffic::append(&mut text);
        let sources = self.sources.lock().clone();
        for source in sources {
            let mut samples = Samples::default();
            source(&mut samples);
            samples.append(&mut text);
        }
        text
    }

    /// Moves recorded histogram values into their buckets; to be called every few seconds, so that a process that
    /// nobody scrapes does not keep them, and series of workloads that are gone are forgotten.
    pub fn upkeep(&self) {
        self.exporter.run_upkeep();
        traffic::expire();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::OnceLock;

    use super::*;

    /// The one registry of this test binary. Tests tell their series apart by label values of their own.
    pub(crate) fn registry() -> &'static MetricsHandle {
        static REGISTRY: OnceLock<MetricsHandle> = OnceLock::new();
        REGISTRY.get_or_init(|| install().unwrap())
    }

    /// Lines of the metric `name` whose labels hold `label`.
    pub(crate) fn series(name: &str, label: &str) -> Vec<String> {
        let text = registry().render();
        let lines = text
            .lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name) && line.contains(label));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn is_installed_once() {
        registry();
        assert!(matches!(
            install(),
            Err(TelemetryError::AlreadyInstalled("metrics"))
        ));
    }

    #[test]
    fn counters_keep_their_names() {
        registry();
        metrics::counter!("leyline_test_total", "case" => "names").increment(2);
        assert_eq!(
            series("leyline_test_total", "names"),
            [r#"leyline_test_total{case="names"} 2"#]
        );
    }
}
