//! The pods of the node as the rest of the process sees them.

use std::sync::Arc;

use leyline_types::{WorkloadName, WorkloadUid};
use tokio::sync::watch;

use crate::proxy::Pod;

/// Published by the manager at each change.
#[derive(Debug, Default)]
pub(crate) struct PodSet(watch::Sender<Arc<Pods>>);

/// One state of it.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    /// All that carry connections: of a pod that was released and enrolled again there is more than one for a while.
    pub(crate) served: Vec<Arc<Pod>>,
    pub(crate) waiting: Vec<Waiting>,
}

/// A pod that could not be enrolled yet.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) uid: WorkloadUid,
    pub(crate) name: WorkloadName,
    pub(crate) error: String,
}

impl PodSet {
    pub(crate) fn now(&self) -> Arc<Pods> {
        self.0.borrow().clone()
    }

    /// Tells of each state, and now and then of one that is the same.
    pub(crate) fn follow(&self) -> watch::Receiver<Arc<Pods>> {
        self.0.subscribe()
    }

    pub(super) fn publish(&self, pods: Pods) {
        self.0.send_replace(Arc::new(pods));
    }
}
