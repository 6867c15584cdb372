//! Addresses of endpoints that have only a host name (OUT-10): asked for when a connection needs them, of the process's own
//! resolver, and remembered as long as they say.
//!
//! Invariant: names come from the control plane, answers from a resolver; both are bounded, and so is the wait for them.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    io,
    net::IpAddr,
    time::Duration,
};

use hickory_proto::rr::{Name, RecordType};
use leyline_net::{ConnectOptions, NetNs, Source, listen::Families};
use leyline_types::Str;
use parking_lot::RwLock;
use rand::seq::IteratorRandom;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::dns::lookup::{self, Lookup};
use crate::config::ProxyConfig;

/// As Istio's cache; further names are asked for each time.
const MAX_NAMES: usize = 4096;
/// More addresses of one name are of no use for a connection.
const MAX_ADDRESSES: usize = 64;
/// Answers that say less would be asked for by every connection.
const MIN_TTL: Duration = Duration::from_secs(1);
/// Clusters move; a forgotten hour is the longest that a wrong address is used.
const MAX_TTL: Duration = Duration::from_secs(3600);
/// How long a name that nobody knows is not asked for again.
const NEGATIVE_TTL: Duration = Duration::from_secs(5);
/// How long an address that did not take a connection is used only where there is no other.
const AVOIDED: Duration = Duration::from_secs(30);
/// Names that are asked for at once; each name by one connection only, the others wait for it.
const FLIGHTS: usize = 64;

/// What is known of host names.
#[derive(Debug)]
pub(crate) struct Hostnames {
    known: RwLock<HashMap<Str, Known>>,
    /// By a hash of the name. Held across the lookup, which is what it is for.
    flights: [tokio::sync::Mutex<()>; FLIGHTS],
    hasher: RandomState,
}

#[derive(Clone, Debug)]
struct Known {
    /// None for a name that nobody knows.
    addresses: Box<[IpAddr]>,
    /// Those that did not take a connection, and until when they are avoided. At most one for each address.
    failed: Vec<(IpAddr, Instant)>,
    until: Instant,
}

impl Known {
    /// Addresses that have not failed lately.
    fn good(&self, now: Instant) -> impl Iterator<Item = IpAddr> + Clone {
        let avoided = move |ip: &IpAddr| {
            let failed = self.failed.iter();
            failed
                .clone()
                .any(|(failed, until)| failed == ip && *until > now)
        };
        self.addresses
            .iter()
            .copied()
            .filter(move |ip| !avoided(ip))
    }
}

impl Default for Hostnames {
    fn default() -> Self {
        Self {
            known: RwLock::default(),
            flights: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            hasher: RandomState::new(),
        }
    }
}

impl Hostnames {
    /// One of the addresses of a name that is known now: one that has not failed and is of the family of `like`, as far as
    /// there is one.
    pub(super) fn pick(&self, name: &str, like: IpAddr, now: Instant) -> Option<IpAddr> {
        let known = self.known.read();
        let known = known.get(name).filter(|known| known.until > now)?;
        let all = known.addresses.iter().copied();
        let good = known.good(now);
        let of_family = |ip: &IpAddr| ip.is_ipv4() == like.is_ipv4();
        let rng = &mut rand::rng();
        good.clone()
            .filter(of_family)
            .choose(rng)
            .or_else(|| good.choose(rng))
            .or_else(|| all.clone().filter(of_family).choose(rng))
            .or_else(|| all.choose(rng))
    }

    /// All addresses of a name that are known now.
    pub(super) fn all(&self, name: &Str) -> Vec<IpAddr> {
        let known = self.known.read();
        let known = known.get(name).filter(|known| known.until > Instant::now());
        known.map_or_else(Vec::new, |known| known.addresses.to_vec())
    }

    /// An address of a name did not take a connection: it is avoided for a while. Whether there is another one that has
    /// not failed.
    pub(super) fn failed(&self, name: &str, address: IpAddr, now: Instant) -> bool {
        let mut known = self.known.write();
        let Some(known) = known.get_mut(name) else {
            return false;
        };
        if known.addresses.contains(&address) {
            known.failed.retain(|(failed, _)| *failed != address);
            known.failed.push((address, now + AVOIDED));
        }
        known.good(now).next().is_some()
    }

    /// Asks for the names that are not known now, all within the deadline of a connect.
    pub(super) async fn resolve(&self, names: &[Str], config: &ProxyConfig) {
        let all = async {
            for name in names {
                self.resolve_one(name, config).await;
            }
        };
        if timeout(config.connect_deadline, all).await.is_err() {
            debug!(?names, "host names were not resolved in time");
        }
    }

