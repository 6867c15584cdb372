//! Revoked certificates (`CRL_PATH`): new handshakes are judged by the lists, and tunnels that are open when a list
//! revokes their peer are cut. Verifiers ask [`Issuers::check`], streams carry a [`Tracked`].
//!
//! Invariant: a tunnel is registered *before* it is judged a last time, and new lists are published *before* registered
//! tunnels are judged again, so that none outlives the list that revokes its peer.
//!
//! As with Istio: every certificate of the chain is judged, one of whose issuer no list speaks is accepted, and a list
//! past its end still holds. A list counts only for the issuer whose key signed it (RFC 5280 section 6.3.3).

mod lists;
mod tunnels;
mod watch;

use std::{io, path::PathBuf, sync::Arc};

use metrics::counter;
use parking_lot::{Mutex, RwLock};
use rustls::{CertificateError, Error as RustlsError, pki_types::CertificateDer};
use x509_parser::prelude::{FromDer, X509Certificate};

pub use lists::CrlError;
use lists::Lists;
pub(crate) use tunnels::Tracked;
use tunnels::Tunnels;
pub use watch::CrlWatcher;

/// The texts of the errors of streams that were cut.
const REVOKED: &str = "the peer's certificate has been revoked";
const WITHDRAWN: &str = "the root of the peer's certificate has been withdrawn";

/// What is known of revoked certificates, and the tunnels that it concerns.
#[derive(Debug)]
pub struct Revocation {
    watching: Watching,
    lists: RwLock<Arc<Lists>>,
    tunnels: Mutex<Tunnels>,
}

#[derive(Debug, PartialEq, Eq)]
enum Watching {
    /// Nothing is judged, nothing is tracked.
    Off,
    Lists,
}

/// Which side of a tunnel we are, for the metrics.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reporter {
    Source,
    Destination,
}

impl Reporter {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// One certificate of a peer's chain: who issued it, as what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// Name, DER.
    issuer: Box<[u8]>,
    serial: Box<[u8]>,
    /// Public keys of the authorities of that name that the peer or we know, DER.
    keys: Vec<Arc<[u8]>>,
}

/// The authorities that one workload trusts, as issuers of lists.
#[derive(Clone, Debug)]
pub(crate) struct Issuers {
    revocation: Arc<Revocation>,
    roots: Arc<[Authority]>,
}

/// Who can issue certificates and lists.
#[derive(Clone, Debug)]
struct Authority {
    /// DER.
    name: Box<[u8]>,
    /// Public key, DER.
    key: Arc<[u8]>,
}

impl Revocation {
    /// Nothing is ever revoked.
    pub fn off() -> Arc<Self> {
        Self::new(Watching::Off)
    }

    /// Follows a file of lists. They hold from the first read on, which the watcher does when it is started.
    pub fn of_file(path: PathBuf) -> (Arc<Self>, CrlWatcher) {
        let revocation = Self::new(Watching::Lists);
        let watcher = CrlWatcher::new(path, Arc::clone(&revocation));
        (revocation, watcher)
    }

    /// These lists, for ever.
    pub(crate) fn of_lists(text: &[u8]) -> Result<Arc<Self>, CrlError> {
        let revocation = Self::new(Watching::Lists);
        *revocation.lists.write() = Arc::new(Lists::parse(text)?);
        Ok(revocation)
    }

    fn new(watching: Watching) -> Arc<Self> {
        Arc::new(Self {
            watching,
            lists: RwLock::default(),
            tunnels: Mutex::default(),
        })
    }

    /// Publishes new lists, then cuts the tunnels that they revoke; says how many.
    fn replace(&self, lists: Lists) -> usize {
        let lists = Arc::new(lists);
        *self.lists.write() = Arc::clone(&lists);
        // Only tunnels with an issuer that a list speaks of are looked at, outside the lock: there may be thousands.
        let concerned = self.tunnels.lock().with_issuers(lists.issuers());
        let revoked = concerned
            .into_iter()
            .filter(|(_, chain)| chain.iter().any(|link| lists.revokes(link)));
        let revoked: Vec<u64> = revoked.map(|(key, _)| key).collect();
        let mut tunnels = self.tunnels.lock();
        let cut = revoked.into_iter().filter_map(|key| tunnels.cut(key));
        cut.map(rejected).count()
    }

