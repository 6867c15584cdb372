//! Finds what chooses a workload by its labels without asking every selector: each is kept under one of its labels, so
//! that a pod costs its own labels and not all services and policies of the mesh.

use std::collections::{BTreeMap, HashMap};

use super::selects;

type Labels = BTreeMap<String, String>;

/// Selectors, each with what it is the selector of.
pub(super) struct Selectors<T> {
    by_label: HashMap<(String, String), Vec<(Labels, T)>>,
}

impl<T> Default for Selectors<T> {
    fn default() -> Self {
        Self {
            by_label: HashMap::new(),
        }
    }
}

impl<T> Selectors<T> {
    /// An empty selector chooses nothing.
    pub(super) fn insert(&mut self, selector: &Labels, value: T) {
        // Any label does: all of them must be there. The last in order is the likeliest to be a name.
        if let Some((key, label)) = selector.last_key_value() {
            let place = self.by_label.entry((key.clone(), label.clone()));
            place.or_default().push((selector.clone(), value));
        }
    }

    /// What chooses these labels.
    pub(super) fn matching<'a>(
        &'a self,
        labels: Option<&'a Labels>,
    ) -> impl Iterator<Item = &'a T> {
        labels
            .into_iter()
            .flatten()
            .filter_map(|(key, label)| self.by_label.get(&(key.clone(), label.clone())))
            .flatten()
            .filter(move |(selector, _)| selects(selector, labels))
            .map(|(_, value)| value)
    }
}
