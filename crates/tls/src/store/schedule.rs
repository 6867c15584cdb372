//! Which certificate is fetched next, and when. Pure: the caller brings the time and the randomness, does the fetching
//! and reports how it ended.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use leyline_types::Identity;
use tokio::time::Instant;

/// First retry after a failure, as Istio.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// Retries do not get rarer than this: a CA that comes back is noticed within minutes.
const BACKOFF_MAX: Duration = Duration::from_secs(150);
/// Retries of many identities spread by this part of the delay, so that they do not come as one wave.
const BACKOFF_JITTER: f64 = 0.2;
/// Renewals spread by this part of the remaining life around its half.
const RENEWAL_JITTER: f64 = 0.01;
/// A CA that issues certificates of a few seconds must not be asked in a loop.
const RENEWAL_MIN: Duration = Duration::from_secs(1);

/// Who is served first. The order of the variants is the order of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Priority {
    /// A connection waits.
    RealTime,
    /// A workload has arrived, or has no certificate and its retry is due.
    Warmup,
    /// A certificate that is still valid is renewed.
    Background,
}

/// One fetch that the caller has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fetch {
    pub(super) identity: Identity,
    /// Tells this keeping of the identity from an earlier one that was forgotten meanwhile.
    generation: u64,
}

/// The bound on identities is reached.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// The plan for all identities.
pub(super) struct Schedule {
    max_fetches: usize,
    max_identities: usize,
    entries: HashMap<Identity, Entry>,
    /// Due now: by priority, then in order of arrival.
    queue: BTreeSet<(Priority, u64, Identity)>,
    /// Due later.
    timers: BTreeSet<(Instant, u64, Identity)>,
    in_flight: usize,
    /// Source of generations and of the order of arrival.
    ticket: u64,
}

struct Entry {
    generation: u64,
    phase: Phase,
    /// When the certificate expires, if there is one.
    expires: Option<Instant>,
    /// Failures since the last success.
    failures: u32,
    /// The fetch that runs began before the last [`Schedule::renew_all`] or [`Schedule::renew`].
    outdated: bool,
}

#[derive(Clone, Copy)]
enum Phase {
    Queued(Priority, u64),
    Fetching,
    Waiting(Instant, u64),
}

impl Schedule {
    pub(super) fn new(max_fetches: usize, max_identities: usize) -> Self {
        Self {
            max_fetches,
            max_identities,
            entries: HashMap::new(),
            queue: BTreeSet::new(),
            timers: BTreeSet::new(),
            in_flight: 0,
            ticket: 0,
        }
    }

    /// Keeps an identity: a new one is queued, a queued one moves up if this is more urgent, and one that waits for its
    /// renewal is fetched at once if a connection waits (which happens only when it has expired).
    pub(super) fn want(&mut self, identity: &Identity, priority: Priority) -> Result<(), Full> {
        let ticket = self.next_ticket();
        let Some(entry) = self.entries.get_mut(identity) else {
            if self.entries.len() >= self.max_identities {
                return Err(Full);
            }
            let entry = Entry {
                generation: ticket,
                phase: Phase::Queued(priority, ticket),
                expires: None,
                failures: 0,
                outdated: false,
            };
            self.entries.insert(identity.clone(), entry);
            self.queue.insert((priority, ticket, identity.clone()));
            return Ok(());
        };
        match entry.phase {
            Phase::Queued(now, order) if priority < now => {
                self.queue.remove(&(now, order, identity.clone()));
            }
            Phase::Waiting(at, order) if priority == Priority::RealTime => {
                self.timers.remove(&(at, order, identity.clone()));
            }
            Phase::Queued(..) | Phase::Waiting(..) | Phase::Fetching => return Ok(()),
        }
        entry.phase = Phase::Queued(priority, ticket);
        self.queue.insert((priority, ticket, identity.clone()));
        Ok(())
    }

    /// Every certificate is renewed now, in the background; what is being fetched is fetched once more.
    pub(super) fn renew_all(&mut self, now: Instant) {
        let waiting = std::mem::take(&mut self.timers);
        // What is due is queued by the next look, by whether a certificate is left.
        for (_, order, identity) in waiting {
            if let Some(entry) = self.entries.get_mut(&identity) {
                entry.phase = Phase::Waiting(now, order);
                self.timers.insert((now, order, identity));
            }
        }
        for entry in self.entries.values_mut() {
            entry.outdated = matches!(entry.phase, Phase::Fetching);
        }
    }

