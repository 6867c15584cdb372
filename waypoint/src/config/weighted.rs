//! A choice by weight.

use super::error::{Compiled, Unsupported};

/// Alternatives with their weights; what has weight 0 is never chosen.
#[derive(Clone, Debug)]
pub(crate) struct Weighted<T> {
    items: Vec<(u64, T)>,
    total: u64,
}

impl<T> Weighted<T> {
    /// Always this one.
    pub(crate) fn one(item: T) -> Self {
        Self {
            items: vec![(1, item)],
            total: 1,
        }
    }

    pub(crate) fn new(items: impl IntoIterator<Item = (u32, T)>) -> Compiled<Self> {
        let items: Vec<(u64, T)> = items
            .into_iter()
            .map(|(weight, item)| (u64::from(weight), item))
            .collect();
        let total = items.iter().map(|(weight, _)| weight).sum();
        if total == 0 {
            return Err(Unsupported::new("all weights are 0"));
        }
        Ok(Self { items, total })
    }

    /// All, with their weights.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.items.iter().map(|(weight, item)| (*weight, item))
    }

    /// The alternative at `random` of all weights, where `random` is any number.
    pub(crate) fn pick(&self, random: u64) -> Option<&T> {
        let mut left = random % self.total;
        for (weight, item) in &self.items {
            if left < *weight {
                return Some(item);
            }
            left -= weight;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_picked_by_its_weight() {
        let weighted = Weighted::new([(90, "a"), (0, "never"), (10, "b")]).unwrap();
        let picked: Vec<&str> = (0..100).map(|n| *weighted.pick(n).unwrap()).collect();
        assert_eq!(picked.iter().filter(|item| **item == "a").count(), 90);
        assert_eq!(picked.iter().filter(|item| **item == "b").count(), 10);
        assert!(Weighted::new([(0, "a")]).is_err());
    }
}
