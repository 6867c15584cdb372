//! Which resources of a type are wanted, where not all are.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::Notify;

/// Tells which resources of a type are wanted; `None` is all of them.
pub type Names = dyn Fn(&'static str) -> Option<BTreeSet<String>> + Send + Sync;

/// What is wanted by name, as other resources tell: endpoints of the clusters that there are. Nothing by default.
#[derive(Clone, Default)]
pub struct Interest {
    names: Option<Arc<Names>>,
    on_demand: Option<OnDemand>,
}

/// A type whose names come one by one.
#[derive(Clone)]
struct OnDemand {
    type_url: &'static str,
    changed: Arc<Notify>,
}

impl Interest {
    /// As the function says.
    pub fn new(names: Arc<Names>) -> Self {
        Self {
            names: Some(names),
            on_demand: None,
        }
    }

    /// As the function says, of one type; it is asked again whenever `changed` is notified.
    pub fn on_demand(type_url: &'static str, names: Arc<Names>, changed: Arc<Notify>) -> Self {
        Self {
            names: Some(names),
            on_demand: Some(OnDemand { type_url, changed }),
        }
    }

    /// The type whose names come one by one.
    pub(super) fn type_on_demand(&self) -> Option<&'static str> {
        self.on_demand.as_ref().map(|on_demand| on_demand.type_url)
    }

    /// Cancel safe.
    pub(super) async fn changed(&self) {
        match &self.on_demand {
            Some(on_demand) => on_demand.changed.notified().await,
            None => std::future::pending().await,
        }
    }

    pub(super) fn names(&self, type_url: &'static str) -> Option<BTreeSet<String>> {
        self.names.as_ref()?(type_url)
    }
}

impl std::fmt::Debug for Interest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match (&self.names, &self.on_demand) {
            (_, Some(_)) => "on demand",
            (Some(_), None) => "by name",
            (None, None) => "all",
        };
        f.write_str(kind)
    }
}
