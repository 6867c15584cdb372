//! How many connections a pod's proxy can hold at once, each direction. What one peer can hold of it is `hbone`'s to say
//! ([`leyline_hbone::sources`]).

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use leyline_hbone::sources::SourceLimits;

use crate::config::ProxyConfig;

/// Connections of one direction.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    taken: AtomicUsize,
}

/// One connection; counted until dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<Places>);

impl Places {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            taken: AtomicUsize::new(0),
        })
    }

    /// A place, if there is one left. Taken when a connection is accepted and not when it is admitted, so that those that
    /// never get that far count too.
    pub(super) fn take(self: &Arc<Self>) -> Option<Place> {
        self.taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| {
                (taken < self.most).then(|| taken + 1)
            })
            .ok()?;
        Some(Place(self.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

impl ProxyConfig {
    pub(super) fn source_limits(&self) -> SourceLimits {
        SourceLimits {
            tunnels: self.max_tunnels_per_source,
            window: self.hbone.connection_window,
            windows: self.max_window_per_source,
            identity_windows: self.max_window_per_identity,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back() {
        let places = Places::new(2);
        let first = places.take().unwrap();
        let _second = places.take().unwrap();
        assert!(places.take().is_none());
        drop(first);
        assert!(places.take().is_some());
    }
}
