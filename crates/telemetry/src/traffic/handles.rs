//! Counters of one set of traffic labels, resolved once and shared by all connections that have these labels.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, OnceLock},
};

use leyline_types::{Identity, Str};
use metrics::{Counter, Gauge, Label, counter, describe_counter, describe_gauge, gauge};
use parking_lot::RwLock;

use super::{Reporter, ResponseFlag, Security, ServiceLabels, WorkloadLabels};

/// Label sets whose counters are kept at hand, about 2 KiB each. When full the cache starts anew: counting goes on,
/// and the next connection of each set pays a few microseconds again.
const MAX_CACHED: usize = 10_000;

/// Everything that the labels of a connection are made of, except how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct LabelSet {
    pub(super) reporter: Reporter,
    pub(super) security: Security,
    pub(super) source: Option<Arc<WorkloadLabels>>,
    pub(super) destination: Option<Arc<WorkloadLabels>>,
    pub(super) service: Option<Arc<ServiceLabels>>,
    pub(super) source_identity: Option<Identity>,
    pub(super) destination_identity: Option<Identity>,
}

/// The counters of one label set.
#[derive(Debug)]
pub(super) struct Handles {
    labels: LabelSet,
    pub(super) opened: Counter,
    pub(super) sent: Counter,
    pub(super) received: Counter,
    /// By response flag, resolved when first needed.
    closed: [OnceLock<Counter>; ResponseFlag::COUNT],
    failed: [OnceLock<Counter>; ResponseFlag::COUNT],
}

impl Handles {
    /// The counters of these labels, from the cache if they are there.
    pub(super) fn of(labels: &LabelSet) -> Arc<Self> {
        static CACHE: LazyLock<Cache> = LazyLock::new(|| Cache::new(MAX_CACHED));
        CACHE.handles(labels)
    }

    fn new(labels: LabelSet) -> Self {
        let common = labels.labels(ResponseFlag::None);
        Self {
            opened: counter!("istio_tcp_connections_opened_total", common.clone()),
            sent: counter!("istio_tcp_sent_bytes_total", common.clone()),
            received: counter!("istio_tcp_received_bytes_total", common),
            closed: Default::default(),
            failed: Default::default(),
            labels,
        }
    }

    /// Connections that ended with this flag.
    pub(super) fn closed(&self, flag: ResponseFlag) -> &Counter {
        self.closed[flag.index()].get_or_init(|| {
            counter!(
                "istio_tcp_connections_closed_total",
                self.labels.labels(flag)
            )
        })
    }

    /// Connections that failed with this flag.
    pub(super) fn failed(&self, flag: ResponseFlag) -> &Counter {
        self.failed[flag.index()].get_or_init(|| {
            counter!(
                "istio_tcp_connections_failed_total",
                self.labels.labels(flag)
            )
        })
    }
}

struct Cache {
    capacity: usize,
    /// Held only for one look-up or insertion.
    handles: RwLock<HashMap<LabelSet, Arc<Handles>>>,
}

impl Cache {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            handles: RwLock::default(),
        }
    }

    fn handles(&self, labels: &LabelSet) -> Arc<Handles> {
        if let Some(found) = self.handles.read().get(labels) {
            return found.clone();
        }
        // Outside the lock; two that do this at once get the same counters from the registry.
        let made = Arc::new(Handles::new(labels.clone()));
        let mut cached = self.handles.write();
        if cached.len() >= self.capacity {
            cached.clear();
        }
        cached.entry(labels.clone()).or_insert(made).clone()
    }
}

