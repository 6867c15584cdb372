//! Which tunnels there are for which key, and which dials are under way. Pure bookkeeping, under the pool's lock.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::watch;

use super::PoolKey;
use crate::{
    client::{Lease, Tunnel},
    error::HboneError,
};

/// Streams are spread evenly over this many tunnels of a key, so that several cores encrypt for it. The rest, made
/// when these were full, is filled only when they are again, so that it can become idle and close.
const SPREAD: usize = 4;

/// All keys.
pub(super) struct Slots {
    keys: HashMap<PoolKey, Slot>,
    most_keys: usize,
    most_tunnels: usize,
    /// Tunnels of a key that busy ones may be joined by before they are full.
    parallel: usize,
    next_attempt: u64,
}

#[derive(Default)]
struct Slot {
    tunnels: Vec<Arc<Tunnel>>,
    /// The dial for this key, if one is under way.
    attempt: Option<(AttemptId, watch::Receiver<Progress>)>,
}

/// Tells dials apart, so that one that was given up cannot end another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AttemptId(u64);

/// A dial under way.
pub(super) struct Attempt {
    pub(super) id: AttemptId,
    pub(super) key: PoolKey,
    /// For those who wait for this dial without having started it.
    pub(super) progress: watch::Sender<Progress>,
}

/// How far a dial is.
#[derive(Debug)]
pub(super) enum Progress {
    /// Under way.
    Dialling,
    /// The tunnel is ready for all.
    Ready,
    /// There is none.
    Failed(HboneError),
}

/// What a caller has to do to get a stream.
pub(super) enum Wanted {
    /// Nothing.
    Lease(Lease),
    /// Nothing, but the tunnels are busy: another one would help those to come.
    LeaseAndDial(Lease, Attempt),
    /// Wait for news of the dial that is under way.
    Wait(watch::Receiver<Progress>),
    /// Dial.
    Dial(Attempt),
}

impl Slots {
    pub(super) fn new(most_keys: usize, most_tunnels: usize, parallel: usize) -> Self {
        Self {
            keys: HashMap::new(),
            most_keys,
            most_tunnels,
            parallel,
            next_attempt: 0,
        }
    }

    /// A place in a tunnel, or what to do for one.
    pub(super) fn want(&mut self, key: &PoolKey) -> Result<Wanted, HboneError> {
        let Some(slot) = self.keys.get(key) else {
            self.make_room()?;
            return Ok(Wanted::Dial(self.attempt(key)));
        };
        if let Some(lease) = slot.lease() {
            let wider = slot.attempt.is_none()
                && slot.tunnels.len() < self.parallel
                && slot.tunnels.iter().all(|tunnel| tunnel.is_busy());
            return Ok(if wider {
                Wanted::LeaseAndDial(lease, self.attempt(key))
            } else {
                Wanted::Lease(lease)
            });
        }
        if let Some((_, progress)) = &slot.attempt {
            let mut progress = progress.clone();
            // Only news counts. None is missed: the bookkeeping is changed, under the lock, before it is told.
            progress.mark_unchanged();
            return Ok(Wanted::Wait(progress));
        }
        if slot.tunnels.len() >= self.most_tunnels {
            return Err(HboneError::Full);
        }
        Ok(Wanted::Dial(self.attempt(key)))
    }

    /// Registers a dial for `key`.
    fn attempt(&mut self, key: &PoolKey) -> Attempt {
        self.next_attempt += 1;
        let id = AttemptId(self.next_attempt);
        let (progress, seen) = watch::channel(Progress::Dialling);
        let slot = self.keys.entry(key.clone()).or_default();
        slot.attempt = Some((id, seen));
        Attempt {
            id,
            key: key.clone(),
            progress,
        }
    }

    /// Makes room for one more key, by closing an idle one if there is no other way.
    fn make_room(&mut self) -> Result<(), HboneError> {
        if self.keys.len() < self.most_keys {
            return Ok(());
        }
        let idle = self.keys.iter().find(|(_, slot)| slot.is_idle());
        let Some(key) = idle.map(|(key, _)| key.clone()) else {
            return Err(HboneError::TooManyKeys);
        };
        self.keys.remove(&key);
        Ok(())
    }

