//! Certificates of the workloads on this node: fetched when wanted, renewed at half life, kept while they are valid.
//! Proxies call [`CertificateStore::get`] for each tunnel; one [`CertificateWorker`] does the fetching.
//!
//! Invariant: an identity is fetched by at most one request at a time, and a valid certificate is never given up before
//! a new one is there.

mod departed;
mod dump;
mod error;
mod schedule;
mod slot;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt, mem,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{StreamExt, stream::FuturesUnordered};
use leyline_types::Identity;
use metrics::counter;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout},
};
use tracing::{debug, warn};

use crate::{
    ca::{CaError, CertificateAuthority},
    certificate::WorkloadCertificate,
    csr,
    delegated_identity::{DelegatedIdentity, DelegatedPod},
    revocation::Revocation,
    standing::Anchors,
    workload_api::WorkloadApi,
};
use departed::Departed;
use schedule::{Fetch, Priority, Schedule};
use slot::{Lease, Slot, State};

pub use dump::{CertificateDump, CertificateEntry};
pub use error::{FetchError, IdentityError};

/// How certificates are fetched and kept.
#[derive(Clone, Debug)]
pub struct CertificateConfig {
    /// Lifetime to ask for. 24 h, as Istio.
    pub ttl: Duration,
    /// How long one call of the CA may take. 10 s: a CA that is overloaded is better asked again later.
    pub fetch_deadline: Duration,
    /// How long [`CertificateStore::get`] waits for a first certificate. 10 s: as long as one fetch.
    pub wait_deadline: Duration,
    /// How many fetches run at once. 8, as Istio: a node full of pods must not storm the CA.
    pub max_fetches: usize,
    /// How many identities are kept; more are refused. 4096: several times what fits on a node.
    pub max_identities: usize,
    /// Which peers are refused. None, unless lists are configured.
    pub revocation: Arc<Revocation>,
    /// How long tunnels go on whose peer is only trusted by a root that was withdrawn. 5 s: requests that are under way
    /// end in it.
    pub withdrawal_grace: Duration,
}

impl Default for CertificateConfig {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(24 * 60 * 60),
            fetch_deadline: Duration::from_secs(10),
            wait_deadline: Duration::from_secs(10),
            max_fetches: 8,
            max_identities: 4096,
            revocation: Revocation::off(),
            withdrawal_grace: Duration::from_secs(5),
        }
    }
}

/// Where certificates come from.
#[derive(Clone)]
pub enum CertificateSource {
    /// A CA that signs requests for keys of ours.
    Ca(Arc<dyn CertificateAuthority>),
    /// A SPIFFE agent that gives out certificates with their keys.
    WorkloadApi(Arc<WorkloadApi>),
    /// A SPIRE agent that gives out those of the pods that it is told of.
    DelegatedIdentity(Arc<DelegatedIdentity>),
}

/// The certificates of this node's workloads.
pub struct CertificateStore {
    shared: Arc<Shared>,
}

/// Fetches and renews for its store. There is exactly one.
pub struct CertificateWorker {
    shared: Arc<Shared>,
}

struct Shared {
    cfg: CertificateConfig,
    source: CertificateSource,
    table: Mutex<Table>,
    /// Tells the worker that the table has changed.
    changed: Notify,
    /// Tells who asks for [`CertificateStore::reissued`].
    reissued: Notify,
}

/// All that changes, under one lock with short sections: tunnels look up, the worker writes.
struct Table {
    schedule: Schedule,
    slots: HashMap<Identity, Slot>,
    departed: Departed,
    /// Identities that have another issuer or fewer roots than before; no more than there are slots.
    reissued: HashSet<Identity>,
    life: Life,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Running,
    /// The worker is gone: nothing will be fetched any more.
    WorkerGone,
    /// The store is gone: nobody can ask any more.
    StoreGone,
}

/// What [`CertificateStore::get`] finds.
enum Found {
    Ready(Arc<WorkloadCertificate>),
    Wait(watch::Receiver<State>),
}

