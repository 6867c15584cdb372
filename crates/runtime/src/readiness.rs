//! What must have happened before the process says that it is ready.
//!
//! Parts of the process register by name at start and report by their [`ReadinessTask`]. A part that goes away without
//! having reported keeps the process unready: nobody can say any more that it is. Pods never register here, so that
//! one broken pod cannot make a node unready.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::time::Instant;

/// The set of registered parts; clones share it.
#[derive(Clone, Debug)]
pub struct Readiness {
    inner: Arc<Inner>,
}

/// The handle by which one part reports.
#[derive(Debug)]
pub struct ReadinessTask {
    inner: Arc<Inner>,
    name: &'static str,
}

#[derive(Debug)]
struct Inner {
    started: Instant,
    /// Held only to read or change it.
    tasks: Mutex<BTreeMap<&'static str, State>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Pending,
    Ready,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// Ready as long as nothing is registered.
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                started: Instant::now(),
                tasks: Mutex::default(),
            }),
        }
    }

    /// Adds a part that is pending until its task says otherwise. Names are unique: registering one again makes it
    /// pending again.
    pub fn register(&self, name: &'static str) -> ReadinessTask {
        self.inner.tasks.lock().insert(name, State::Pending);
        ReadinessTask {
            inner: self.inner.clone(),
            name,
        }
    }

    /// Names of the parts that are not ready, in order; empty means ready.
    pub fn pending(&self) -> Vec<&'static str> {
        pending(&self.inner.tasks.lock())
    }
}

impl ReadinessTask {
    /// This part cannot do its work any more, or not yet again.
    pub fn pending(&self) {
        self.inner.tasks.lock().insert(self.name, State::Pending);
    }

    /// This part can do its work.
    pub fn ready(&self) {
        let left = {
            let mut tasks = self.inner.tasks.lock();
            if tasks.insert(self.name, State::Ready) == Some(State::Ready) {
                return;
            }
            pending(&tasks).len()
        };
        let took = self.inner.started.elapsed();
        if left == 0 {
            tracing::info!(
                "Task '{}' complete ({took:?}), marking server ready",
                self.name
            );
        } else {
            tracing::info!(
                "Task '{}' complete ({took:?}), still awaiting {left} tasks",
                self.name
            );
        }
    }
}

fn pending(tasks: &BTreeMap<&'static str, State>) -> Vec<&'static str> {
    let pending = tasks.iter().filter(|(_, state)| **state == State::Pending);
    pending.map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lists_what_is_pending_until_all_are_ready() {
        let readiness = Readiness::new();
        assert!(readiness.pending().is_empty());
        let state = readiness.register("state manager");
        let proxy = readiness.register("proxy");
        assert_eq!(readiness.pending(), ["proxy", "state manager"]);
        state.ready();
        assert_eq!(readiness.pending(), ["proxy"]);
        proxy.ready();
        assert!(readiness.pending().is_empty());
        proxy.pending();
        assert_eq!(readiness.pending(), ["proxy"]);
    }

    #[tokio::test]
    async fn a_part_that_goes_away_unready_stays_pending() {
        let readiness = Readiness::new();
        drop(readiness.register("proxy"));
        assert_eq!(readiness.pending(), ["proxy"]);
    }
}
