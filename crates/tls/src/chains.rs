//! Chains that have passed verification, so that the signatures in them are not computed again for each tunnel of a peer:
//! a peer has one certificate for half a day and many tunnels. [`crate::standing::Trusted`] asks it for both verifiers.
//!
//! Whether a chain passes depends on its bytes, the roots, what it is used for, and the time. The first three are the key, and an
//! entry counts only while every certificate of its chain is valid, so that it can say nothing but what verification would
//! say. There is nothing to empty when a root is withdrawn: who is judged by other roots finds other entries. What else a peer has to
//! show is never remembered, but checked for each tunnel: that it has the key, who it is, and that no list revokes it.

use std::{collections::HashMap, fmt, sync::LazyLock};

use aws_lc_rs::digest::{Context, SHA256};
use parking_lot::Mutex;
use rustls::{
    Error as RustlsError, RootCertStore,
    pki_types::{CertificateDer, UnixTime},
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::revocation::Reporter;

/// Chains that are remembered at least, those that were used last. As many as one node talks to in a large mesh, at about 100 bytes
/// each; twice as many are kept at most. Whoever shows a chain with ever other certificates behind it only makes us compute.
const CHAINS: usize = 2048;

/// What all handshakes of the process have verified.
pub(crate) static VERIFIED: LazyLock<VerifiedChains> =
    LazyLock::new(|| VerifiedChains::new(CHAINS));

const DIGEST: usize = 32;

/// SHA-256 of all that makes a set of roots what it is for verification.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RootsDigest([u8; DIGEST]);

/// A chain, and what it is to be good for.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    pub(crate) roots: &'a RootsDigest,
    /// Which side we are: servers are judged by other rules than clients.
    pub(crate) reporter: Reporter,
    pub(crate) leaf: &'a CertificateDer<'a>,
    pub(crate) intermediates: &'a [CertificateDer<'a>],
    pub(crate) now: UnixTime,
}

/// Bounded: in two generations, of which the older is forgotten when the younger is full.
#[derive(Debug)]
pub(crate) struct VerifiedChains {
    generation: usize,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    young: HashMap<Key, Validity>,
    old: HashMap<Key, Validity>,
}

/// SHA-256 of roots, purpose and chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key([u8; DIGEST]);

/// When all certificates of a chain are valid, both ends included, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Validity {
    from: u64,
    to: u64,
}

impl VerifiedChains {
    /// Keeps so many chains, and up to twice as many.
    fn new(generation: usize) -> Self {
        Self {
            generation,
            entries: Mutex::default(),
        }
    }

    /// The verdict on a chain: from memory where it has passed before, and else by `verify`.
    pub(crate) fn check(
        &self,
        question: &Question<'_>,
        verify: impl FnOnce() -> Result<(), RustlsError>,
    ) -> Result<(), RustlsError> {
        let key = question.key();
        let known = self.entries.lock().get(&key, self.generation);
        if known.is_some_and(|validity| validity.holds(question.now)) {
            return Ok(());
        }
        verify()?;
        // Of certificates that webpki takes and another parser does not, nothing is remembered.
        if let Some(validity) = question.validity() {
            self.entries.lock().insert(key, validity, self.generation);
        }
        Ok(())
    }
}

impl Entries {
    fn get(&mut self, key: &Key, generation: usize) -> Option<Validity> {
        if let Some(validity) = self.young.get(key) {
            return Some(*validity);
        }
        let validity = self.old.remove(key)?;
        self.insert(*key, validity, generation);
        Some(validity)
    }

    fn insert(&mut self, key: Key, validity: Validity, generation: usize) {
        if self.young.len() >= generation {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, validity);
    }
}

impl Question<'_> {
    fn key(&self) -> Key {
        let mut digest = Sha256::new();
        digest.add(&self.roots.0);
        digest.add(self.reporter.as_str().as_bytes());
        digest.add(self.leaf);
        for certificate in self.intermediates {
            digest.add(certificate);
        }
        Key(digest.finish())
    }

    /// Also of certificates that verification did without: what is remembered too short is only computed again.
    fn validity(&self) -> Option<Validity> {
        let mut whole = Validity::of(self.leaf)?;
        for certificate in self.intermediates {
            let one = Validity::of(certificate)?;
            whole.from = whole.from.max(one.from);
            whole.to = whole.to.min(one.to);
        }
        Some(whole)
    }
}

impl Validity {
    fn of(der: &CertificateDer<'_>) -> Option<Self> {
        let (_rest, certificate) = X509Certificate::from_der(der).ok()?;
        let validity = certificate.validity();
        Some(Self {
            from: u64::try_from(validity.not_before.timestamp()).ok()?,
            to: u64::try_from(validity.not_after.timestamp()).ok()?,
        })
    }

    fn holds(self, now: UnixTime) -> bool {
        (self.from..=self.to).contains(&now.as_secs())
    }
}

impl RootsDigest {
    pub(crate) fn of(store: &RootCertStore) -> Self {
        let mut digest = Sha256::new();
        for root in &store.roots {
            digest.add(&root.subject);
            digest.add(&root.subject_public_key_info);
            // None is not the same as an empty one.
            let constraints = root.name_constraints.as_deref();
            digest.add(&[u8::from(constraints.is_some())]);
            digest.add(constraints.unwrap_or_default());
        }
        Self(digest.finish())
    }
}

impl fmt::Debug for RootsDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "RootsDigest({a:02x}{b:02x}{c:02x}{d:02x})")
    }
}

/// Of several parts, each with its length before it, so that none can be taken for a piece of another.
struct Sha256(Context);

impl Sha256 {
    fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    fn add(&mut self, part: &[u8]) {
        self.0.update(&(part.len() as u64).to_be_bytes());
        self.0.update(part);
    }

    fn finish(self) -> [u8; DIGEST] {
        let mut bytes = [0; DIGEST];
        bytes.copy_from_slice(self.0.finish().as_ref());
        bytes
    }
}

#[cfg(test)]
mod tests;