impl CertificateStore {
    /// A store and the worker that has to run for it.
    pub fn new(
        source: CertificateSource,
        cfg: CertificateConfig,
    ) -> (Arc<Self>, CertificateWorker) {
        let table = Table {
            schedule: Schedule::new(cfg.max_fetches, cfg.max_identities),
            slots: HashMap::new(),
            departed: Departed::default(),
            reissued: HashSet::new(),
            life: Life::Running,
        };
        let shared = Arc::new(Shared {
            cfg,
            source,
            table: Mutex::new(table),
            changed: Notify::new(),
            reissued: Notify::new(),
        });
        let worker = CertificateWorker {
            shared: Arc::clone(&shared),
        };
        (Arc::new(Self { shared }), worker)
    }

    /// The certificate of an identity. Fetched first if it is not there, ahead of all other fetches; any number of
    /// callers share one fetch. Cancel safe.
    ///
    /// # Errors
    /// At once when the last fetch failed and no valid certificate is left; at the deadline when the first fetch is slow.
    pub async fn get(
        &self,
        identity: &Identity,
    ) -> Result<Arc<WorkloadCertificate>, IdentityError> {
        let mut state = match self.shared.look_up(identity)? {
            Found::Ready(cert) => return Ok(cert),
            Found::Wait(state) => state,
        };
        let settled = state.wait_for(|state| !matches!(state, State::Initializing));
        let deadline = self.shared.cfg.wait_deadline;
        let settled = match timeout(deadline, settled).await {
            Ok(result) => result.map(|state| State::clone(&state)),
            Err(_elapsed) => {
                let identity = identity.clone();
                return Err(IdentityError::Deadline { identity, deadline });
            }
        };
        match settled {
            Ok(State::Available(lease)) => Ok(lease.cert),
            Ok(State::Unavailable(source)) => Err(IdentityError::Unavailable {
                identity: identity.clone(),
                source,
            }),
            // The slot is gone, with its sender.
            Ok(State::Initializing) | Err(_) => Err(self.shared.gone(identity)),
        }
    }

    /// Has the certificate fetched before somebody needs it. Beyond the bound on identities it does nothing but count.
    pub fn prefetch(&self, identity: Identity) {
        let wanted = self
            .shared
            .want(&mut self.shared.table.lock(), &identity, Priority::Warmup);
        if let Err(error) = wanted {
            warn!(%error, "certificate not prefetched");
        }
    }

    /// Has all certificates fetched anew, because what the CA answers has changed: its roots, or who signs. What is there
    /// serves until then.
    pub fn renew_all(&self) {
        self.shared.table.lock().schedule.renew_all(Instant::now());
        self.shared.changed.notify_one();
    }

    /// Has the certificates of some identities fetched anew, likewise. Identities that are not kept stay so.
    pub(crate) fn renew(&self, identities: &[Identity]) {
        let mut table = self.shared.table.lock();
        for identity in identities {
            table.schedule.renew(identity, Instant::now());
        }
        self.shared.changed.notify_one();
    }

    /// The same of those of them that have none that is valid.
    pub(crate) fn renew_missing(&self, of: impl Fn(&Identity) -> bool) {
        let (now, clock) = (Instant::now(), SystemTime::now());
        let mut table = self.shared.table.lock();
        let Table {
            slots, schedule, ..
        } = &mut *table;
        for (identity, slot) in slots.iter().filter(|(identity, _)| of(identity)) {
            if matches!(slot.current(now, clock), State::Unavailable(_)) {
                schedule.renew(identity, now);
            }
        }
        self.shared.changed.notify_one();
    }

    /// Tells which pods there are, for a source that goes by pods: certificates are to be had for these, and no longer for
    /// others. No other source needs to know.
    pub fn carry(&self, pods: &BTreeSet<DelegatedPod>) {
        match &self.shared.source {
            CertificateSource::DelegatedIdentity(agent) => agent.carry(pods, self),
            CertificateSource::Ca(_) | CertificateSource::WorkloadApi(_) => {}
        }
    }

    /// Waits for identities whose certificate has another issuer, or fewer roots, than before, and says which: tunnels
    /// that they have opened before are better replaced. For one caller. Cancel safe.
    pub async fn reissued(&self) -> HashSet<Identity> {
        loop {
            let reissued = mem::take(&mut self.shared.table.lock().reissued);
            if !reissued.is_empty() {
                return reissued;
            }
            self.shared.reissued.notified().await;
        }
    }

