//! Looks up hosts that requests name, for clusters of the kind `dynamic_forward_proxy`: when a request asks for one, once for
//! all that ask at the same time, and kept for as long as the answer says. Where the name servers do not answer, what was known
//! is used for a while longer.

use std::{collections::HashMap, net::IpAddr, path::Path, sync::Arc};

use hickory_resolver::net::NetError;
use leyline_types::Str;
use metrics::counter;
use parking_lot::Mutex;
use tokio::{
    sync::Semaphore,
    time::{Duration, Instant, timeout},
};
use tracing::debug;

use crate::{config::cluster::dns::Family, dns::Servers};

/// Hosts that are kept. Clients choose them, so that there is a bound: Envoy's default.
const MAX_HOSTS: usize = 1024;
/// Look-ups at once; more wait within their deadline.
const AT_ONCE: usize = 64;
/// For one look-up: Envoy's default.
const DEADLINE: Duration = Duration::from_secs(5);
/// However short-lived an answer is, nobody is asked more often.
const MIN_LIFE: Duration = Duration::from_secs(1);
/// However long it lives, it is asked for again.
const MAX_LIFE: Duration = Duration::from_secs(300);
/// So long an answer is used beyond its end while name servers do not answer.
const STALE: Duration = Duration::from_secs(300);

/// Why a host has no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NameFailure {
    #[error("the name has no address")]
    Nothing,
    #[error("the name servers did not answer: {0}")]
    Servers(String),
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    #[error("too many hosts are in use")]
    TooMany,
}

/// All hosts that were asked for.
#[derive(Default)]
pub(crate) struct Names {
    /// Held for a look or a change.
    hosts: Mutex<HashMap<(Str, Family), Arc<Slot>>>,
    /// Held while a resolver is made, once for each change of the pod's name servers.
    servers: Mutex<Servers>,
}

/// What is known of a host. Locked by the one who looks it up, so that others use what he finds.
type Slot = tokio::sync::Mutex<Option<Known>>;

#[derive(Clone, Debug)]
struct Known {
    /// Empty: there is none.
    addresses: Arc<[IpAddr]>,
    until: Instant,
}

static LOOK_UPS: Semaphore = Semaphore::const_new(AT_ONCE);

impl Names {
    /// The addresses of a host, at least one.
    ///
    /// # Errors
    /// When there is none, or nobody says within 5 s.
    pub(crate) async fn addresses(
        &self,
        resolv_conf: &Path,
        host: &Str,
        family: Family,
    ) -> Result<Arc<[IpAddr]>, NameFailure> {
        let slot = self.slot(host, family)?;
        let work = async {
            let mut known = slot.lock().await;
            let now = Instant::now();
            if let Some(known) = known.as_ref().filter(|known| now < known.until) {
                return known.some();
            }
            let found = self.look_up(resolv_conf, host, family).await;
            match (found, known.as_ref()) {
                (Ok(found), _) => known.insert(found).some(),
                (Err(error), Some(before))
                    if !before.addresses.is_empty() && now < before.until + STALE =>
                {
                    debug!(%host, %error, "look-up failed; what was known is used");
                    before.some()
                }
                (Err(error), _) => Err(error),
            }
        };
        timeout(DEADLINE * 2, Box::pin(work))
            .await
            .unwrap_or_else(|_elapsed| Err(NameFailure::Deadline(DEADLINE * 2)))
    }

    fn slot(&self, host: &Str, family: Family) -> Result<Arc<Slot>, NameFailure> {
        let key = (host.clone(), family);
        let mut hosts = self.hosts.lock();
        if let Some(slot) = hosts.get(&key) {
            return Ok(slot.clone());
        }
        if hosts.len() >= MAX_HOSTS {
            let now = Instant::now();
            hosts.retain(|_, slot| {
                // One that is locked is being looked up.
                slot.try_lock().map_or(true, |known| {
                    known.as_ref().is_some_and(|known| now < known.until)
                })
            });
        }
        if hosts.len() >= MAX_HOSTS {
            counter!("leyline_waypoint_dns_total", "result" => "too_many").increment(1);
            return Err(NameFailure::TooMany);
        }
        let slot = Arc::new(Slot::default());
        hosts.insert(key, slot.clone());
        Ok(slot)
    }

