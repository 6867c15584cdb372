//! The single writer of snapshots. The application applies one batch for each message of the control plane; readers
//! take the published snapshot without waiting and never see half a batch.
//!
//! Any order of the same changes leads to the same snapshot: every index is a function of the resources in it.

mod batch;

use std::{collections::BTreeSet, sync::Arc};

use arc_swap::ArcSwap;
use leyline_authz::Policy;
use leyline_types::{Identity, NamespacedName, ServiceKey, Str, WorkloadUid};
use parking_lot::Mutex;

use self::batch::Batch;
use crate::{
    service::Service,
    snapshot::{LocalNode, Snapshot},
    workload::Workload,
};

/// One resource that came or went, already understood.
#[derive(Clone, Debug)]
pub enum Change {
    /// A workload came or changed.
    Workload(Arc<Workload>),
    /// A service came or changed.
    Service(Arc<Service>),
    /// The workload or service of this xDS name went.
    RemoveAddress(Str),
    /// A policy came or changed.
    Policy(Arc<Policy>),
    /// A policy went.
    RemovePolicy(NamespacedName),
}

/// What a batch really changed; a resource that was sent again unchanged is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Workloads that came, changed or went.
    pub workloads: BTreeSet<WorkloadUid>,
    /// Services that came, changed, went or got other endpoints.
    pub services: BTreeSet<ServiceKey>,
    /// Policies that came, changed or went.
    pub policies: BTreeSet<NamespacedName>,
    /// Identities of local workloads that a certificate is wanted for from now on.
    pub identities_needed: Vec<Identity>,
    /// Identities that no local workload has any more.
    pub identities_released: Vec<Identity>,
}

impl Applied {
    /// Whether nothing changed, so that no snapshot is published.
    fn is_empty(&self) -> bool {
        self.workloads.is_empty() && self.services.is_empty() && self.policies.is_empty()
    }
}

/// The published snapshot and its writer.
#[derive(Debug)]
pub struct Store {
    snapshot: ArcSwap<Snapshot>,
    /// Held for a whole batch, so that two writers cannot lose each other's changes; readers never take it.
    writer: Mutex<Writer>,
}

/// What only the writer needs.
#[derive(Debug, Default)]
struct Writer {
    /// How many local workloads want a certificate of each identity.
    identities: std::collections::HashMap<Identity, usize>,
}

impl Store {
    /// An empty store that has not heard of the control plane.
    pub fn new(local: LocalNode) -> Self {
        Self {
            snapshot: ArcSwap::from_pointee(Snapshot {
                local: Arc::new(local),
                ..Snapshot::default()
            }),
            writer: Mutex::default(),
        }
    }

    /// The snapshot of now; read it once for each connection.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Applies the changes in order and publishes them at once.
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>) -> Applied {
        let mut writer = self.writer.lock();
        let mut batch = Batch::new(&self.snapshot.load(), &mut writer.identities);
        for change in changes {
            batch.apply(change);
        }
        let (next, applied) = batch.finish();
        if !applied.is_empty() {
            self.snapshot.store(Arc::new(next));
        }
        applied
    }

    /// Notes that the control plane has told everything once. Returns whether that is news.
    pub fn mark_synced(&self) -> bool {
        let _writer = self.writer.lock();
        let current = self.snapshot.load();
        if current.synced {
            return false;
        }
        self.snapshot.store(Arc::new(Snapshot {
            synced: true,
            ..Snapshot::clone(&current)
        }));
        true
    }
}

#[cfg(test)]
mod tests;
