//! What this node has seen of the endpoints that its connections go to: how many connections each has, which have failed
//! lately, and which one a client stays with. Lent to `state` for each decision.
//!
//! Invariant: nothing here outlives its use without bound. Loads go with their connections; failures and sessions have a
//! largest number and a time.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use leyline_state::{EndpointView, Service, Standing};
use leyline_telemetry::endpoints as counters;
use leyline_types::{ServiceKey, WorkloadUid};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use super::hostnames::Hostnames;

/// A failure keeps an endpoint from being used for so long; each further one for twice as long as the one before. Short
/// enough that an application that restarts is soon back, long enough that not every connection meets it.
const FIRST_EJECTION: Duration = Duration::from_secs(2);
/// An endpoint that goes on failing is tried about once a minute.
const LAST_EJECTION: Duration = Duration::from_secs(60);
/// A failure that lies back so long after its ejection says nothing about the next one.
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// Endpoints whose failures are remembered, about 1 MB; further ones are used as if they had not failed.
const MAX_FAILED: usize = 4096;
/// Clients and services whose endpoint is remembered, a few MB; further ones are balanced by load.
const MAX_SESSIONS: usize = 16_384;

/// The table of one node.
#[derive(Debug, Default)]
pub(crate) struct EndpointTable {
    loads: RwLock<HashMap<WorkloadUid, u64>>,
    failed: RwLock<HashMap<WorkloadUid, Failures>>,
    /// Size of `failed`, so that a healthy mesh pays for no look into it.
    failed_count: AtomicUsize,
    sessions: Mutex<HashMap<(IpAddr, ServiceKey), Session>>,
    /// Of endpoints without an address.
    pub(super) hostnames: Hostnames,
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    in_a_row: u32,
    avoided_until: Instant,
}

#[derive(Clone, Debug)]
struct Session {
    endpoint: WorkloadUid,
    until: Instant,
}

/// A connection that counts for its endpoint until it is dropped.
#[derive(Debug)]
pub(super) struct Load {
    table: Arc<EndpointTable>,
    endpoint: WorkloadUid,
}

/// The table as one connection sees it.
#[derive(Debug)]
pub(super) struct View<'a> {
    table: &'a EndpointTable,
    client: IpAddr,
    tried: &'a [WorkloadUid],
    now: Instant,
}

impl EndpointTable {
    /// For a decision on a connection of `client` that has failed at the endpoints `tried`.
    pub(super) fn view<'a>(&'a self, client: IpAddr, tried: &'a [WorkloadUid]) -> View<'a> {
        View {
            table: self,
            client,
            tried,
            now: Instant::now(),
        }
    }

    /// Counts a connection, from before it is made.
    pub(super) fn begin(self: &Arc<Self>, endpoint: &WorkloadUid) -> Load {
        *self.loads.write().entry(endpoint.clone()).or_default() += 1;
        Load {
            table: self.clone(),
            endpoint: endpoint.clone(),
        }
    }

    /// The endpoint did not take a connection.
    pub(super) fn failed(&self, endpoint: &WorkloadUid) {
        let now = Instant::now();
        let mut failed = self.failed.write();
        if failed.len() >= MAX_FAILED && !failed.contains_key(endpoint) {
            failed.retain(|_, known| known.avoided_until + FORGET_AFTER > now);
            if failed.len() >= MAX_FAILED {
                return;
            }
        }
        let known = failed.entry(endpoint.clone()).or_insert(Failures {
            in_a_row: 0,
            avoided_until: now,
        });
        // Connections that were on their way when it was ejected tell nothing new.
        if known.in_a_row > 0 && known.avoided_until > now {
            return;
        }
        if known.avoided_until + FORGET_AFTER <= now {
            known.in_a_row = 0;
        }
        known.avoided_until = now + ejection(known.in_a_row);
        known.in_a_row += 1;
        self.failed_count.store(failed.len(), Ordering::Relaxed);
        counters::ejected();
    }

    /// The endpoint took a connection, or the control plane told something new of it.
    pub(crate) fn forgive(&self, endpoint: &WorkloadUid) {
        if self.failed_count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut failed = self.failed.write();
        failed.remove(endpoint);
        self.failed_count.store(failed.len(), Ordering::Relaxed);
    }

