//! How much of a pod's proxy can be held at once: connections in all, tunnels of one peer, handshakes under way.
//!
//! Invariant: what one source address can hold is a small part of what all can, so that a peer that opens connections and
//! says nothing shuts out itself and nobody else. What is over a limit is refused, or waits for its own source only.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

/// One source address may use this part of the handshakes of a pod: it takes as many hostile addresses to use all.
const SOURCES_AT_LEAST: usize = 8;

/// Connections of one direction.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    taken: AtomicUsize,
}

/// One connection; counted until dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<Places>);

impl Places {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            taken: AtomicUsize::new(0),
        })
    }

    /// A place, if there is one left. Taken when a connection is accepted and not when it is admitted, so that those that
    /// never get that far count too.
    pub(super) fn take(self: &Arc<Self>) -> Option<Place> {
        self.taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| {
                (taken < self.most).then(|| taken + 1)
            })
            .ok()?;
        Some(Place(self.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Who has tunnels into one pod.
#[derive(Debug)]
pub(super) struct Sources {
    /// Handshakes of all sources.
    handshakes: Semaphore,
    /// Handshakes of one source.
    share: usize,
    /// Tunnels of one source, with handshakes under way.
    tunnels: usize,
    /// Only sources that have a tunnel now. Held for a look-up, never while waiting.
    by_address: Mutex<HashMap<IpAddr, Source>>,
}

#[derive(Debug)]
struct Source {
    tunnels: usize,
    handshakes: Arc<Semaphore>,
}

/// One tunnel of a source, from accept to end.
#[derive(Debug)]
pub(super) struct TunnelPlace {
    sources: Arc<Sources>,
    address: IpAddr,
    handshakes: Arc<Semaphore>,
}

/// What stands at a source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The gateway of our network, which carries the connections of all other networks.
    NetworkGateway,
    /// Anybody else.
    Other,
}

/// The right to work on a handshake.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    _of_source: Option<SemaphorePermit<'a>>,
    _of_all: Option<SemaphorePermit<'a>>,
}

impl Sources {
    pub(super) fn new(most_handshakes: usize, most_tunnels: usize) -> Arc<Self> {
        Arc::new(Self {
            handshakes: Semaphore::new(most_handshakes),
            share: (most_handshakes / SOURCES_AT_LEAST).max(1),
            tunnels: most_tunnels,
            by_address: Mutex::default(),
        })
    }

    /// A place for a tunnel from `address`, unless it has too many. From `Kind::NetworkGateway` each connection comes in a
    /// tunnel of its own, so that only the limit of connections holds.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr, kind: Kind) -> Option<TunnelPlace> {
        let mut by_address = self.by_address.lock();
        let source = by_address.entry(address).or_insert_with(|| Source {
            tunnels: 0,
            handshakes: Arc::new(Semaphore::new(self.share)),
        });
        if kind == Kind::Other && source.tunnels >= self.tunnels {
            return None;
        }
        source.tunnels += 1;
        Some(TunnelPlace {
            sources: self.clone(),
            address,
            handshakes: source.handshakes.clone(),
        })
    }
}

impl TunnelPlace {
    /// Waits for those of the same source first, then for all: who waits here holds nothing of what others need.
    pub(super) async fn turn(&self) -> Turn<'_> {
        // The semaphores are never closed.
        let of_source = self.handshakes.acquire().await.ok();
        let of_all = self.sources.handshakes.acquire().await.ok();
        Turn {
            _of_source: of_source,
            _of_all: of_all,
        }
    }
}

impl Drop for TunnelPlace {
    fn drop(&mut self) {
        let mut by_address = self.sources.by_address.lock();
        if let Some(source) = by_address.get_mut(&self.address) {
            source.tunnels -= 1;
            if source.tunnels == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const HOSTILE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const GOOD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn places_come_back() {
        let places = Places::new(2);
        let first = places.take().unwrap();
        let _second = places.take().unwrap();
        assert!(places.take().is_none());
        drop(first);
        assert!(places.take().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_holds_all_its_turns_stops_no_other() {
        let sources = Sources::new(16, 512);
        let enter = || sources.enter(HOSTILE, Kind::Other);
        let silent: Vec<TunnelPlace> = std::iter::from_fn(enter).collect();
        assert_eq!(silent.len(), 512);
        let turns = [silent[0].turn().await, silent[1].turn().await];
        let more = timeout(Duration::from_secs(60), silent[2].turn()).await;
        assert!(more.is_err(), "a third handshake of the same source");

        let good = sources.enter(GOOD, Kind::Other).unwrap();
        drop(good.turn().await);
        drop(turns);
        drop(silent[2].turn().await);
    }

    #[test]
    fn a_network_gateway_has_as_many_tunnels_as_connections() {
        let sources = Sources::new(16, 2);
        let all: Vec<TunnelPlace> = (0..10)
            .map(|_| sources.enter(GOOD, Kind::NetworkGateway).unwrap())
            .collect();
        assert!(sources.enter(GOOD, Kind::Other).is_none());
        drop(all);
        assert!(sources.enter(GOOD, Kind::Other).is_some());
    }

    #[test]
    fn sources_without_tunnels_are_forgotten() {
        let sources = Sources::new(1, 1);
        for last in 0..=255 {
            let source = IpAddr::from([10, 0, 1, last]);
            drop(sources.enter(source, Kind::Other).unwrap());
        }
        assert!(sources.by_address.lock().is_empty());
    }
}
