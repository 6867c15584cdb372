//! Priorities and localities by the health of their endpoints (Envoy's documents on priority levels, on panic and on
//! locality weighted load balancing): which part of all requests goes where.

use std::sync::Arc;

use rand::{Rng, RngExt};
use tokio::time::Instant;

use super::{Wanted, pool::Pool, table::Table};
use crate::config::{
    cluster::balance::{Balance, Balancing, SlowStart},
    endpoints::{Endpoint, EndpointAddress, EndpointSet, Locality},
};

/// How often another endpoint is drawn where one was tried before (Istio's `host_selection_retry_max_attempts`).
const REDRAWS: u32 = 5;
/// How often another endpoint is drawn where one is new and has not its whole share yet. With the smallest share of
/// 1 % for all endpoints, the last draw counts, which is as good: all of them are new.
const SLOW_REDRAWS: u32 = 32;

/// All endpoints of a cluster, ready to be drawn.
#[derive(Debug)]
pub(crate) struct Balancer {
    set: Arc<EndpointSet>,
    generation: u64,
    /// When an endpoint comes back, this is out of date.
    until: Option<Instant>,
    levels: Vec<Level>,
}

/// One priority.
#[derive(Debug)]
struct Level {
    /// Of 100 requests.
    share: u64,
    pools: Vec<Pool>,
    /// Sums of the localities' weights up to each pool.
    sums: Vec<u64>,
    table: Option<Arc<Table>>,
    /// What the table is of.
    all: Vec<Arc<Endpoint>>,
    /// Endpoints that are bad are used, too.
    panic: bool,
}

/// How much of a priority is healthy.
#[derive(Clone, Copy, Debug, Default)]
struct Health {
    healthy: u64,
    all: u64,
}

impl Balancer {
    pub(super) fn new(
        balancing: &Balancing,
        set: &Arc<EndpointSet>,
        generation: u64,
        now: Instant,
        before: Option<&Self>,
    ) -> Self {
        let health: Vec<Health> = set
            .priorities
            .iter()
            .map(|localities| Health::of(localities, now))
            .collect();
        let (shares, panics) = shares(&health, set.overprovisioning, balancing.panic_threshold);
        let before = before.filter(|before| Arc::ptr_eq(&before.set, set));
        let levels = set.priorities.iter().zip(shares).zip(panics).enumerate();
        let levels = levels.map(|(index, ((localities, share), panic))| {
            let before = before.and_then(|before| before.levels.get(index));
            Level::new(
                balancing,
                localities,
                set.overprovisioning,
                share,
                panic,
                now,
                before,
            )
        });
        Self {
            levels: levels.collect(),
            until: set.all().filter_map(|one| one.state.back_at(now)).min(),
            set: set.clone(),
            generation,
        }
    }

    pub(super) fn set(&self) -> &Arc<EndpointSet> {
        &self.set
    }

    pub(super) fn is_current(&self, set: &EndpointSet, generation: u64, now: Instant) -> bool {
        self.set.version >= set.version
            && self.generation == generation
            && self.until.is_none_or(|until| now < until)
    }

    pub(super) fn pick(
        &self,
        balancing: &Balancing,
        wanted: Wanted<'_>,
        rng: &mut impl Rng,
        now: Instant,
    ) -> Option<Arc<Endpoint>> {
        let point = wanted.hash.unwrap_or_else(|| rng.random()) % 100;
        let level = match self.beyond(wanted.beyond, now) {
            Some(level) => level,
            None => self.level(point)?,
        };
        let is_fresh = |endpoint: &Endpoint| !wanted.tried.contains(&endpoint.address);
        let mut last = None;
        for draw in 0..=REDRAWS {
            let Some(found) = level.draw(balancing, wanted, draw, rng, now) else {
                break;
            };
            if is_fresh(found) {
                return Some(found.clone());
            }
            last = Some(found);
        }
        // By bad luck, or because this level has no other: any that was not tried, of the best level that has one.
        let rest = self.levels.iter().map(|level| {
            let untried = level.usable(now).filter(|endpoint| is_fresh(endpoint));
            untried.collect::<Vec<_>>()
        });
        let untried = rest.into_iter().find(|untried| !untried.is_empty());
        let untried = untried.and_then(|all| all.get(rng.random_range(0..all.len())).copied());
        untried.or(last).cloned()
    }

    /// The best level that none of these endpoints is of.
    fn beyond(&self, tried: &[EndpointAddress], now: Instant) -> Option<&Level> {
        if tried.is_empty() {
            return None;
        }
        let is_tried = |one: &Arc<Endpoint>| tried.contains(&one.address);
        let mut levels = self.levels.iter();
        levels.find(|level| !level.all.iter().any(is_tried) && level.usable(now).next().is_some())
    }

    /// The level that a number below 100 falls on.
    fn level(&self, mut point: u64) -> Option<&Level> {
        for level in &self.levels {
            if point < level.share {
                return Some(level);
            }
            point -= level.share;
        }
        None
    }
}