impl LabelSet {
    /// All labels of a traffic metric, in Istio's order.
    // tidy: table
    fn labels(&self, flag: ResponseFlag) -> Vec<Label> {
        let (source, destination) = (self.source.as_deref(), self.destination.as_deref());
        let service = self.service.as_deref();
        let workload =
            |of: Option<&WorkloadLabels>, text: fn(&WorkloadLabels) -> &Str| known(of.map(text));
        let service = |text: fn(&ServiceLabels) -> &Str| known(service.map(text));
        let principal = |of: &Option<Identity>| match of {
            Some(identity) => identity.to_string(),
            None => UNKNOWN.to_owned(),
        };
        let fixed = Label::from_static_parts;
        vec![
            fixed("reporter", self.reporter.as_str()),
            Label::new("source_workload", workload(source, |w| &w.workload)),
            Label::new(
                "source_canonical_service",
                workload(source, |w| &w.canonical_service),
            ),
            Label::new(
                "source_canonical_revision",
                workload(source, |w| &w.canonical_revision),
            ),
            Label::new(
                "source_workload_namespace",
                workload(source, |w| &w.namespace),
            ),
            Label::new("source_principal", principal(&self.source_identity)),
            Label::new("source_app", workload(source, |w| &w.app)),
            Label::new("source_version", workload(source, |w| &w.version)),
            Label::new("source_cluster", workload(source, |w| &w.cluster)),
            Label::new("destination_service", service(|s| &s.hostname)),
            Label::new("destination_service_namespace", service(|s| &s.namespace)),
            Label::new("destination_service_name", service(|s| &s.name)),
            Label::new(
                "destination_workload",
                workload(destination, |w| &w.workload),
            ),
            Label::new(
                "destination_canonical_service",
                workload(destination, |w| &w.canonical_service),
            ),
            Label::new(
                "destination_canonical_revision",
                workload(destination, |w| &w.canonical_revision),
            ),
            Label::new(
                "destination_workload_namespace",
                workload(destination, |w| &w.namespace),
            ),
            Label::new(
                "destination_principal",
                principal(&self.destination_identity),
            ),
            Label::new("destination_app", workload(destination, |w| &w.app)),
            Label::new("destination_version", workload(destination, |w| &w.version)),
            Label::new("destination_cluster", workload(destination, |w| &w.cluster)),
            fixed("request_protocol", "tcp"),
            fixed("response_flags", flag.as_str()),
            fixed("connection_security_policy", self.security.as_str()),
            Label::new("source_region", workload(source, |w| &w.region)),
            Label::new("source_zone", workload(source, |w| &w.zone)),
            Label::new("destination_region", workload(destination, |w| &w.region)),
            Label::new("destination_zone", workload(destination, |w| &w.zone)),
        ]
    }
}

/// What Istio writes where it knows nothing.
const UNKNOWN: &str = "unknown";

fn known(text: Option<&Str>) -> String {
    match text {
        Some(text) if !text.is_empty() => text.as_str().to_owned(),
        Some(_) | None => UNKNOWN.to_owned(),
    }
}

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
    describe_counter!("istio_tcp_connections_opened_total", "Connections opened.");
    describe_counter!("istio_tcp_connections_closed_total", "Connections ended.");
    describe_counter!(
        "istio_tcp_connections_failed_total",
        "Connections ended by a failure."
    );
    describe_counter!(
        "istio_tcp_sent_bytes_total",
        "Bytes sent by the destination to the source."
    );
    describe_counter!(
        "istio_tcp_received_bytes_total",
        "Bytes sent by the source to the destination."
    );
    describe_gauge!("istio_tcp_sockets_open", "Accepted sockets that are open.");
    describe_counter!(
        "leyline_connections_refused_total",
        "Connections refused before they were opened, by reason."
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(workload: &str) -> LabelSet {
        LabelSet {
            reporter: Reporter::Source,
            security: Security::Unknown,
            source: Some(Arc::new(WorkloadLabels {
                workload: workload.into(),
                ..WorkloadLabels::default()
            })),
            destination: None,
            service: None,
            source_identity: None,
            destination_identity: None,
        }
    }

    #[test]
    fn equal_labels_share_their_counters() {
        let cache = Cache::new(10);
        let first = cache.handles(&labels("a"));
        assert!(Arc::ptr_eq(&first, &cache.handles(&labels("a"))));
        assert!(!Arc::ptr_eq(&first, &cache.handles(&labels("b"))));
    }

    #[test]
    fn the_cache_is_bounded() {
        let cache = Cache::new(10);
        for number in 0..100 {
            cache.handles(&labels(&number.to_string()));
            assert!(cache.handles.read().len() <= 10);
        }
    }
}