    async fn resolve_one(&self, name: &Str, config: &ProxyConfig) {
        let hash = self.hasher.hash_one(name.as_str());
        let flight = usize::try_from(hash % FLIGHTS as u64).unwrap_or(0);
        let _turn = self.flights[flight].lock().await;
        let is_known = |known: &Known| known.until > Instant::now();
        if self.known.read().get(name).is_some_and(is_known) {
            return;
        }
        let (addresses, ttl) = match ask(name.as_str(), config).await {
            Ok(found) => found,
            Err(error) => {
                debug!(%name, %error, "host name cannot be resolved");
                (Vec::new(), NEGATIVE_TTL)
            }
        };
        self.remember(name, addresses, ttl);
    }

    fn remember(&self, name: &Str, addresses: Vec<IpAddr>, ttl: Duration) {
        let now = Instant::now();
        let mut known = self.known.write();
        if known.len() >= MAX_NAMES && !known.contains_key(name) {
            known.retain(|_, known| known.until > now);
            if known.len() >= MAX_NAMES {
                return;
            }
        }
        let found = Known {
            addresses: addresses.into(),
            failed: Vec::new(),
            until: now + ttl,
        };
        known.insert(name.clone(), found);
    }
}

/// Both families at once.
async fn ask(name: &str, config: &ProxyConfig) -> io::Result<(Vec<IpAddr>, Duration)> {
    let name = Name::from_ascii(format!("{}.", name.trim_end_matches('.')));
    let name = name.map_err(io::Error::other)?;
    let netns = NetNs::current()?;
    let servers = lookup::own_servers().await?;
    let lookup = Lookup {
        netns: &netns,
        mark: config.bypass_mark,
        servers: &servers,
        options: ConnectOptions {
            mark: Some(config.bypass_mark),
            source: Source::Routed,
            deadline: config.connect_deadline,
            keepalive: None,
            announce: None,
        },
    };
    let v4 = ask_of_type(&lookup, &name, RecordType::A);
    let v6 = async {
        match config.families {
            Families::Both => ask_of_type(&lookup, &name, RecordType::AAAA).await,
            Families::V4 => Ok(Vec::new()),
        }
    };
    let (v4, v6) = tokio::join!(v4, v6);
    // One family is enough.
    let records = match (v4, v6) {
        (Ok(mut v4), Ok(v6)) => {
            v4.extend(v6);
            v4
        }
        (Ok(one), Err(_)) | (Err(_), Ok(one)) if !one.is_empty() => one,
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    let ttl = records.iter().map(|(_, ttl)| *ttl).min();
    let ttl = ttl.map_or(NEGATIVE_TTL, |ttl| Duration::from_secs(ttl.into()));
    let addresses = records.into_iter().map(|(ip, _)| ip).take(MAX_ADDRESSES);
    Ok((addresses.collect(), ttl.clamp(MIN_TTL, MAX_TTL)))
}

async fn ask_of_type(
    lookup: &Lookup<'_>,
    name: &Name,
    kind: RecordType,
) -> io::Result<Vec<(IpAddr, u32)>> {
    let response = lookup.ask(&lookup::address_query(name, kind)?).await?;
    lookup::addresses_of(&response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_known_ends_and_prefers_the_family() {
        let names = Hostnames::default();
        let name = Str::from("db.example");
        let (v4, v6): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "fd00::1".parse().unwrap());
        names.remember(&name, vec![v4, v6], Duration::from_secs(10));
        let now = Instant::now();
        for like in [v4, v6] {
            assert_eq!(names.pick("db.example", like, now), Some(like));
        }
        assert_eq!(names.pick("other.example", v4, now), None);
        // One that has failed is taken last.
        assert!(names.failed("db.example", v4, now));
        assert_eq!(names.pick("db.example", v4, now), Some(v6));
        assert!(!names.failed("db.example", v6, now));
        assert_eq!(names.pick("db.example", v4, now), Some(v4));
        assert!(!names.failed("other.example", v4, now));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(names.pick("db.example", v4, Instant::now()), None);
    }

    #[tokio::test]
    async fn names_are_bounded() {
        let names = Hostnames::default();
        for n in 0..=MAX_NAMES {
            names.remember(&Str::from(format!("{n}.example")), Vec::new(), NEGATIVE_TTL);
        }
        assert_eq!(names.known.read().len(), MAX_NAMES);
    }
}