impl Health {
    fn of(localities: &[Locality], now: Instant) -> Self {
        let mut health = Self::default();
        for endpoint in localities.iter().flat_map(|locality| &locality.endpoints) {
            health.all += 1;
            health.healthy += u64::from(endpoint.is_healthy(now));
        }
        health
    }

    /// Of 100; more endpoints than needed make up for sick ones.
    fn percent(self, overprovisioning: u32) -> u64 {
        let scaled = u64::from(overprovisioning) * self.healthy;
        scaled.checked_div(self.all).unwrap_or(0).min(100)
    }

    fn is_below(self, panic_threshold: f64) -> bool {
        // Numbers of endpoints are far below 2^52.
        self.all > 0 && (self.healthy as f64) * 100.0 < panic_threshold * self.all as f64
    }
}

/// Each priority takes what it can, the next the rest. Where all together cannot take everything, each takes more than
/// that, and those with too few healthy endpoints use all that they have.
fn shares(health: &[Health], overprovisioning: u32, panic_threshold: f64) -> (Vec<u64>, Vec<bool>) {
    let percents: Vec<u64> = health
        .iter()
        .map(|one| one.percent(overprovisioning))
        .collect();
    let total: u64 = percents.iter().sum::<u64>().min(100);
    let panics: Vec<bool> = health
        .iter()
        .map(|one| total < 100 && one.is_below(panic_threshold))
        .collect();
    let of_all = |part: u64, whole: u64| (part * 100).checked_div(whole).unwrap_or(0);
    let wanted: Vec<u64> = if !panics.is_empty() && panics.iter().all(|panic| *panic) {
        // Nothing is known to be good: by how many there are.
        let all: u64 = health.iter().map(|one| one.all).sum();
        health.iter().map(|one| of_all(one.all, all)).collect()
    } else {
        percents.iter().map(|one| of_all(*one, total)).collect()
    };
    let mut left = 100;
    let mut shares: Vec<u64> = wanted
        .iter()
        .map(|wanted| {
            let share = (*wanted).min(left);
            left -= share;
            share
        })
        .collect();
    // What rounding left over goes to the first that takes anything.
    if let Some(first) = shares.iter_mut().find(|share| **share > 0) {
        *first += left;
    }
    (shares, panics)
}

impl Level {
    fn new(
        balancing: &Balancing,
        localities: &[Locality],
        overprovisioning: u32,
        share: u64,
        panic: bool,
        now: Instant,
        before: Option<&Self>,
    ) -> Self {
        let usable = |locality: &Locality| -> Vec<Arc<Endpoint>> {
            let endpoints = locality.endpoints.iter();
            let usable = endpoints.filter(|endpoint| panic || endpoint.is_healthy(now));
            usable.cloned().collect()
        };
        let mut level = Self {
            share,
            pools: Vec::new(),
            sums: Vec::new(),
            table: before.and_then(|before| before.table.clone()),
            all: localities
                .iter()
                .flat_map(|one| &one.endpoints)
                .cloned()
                .collect(),
            panic,
        };
        if level.table.is_none() {
            let table = Table::new(balancing.policy, localities, balancing.by_locality);
            level.table = table.map(Arc::new);
        }
        if !balancing.by_locality {
            level.add(1, localities.iter().flat_map(usable).collect());
            return level;
        }
        for locality in localities {
            // A locality that has lost endpoints gets less, as soon as it has lost more than it has to spare.
            let health = Health::of(std::slice::from_ref(locality), now);
            let percent = if panic {
                100
            } else {
                health.percent(overprovisioning)
            };
            level.add(u64::from(locality.weight) * percent, usable(locality));
        }
        level
    }

    fn add(&mut self, weight: u64, endpoints: Vec<Arc<Endpoint>>) {
        if weight == 0 || endpoints.is_empty() {
            return;
        }
        let sum = self.sums.last().copied().unwrap_or(0) + weight;
        self.sums.push(sum);
        self.pools.push(Pool::new(endpoints));
    }

    /// One draw; with a hash, the same for the same number of the draw.
    fn draw(
        &self,
        balancing: &Balancing,
        wanted: Wanted<'_>,
        draw: u32,
        rng: &mut impl Rng,
        now: Instant,
    ) -> Option<&Arc<Endpoint>> {
        if let (Some(table), Some(hash)) = (&self.table, wanted.hash) {
            let is_usable = |index: usize| {
                let endpoint = self.all.get(index);
                endpoint.is_some_and(|endpoint| {
                    let fresh = draw == 0 || !wanted.tried.contains(&endpoint.address);
                    fresh && (self.panic || endpoint.is_healthy(now))
                })
            };
            if let Some(index) = table.find(hash, is_usable) {
                return self.all.get(index);
            }
        }
        let pool = self.pool(rng)?;
        let mut one = || match balancing.slow_start {
            None => pool.draw(balancing.policy, rng),
            Some(slow_start) => patiently(pool, balancing.policy, slow_start, rng, now),
        };
        let Balance::LeastRequest { choices } = balancing.policy else {
            return one();
        };
        let mut best = one()?;
        for _ in 1..choices {
            let other = one()?;
            if is_less_loaded(other, best) {
                best = other;
            }
        }
        Some(best)
    }