    /// Drops the certificate of an identity that is no longer on this node. Callers that wait for it get an error; its
    /// tunnels go on, as long as their peers are trusted.
    pub fn forget(&self, identity: &Identity) {
        let mut table = self.shared.table.lock();
        table.reissued.remove(identity);
        table.schedule.forget(identity);
        if let Some(slot) = table.slots.remove(identity) {
            table.departed.add(identity.clone(), &slot.anchors);
        }
        self.shared.changed.notify_one();
    }

    /// All identities with the state of their certificates, ordered by identity (`certificates[]` of `/config_dump`).
    pub fn dump(&self) -> Vec<CertificateDump> {
        let (now, clock) = (Instant::now(), SystemTime::now());
        // Copied out first: describing certificates parses them, which is not for the lock.
        let mut states: Vec<(Identity, State)> = {
            let table = self.shared.table.lock();
            let current =
                |(identity, slot): (&Identity, &Slot)| (identity.clone(), slot.current(now, clock));
            table.slots.iter().map(current).collect()
        };
        states.sort_by(|(one, _), (other, _)| one.cmp(other));
        states
            .iter()
            .map(|(identity, state)| dump::describe(identity, state))
            .collect()
    }
}

impl Drop for CertificateStore {
    fn drop(&mut self) {
        self.shared.table.lock().life = Life::StoreGone;
        self.shared.changed.notify_one();
    }
}

