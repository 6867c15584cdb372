//! Services that this waypoint served until a moment ago. Node proxies learn of another waypoint, or of none, by streams of their
//! own, some before this one does and some after: who still comes is served as before for a while, by the configuration as
//! it was, with its policies. Connections are told to go meanwhile.

use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::Config;

/// Far longer than a control plane takes to tell all of its proxies, or a client to come back.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// Former configurations at once; each is a few changes apart from the next, and shares the rest with it.
const MAX_FORMER: usize = 16;

/// The newest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leaving(Vec<Former>);

#[derive(Clone, Debug)]
struct Former {
    config: Arc<Config>,
    until: Instant,
}

impl Leaving {
    /// Keeps a configuration for a while.
    fn add(&mut self, former: Config, now: Instant) {
        self.forget_ended(now);
        self.0.truncate(MAX_FORMER - 1);
        let config = Config {
            leaving: Self::default(),
            ..former
        };
        let former = Former {
            config: Arc::new(config),
            until: now + GRACE,
        };
        self.0.insert(0, former);
    }

    fn forget_ended(&mut self, now: Instant) {
        self.0.retain(|former| now < former.until);
    }

    fn is_over(&self, now: Instant) -> bool {
        self.0.iter().any(|former| former.until <= now)
    }
}

impl Config {
    /// Takes note of what was served before and is not any more. Whether anything was.
    pub(super) fn leave_behind(&mut self, before: &Self, now: Instant) -> bool {
        let mut chains = before.main.chains.keys();
        let leaves = chains.any(|name| !self.main.chains.contains_key(name));
        if leaves {
            self.leaving.add(before.clone(), now);
        }
        leaves
    }

    /// The same without what has had its time; `None` where there is nothing to forget.
    pub(super) fn without_ended(&self, now: Instant) -> Option<Self> {
        if !self.leaving.is_over(now) {
            return None;
        }
        let mut next = self.clone();
        next.leaving.forget_ended(now);
        Some(next)
    }

    /// The former configuration in which this holds, if it did until a moment ago.
    pub(super) fn former(&self, now: Instant, holds: impl Fn(&Self) -> bool) -> Option<Arc<Self>> {
        let mut former = self.leaving.0.iter();
        let found = former.find(|former| now < former.until && holds(&former.config))?;
        Some(found.config.clone())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::config::{store::ConfigStore, testing::with_chains};

    fn serves(store: &ConfigStore, chain: &str) -> bool {
        let serving = store.serving(|config| config.chain(chain).is_some());
        serving.chain(chain).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_leaves_is_served_for_a_while() {
        let store = ConfigStore::default();
        store.apply(&with_chains(&["a", "b"]));
        let mut departed = Box::pin(store.departed());
        departed.as_mut().enable();
        store.apply(&with_chains(&["a", "c"]));
        departed.await;
        assert!(store.load().chain("b").is_none());
        assert!(serves(&store, "a") && serves(&store, "b") && serves(&store, "c"));
        let of = |name: &str| store.serving(|config| config.chain(name).is_some());
        assert!(Arc::ptr_eq(&of("a"), &store.load_full()));
        assert!(of("b").chain("c").is_none(), "it is as it was");

        advance(GRACE / 2).await;
        store.apply(&with_chains(&["c"]));
        assert!(serves(&store, "a") && serves(&store, "b"));
        advance(GRACE / 2).await;
        assert!(serves(&store, "a") && !serves(&store, "b"));
        store.forget_ended();
        assert_eq!(store.load().leaving.0.len(), 1);
        advance(GRACE / 2).await;
        assert!(!serves(&store, "a") && serves(&store, "c"));
        store.forget_ended();
        assert!(store.load().leaving.0.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn former_configurations_do_not_pile_up() {
        let store = ConfigStore::default();
        for turn in 0..3 * MAX_FORMER {
            store.apply(&with_chains(&[&format!("c{turn}")]));
        }
        let config = store.load();
        assert_eq!(config.leaving.0.len(), MAX_FORMER);
        let all = config.leaving.0.iter();
        assert!(
            all.map(|former| &former.config.leaving)
                .all(|leaving| leaving.0.is_empty())
        );
    }
}