    fn pool(&self, rng: &mut impl Rng) -> Option<&Pool> {
        let total = self.sums.last().copied()?;
        if self.pools.len() == 1 {
            return self.pools.first();
        }
        let point = rng.random_range(0..total);
        self.pools
            .get(self.sums.partition_point(|sum| *sum <= point))
    }

    fn usable(&self, now: Instant) -> impl Iterator<Item = &Arc<Endpoint>> {
        let usable = move |endpoint: &&Arc<Endpoint>| self.panic || endpoint.is_healthy(now);
        self.all.iter().filter(usable)
    }
}

/// A new endpoint is passed over in proportion to what its share lacks.
fn patiently<'a>(
    pool: &'a Pool,
    policy: Balance,
    slow_start: SlowStart,
    rng: &mut impl Rng,
    now: Instant,
) -> Option<&'a Arc<Endpoint>> {
    let mut drawn = pool.draw(policy, rng)?;
    for _ in 0..SLOW_REDRAWS {
        let age = now.saturating_duration_since(drawn.state.since());
        if slow_start.accepts(age, rng.random_range(0.0..1.0)) {
            break;
        }
        drawn = pool.draw(policy, rng)?;
    }
    Some(drawn)
}

impl SlowStart {
    /// Whether an endpoint of this age takes a request, for a number from 0 to 1.
    fn accepts(self, age: tokio::time::Duration, point: f64) -> bool {
        if age >= self.window {
            return true;
        }
        let part = age.as_secs_f64() / self.window.as_secs_f64();
        point < part.powf(1.0 / self.aggression).max(self.min_weight)
    }
}

/// By requests for each part of weight, so that a strong endpoint is not taken for a busy one.
fn is_less_loaded(one: &Endpoint, other: &Endpoint) -> bool {
    let load = |endpoint: &Endpoint| endpoint.state.active() as u128;
    load(one) * u128::from(other.weight) < load(other) * u128::from(one.weight)
}

#[cfg(test)]
mod tests {
    use tokio::time::Duration;

    use super::*;

    #[test]
    fn priorities_take_over_when_those_before_are_sick() {
        // Healthy and all of each priority, panic threshold, shares, panics.
        type Case<'a> = (&'a [(u64, u64)], f64, &'a [u64], &'a [bool]);
        let cases: [Case<'_>; 11] = [
            (&[(10, 10), (10, 10)], 0.0, &[100, 0], &[false, false]),
            // 72 % with 1.4 is 100 %.
            (&[(72, 100), (10, 10)], 0.0, &[100, 0], &[false, false]),
            (&[(50, 100), (10, 10)], 0.0, &[70, 30], &[false, false]),
            (&[(0, 10), (10, 10)], 0.0, &[0, 100], &[false, false]),
            (&[(0, 10), (0, 10), (1, 1)], 0.0, &[0, 0, 100], &[false; 3]),
            // Together 70 %: each gets more than it has.
            (&[(25, 100), (25, 100)], 0.0, &[50, 50], &[false, false]),
            (&[(25, 100), (25, 100)], 50.0, &[50, 50], &[true, true]),
            (&[(0, 30), (0, 10)], 50.0, &[75, 25], &[true, true]),
            // Without panic, nothing is left to ask.
            (&[(0, 10)], 0.0, &[0], &[false]),
            (&[], 50.0, &[], &[]),
            (&[(0, 0), (3, 3)], 50.0, &[0, 100], &[false, false]),
        ];
        for (health, threshold, expected, panics) in cases {
            let health: Vec<Health> = health
                .iter()
                .map(|&(healthy, all)| Health { healthy, all })
                .collect();
            let (shares, in_panic) = shares(&health, 140, threshold);
            assert_eq!(
                (shares.as_slice(), in_panic.as_slice()),
                (expected, panics),
                "{health:?}"
            );
        }
    }

    #[test]
    fn new_endpoints_are_accepted_more_and_more() {
        let slow = |aggression| SlowStart {
            window: Duration::from_secs(100),
            aggression,
            min_weight: 0.1,
        };
        let secs = Duration::from_secs;
        for (aggression, age, share) in [
            (1.0, 0, 0.1),
            (1.0, 5, 0.1),
            (1.0, 50, 0.5),
            (2.0, 25, 0.5),
            (1.0, 100, 1.0),
            (1.0, 1000, 1.0),
        ] {
            let slow = slow(aggression);
            assert!(slow.accepts(secs(age), share - 0.001), "{age}");
            assert!(
                share == 1.0 || !slow.accepts(secs(age), share + 0.001),
                "{age}"
            );
        }
    }
}
