//! How many accepted sockets are open.

use std::sync::LazyLock;

use metrics::{Gauge, describe_counter, describe_gauge, gauge};

use super::Reporter;

/// Counts an accepted socket in `istio_tcp_sockets_open` until dropped.
#[derive(Debug)]
pub struct OpenSocket(&'static Gauge);

impl OpenSocket {
    /// Begins to count.
    pub fn new(reporter: Reporter) -> Self {
        static SOURCE: LazyLock<Gauge> = LazyLock::new(|| sockets_open(Reporter::Source));
        static DESTINATION: LazyLock<Gauge> = LazyLock::new(|| sockets_open(Reporter::Destination));
        let gauge: &'static Gauge = match reporter {
            Reporter::Source => &SOURCE,
            Reporter::Destination => &DESTINATION,
        };
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

fn sockets_open(reporter: Reporter) -> Gauge {
    gauge!("istio_tcp_sockets_open", "reporter" => reporter.as_str())
}

pub(crate) fn describe() {
    describe_gauge!("istio_tcp_sockets_open", "Accepted sockets that are open.");
    describe_counter!(
        "leyline_connections_refused_total",
        "Connections refused before they were opened, by reason."
    );
    describe_counter!(
        "leyline_metric_series_expired_total",
        "Label sets of traffic metrics that were forgotten because nobody used them."
    );
    describe_counter!(
        "leyline_metric_series_overflow_total",
        "Connections counted without names because there were too many label sets."
    );
}
