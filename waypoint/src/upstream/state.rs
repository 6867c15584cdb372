//! What a cluster counts while it is used. Kept over updates of its configuration, as the state of its endpoints is.

use std::sync::atomic::{AtomicU64, Ordering};

/// State of one cluster.
#[derive(Debug, Default)]
pub(crate) struct ClusterState {
    /// Grows when the health of an endpoint changes.
    generation: AtomicU64,
}

impl ClusterState {
    /// Which change of health was the last.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}