    /// The same for one identity, if it is kept.
    pub(super) fn renew(&mut self, identity: &Identity, now: Instant) {
        let Some(entry) = self.entries.get_mut(identity) else {
            return;
        };
        match entry.phase {
            Phase::Waiting(at, order) => {
                self.timers.remove(&(at, order, identity.clone()));
                entry.phase = Phase::Waiting(now, order);
                self.timers.insert((now, order, identity.clone()));
            }
            Phase::Fetching => entry.outdated = true,
            Phase::Queued(..) => {}
        }
    }

    /// The next fetch to do now, if there is one and the bound on fetches allows it.
    pub(super) fn next(&mut self, now: Instant) -> Option<Fetch> {
        self.queue_due(now);
        if self.in_flight >= self.max_fetches {
            return None;
        }
        let (_, _, identity) = self.queue.pop_first()?;
        let entry = self.entries.get_mut(&identity)?;
        entry.phase = Phase::Fetching;
        self.in_flight += 1;
        Some(Fetch {
            identity,
            generation: entry.generation,
        })
    }

    /// When [`Self::next`] has something new to say, if nothing else happens.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _, _)| *at)
    }

    /// A fetch brought a certificate with this much life left. False if nobody wants it any more.
    pub(super) fn succeeded(
        &mut self,
        fetch: &Fetch,
        now: Instant,
        remaining: Duration,
        random: f64,
    ) -> bool {
        let Some(entry) = self.end(fetch) else {
            return false;
        };
        entry.failures = 0;
        entry.expires = Some(now + remaining);
        let at = if std::mem::take(&mut entry.outdated) {
            now
        } else {
            now + renewal_delay(remaining, random)
        };
        self.wait(&fetch.identity, at);
        true
    }

    /// A fetch failed; the answer is when it is tried again. None if nobody wants it any more.
    pub(super) fn failed(&mut self, fetch: &Fetch, now: Instant, random: f64) -> Option<Duration> {
        let entry = self.end(fetch)?;
        // What it failed by may be over.
        let delay = if std::mem::take(&mut entry.outdated) {
            Duration::ZERO
        } else {
            backoff(entry.failures, random)
        };
        entry.failures = entry.failures.saturating_add(1);
        self.wait(&fetch.identity, now + delay);
        Some(delay)
    }

    /// Drops an identity. A fetch that runs for it goes on and is ignored at its end.
    pub(super) fn forget(&mut self, identity: &Identity) {
        let Some(entry) = self.entries.remove(identity) else {
            return;
        };
        match entry.phase {
            Phase::Queued(priority, order) => {
                self.queue.remove(&(priority, order, identity.clone()));
            }
            Phase::Waiting(at, order) => {
                self.timers.remove(&(at, order, identity.clone()));
            }
            Phase::Fetching => {}
        }
    }

    /// Gives the fetch's place back, and finds its identity if it has not been forgotten.
    fn end(&mut self, fetch: &Fetch) -> Option<&mut Entry> {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.entries
            .get_mut(&fetch.identity)
            .filter(|entry| entry.generation == fetch.generation)
    }

    fn wait(&mut self, identity: &Identity, at: Instant) {
        let order = self.next_ticket();
        if let Some(entry) = self.entries.get_mut(identity) {
            entry.phase = Phase::Waiting(at, order);
            self.timers.insert((at, order, identity.clone()));
        }
    }

    /// Moves what has become due from the timers to the queue.
    fn queue_due(&mut self, now: Instant) {
        while let Some((at, _, _)) = self.timers.first()
            && *at <= now
        {
            let Some((_, order, identity)) = self.timers.pop_first() else {
                return;
            };
            if let Some(entry) = self.entries.get_mut(&identity) {
                let valid = entry.expires.is_some_and(|expires| now < expires);
                let priority = if valid {
                    Priority::Background
                } else {
                    Priority::Warmup
                };
                entry.phase = Phase::Queued(priority, order);
                self.queue.insert((priority, order, identity));
            }
        }
    }

    fn next_ticket(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket
    }
}

/// Half of the remaining life, a little earlier or later. `random` is in 0..1.
fn renewal_delay(remaining: Duration, random: f64) -> Duration {
    let part = 0.5 + RENEWAL_JITTER * (2.0 * random - 1.0);
    remaining.mul_f64(part).max(RENEWAL_MIN)
}

/// Doubles with each failure up to the maximum, a little earlier or later. `random` is in 0..1.
fn backoff(failures: u32, random: f64) -> Duration {
    let factor = 2_u32.saturating_pow(failures);
    let delay = BACKOFF_FIRST.saturating_mul(factor).min(BACKOFF_MAX);
    delay.mul_f64(1.0 + BACKOFF_JITTER * (2.0 * random - 1.0))
}

#[cfg(test)]
mod tests;