    /// Adds the tunnel that a dial made, unless the dial was given up meanwhile.
    pub(super) fn publish(&mut self, attempt: &Attempt, tunnel: &Arc<Tunnel>) -> bool {
        match self.keys.get_mut(&attempt.key) {
            Some(slot) if slot.is_trying(attempt.id) => {
                slot.tunnels.push(tunnel.clone());
                true
            }
            Some(_) | None => false,
        }
    }

    /// The dial is over.
    pub(super) fn finish(&mut self, attempt: &Attempt) {
        if let Some(slot) = self.keys.get_mut(&attempt.key)
            && slot.is_trying(attempt.id)
        {
            slot.attempt = None;
            self.forget_empty(&attempt.key);
        }
    }

    /// Takes a tunnel out: it takes no more streams.
    pub(super) fn remove(&mut self, key: &PoolKey, tunnel: &Arc<Tunnel>) {
        if let Some(slot) = self.keys.get_mut(key) {
            slot.tunnels.retain(|other| !Arc::ptr_eq(other, tunnel));
            self.forget_empty(key);
        }
    }

    /// Takes a tunnel out if it has no stream. Says whether it is out.
    pub(super) fn retire(&mut self, key: &PoolKey, tunnel: &Arc<Tunnel>) -> bool {
        // Places are given only under this lock, so none can be taken in between.
        let idle = tunnel.streams() == 0;
        if idle {
            self.remove(key, tunnel);
        }
        idle
    }

    /// Takes all tunnels of some keys out and gives up their dials.
    pub(super) fn take_where(
        &mut self,
        mut predicate: impl FnMut(&PoolKey) -> bool,
    ) -> Vec<Arc<Tunnel>> {
        self.keys
            .extract_if(|key, _| predicate(key))
            .flat_map(|(_, slot)| slot.tunnels)
            .collect()
    }

    /// Takes all tunnels of some keys out; their dials go on.
    pub(super) fn renew_where(
        &mut self,
        mut predicate: impl FnMut(&PoolKey) -> bool,
    ) -> Vec<Arc<Tunnel>> {
        let mut taken = Vec::new();
        self.keys.retain(|key, slot| {
            if predicate(key) {
                taken.append(&mut slot.tunnels);
            }
            !slot.tunnels.is_empty() || slot.attempt.is_some()
        });
        taken
    }

    /// Keys, tunnels and streams.
    pub(super) fn count(&self) -> (usize, usize, usize) {
        let tunnels = || self.keys.values().flat_map(|slot| &slot.tunnels);
        let streams = tunnels().map(|tunnel| tunnel.streams()).sum();
        (self.keys.len(), tunnels().count(), streams)
    }

    fn forget_empty(&mut self, key: &PoolKey) {
        if let Some(slot) = self.keys.get(key)
            && slot.tunnels.is_empty()
            && slot.attempt.is_none()
        {
            self.keys.remove(key);
        }
    }
}

impl Slot {
    /// A place in the emptiest of the first tunnels, else in the first that has one.
    fn lease(&self) -> Option<Lease> {
        let (spread, rest) = self.tunnels.split_at(self.tunnels.len().min(SPREAD));
        // The usual case, without a list.
        if let [only] = spread {
            return only.lease();
        }
        let mut by_load: Vec<&Arc<Tunnel>> = spread.iter().collect();
        by_load.sort_by_key(|tunnel| tunnel.streams());
        by_load.into_iter().chain(rest).find_map(Tunnel::lease)
    }

    fn is_trying(&self, id: AttemptId) -> bool {
        self.attempt.as_ref().is_some_and(|(own, _)| *own == id)
    }

    fn is_idle(&self) -> bool {
        self.attempt.is_none() && self.tunnels.iter().all(|tunnel| tunnel.streams() == 0)
    }
}