    async fn look_up(
        &self,
        resolv_conf: &Path,
        host: &Str,
        family: Family,
    ) -> Result<Known, NameFailure> {
        let count =
            |result| counter!("leyline_waypoint_dns_total", "result" => result).increment(1);
        let resolver = self.servers.lock().resolver(resolv_conf, family);
        let resolver = resolver.map_err(NameFailure::Servers)?;
        // Whole, so that no domain of our own is tried behind it.
        let whole = format!("{host}.");
        let asked = async {
            // The semaphore is never closed.
            let _turn = LOOK_UPS.acquire().await.ok();
            resolver.lookup_ip(whole).await
        };
        let now = Instant::now();
        match timeout(DEADLINE, asked).await {
            Ok(Ok(found)) => {
                count("ok");
                let until = Instant::from_std(found.valid_until());
                Ok(Known {
                    addresses: found.iter().filter(|addr| !is_here(*addr)).collect(),
                    until: until.clamp(now + MIN_LIFE, now + MAX_LIFE),
                })
            }
            Ok(Err(error)) if is_nothing(&error) => {
                count("nothing");
                Ok(Known {
                    addresses: Arc::default(),
                    until: now + MIN_LIFE,
                })
            }
            Ok(Err(error)) => {
                count("failed");
                Err(NameFailure::Servers(error.to_string()))
            }
            Err(_elapsed) => {
                count("failed");
                Err(NameFailure::Deadline(DEADLINE))
            }
        }
    }
}

/// Whether a connection to an address would end at the waypoint itself, where its own pages trust whoever reaches them. What
/// others write into their zones must not lead there.
fn is_here(addr: IpAddr) -> bool {
    let addr = addr.to_canonical();
    addr.is_loopback() || addr.is_unspecified()
}

fn is_nothing(error: &NetError) -> bool {
    error.is_no_records_found() || error.is_nx_domain()
}

impl Known {
    fn some(&self) -> Result<Arc<[IpAddr]>, NameFailure> {
        if self.addresses.is_empty() {
            return Err(NameFailure::Nothing);
        }
        Ok(self.addresses.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(slot: &Slot, until: Instant) {
        *slot.try_lock().unwrap() = Some(Known {
            addresses: [IpAddr::from([10, 0, 0, 1])].into(),
            until,
        });
    }

    #[tokio::test]
    async fn hosts_are_kept_within_a_bound_and_those_that_are_over_make_room() {
        let names = Names::default();
        let host = |number: usize| Str::from(format!("h{number}.example"));
        let now = Instant::now();
        for number in 0..MAX_HOSTS {
            let slot = names.slot(&host(number), Family::V4).unwrap();
            known(&slot, now + MAX_LIFE);
        }
        let more = names.slot(&host(MAX_HOSTS), Family::V4);
        assert_eq!(more.unwrap_err(), NameFailure::TooMany);
        // Those that are there go on.
        let path = Path::new("/nonexistent");
        let found = names.addresses(path, &host(7), Family::V4).await.unwrap();
        assert_eq!(*found, [IpAddr::from([10, 0, 0, 1])]);
        known(&names.slot(&host(7), Family::V4).unwrap(), now);
        assert!(names.slot(&host(MAX_HOSTS), Family::V4).is_ok());
        assert_eq!(names.hosts.lock().len(), MAX_HOSTS);
    }

    #[test]
    fn a_name_does_not_lead_to_the_waypoint_itself() {
        for (addr, expected) in [
            ("127.0.0.1", true),
            ("127.1.2.3", true),
            ("0.0.0.0", true),
            ("::1", true),
            ("::", true),
            ("::ffff:127.0.0.1", true),
            ("192.0.2.1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_here(addr.parse().unwrap()), expected, "{addr}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_known_is_used_while_nobody_answers() {
        let (names, host) = (Names::default(), Str::from("a.example"));
        let path = Path::new("/nonexistent");
        known(&names.slot(&host, Family::V4).unwrap(), Instant::now());
        assert!(names.addresses(path, &host, Family::V4).await.is_ok());
        tokio::time::advance(STALE).await;
        let failed = names.addresses(path, &host, Family::V4).await;
        assert!(matches!(failed, Err(NameFailure::Servers(_))), "{failed:?}");
    }
}
