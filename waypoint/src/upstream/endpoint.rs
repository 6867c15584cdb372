//! What changes while an endpoint is used: its load, its connections, its failures. Kept over updates of the
//! configuration for as long as the endpoint stays.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicUsize, Ordering},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::{outlier::Record, pool::Connections};

/// State of one endpoint of one cluster.
#[derive(Debug)]
pub(crate) struct EndpointState {
    /// When it came.
    since: Instant,
    /// Requests and TCP connections under way.
    active: AtomicUsize,
    pub(crate) record: Record,
    /// Connections for HTTP, used or not.
    pub(super) open: Arc<AtomicU32>,
    /// Those that are ready for requests. Held for a look or a change.
    connections: Mutex<Connections>,
    /// Held while an HTTP/2 connection is made, so that a burst of requests makes one and not one each.
    pub(super) dialling: tokio::sync::Mutex<()>,
}

/// Counts a request or connection for as long as it is there.
#[derive(Debug)]
pub(crate) struct Active(Arc<EndpointState>);

impl Default for EndpointState {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            active: AtomicUsize::default(),
            record: Record::default(),
            open: Arc::default(),
            connections: Mutex::default(),
            dialling: tokio::sync::Mutex::default(),
        }
    }
}

impl EndpointState {
    /// When the endpoint came.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// Requests and connections under way.
    pub(crate) fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// When it comes back, if it is ejected.
    pub(crate) fn back_at(&self, now: Instant) -> Option<Instant> {
        self.record.back_at(now)
    }

    /// Counts one more.
    pub(crate) fn enter(self: &Arc<Self>) -> Active {
        self.active.fetch_add(1, Ordering::Relaxed);
        Active(self.clone())
    }

    pub(super) fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock()
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}