    fn lists(&self) -> Arc<Lists> {
        Arc::clone(&self.lists.read())
    }
}

impl Issuers {
    pub(crate) fn new(revocation: Arc<Revocation>, roots: &[CertificateDer<'_>]) -> Self {
        let roots = match revocation.watching {
            Watching::Off => Vec::new(),
            Watching::Lists => roots.iter().filter_map(Authority::of).collect(),
        };
        Self {
            revocation,
            roots: roots.into(),
        }
    }

    /// Judges a chain that has been verified.
    pub(crate) fn check(
        &self,
        reporter: Reporter,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), RustlsError> {
        if self.revocation.watching == Watching::Off {
            return Ok(());
        }
        let lists = self.revocation.lists();
        if lists.is_empty() {
            return Ok(());
        }
        let chain = self.links(leaf, intermediates);
        if chain.iter().any(|link| lists.revokes(link)) {
            rejected(reporter);
            return Err(CertificateError::Revoked.into());
        }
        Ok(())
    }

    /// Has the tunnel of this peer cut when its chain is revoked. An error if that has happened already.
    pub(crate) fn track(
        &self,
        reporter: Reporter,
        chain: Option<&[CertificateDer<'_>]>,
    ) -> Result<Tracked, Revoked> {
        let Some([leaf, intermediates @ ..]) = chain else {
            return Ok(Tracked::never());
        };
        if self.revocation.watching == Watching::Off {
            return Ok(Tracked::never());
        }
        let links: Arc<[Link]> = self.links(leaf, intermediates).into();
        let tracked = Tracked::register(&self.revocation, reporter, Arc::clone(&links));
        let lists = self.revocation.lists();
        if links.iter().any(|link| lists.revokes(link)) {
            rejected(reporter);
            return Err(Revoked);
        }
        Ok(tracked)
    }

    fn links(&self, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Vec<Link> {
        let presented: Vec<_> = intermediates.iter().filter_map(Authority::of).collect();
        let link = |der: &CertificateDer<'_>| {
            let (_rest, certificate) = X509Certificate::from_der(der).ok()?;
            let issuer = certificate.issuer().as_raw();
            let authorities = presented.iter().chain(self.roots.iter());
            let keys = authorities.filter(|authority| *authority.name == *issuer);
            Some(Link {
                issuer: issuer.into(),
                serial: lists::serial(certificate.raw_serial()),
                keys: keys.map(|authority| Arc::clone(&authority.key)).collect(),
            })
        };
        // What cannot be parsed has not passed the verification of the chain before this.
        [leaf]
            .into_iter()
            .chain(intermediates)
            .filter_map(link)
            .collect()
    }
}

/// The peer has been revoked while it shook hands.
#[derive(Debug)]
pub(crate) struct Revoked;

/// Whether an error of a tunnel, or of a connection in one, says that the peer was revoked, itself or with its root.
/// HTTP/2 passes on the text of what broke it and not the error itself.
pub fn is_revocation(error: &io::Error) -> bool {
    let text = error.to_string();
    text.contains(REVOKED) || text.contains(WITHDRAWN)
}

/// The error of a stream whose peer has been revoked.
pub(crate) fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, REVOKED)
}

/// The error of a stream whose peer has lost its root.
pub(crate) fn withdrawn() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, WITHDRAWN)
}

fn rejected(reporter: Reporter) {
    counter!("istio_crl_policy_rejections_total", "reporter" => reporter.as_str()).increment(1);
}

impl Authority {
    fn of(der: &CertificateDer<'_>) -> Option<Self> {
        let (_rest, certificate) = X509Certificate::from_der(der).ok()?;
        Some(Self {
            name: certificate.subject().as_raw().into(),
            key: certificate.public_key().raw.into(),
        })
    }
}

#[cfg(test)]
mod tests;
