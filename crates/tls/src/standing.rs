//! Tunnels that outlive what they were authenticated by: when a root is withdrawn, those whose peer no longer verifies
//! are cut; when only our issuer has changed, tunnels are asked to be replaced by younger ones as soon as it suits.
//!
//! The store keeps one [`Anchors`] for each identity and tells it of each new certificate; each tunnel carries a
//! [`Standing`]. Invariant: a tunnel is registered *before* its roots are compared with those of now, and new roots are
//! published *before* registered tunnels are told, so that none outlives its root. A tunnel is judged by its own task,
//! which has the peer's chain anyway, as of the time of its handshake: that certificates expire ends no tunnel.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::task::AtomicWaker;
use metrics::counter;
use parking_lot::Mutex;
use rustls::{
    Error as RustlsError, RootCertStore,
    pki_types::{CertificateDer, UnixTime},
    server::danger::ClientCertVerifier,
};
use tokio::{
    sync::Notify,
    time::{Sleep, sleep},
};
use tracing::{info, warn};

use crate::{
    certificate::WorkloadCertificate,
    chains::{Question, RootsDigest, VERIFIED},
    revocation::Reporter,
    verify::{name_foreign_issuer, verify_server_chain},
};

/// What one identity trusts now, and the tunnels that depend on it.
#[derive(Debug)]
pub(crate) struct Anchors {
    /// From the withdrawal of a root to the end of its tunnels.
    grace: Duration,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// None before the first certificate.
    current: Option<Arc<Trusted>>,
    next_key: u64,
    tunnels: HashMap<u64, Arc<Entry>>,
}

/// What peers are judged by, and how we are.
#[derive(Debug)]
pub(crate) struct Trusted {
    pub(crate) roots: Vec<CertificateDer<'static>>,
    pub(crate) store: Arc<RootCertStore>,
    /// Of `store`.
    pub(crate) digest: RootsDigest,
    pub(crate) clients: Arc<dyn ClientCertVerifier>,
    /// Name and key of who signed our own certificate.
    pub(crate) issuer: Box<[u8]>,
}

/// What is told to a tunnel.
#[derive(Debug, Default)]
struct Entry {
    /// Roots were withdrawn: the peer is to be judged again.
    suspect: AtomicBool,
    /// Of the task that reads.
    reader: AtomicWaker,
    /// No new connections are to be begun in it.
    leave: Notify,
}

/// What a new certificate changes for the tunnels of its identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Nothing,
    /// There are more roots: what was about to be cut may stay.
    Widen,
    /// They are good, and younger ones would be better: they would live through the withdrawal of the former root.
    Replace,
    /// Those whose peer does not verify any more are cut.
    Judge,
}

/// Resolves when no new connections are to be begun in a tunnel.
#[derive(Clone, Debug)]
pub struct Leaving(Option<Arc<Entry>>);

impl Leaving {
    /// Waits for it, for ever if need be. For one caller: who comes second is not told. Cancel safe.
    pub async fn asked(self) {
        match self.0 {
            Some(entry) => entry.leave.notified().await,
            None => std::future::pending().await,
        }
    }
}

impl Anchors {
    pub(crate) fn new(grace: Duration) -> Arc<Self> {
        Arc::new(Self {
            grace,
            inner: Mutex::default(),
        })
    }

    /// To be called with each new certificate before it is given out.
    pub(crate) fn publish(&self, certificate: &WorkloadCertificate) -> Change {
        let new = certificate.trusted();
        let (change, tunnels) = {
            let mut inner = self.inner.lock();
            let old = inner.current.replace(Arc::clone(new));
            let change = old.map_or(Change::Nothing, |old| change(&old, new));
            let tunnels: Vec<Arc<Entry>> = match change {
                Change::Nothing => Vec::new(),
                Change::Widen | Change::Replace | Change::Judge => {
                    inner.tunnels.values().cloned().collect()
                }
            };
            (change, tunnels)
        };
        for entry in &tunnels {
            if change.replaces() {
                entry.leave.notify_one();
            }
            // Looking is cheap, and says no to few.
            if change != Change::Replace {
                entry.suspect.store(true, Ordering::Release);
                entry.reader.wake();
            }
        }
        if change != Change::Nothing {
            let (identity, tunnels) = (certificate.identity(), tunnels.len());
            let roots = new.roots.len();
            info!(%identity, ?change, roots, tunnels, "the issuer or the roots have changed");
        }
        change
    }

    fn register(self: &Arc<Self>, trusted: &Arc<Trusted>) -> Place {
        let entry = Arc::new(Entry::default());
        let mut inner = self.inner.lock();
        inner.next_key += 1;
        let key = inner.next_key;
        inner.tunnels.insert(key, Arc::clone(&entry));
        let is_current = inner
            .current
            .as_ref()
            .is_none_or(|current| Arc::ptr_eq(current, trusted));
        drop(inner);
        if !is_current {
            // The certificate was replaced during the handshake; the first read judges.
            entry.suspect.store(true, Ordering::Release);
        }
        Place {
            anchors: Arc::clone(self),
            key,
            entry,
            verified_at: UnixTime::now(),
        }
    }

