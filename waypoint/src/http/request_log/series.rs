//! The series that a request counts in, found by its outcome. A connection remembers the last few outcomes.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;

use crate::{
    config::{cluster::Cluster, endpoints::EndpointAddress, telemetry::Telemetry},
    format::Source,
    http::{flags::Flags, server::HttpConnection},
    stats::{
        Metric, Series,
        labels::{Labels, Peer},
    },
};

/// Outcomes that a connection remembers: enough for its usual endpoints and statuses.
const REMEMBERED: usize = 16;

/// What the labels of a request's series depend on.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) cluster: Option<Arc<Cluster>>,
    pub(super) upstream: Option<EndpointAddress>,
    pub(super) status: u16,
    pub(super) flags: Flags,
    pub(super) is_grpc: bool,
    pub(super) grpc_status: Option<u32>,
}

impl Outcome {
    fn same(&self, other: &Self) -> bool {
        let clusters = match (&self.cluster, &other.cluster) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        clusters
            && Arc::ptr_eq(&self.telemetry, &other.telemetry)
            && self.upstream == other.upstream
            && self.status == other.status
            && self.flags == other.flags
            && self.is_grpc == other.is_grpc
            && self.grpc_status == other.grpc_status
    }
}

/// Of one connection.
#[derive(Debug, Default)]
pub(crate) struct SeriesCache(Mutex<Vec<(Outcome, Arc<RequestSeries>)>>);

/// `None` for metrics that are not wanted.
#[derive(Debug)]
pub(super) struct RequestSeries {
    requests: Option<Arc<Series>>,
    duration: Option<Arc<Series>>,
    received: Option<Arc<Series>>,
    sent: Option<Arc<Series>>,
    received_messages: Option<Arc<Series>>,
    sent_messages: Option<Arc<Series>>,
}

impl SeriesCache {
    pub(super) fn of(
        &self,
        conn: &HttpConnection,
        outcome: Outcome,
        source: &dyn Source,
    ) -> Arc<RequestSeries> {
        if !outcome.telemetry.metrics.is_fixed() {
            return Arc::new(RequestSeries::find(conn, &outcome, source));
        }
        let mut known = self.0.lock();
        if let Some((_, series)) = known.iter().find(|(had, _)| had.same(&outcome)) {
            return series.clone();
        }
        let series = Arc::new(RequestSeries::find(conn, &outcome, source));
        if known.len() >= REMEMBERED {
            known.remove(0);
        }
        known.push((outcome, series.clone()));
        series
    }
}

impl RequestSeries {
    fn find(conn: &HttpConnection, outcome: &Outcome, source: &dyn Source) -> Self {
        let labels = labels(conn, outcome);
        let stats = &conn.shared.stats;
        let series = |metric| {
            let plan = &outcome.telemetry.metrics;
            let labels = plan.labels(metric, &labels, source)?;
            Some(stats.series(metric, &labels))
        };
        let of_grpc = |metric| outcome.is_grpc.then(|| series(metric)).flatten();
        Self {
            requests: series(Metric::Requests),
            duration: series(Metric::RequestDuration),
            received: series(Metric::RequestBytes),
            sent: series(Metric::ResponseBytes),
            received_messages: of_grpc(Metric::RequestMessages),
            sent_messages: of_grpc(Metric::ResponseMessages),
        }
    }

    pub(super) fn requests(&self, duration: Duration) {
        add(self.requests.as_ref(), 1.0);
        add(self.duration.as_ref(), duration.as_secs_f64() * 1000.0);
    }

    // Exact up to 2^53, which no body reaches.
    pub(super) fn bytes(&self, received: u64, sent: u64) {
        add(self.received.as_ref(), received as f64);
        add(self.sent.as_ref(), sent as f64);
    }

    pub(super) fn messages(&self, received: u64, sent: u64) {
        add(self.received_messages.as_ref(), received as f64);
        add(self.sent_messages.as_ref(), sent as f64);
    }
}

fn add(series: Option<&Arc<Series>>, value: f64) {
    if let Some(series) = series {
        series.add(value);
    }
}

fn labels(conn: &HttpConnection, outcome: &Outcome) -> Labels {
    let mesh = conn.shared.mesh.snapshot();
    let source = Peer::source(&mesh, &conn.client);
    let destination = outcome.upstream.map(|it| Peer::destination(&mesh, it));
    let destination = destination.unwrap_or_default();
    let mut labels = Labels::default();
    labels.of_source(&source);
    labels.of_destination(&destination);
    labels.secure(&source, &destination);
    let cluster = outcome.cluster.as_ref();
    if let Some(service) = cluster.and_then(|cluster| cluster.service.as_ref()) {
        labels.of_service(service);
    }
    let protocol = if outcome.is_grpc { "grpc" } else { "http" };
    labels.set("request_protocol", protocol);
    labels.set("response_code", outcome.status.to_string());
    labels.set("response_flags", outcome.flags.to_string());
    if let Some(status) = outcome.grpc_status.filter(|_| outcome.is_grpc) {
        labels.set("grpc_response_status", status.to_string());
    }
    labels
}