impl fmt::Debug for CertificateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateStore")
            .field("identities", &self.shared.table.lock().slots.len())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn look_up(&self, identity: &Identity) -> Result<Found, IdentityError> {
        let mut table = self.table.lock();
        if let Some(slot) = table.slots.get(identity) {
            match slot.current(Instant::now(), SystemTime::now()) {
                State::Available(lease) => return Ok(Found::Ready(lease.cert)),
                State::Unavailable(source) => {
                    let identity = identity.clone();
                    return Err(IdentityError::Unavailable { identity, source });
                }
                // First fetch, or the certificate expired while the machine slept: it is wanted now, and waited for.
                State::Initializing => {
                    slot.state.send_replace(State::Initializing);
                }
            }
        }
        self.want(&mut table, identity, Priority::RealTime)
            .map(Found::Wait)
    }

    /// Keeps the identity from now on, and has it fetched with at least this priority if it has no certificate.
    fn want(
        &self,
        table: &mut Table,
        identity: &Identity,
        priority: Priority,
    ) -> Result<watch::Receiver<State>, IdentityError> {
        let identity = identity.clone();
        if table.life != Life::Running {
            return Err(IdentityError::Stopped { identity });
        }
        if table.schedule.want(&identity, priority).is_err() {
            counter!("leyline_certificates_refused_total").increment(1);
            let limit = self.cfg.max_identities;
            return Err(IdentityError::Full { identity, limit });
        }
        self.changed.notify_one();
        let Table {
            slots, departed, ..
        } = table;
        let slot = slots.entry(identity).or_insert_with_key(|identity| {
            let anchors = departed.come_back(identity);
            Slot::new(anchors.unwrap_or_else(|| Anchors::new(self.cfg.withdrawal_grace)))
        });
        Ok(slot.state.subscribe())
    }

    /// Why a slot that somebody waited for is not there any more.
    fn gone(&self, identity: &Identity) -> IdentityError {
        let identity = identity.clone();
        let life = self.table.lock().life;
        match life {
            Life::Running | Life::StoreGone => IdentityError::Forgotten { identity },
            Life::WorkerGone => IdentityError::Stopped { identity },
        }
    }

    /// Asks once, and checks what is said.
    async fn fetch(&self, identity: &Identity) -> Result<WorkloadCertificate, FetchError> {
        let revocation = &self.cfg.revocation;
        let ca = match &self.source {
            CertificateSource::Ca(ca) => ca,
            CertificateSource::WorkloadApi(api) => {
                return Ok(api.fetch(identity, revocation).await?);
            }
            CertificateSource::DelegatedIdentity(agent) => {
                return Ok(agent.fetch(identity, revocation).await?);
            }
        };
        let request = csr::generate(identity)?;
        let deadline = self.cfg.fetch_deadline;
        let answer = ca.sign(request.pem, identity, self.cfg.ttl);
        let chain = timeout(deadline, answer)
            .await
            .map_err(|_elapsed| CaError::Deadline(deadline))??;
        Ok(WorkloadCertificate::from_pem(
            identity,
            &chain,
            request.key,
            revocation,
        )?)
    }

    /// Publishes how a fetch ended and plans the next one.
    fn finish(&self, fetch: &Fetch, result: Result<WorkloadCertificate, FetchError>) {
        let (now, random) = (Instant::now(), rand::random::<f64>());
        let outcome = if result.is_ok() { "ok" } else { "failed" };
        counter!("leyline_certificate_fetches_total", "result" => outcome).increment(1);
        let mut table = self.table.lock();
        let table = &mut *table;
        match result {
            Ok(mut cert) => {
                if let Some(slot) = table.slots.get(&fetch.identity) {
                    cert.follow(Arc::clone(&slot.anchors));
                }
                let lease = Lease::new(Arc::new(cert), now, SystemTime::now());
                let planned = table
                    .schedule
                    .succeeded(fetch, now, lease.expires - now, random);
                let (true, Some(slot)) = (planned, table.slots.get_mut(&fetch.identity)) else {
                    return;
                };
                debug!(identity = %fetch.identity, serial = lease.cert.serial(), "certificate fetched");
                // Before anybody can have it, and so under the lock: it is short, a word to each tunnel.
                if slot.anchors.publish(&lease.cert).replaces() {
                    table.reissued.insert(fetch.identity.clone());
                    self.reissued.notify_one();
                }
                table.departed.publish(&lease.cert);
                slot.failure = None;
                slot.state.send_replace(State::Available(lease));
            }
            Err(error) => {
                let retry = table.schedule.failed(fetch, now, random);
                let (Some(retry), Some(slot)) = (retry, table.slots.get_mut(&fetch.identity))
                else {
                    return;
                };
                warn!(identity = %fetch.identity, %error, retry_in = ?retry, "certificate not fetched");
                let failure = Arc::new(error);
                slot.failure = Some(Arc::clone(&failure));
                // A certificate that is still valid stays; `Slot::current` sees when it is not.
                slot.state.send_if_modified(|state| match state {
                    State::Available(lease) if lease.is_valid(now, SystemTime::now()) => false,
                    _ => {
                        *state = State::Unavailable(failure);
                        true
                    }
                });
            }
        }
    }
}

impl CertificateWorker {
    /// Fetches and renews until the store is dropped. Dropping the future stops the fetching: certificates that are
    /// there stay usable, which is what a draining proxy wants.
    pub async fn run(self) {
        let shared = &*self.shared;
        let mut running = FuturesUnordered::new();
        loop {
            let wake_at = {
                let mut table = shared.table.lock();
                if table.life == Life::StoreGone {
                    return;
                }
                while let Some(fetch) = table.schedule.next(Instant::now()) {
                    running.push(async move {
                        let result = shared.fetch(&fetch.identity).await;
                        (fetch, result)
                    });
                }
                table.schedule.wake_at()
            };
            // Three things can make work: a fetch ends, somebody wants an identity, a renewal or retry is due. All of
            // them are cancel safe: results stay in `running`, `Notify` keeps one permit, the time is absolute.
            tokio::select! {
                ended = running.next(), if !running.is_empty() => {
                    if let Some((fetch, result)) = ended {
                        shared.finish(&fetch, result);
                    }
                }
                () = shared.changed.notified() => {}
                () = sleep_until_some(wake_at) => {}
            }
        }
    }
}

impl Drop for CertificateWorker {
    /// Nobody must wait for a certificate that will never come.
    fn drop(&mut self) {
        let mut table = self.shared.table.lock();
        table.life = Life::WorkerGone;
        table
            .slots
            .retain(|_, slot| !matches!(*slot.state.borrow(), State::Initializing));
    }
}

async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
