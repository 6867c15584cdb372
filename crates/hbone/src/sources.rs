//! How much of a server one source address can hold: tunnels, what it may have sent in them and nobody has read, handshakes
//! under way. Proxies ask for each connection that they accept.
//!
//! Invariant: what one source can hold is a small part of what all can, so that a peer that opens connections and says nothing
//! shuts out itself and nobody else. What is over a limit is refused, or waits for its own source only. What is unread is
//! bounded by the peer's identity, too: who has many addresses has no more than a few of them can have.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use leyline_types::Identity;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

/// One source address may use this part of the handshakes of a pod: it takes as many hostile addresses to use all.
const SOURCES_AT_LEAST: usize = 8;

/// Each tunnel of a source may have this part of what its others have left of the budget: the first few get all that a
/// tunnel is good for, and those of a source with very many together never more than there is.
const PART_OF_LEFT: u64 = 8;
/// No tunnel has less: 2 Gbit/s at a round trip of 1 ms. A source with all tunnels that it may have gets 128 MiB so.
const LEAST_WINDOW: u32 = 256 << 10;

/// Who has tunnels into one pod.
#[derive(Debug)]
pub struct Sources {
    /// Handshakes of all sources.
    handshakes: Semaphore,
    /// Handshakes of one source.
    share: usize,
    limits: SourceLimits,
    /// Held for a look-up, never while waiting.
    held: Mutex<Held>,
}

/// Only sources that have a tunnel now.
#[derive(Debug, Default)]
struct Held {
    by_address: HashMap<IpAddr, Source>,
    /// Windows of the tunnels of each identity.
    by_identity: HashMap<Identity, u64>,
}

/// What one source may hold.
#[derive(Clone, Copy, Debug)]
pub struct SourceLimits {
    /// With handshakes under way.
    pub tunnels: usize,
    /// Flow-control window of one tunnel.
    pub window: u32,
    /// Flow-control windows of all its tunnels.
    pub windows: u64,
    /// The same of all addresses of one identity.
    pub identity_windows: u64,
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
pub struct TunnelPlace {
    sources: Arc<Sources>,
    address: IpAddr,
    kind: Kind,
    handshakes: Arc<Semaphore>,
}

/// What the peer of a tunnel may have sent in it and nobody has read: its flow-control window.
#[derive(Debug)]
pub struct Window<'a> {
    place: &'a TunnelPlace,
    identity: &'a Identity,
    size: u32,
}

/// What stands at a source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The gateway of our network, which carries the connections of all other networks.
    NetworkGateway,
    /// Anybody else.
    Other,
}

/// The right to work on a handshake.
#[derive(Debug)]
pub struct Turn<'a> {
    _of_source: Option<SemaphorePermit<'a>>,
    _of_all: Option<SemaphorePermit<'a>>,
}

impl Sources {
    /// `most_handshakes` is for all sources together.
    pub fn new(most_handshakes: usize, limits: SourceLimits) -> Arc<Self> {
        Arc::new(Self {
            handshakes: Semaphore::new(most_handshakes),
            share: (most_handshakes / SOURCES_AT_LEAST).max(1),
            limits,
            held: Mutex::default(),
        })
    }

    /// A place for a tunnel from `address`, unless it has too many. From `Kind::NetworkGateway` each connection comes in a
    /// tunnel of its own, so that only the limit of connections holds and each has its whole window.
    pub fn enter(self: &Arc<Self>, address: IpAddr, kind: Kind) -> Option<TunnelPlace> {
        let mut held = self.held.lock();
        let source = held.by_address.entry(address).or_insert_with(|| Source {
            tunnels: 0,
            windows: 0,
            handshakes: Arc::new(Semaphore::new(self.share)),
        });
        if kind == Kind::Other && source.tunnels >= self.limits.tunnels {
            return None;
        }
        source.tunnels += 1;
        Some(TunnelPlace {
            sources: self.clone(),
            address,
            kind,
            handshakes: source.handshakes.clone(),
        })
    }
}

impl SourceLimits {
    /// For one more tunnel of an address and an identity that have such windows already.
    fn next_window(self, of_address: u64, of_identity: u64) -> u32 {
        let address = self.windows.saturating_sub(of_address);
        let identity = self.identity_windows.saturating_sub(of_identity);
        let part = u32::try_from(address.min(identity) / PART_OF_LEFT).unwrap_or(u32::MAX);
        part.max(LEAST_WINDOW).min(self.window)
    }
}

