//! Telemetry labels of workloads, made once per workload and not per connection.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use leyline_hbone::{Baggage, WorkloadKind};
use leyline_state::{Service, Workload, WorkloadType};
use leyline_telemetry::traffic::{ServiceLabels, WorkloadLabels};
use leyline_types::{ServiceKey, WorkloadUid};
use parking_lot::RwLock;

/// Beyond this the cache starts anew; it holds what the connections of one node meet.
const MAX_ENTRIES: usize = 16_384;

/// Labels by workload and by service.
#[derive(Debug, Default)]
pub(crate) struct LabelCache {
    workloads: Made<WorkloadUid, Workload, WorkloadLabels>,
    services: Made<ServiceKey, Service, ServiceLabels>,
}

impl LabelCache {
    pub(super) fn workload(&self, workload: &Arc<Workload>) -> Arc<WorkloadLabels> {
        self.workloads
            .get_or_make(&workload.uid, workload, workload_labels)
    }

    pub(super) fn service(&self, service: &Arc<Service>) -> Arc<ServiceLabels> {
        self.services
            .get_or_make(&service.key(), service, |service| ServiceLabels {
                hostname: service.hostname.clone(),
                name: service.name.clone(),
                namespace: service.namespace.clone(),
            })
    }
}

/// What was made from an object, kept with the object, so that a newer version of it is noticed.
#[derive(Debug)]
struct Made<K, T, M>(RwLock<HashMap<K, Entry<T, M>>>);

#[derive(Debug)]
struct Entry<T, M> {
    of: Arc<T>,
    made: Arc<M>,
}

impl<K, T, M> Default for Made<K, T, M> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<K: Clone + Eq + Hash, T, M> Made<K, T, M> {
    fn get_or_make(&self, key: &K, of: &Arc<T>, make: impl FnOnce(&T) -> M) -> Arc<M> {
        if let Some(entry) = self.0.read().get(key)
            && Arc::ptr_eq(&entry.of, of)
        {
            return entry.made.clone();
        }
        let made = Arc::new(make(of));
        let mut entries = self.0.write();
        if entries.len() >= MAX_ENTRIES {
            entries.clear();
        }
        entries.insert(
            key.clone(),
            Entry {
                of: of.clone(),
                made: made.clone(),
            },
        );
        made
    }
}

fn workload_labels(workload: &Workload) -> WorkloadLabels {
    WorkloadLabels {
        name: workload.name.name.clone(),
        workload: workload.workload_name.clone(),
        namespace: workload.name.namespace.clone(),
        canonical_service: workload.canonical_name.clone(),
        canonical_revision: workload.canonical_revision.clone(),
        app: workload.canonical_name.clone(),
        version: workload.canonical_revision.clone(),
        cluster: workload.cluster_id.clone(),
        region: workload.locality.region.clone(),
        zone: workload.locality.zone.clone(),
    }
}

/// What a peer says of a workload, for where it is believed. It does not name the pod.
pub(super) fn of_baggage(baggage: Baggage) -> WorkloadLabels {
    WorkloadLabels {
        name: baggage.workload.clone(),
        workload: baggage.workload,
        namespace: baggage.namespace,
        canonical_service: baggage.service.clone(),
        canonical_revision: baggage.revision.clone(),
        app: baggage.service,
        version: baggage.revision,
        cluster: baggage.cluster,
        region: baggage.region,
        zone: baggage.zone,
    }
}

/// What a peer is told of a workload (A8).
pub(super) fn baggage(workload: &Workload) -> Baggage {
    Baggage {
        cluster: workload.cluster_id.clone(),
        namespace: workload.name.namespace.clone(),
        kind: match workload.workload_type {
            WorkloadType::Deployment => WorkloadKind::Deployment,
            WorkloadType::CronJob => WorkloadKind::CronJob,
            WorkloadType::Pod => WorkloadKind::Pod,
            WorkloadType::Job => WorkloadKind::Job,
        },
        workload: workload.workload_name.clone(),
        service: workload.canonical_name.clone(),
        revision: workload.canonical_revision.clone(),
        region: workload.locality.region.clone(),
        zone: workload.locality.zone.clone(),
    }
}
