//! Endpoints that are drawn from by weight, at random or in turn.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use rand::{Rng, RngExt};

use crate::config::{cluster::balance::Balance, endpoints::Endpoint};

/// At least one endpoint.
#[derive(Debug)]
pub(super) struct Pool {
    endpoints: Vec<Arc<Endpoint>>,
    /// Sums of the weights up to each endpoint; empty where all weigh the same.
    sums: Vec<u64>,
    total: u64,
    /// From turn to turn, so that the turns of a heavy endpoint are spread over the round.
    stride: u64,
    turn: AtomicU64,
}

impl Pool {
    pub(super) fn new(endpoints: Vec<Arc<Endpoint>>) -> Self {
        let weight = |endpoint: &Arc<Endpoint>| u64::from(endpoint.weight);
        let divisor = endpoints.iter().map(weight).fold(0, gcd).max(1);
        let mut total = 0;
        let mut sums: Vec<u64> = endpoints
            .iter()
            .map(|endpoint| {
                total += weight(endpoint) / divisor;
                total
            })
            .collect();
        let equal = total == endpoints.len() as u64;
        if equal {
            sums.clear();
        }
        Self {
            stride: if equal { 1 } else { stride(total) },
            // Not the first of the list for everybody: many waypoints get the same list at the same time.
            turn: AtomicU64::new(rand::rng().random()),
            endpoints,
            sums,
            total,
        }
    }

    pub(super) fn draw(&self, policy: Balance, rng: &mut impl Rng) -> Option<&Arc<Endpoint>> {
        let point = match policy {
            Balance::RoundRobin => self.turn(),
            // By hash: a request that has none.
            Balance::LeastRequest { .. }
            | Balance::Random
            | Balance::RingHash { .. }
            | Balance::Maglev { .. } => rng.random_range(0..self.total),
        };
        let index = if self.sums.is_empty() {
            usize::try_from(point).unwrap_or_default()
        } else {
            self.sums.partition_point(|sum| *sum <= point)
        };
        self.endpoints.get(index)
    }

    /// Every number below the total once in a round, because the stride has no factor in common with it.
    fn turn(&self) -> u64 {
        let turn = u128::from(self.turn.fetch_add(1, Ordering::Relaxed));
        let total = u128::from(self.total);
        let point = (turn % total) * u128::from(self.stride) % total;
        u64::try_from(point).unwrap_or_default()
    }
}

/// The golden section of the total, or the next smaller number without a common factor.
fn stride(total: u64) -> u64 {
    let section = u64::try_from(u128::from(total) * 618 / 1000).unwrap_or(1);
    let mut candidates = (1..=section).rev();
    candidates
        .find(|candidate| gcd(*candidate, total) == 1)
        .unwrap_or(1)
}

fn gcd(one: u64, other: u64) -> u64 {
    let (mut one, mut other) = (one, other);
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
}
