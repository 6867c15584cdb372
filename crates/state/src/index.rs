//! The small persistent indexes that a snapshot is made of: sets of a few items under one key, addresses of one
//! network, and blocks of addresses. Each can be cloned in constant time and leaves nothing behind when emptied.

use std::{
    cmp::{Ordering, Reverse},
    hash::Hash,
    net::IpAddr,
    sync::Arc,
};

use imbl::{HashMap, OrdMap};
use ipnet::IpNet;
use leyline_types::{ServiceKey, WorkloadUid};

use crate::workload::{Health, Protocol, Workload};

/// A set of nearly always one item, in order, so that it does not depend on the order of updates.
#[derive(Clone, Debug)]
pub(crate) struct SmallSet<T>(Arc<[T]>);

impl<T> SmallSet<T> {
    /// The items in order.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }
}

/// Adds an item under a key; one that compares equal is replaced.
pub(crate) fn add<K, T>(map: &mut HashMap<K, SmallSet<T>>, key: K, item: T)
where
    K: Hash + Eq + Clone,
    T: Ord + Clone,
{
    let mut items = map.get(&key).map_or_else(Vec::new, |set| set.0.to_vec());
    match items.binary_search(&item) {
        Ok(at) => items[at] = item,
        Err(at) => items.insert(at, item),
    }
    map.insert(key, SmallSet(items.into()));
}

/// Removes an item under a key, and the key with its last item.
pub(crate) fn take<K, T>(map: &mut HashMap<K, SmallSet<T>>, key: &K, item: &T)
where
    K: Hash + Eq + Clone,
    T: Ord + Clone,
{
    let Some(set) = map.get(key) else { return };
    let left: Vec<T> = set.iter().filter(|known| *known != item).cloned().collect();
    if left.is_empty() {
        map.remove(key);
    } else {
        map.insert(key.clone(), SmallSet(left.into()));
    }
}

/// Removes an item from the map under a key, and the key with its last item.
pub(crate) fn take_nested<K, I, V>(map: &mut HashMap<K, OrdMap<I, V>>, key: &K, item: &I)
where
    K: Hash + Eq + Clone,
    I: Ord + Clone,
    V: Clone,
{
    let Some(inner) = map.get_mut(key) else {
        return;
    };
    inner.remove(item);
    if inner.is_empty() {
        map.remove(key);
    }
}

/// A workload among others of the same address or name; the first is the one that counts.
#[derive(Clone, Debug)]
pub(crate) struct Candidate(pub(crate) Arc<Workload>);

impl Candidate {
    /// Pods before others, enrolled before not (never plaintext by accident), ready before not.
    fn order(&self) -> (Reverse<bool>, Reverse<bool>, Reverse<bool>, &WorkloadUid) {
        (
            Reverse(self.0.is_pod()),
            Reverse(self.0.protocol == Protocol::Hbone),
            Reverse(self.0.status == Health::Healthy),
            &self.0.uid,
        )
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

/// Everything that has an address in one network.
#[derive(Clone, Debug, Default)]
pub(crate) struct NetworkIndex {
    /// Workloads by address, without those of the host network.
    pub(crate) workloads: HashMap<IpAddr, SmallSet<Candidate>>,
    /// Services by virtual address.
    pub(crate) vips: HashMap<IpAddr, SmallSet<ServiceKey>>,
    /// Services by block of virtual addresses.
    pub(crate) blocks: BlockIndex,
}

impl NetworkIndex {
    /// Whether nothing is left in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.workloads.is_empty() && self.vips.is_empty() && self.blocks.is_empty()
    }
}

/// Services by block. A look-up hashes once for each prefix length in use, the longest first, whatever the number of blocks.
#[derive(Clone, Debug, Default)]
pub(crate) struct BlockIndex {
    blocks: HashMap<IpNet, SmallSet<ServiceKey>>,
    v4_lengths: OrdMap<Reverse<u8>, usize>,
    v6_lengths: OrdMap<Reverse<u8>, usize>,
}

impl BlockIndex {
    fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    fn lengths(&mut self, block: IpNet) -> &mut OrdMap<Reverse<u8>, usize> {
        match block {
            IpNet::V4(_) => &mut self.v4_lengths,
            IpNet::V6(_) => &mut self.v6_lengths,
        }
    }

    /// Adds a service under a block.
    pub(crate) fn add(&mut self, block: IpNet, service: ServiceKey) {
        if !self.blocks.contains_key(&block) {
            *self
                .lengths(block)
                .entry(Reverse(block.prefix_len()))
                .or_default() += 1;
        }
        add(&mut self.blocks, block, service);
    }

    /// Removes a service from a block.
    pub(crate) fn take(&mut self, block: IpNet, service: &ServiceKey) {
        if !self.blocks.contains_key(&block) {
            return;
        }
        take(&mut self.blocks, &block, service);
        if self.blocks.contains_key(&block) {
            return;
        }
        let length = Reverse(block.prefix_len());
        let lengths = self.lengths(block);
        match lengths.get(&length).copied() {
            Some(count) if count > 1 => lengths.insert(length, count - 1),
            Some(_) | None => lengths.remove(&length),
        };
    }

    /// The services of every block that holds an address, longest prefix first.
    pub(crate) fn containing(&self, ip: IpAddr) -> impl Iterator<Item = &SmallSet<ServiceKey>> {
        let lengths = if ip.is_ipv4() {
            &self.v4_lengths
        } else {
            &self.v6_lengths
        };
        lengths.keys().filter_map(move |length| {
            let block = IpNet::new(ip, length.0).ok()?.trunc();
            self.blocks.get(&block)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ServiceKey {
        format!("ns/{}", name.replace('/', "-")).parse().unwrap()
    }

    #[test]
    fn blocks_are_found_longest_first_and_leave_nothing_behind() {
        let mut index = BlockIndex::default();
        let blocks = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "2001:db8::/32"];
        for block in blocks {
            index.add(block.parse().unwrap(), key(block));
            index.add(block.parse().unwrap(), key("twin"));
        }
        let found: Vec<String> = index
            .containing("10.1.2.3".parse().unwrap())
            .map(|set| set.iter().next().unwrap().to_string())
            .collect();
        assert_eq!(
            found.len(),
            3,
            "one for each block that holds the address: {found:?}"
        );
        assert_eq!(index.containing("11.0.0.1".parse().unwrap()).count(), 0);
        assert_eq!(index.containing("2001:db8::1".parse().unwrap()).count(), 1);
        for block in blocks {
            index.take(block.parse().unwrap(), &key(block));
        }
        assert_eq!(index.containing("10.1.2.3".parse().unwrap()).count(), 3);
        for block in blocks {
            index.take(block.parse().unwrap(), &key("twin"));
        }
        assert!(index.is_empty());
        assert!(index.v4_lengths.is_empty() && index.v6_lengths.is_empty());
    }
}
