//! What a cluster counts while it is used. Kept over updates of its configuration, as the state of its endpoints is.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use metrics::counter;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{direct::Direct, outlier::rates};

/// State of one cluster.
#[derive(Debug, Default)]
pub(crate) struct ClusterState {
    /// Grows when the health of an endpoint changes.
    generation: AtomicU64,
    /// Held while it is decided whether one more endpoint is ejected.
    pub(crate) ejecting: Mutex<()>,
    /// When the rates of its endpoints are looked at.
    pub(crate) outliers: rates::Clock,
    in_use: [AtomicU32; 4],
    /// Where clients name the endpoints.
    pub(crate) direct: Direct,
    /// Told when a connection is free, or there is room for a new one.
    pub(crate) freed: Notify,
}

/// What there is a limit for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    Connections,
    /// Requests that wait for a connection.
    Pending,
    Requests,
    Retries,
}

/// One of a resource, for as long as it is there.
#[derive(Debug)]
pub(crate) struct Place {
    state: Arc<ClusterState>,
    resource: Resource,
}

impl ClusterState {
    /// Which change of health was the last.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn health_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// How many are in use.
    pub(crate) fn in_use(&self, resource: Resource) -> u32 {
        self.counter(resource).load(Ordering::Relaxed)
    }

    /// One more, if there may be.
    pub(crate) fn enter(self: &Arc<Self>, resource: Resource, most: u32) -> Option<Place> {
        let counter = self.counter(resource);
        let added = counter.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |count| {
            (count < most).then_some(count + 1)
        });
        added.ok().map(|_before| Place {
            state: self.clone(),
            resource,
        })
    }

    /// One more, whatever the limit.
    pub(crate) fn enter_anyway(self: &Arc<Self>, resource: Resource) -> Place {
        self.counter(resource).fetch_add(1, Ordering::AcqRel);
        Place {
            state: self.clone(),
            resource,
        }
    }

    fn counter(&self, resource: Resource) -> &AtomicU32 {
        let [connections, pending, requests, retries] = &self.in_use;
        match resource {
            Resource::Connections => connections,
            Resource::Pending => pending,
            Resource::Requests => requests,
            Resource::Retries => retries,
        }
    }
}

impl Resource {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Pending => "pending",
            Self::Requests => "requests",
            Self::Retries => "retries",
        }
    }

    /// Counts one that there was no place for.
    pub(crate) fn overflow(self) {
        counter!("leyline_waypoint_overflow_total", "resource" => self.as_str()).increment(1);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.state
            .counter(self.resource)
            .fetch_sub(1, Ordering::AcqRel);
        if self.resource == Resource::Connections {
            self.state.freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_end_with_their_guards() {
        let state = Arc::new(ClusterState::default());
        let enter = || state.enter(Resource::Requests, 2);
        let (one, two) = (enter(), enter());
        assert!(one.is_some() && two.is_some() && enter().is_none());
        let more = state.enter_anyway(Resource::Requests);
        drop((one, more));
        assert_eq!(state.in_use(Resource::Requests), 1);
        assert!(enter().is_some());
        assert_eq!(state.in_use(Resource::Retries), 0);
    }
}
