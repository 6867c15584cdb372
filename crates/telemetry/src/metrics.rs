//! The registry of this process and its text form for Prometheus.
//!
//! [`install`] is called once at start, before anything counts; counters resolved earlier would count nowhere.
//! Names are given in full in code (`…_total`), and the exporter adds no suffix.

mod sampled;

use std::sync::Arc;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::{TelemetryError, mesh, traffic};

/// Content type of [`MetricsHandle::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Renders the metrics of this process; clones are the same.
#[derive(Clone)]
pub struct MetricsHandle {
    exporter: PrometheusHandle,
    /// Held only to add one or to copy them.
    runtimes: Arc<Mutex<Vec<Handle>>>,
}

/// Installs the registry. Fails when something else has installed one.
pub fn install() -> Result<MetricsHandle, TelemetryError> {
    let exporter = PrometheusBuilder::new()
        .install_recorder()
        .map_err(|_occupied| TelemetryError::AlreadyInstalled("metrics"))?;
    traffic::describe();
    mesh::describe();
    crate::endpoints::describe();
    metrics::describe_counter!(
        "leyline_http_connections_refused_total",
        "Connections to the process's own pages that were closed because there were too many."
    );
    Ok(MetricsHandle {
        exporter,
        runtimes: Arc::default(),
    })
}

impl MetricsHandle {
    /// Adds a runtime whose threads and queue are to be shown; the data plane's.
    pub fn observe_runtime(&self, runtime: Handle) {
        self.runtimes.lock().push(runtime);
    }

    /// All metrics as Prometheus text.
    pub fn render(&self) -> String {
        let mut text = self.exporter.render();
        let runtimes = self.runtimes.lock().clone();
        sampled::append(&mut text, &runtimes);
        text
    }

    /// Moves recorded histogram values into their buckets; to be called every few seconds, so that a process that
    /// nobody scrapes does not keep them.
    pub fn upkeep(&self) {
        self.exporter.run_upkeep();
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
