//! Metrics of the DNS proxy (facts A19), and of host names that are resolved for connections.

use std::time::Duration;

use leyline_types::Str;
use metrics::{Label, counter, describe_counter, describe_histogram, histogram};

use crate::traffic::WorkloadLabels;

/// Bounds of `istio_dns_upstream_request_duration_seconds`.
pub(crate) const DURATION_BUCKETS: [f64; 6] = [0.0005, 0.001, 0.01, 0.1, 1.0, 5.0];
pub(crate) const DURATION: &str = "istio_dns_upstream_request_duration_seconds";

/// How a client asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsProtocol {
    /// By datagrams.
    Udp,
    /// By a connection.
    Tcp,
}

impl DnsProtocol {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// Why a message was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsDrop {
    /// No query.
    Malformed,
    /// The pod has too many queries under way.
    TooMany,
    /// The answer could not be sent.
    Unsendable,
}

/// Counts one query.
#[derive(Clone, Debug)]
pub struct DnsMetrics {
    labels: Vec<Label>,
}

impl DnsMetrics {
    /// For a query of a type that is one of a closed set of names.
    pub fn new(query_type: &'static str, protocol: DnsProtocol, source: &WorkloadLabels) -> Self {
        Self {
            labels: vec![
                Label::new("request_query_type", query_type),
                Label::new("request_protocol", protocol.as_str()),
                Label::new(
                    "source_canonical_service",
                    source.canonical_service.to_string(),
                ),
                Label::new(
                    "source_canonical_revision",
                    source.canonical_revision.to_string(),
                ),
            ],
        }
    }

    /// A query arrived.
    pub fn request(&self) {
        counter!("istio_dns_requests_total", self.labels.iter()).increment(1);
    }

    /// It was passed on.
    pub fn upstream_request(&self) {
        counter!("istio_dns_upstream_requests_total", self.labels.iter()).increment(1);
    }

    /// Nothing came back.
    pub fn upstream_failure(&self) {
        counter!("istio_dns_upstream_failures_total", self.labels.iter()).increment(1);
    }

    /// How long the other side took.
    pub fn upstream_duration(&self, took: Duration) {
        histogram!(DURATION, self.labels.iter()).record(took);
    }

    /// It was answered from what is remembered.
    pub fn cache_hit(&self) {
        counter!("leyline_dns_cache_hits_total", self.labels.iter()).increment(1);
    }
}

/// A message was not answered.
pub fn dns_dropped(reason: DnsDrop) {
    let reason = match reason {
        DnsDrop::Malformed => "malformed",
        DnsDrop::TooMany => "too_many",
        DnsDrop::Unsendable => "unsendable",
    };
    counter!("leyline_dns_dropped_total", "reason" => reason).increment(1);
}

/// A pod's DNS sockets could not be opened, so that its queries go direct.
pub fn dns_listen_failed() {
    counter!("leyline_dns_listen_failures_total").increment(1);
}

/// A connection asked for the address of a workload that has only a host name.
pub fn on_demand_dns(source: &WorkloadLabels, principal: &str, hostname: &Str) {
    let labels = [
        ("source_workload", source.workload.to_string()),
        (
            "source_canonical_service",
            source.canonical_service.to_string(),
        ),
        (
            "source_canonical_revision",
            source.canonical_revision.to_string(),
        ),
        ("source_workload_namespace", source.namespace.to_string()),
        ("source_principal", principal.to_owned()),
        ("source_app", source.app.to_string()),
        ("source_version", source.version.to_string()),
        ("source_cluster", source.cluster.to_string()),
        ("hostname", hostname.to_string()),
    ];
    counter!("istio_on_demand_dns_total", &labels).increment(1);
}

pub(crate) fn describe() {
    for (name, what) in [
        ("istio_dns_requests_total", "DNS queries of pods."),
        (
            "istio_dns_upstream_requests_total",
            "DNS queries that were passed on to a pod's resolver.",
        ),
        (
            "istio_dns_upstream_failures_total",
            "DNS queries that no resolver answered.",
        ),
        (
            "istio_on_demand_dns_total",
            "Connections whose destination was resolved by name.",
        ),
        (
            "leyline_dns_cache_hits_total",
            "DNS queries answered from what is remembered.",
        ),
        (
            "leyline_dns_dropped_total",
            "DNS messages that were not answered.",
        ),
        (
            "leyline_dns_listen_failures_total",
            "Pods whose DNS sockets could not be opened.",
        ),
    ] {
        describe_counter!(name, what);
    }
    describe_histogram!(DURATION, "How long a pod's resolver took.");
}