impl TunnelPlace {
    /// The window of the tunnel, once it is known whose it is.
    pub fn window<'a>(&'a self, identity: &'a Identity) -> Window<'a> {
        let limits = self.sources.limits;
        let mut held = self.sources.held.lock();
        let Held {
            by_address,
            by_identity,
        } = &mut *held;
        let of_identity = by_identity.entry(identity.clone()).or_default();
        let of_address = by_address.get_mut(&self.address);
        let size = match (self.kind, &of_address) {
            (Kind::Other, Some(source)) => limits.next_window(source.windows, *of_identity),
            (Kind::NetworkGateway, _) | (Kind::Other, None) => limits.window,
        };
        *of_identity += u64::from(size);
        if let Some(source) = of_address {
            source.windows += u64::from(size);
        }
        Window {
            place: self,
            identity,
            size,
        }
    }

    /// Waits for those of the same source first, then for all: who waits here holds nothing of what others need.
    pub async fn turn(&self) -> Turn<'_> {
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
        let by_address = &mut self.sources.held.lock().by_address;
        if let Some(source) = by_address.get_mut(&self.address) {
            source.tunnels -= 1;
            if source.tunnels == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

impl Window<'_> {
    /// In bytes.
    pub fn size(&self) -> u32 {
        self.size
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        let mut held = self.place.sources.held.lock();
        let size = u64::from(self.size);
        // It is there as long as the tunnel has its place.
        if let Some(source) = held.by_address.get_mut(&self.place.address) {
            source.windows -= size;
        }
        if let Some(windows) = held.by_identity.get_mut(self.identity) {
            *windows -= size;
            if *windows == 0 {
                held.by_identity.remove(self.identity);
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

    const LIMITS: SourceLimits = SourceLimits {
        tunnels: 512,
        window: WHOLE,
        windows: BUDGET,
        identity_windows: 2 * BUDGET,
    };

    fn sources(handshakes: usize, tunnels: usize) -> Arc<Sources> {
        Sources::new(handshakes, SourceLimits { tunnels, ..LIMITS })
    }

    fn identity(name: &str) -> Identity {
        format!("spiffe://cluster.local/ns/shop/sa/{name}")
            .parse()
            .unwrap()
    }

    #[test]
    fn what_a_source_has_sent_is_bounded_over_all_its_tunnels() {
        let sources = sources(16, 512);
        let (bad, good) = (identity("bad"), identity("good"));
        let enter = || sources.enter(HOSTILE, Kind::Other);
        let first = enter().unwrap();
        let first_window = first.window(&bad);
        assert_eq!(first_window.size(), WHOLE);
        let many: Vec<TunnelPlace> = std::iter::from_fn(enter).collect();
        assert_eq!(many.len(), 511);
        let windows: Vec<_> = many.iter().map(|one| one.window(&bad)).collect();
        assert!(windows.iter().all(|one| one.size() >= LEAST_WINDOW));
        let all: u64 = windows.iter().map(|one| u64::from(one.size())).sum();
        assert!(all + u64::from(WHOLE) <= BUDGET + 512 * u64::from(LEAST_WINDOW));
        // Others do not feel it, and neither does the source once they are gone.
        let other = sources.enter(GOOD, Kind::Other).unwrap();
        assert_eq!(other.window(&good).size(), WHOLE);
        drop(windows);
        drop(many);
        let next = enter().unwrap();
        let left = (BUDGET - u64::from(WHOLE)) / 8;
        assert_eq!(u64::from(next.window(&bad).size()), left);
    }

    #[test]
    fn what_an_identity_has_sent_is_bounded_over_all_its_addresses() {
        const ADDRESSES: u8 = 100;
        let sources = sources(16, 512);
        let (bad, good) = (identity("bad"), identity("good"));
        let enter = |last| sources.enter(IpAddr::from([10, 0, 1, last]), Kind::Other);
        let places: Vec<TunnelPlace> = (0..ADDRESSES).filter_map(enter).collect();
        let windows: Vec<_> = places.iter().map(|one| one.window(&bad)).collect();
        let all: u64 = windows.iter().map(|one| u64::from(one.size())).sum();
        let floor = u64::from(ADDRESSES) * u64::from(LEAST_WINDOW);
        assert!(all <= 2 * BUDGET + floor, "{all}");
        // At one of its addresses, too, another has what it needs.
        let other = enter(0).unwrap();
        assert!(other.window(&good).size() > WHOLE / 2);
        drop(windows);
        assert!(sources.held.lock().by_identity.is_empty());
    }

    #[test]
    fn a_small_window_stays_as_it_is() {
        let limits = SourceLimits {
            window: 65_535,
            ..LIMITS
        };
        assert_eq!(limits.next_window(0, 0), 65_535);
        assert_eq!(limits.next_window(u64::MAX, 0), 65_535);
        assert_eq!(limits.next_window(0, u64::MAX), 65_535);
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
        let far = identity("far");
        let windows: Vec<_> = all.iter().map(|one| one.window(&far)).collect();
        assert!(windows.iter().all(|one| one.size() == WHOLE));
        assert!(sources.enter(GOOD, Kind::Other).is_none());
        drop(windows);
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
        assert!(sources.held.lock().by_address.is_empty());
    }
}