    fn current(&self) -> Option<Arc<Trusted>> {
        self.inner.lock().current.clone()
    }
}

impl Change {
    /// Whether younger tunnels are better.
    pub(crate) fn replaces(self) -> bool {
        match self {
            Self::Nothing | Self::Widen => false,
            Self::Replace | Self::Judge => true,
        }
    }
}

fn change(old: &Trusted, new: &Trusted) -> Change {
    let lacks = |some: &Trusted, other: &Trusted| {
        let mut roots = other.roots.iter();
        roots.any(|root| !some.roots.contains(root))
    };
    if lacks(new, old) {
        Change::Judge
    } else if old.issuer != new.issuer {
        Change::Replace
    } else if lacks(old, new) {
        Change::Widen
    } else {
        Change::Nothing
    }
}

impl Trusted {
    /// Judges the chain of a peer: that it ends in one of the roots, is valid now, and may be used as the peer uses it. A chain
    /// that has passed before is not computed again.
    pub(crate) fn check(
        &self,
        reporter: Reporter,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), RustlsError> {
        let question = Question {
            roots: &self.digest,
            reporter,
            leaf,
            intermediates,
            now,
        };
        VERIFIED.check(&question, || {
            self.verify(reporter, leaf, intermediates, now)
        })
    }

    /// The same by nothing but the chain itself.
    pub(crate) fn verify(
        &self,
        reporter: Reporter,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), RustlsError> {
        match reporter {
            // We are the source, so that the peer is the server.
            Reporter::Source => verify_server_chain(leaf, intermediates, &self.store, now),
            Reporter::Destination => self
                .clients
                .verify_client_cert(leaf, intermediates, now)
                .map(|_verified| ())
                .map_err(name_foreign_issuer),
        }
    }

    /// Whether a chain that was verified then would be verified now.
    fn verifies(&self, reporter: Reporter, chain: &[CertificateDer<'_>], then: UnixTime) -> bool {
        let [leaf, intermediates @ ..] = chain else {
            return false;
        };
        self.verify(reporter, leaf, intermediates, then).is_ok()
    }
}

/// How a tunnel stands with the roots of now; dropping it gives its place back.
#[derive(Debug)]
pub(crate) struct Standing {
    reporter: Reporter,
    /// None where roots never change.
    place: Option<Place>,
    end: End,
}

#[derive(Debug)]
struct Place {
    anchors: Arc<Anchors>,
    key: u64,
    entry: Arc<Entry>,
    verified_at: UnixTime,
}

#[derive(Debug)]
enum End {
    No,
    /// The peer does not verify any more; what is under way may still finish.
    At(Pin<Box<Sleep>>),
    Now,
}

impl Standing {
    pub(crate) fn of(certificate: &WorkloadCertificate, reporter: Reporter) -> Self {
        let anchors = certificate.anchors();
        Self {
            reporter,
            place: anchors.map(|anchors| anchors.register(certificate.trusted())),
            end: End::No,
        }
    }

    pub(crate) fn leaving(&self) -> Leaving {
        Leaving(self.place.as_ref().map(|place| Arc::clone(&place.entry)))
    }

    /// Whether the tunnel is over; wakes the caller when that has to be asked again. `chain` is the peer's.
    pub(crate) fn poll_cut(
        &mut self,
        cx: &mut Context<'_>,
        chain: Option<&[CertificateDer<'_>]>,
    ) -> Poll<()> {
        let Some(place) = &self.place else {
            return Poll::Pending;
        };
        place.entry.reader.register(cx.waker());
        // Registered before it is read, so that no word is missed.
        if place.entry.suspect.load(Ordering::Acquire) {
            place.entry.suspect.store(false, Ordering::Release);
            // Read after that: what is published later says so again.
            let current = place.anchors.current();
            let verifies = current.is_none_or(|current| {
                current.verifies(self.reporter, chain.unwrap_or_default(), place.verified_at)
            });
            match (&self.end, verifies) {
                // The root is back in time.
                (End::At(_), true) => self.end = End::No,
                (End::No, false) => {
                    withdrawn(self.reporter, place.anchors.grace);
                    place.entry.leave.notify_one();
                    self.end = End::At(Box::pin(sleep(place.anchors.grace)));
                }
                (End::No, true) | (End::At(_), false) | (End::Now, _) => {}
            }
        }
        match &mut self.end {
            End::No => Poll::Pending,
            End::Now => Poll::Ready(()),
            End::At(time) => {
                std::task::ready!(time.as_mut().poll(cx));
                self.end = End::Now;
                Poll::Ready(())
            }
        }
    }

    pub(crate) fn is_cut(&self) -> bool {
        matches!(self.end, End::Now)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.anchors.inner.lock().tunnels.remove(&self.key);
    }
}

fn withdrawn(reporter: Reporter, grace: Duration) {
    let reporter = reporter.as_str();
    counter!("leyline_root_withdrawn_tunnels_total", "reporter" => reporter).increment(1);
    warn!(reporter, cut_in = ?grace, "the root of a tunnel's peer has been withdrawn");
}

#[cfg(test)]
mod tests;
