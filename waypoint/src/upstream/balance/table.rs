//! Tables by which the hash of a request finds its endpoint, and nearly always the same when endpoints come and go:
//! ring hash (Ketama) and Maglev (Eisenbud and others, NSDI 2016), both weighted and over XXH64 as in Envoy.

use twox_hash::XxHash64;

use crate::config::{cluster::balance::Balance, endpoints::Locality};

/// Bad endpoints that are passed by on the way to a good one. Then the request is as one without a hash.
const MAX_REFUSED: usize = 64;

/// Finds endpoints by their place among all endpoints of a priority.
#[derive(Debug)]
pub(super) enum Table {
    /// Points by hash.
    Ring(Vec<(u64, u32)>),
    Maglev(Vec<u32>),
}

/// An endpoint, as tables see it.
struct Entry {
    key: String,
    /// Of all, which are 1 together.
    weight: f64,
}

impl Table {
    /// The table of a policy that wants one.
    pub(super) fn new(policy: Balance, localities: &[Locality], by_locality: bool) -> Option<Self> {
        match policy {
            Balance::RingHash { min_size, max_size } => {
                let entries = entries(localities, by_locality);
                Some(Self::Ring(ring(&entries, min_size, max_size)))
            }
            Balance::Maglev { table_size } => Some(Self::Maglev(maglev(
                &entries(localities, by_locality),
                table_size,
            ))),
            Balance::LeastRequest { .. } | Balance::RoundRobin | Balance::Random => None,
        }
    }

    /// The endpoint of a hash; where it cannot be used, the next one that can.
    pub(super) fn find(&self, hash: u64, is_usable: impl Fn(usize) -> bool) -> Option<usize> {
        let (start, len) = match self {
            Self::Ring(points) => (points.partition_point(|(at, _)| *at < hash), points.len()),
            Self::Maglev(places) => {
                let place = hash.checked_rem(places.len() as u64)?;
                (usize::try_from(place).unwrap_or_default(), places.len())
            }
        };
        let at = |place: usize| match self {
            Self::Ring(points) => points.get(place % len).map(|(_, index)| *index),
            Self::Maglev(places) => places.get(place % len).copied(),
        };
        // An endpoint has many places and need be asked about once.
        let mut refused: Vec<u32> = Vec::new();
        for index in (start..start + len).filter_map(at) {
            if refused.contains(&index) {
                continue;
            }
            if is_usable(index as usize) {
                return Some(index as usize);
            }
            // With so many bad endpoints in a row any other is as good as the next.
            if refused.len() == MAX_REFUSED {
                return None;
            }
            refused.push(index);
        }
        None
    }
}

/// Weights as parts of 1; a locality without a weight gets nothing where localities count.
fn entries(localities: &[Locality], by_locality: bool) -> Vec<Entry> {
    let weight_of = |locality: &Locality| -> u64 {
        let weights = locality.endpoints.iter();
        weights.map(|endpoint| u64::from(endpoint.weight)).sum()
    };
    let filled = || localities.iter().filter(|one| !one.endpoints.is_empty());
    let shares: u64 = filled().map(|one| u64::from(one.weight)).sum();
    let weights: u64 = localities.iter().map(weight_of).sum();
    let mut entries = Vec::new();
    for locality in localities {
        let of_locality = weight_of(locality) as f64;
        for endpoint in &locality.endpoints {
            let own = f64::from(endpoint.weight);
            entries.push(Entry {
                key: endpoint.address.addr().to_string(),
                weight: if by_locality {
                    f64::from(locality.weight) / shares.max(1) as f64 * own / of_locality
                } else {
                    own / weights as f64
                },
            });
        }
    }
    entries
}

/// As many points for an endpoint as its weight asks for: at least one for the lightest, `min_size` in all.
fn ring(entries: &[Entry], min_size: u64, max_size: u64) -> Vec<(u64, u32)> {
    let weights = entries.iter().map(|entry| entry.weight);
    let lightest = weights.filter(|weight| *weight > 0.0).fold(1.0, f64::min);
    let scale = ((lightest * min_size as f64).ceil() / lightest).min(max_size as f64);
    let mut points = Vec::with_capacity(scale.ceil() as usize);
    let (mut made, mut wanted) = (0.0, 0.0);
    for (index, entry) in (0u32..).zip(entries) {
        wanted += scale * entry.weight;
        let mut number = 0u32;
        while made < wanted {
            let name = format!("{}_{number}", entry.key);
            points.push((XxHash64::oneshot(0, name.as_bytes()), index));
            number += 1;
            made += 1.0;
        }
    }
    points.sort_unstable();
    points
}

/// Every endpoint takes places in turn, each in an order of its own.
fn maglev(entries: &[Entry], size: u64) -> Vec<u32> {
    /// Where an endpoint is in its own order.
    struct Turn {
        index: u32,
        next: u64,
        skip: u64,
        weight: f64,
        /// Takes its turn when the rounds times its weight have come so far.
        due: f64,
    }
    let weights = entries.iter().map(|entry| entry.weight);
    let heaviest = weights.fold(0.0, f64::max);
    let taking = (0u32..)
        .zip(entries)
        .filter(|(_, entry)| entry.weight > 0.0);
    let mut turns: Vec<Turn> = taking
        .map(|(index, entry)| Turn {
            index,
            next: XxHash64::oneshot(0, entry.key.as_bytes()) % size,
            skip: XxHash64::oneshot(1, entry.key.as_bytes()) % (size - 1).max(1) + 1,
            weight: entry.weight,
            due: 0.0,
        })
        .collect();
    if turns.is_empty() {
        return Vec::new();
    }
    let mut places: Vec<Option<u32>> = vec![None; usize::try_from(size).unwrap_or_default()];
    let mut free = places.len();
    let mut round = 1.0;
    while free > 0 {
        for turn in &mut turns {
            if free == 0 {
                break;
            }
            if round * turn.weight < turn.due {
                continue;
            }
            turn.due += heaviest;
            // The size is a prime: the order comes to every place.
            while let Some(place) = places.get_mut(turn.next as usize) {
                turn.next = (turn.next + turn.skip) % size;
                if place.is_none() {
                    *place = Some(turn.index);
                    free -= 1;
                    break;
                }
            }
        }
        round += 1.0;
    }
    places.into_iter().flatten().collect()
}
