//! How much of a pod's proxy can be held at once: connections in all, tunnels of one peer with what it may have sent in
//! them and nobody has read, handshakes under way.
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

use crate::config::ProxyConfig;

/// One source address may use this part of the handshakes of a pod: it takes as many hostile addresses to use all.
const SOURCES_AT_LEAST: usize = 8;

/// Each tunnel of a source may have this part of what its others have left of the budget: the first few get all that a
/// tunnel is good for, and those of a source with very many together never more than there is.
const PART_OF_LEFT: u64 = 8;
/// No tunnel has less: 2 Gbit/s at a round trip of 1 ms. A source with all tunnels that it may have gets 128 MiB so.
const LEAST_WINDOW: u32 = 256 << 10;

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
    limits: SourceLimits,
    /// Only sources that have a tunnel now. Held for a look-up, never while waiting.
    by_address: Mutex<HashMap<IpAddr, Source>>,
}

/// What one source may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct SourceLimits {
    /// With handshakes under way.
    pub(super) tunnels: usize,
    /// Flow-control window of one tunnel.
    pub(super) window: u32,
    /// Flow-control windows of all its tunnels.
    pub(super) windows: u64,
}

#[derive(Debug)]
struct Source {
    tunnels: usize,
    /// Windows of its tunnels.
    windows: u64,
    handshakes: Arc<Semaphore>,
}

/// One tunnel of a source, from accept to end.
#[derive(Debug)]
pub(super) struct TunnelPlace {
    sources: Arc<Sources>,
    address: IpAddr,
    window: u32,
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
    pub(super) fn new(most_handshakes: usize, limits: SourceLimits) -> Arc<Self> {
        Arc::new(Self {
            handshakes: Semaphore::new(most_handshakes),
            share: (most_handshakes / SOURCES_AT_LEAST).max(1),
            limits,
            by_address: Mutex::default(),
        })
    }

    /// A place for a tunnel from `address`, unless it has too many. From `Kind::NetworkGateway` each connection comes in a
    /// tunnel of its own, so that only the limit of connections holds and each has its whole window.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr, kind: Kind) -> Option<TunnelPlace> {
        let mut by_address = self.by_address.lock();
        let source = by_address.entry(address).or_insert_with(|| Source {
            tunnels: 0,
            windows: 0,
            handshakes: Arc::new(Semaphore::new(self.share)),
        });
        if kind == Kind::Other && source.tunnels >= self.limits.tunnels {
            return None;
        }
        let window = match kind {
            Kind::NetworkGateway => self.limits.window,
            Kind::Other => self.limits.next_window(source.windows),
        };
        source.tunnels += 1;
        source.windows += u64::from(window);
        Some(TunnelPlace {
            sources: self.clone(),
            address,
            window,
            handshakes: source.handshakes.clone(),
        })
    }
}

impl ProxyConfig {
    pub(super) fn source_limits(&self) -> SourceLimits {
        SourceLimits {
            tunnels: self.max_tunnels_per_source,
            window: self.hbone.connection_window,
            windows: self.max_window_per_source,
        }
    }
}

impl SourceLimits {
    /// For one more tunnel of a source that has such windows already.
    fn next_window(self, windows: u64) -> u32 {
        let part = self.windows.saturating_sub(windows) / PART_OF_LEFT;
        let part = u32::try_from(part).unwrap_or(u32::MAX);
        part.max(LEAST_WINDOW).min(self.window)
    }
}

impl TunnelPlace {
    /// What the peer may have sent in this tunnel and nobody has read: its flow-control window.
    pub(super) fn window(&self) -> u32 {
        self.window
    }

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
            source.windows -= u64::from(self.window);
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

    const WHOLE: u32 = 16 << 20;
    const BUDGET: u64 = 128 << 20;

    fn sources(handshakes: usize, tunnels: usize) -> Arc<Sources> {
        let limits = SourceLimits {
            tunnels,
            window: WHOLE,
            windows: BUDGET,
        };
        Sources::new(handshakes, limits)
    }

    #[test]
    fn what_a_source_has_sent_is_bounded_over_all_its_tunnels() {
        let sources = sources(16, 512);
        let enter = || sources.enter(HOSTILE, Kind::Other);
        let first = enter().unwrap();
        assert_eq!(first.window(), WHOLE);
        let many: Vec<TunnelPlace> = std::iter::from_fn(enter).collect();
        assert_eq!(many.len(), 511);
        assert!(many.iter().all(|one| one.window() >= LEAST_WINDOW));
        let all: u64 = many.iter().map(|one| u64::from(one.window())).sum();
        assert!(all + u64::from(WHOLE) <= BUDGET + 512 * u64::from(LEAST_WINDOW));
        // Others do not feel it, and neither does the source once they are gone.
        let good = sources.enter(GOOD, Kind::Other).unwrap();
        assert_eq!(good.window(), WHOLE);
        drop(many);
        let next = enter().unwrap();
        assert_eq!(u64::from(next.window()), (BUDGET - u64::from(WHOLE)) / 8);
    }

    #[test]
    fn a_small_window_stays_as_it_is() {
        let limits = SourceLimits {
            tunnels: 1,
            window: 65_535,
            windows: BUDGET,
        };
        assert_eq!(limits.next_window(0), 65_535);
        assert_eq!(limits.next_window(u64::MAX), 65_535);
    }

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
        let sources = sources(16, 512);
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
        let sources = sources(16, 2);
        let all: Vec<TunnelPlace> = (0..10)
            .map(|_| sources.enter(GOOD, Kind::NetworkGateway).unwrap())
            .collect();
        assert!(all.iter().all(|one| one.window() == WHOLE));
        assert!(sources.enter(GOOD, Kind::Other).is_none());
        drop(all);
        assert!(sources.enter(GOOD, Kind::Other).is_some());
    }

    #[test]
    fn sources_without_tunnels_are_forgotten() {
        let sources = sources(1, 1);
        for last in 0..=255 {
            let source = IpAddr::from([10, 0, 1, last]);
            drop(sources.enter(source, Kind::Other).unwrap());
        }
        assert!(sources.by_address.lock().is_empty());
    }
}