    /// The client stays with the endpoint, if the service wants that.
    pub(super) fn keep(&self, client: IpAddr, service: &Service, endpoint: &WorkloadUid) {
        let Some(affinity) = service.session_affinity else {
            return;
        };
        let now = Instant::now();
        let key = (client, service.key());
        let mut sessions = self.sessions.lock();
        if sessions.len() >= MAX_SESSIONS && !sessions.contains_key(&key) {
            sessions.retain(|_, session| session.until > now);
            if sessions.len() >= MAX_SESSIONS {
                return counters::session_not_kept();
            }
        }
        let session = Session {
            endpoint: endpoint.clone(),
            until: now + Duration::from_secs(affinity.timeout_seconds.into()),
        };
        sessions.insert(key, session);
    }
}

fn ejection(failures_before: u32) -> Duration {
    FIRST_EJECTION
        .saturating_mul(1 << failures_before.min(8))
        .min(LAST_EJECTION)
}

impl EndpointView for View<'_> {
    fn load(&self, endpoint: &WorkloadUid) -> u64 {
        self.table.loads.read().get(endpoint).copied().unwrap_or(0)
    }

    fn standing(&self, endpoint: &WorkloadUid) -> Standing {
        if self.tried.contains(endpoint) {
            return Standing::Excluded;
        }
        if self.table.failed_count.load(Ordering::Relaxed) == 0 {
            return Standing::Good;
        }
        match self.table.failed.read().get(endpoint) {
            Some(failures) if failures.avoided_until > self.now => Standing::Avoided,
            Some(_) | None => Standing::Good,
        }
    }

    fn kept(&self, service: &Service) -> Option<WorkloadUid> {
        let sessions = self.table.sessions.lock();
        let session = sessions.get(&(self.client, service.key()))?;
        (session.until > self.now).then(|| session.endpoint.clone())
    }

    fn resolved(&self, hostname: &str, like: IpAddr) -> Option<IpAddr> {
        self.table.hostnames.pick(hostname, like, self.now)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let mut loads = self.table.loads.write();
        if let Some(load) = loads.get_mut(&self.endpoint) {
            *load -= 1;
            if *load == 0 {
                loads.remove(&self.endpoint);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn uid(name: &str) -> WorkloadUid {
        WorkloadUid::new(name)
    }

    fn client() -> IpAddr {
        [10, 0, 0, 1].into()
    }

    fn standing(table: &EndpointTable, endpoint: &str) -> Standing {
        table.view(client(), &[]).standing(&uid(endpoint))
    }

    #[test]
    fn loads_go_with_their_connections() {
        let table = Arc::new(EndpointTable::default());
        let load = |table: &EndpointTable| table.view(client(), &[]).load(&uid("a"));
        let (one, two) = (table.begin(&uid("a")), table.begin(&uid("a")));
        assert_eq!(load(&table), 2);
        drop(one);
        assert_eq!(load(&table), 1);
        drop(two);
        assert!(table.loads.read().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_endpoint_is_avoided_for_longer_each_time() {
        let table = EndpointTable::default();
        for seconds in [2, 4, 8, 16, 32, 60, 60] {
            table.failed(&uid("a"));
            table.failed(&uid("a"));
            assert_eq!(standing(&table, "a"), Standing::Avoided);
            assert_eq!(standing(&table, "b"), Standing::Good);
            advance(Duration::from_secs(seconds) - Duration::from_millis(1)).await;
            assert_eq!(standing(&table, "a"), Standing::Avoided, "{seconds} s");
            advance(Duration::from_millis(1)).await;
            assert_eq!(standing(&table, "a"), Standing::Good, "{seconds} s");
        }
        table.failed(&uid("a"));
        table.forgive(&uid("a"));
        assert_eq!(standing(&table, "a"), Standing::Good);
        let tried = [uid("b")];
        let view = table.view(client(), &tried);
        assert_eq!(view.standing(&uid("b")), Standing::Excluded);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_bounded() {
        let table = EndpointTable::default();
        for at in 0..MAX_FAILED {
            table.failed(&uid(&at.to_string()));
        }
        table.failed(&uid("one more"));
        assert_eq!(standing(&table, "one more"), Standing::Good);
        assert_eq!(table.failed.read().len(), MAX_FAILED);
        advance(LAST_EJECTION + FORGET_AFTER).await;
        table.failed(&uid("one more"));
        assert_eq!(standing(&table, "one more"), Standing::Avoided);
        assert_eq!(table.failed.read().len(), 1);
    }
}
