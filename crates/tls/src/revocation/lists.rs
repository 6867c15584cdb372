//! Parsed revocation lists. Made from a file, all or nothing: a list that cannot be understood must not silently leave
//! its certificates unrevoked.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use parking_lot::Mutex;
use rustls::pki_types::{
    CertificateRevocationListDer,
    pem::{self, PemObject},
};
use x509_parser::{
    prelude::{CertificateRevocationList, FromDer},
    x509::SubjectPublicKeyInfo,
};

use super::Link;

/// Signatures whose verdict is remembered. A mesh has a handful of issuers; more are judged anew each time.
const MAX_VERDICTS: usize = 1024;
const PEM_START: &[u8] = b"-----BEGIN";

/// Why a file of revocation lists cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CrlError {
    /// The file cannot be read.
    #[error("cannot read it: {0}")]
    Read(#[source] std::io::Error),
    /// Larger than any list of a mesh.
    #[error("it is larger than {0} bytes")]
    TooLarge(u64),
    /// Broken armour.
    #[error("it is not PEM: {0}")]
    Pem(#[source] pem::Error),
    /// PEM of something else.
    #[error("it holds no X509 CRL")]
    NoList,
    /// Not a list.
    #[error("list {index} is malformed: {reason}")]
    Malformed {
        /// Which one, from 0.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A list with a meaning that we do not know (delta and indirect lists are such).
    #[error("list {index} has the critical extension {oid}, which is not understood")]
    Extension {
        /// Which one, from 0.
        index: usize,
        /// The extension.
        oid: String,
    },
}

/// All lists of a file.
#[derive(Debug, Default)]
pub(super) struct Lists {
    lists: Vec<List>,
    /// By the issuer's name, DER: which of the lists are its.
    by_issuer: HashMap<Box<[u8]>, Vec<usize>>,
    /// Whether a list is signed by a key: a signature costs more than all else in a handshake's check.
    verdicts: Mutex<HashMap<Signature, bool>>,
}

/// A list and a key that may have signed it.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Signature {
    list: usize,
    key: Arc<[u8]>,
}

#[derive(Debug)]
struct List {
    der: Vec<u8>,
    serials: HashSet<Box<[u8]>>,
}

impl Lists {
    /// Takes a PEM bundle, or one list in DER. An empty file holds none.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, CrlError> {
        let mut parsed = Self::default();
        if bytes.trim_ascii().is_empty() {
            return Ok(parsed);
        }
        let armoured = bytes.windows(PEM_START.len()).any(|text| text == PEM_START);
        if !armoured {
            parsed.add(bytes.to_vec())?;
            return Ok(parsed);
        }
        for list in CertificateRevocationListDer::pem_slice_iter(bytes) {
            parsed.add(list.map_err(CrlError::Pem)?.to_vec())?;
        }
        if parsed.is_empty() {
            return Err(CrlError::NoList);
        }
        Ok(parsed)
    }

    fn add(&mut self, der: Vec<u8>) -> Result<(), CrlError> {
        let index = self.lists.len();
        let malformed = |reason: String| CrlError::Malformed { index, reason };
        let (rest, list) = CertificateRevocationList::from_der(&der)
            .map_err(|error| malformed(error.to_string()))?;
        if !rest.is_empty() {
            return Err(malformed(format!("{} bytes follow it", rest.len())));
        }
        let entries = || list.iter_revoked_certificates();
        let extensions = entries().flat_map(|entry| entry.extensions());
        let unknown = list.extensions().iter().chain(extensions);
        if let Some(extension) = unknown.into_iter().find(|extension| extension.critical) {
            let oid = extension.oid.to_id_string();
            return Err(CrlError::Extension { index, oid });
        }
        let serials = entries().map(|entry| serial(entry.raw_serial())).collect();
        let issuer = list.issuer().as_raw().into();
        self.by_issuer.entry(issuer).or_default().push(index);
        self.lists.push(List { serials, der });
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.lists.len()
    }

    /// How many certificates are revoked.
    pub(super) fn revoked(&self) -> usize {
        self.lists.iter().map(|list| list.serials.len()).sum()
    }

    pub(super) fn issuers(&self) -> impl Iterator<Item = &[u8]> {
        self.by_issuer.keys().map(AsRef::as_ref)
    }

    pub(super) fn revokes(&self, link: &Link) -> bool {
        let lists = self.by_issuer.get(&link.issuer);
        let mut naming = lists.into_iter().flatten().filter(|index| {
            let list = self.lists.get(**index);
            list.is_some_and(|list| list.serials.contains(&link.serial))
        });
        naming.any(|index| link.keys.iter().any(|key| self.is_signed(*index, key)))
    }

    fn is_signed(&self, index: usize, key: &Arc<[u8]>) -> bool {
        let signature = Signature {
            list: index,
            key: Arc::clone(key),
        };
        if let Some(verdict) = self.verdicts.lock().get(&signature) {
            return *verdict;
        }
        let verdict = self
            .lists
            .get(index)
            .is_some_and(|list| verify(&list.der, key));
        let mut verdicts = self.verdicts.lock();
        if verdicts.len() < MAX_VERDICTS {
            verdicts.insert(signature, verdict);
        }
        verdict
    }
}

fn verify(list: &[u8], key: &[u8]) -> bool {
    let Ok((_, key)) = SubjectPublicKeyInfo::from_der(key) else {
        return false;
    };
    let list = CertificateRevocationList::from_der(list);
    list.is_ok_and(|(_, list)| list.verify_signature(&key).is_ok())
}

/// A serial number in one form: some authorities write leading zeros that others leave out.
pub(super) fn serial(raw: &[u8]) -> Box<[u8]> {
    let start = raw.iter().position(|byte| *byte != 0).unwrap_or(raw.len());
    raw.get(start..).unwrap_or_default().into()
}
