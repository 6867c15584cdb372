//! The authority of an operator: a directory with the files of istiod's `cacerts`. The signing certificate may be an
//! intermediate, and there may be several roots, as during a rotation.
//!
//! Taken as a whole or not at all: what is signed by it must be accepted by peers who know nothing but its roots.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path};

use leyline_types::{Identity, TrustDomain};
use rcgen::{Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use time::OffsetDateTime;
use tracing::warn;
use x509_parser::{
    certificate::X509Certificate,
    pem::Pem,
    prelude::{FromDer, Validity},
    x509::X509Name,
};

use super::{Authority, CaError, KEY_FILE, ROOT_FILE, pem_text};

pub(super) const CERTIFICATE_FILE: &str = "ca-cert.pem";
const CHAIN_FILE: &str = "cert-chain.pem";
/// All that is read, in no order.
pub(super) const FILES: [&str; 4] = [CERTIFICATE_FILE, KEY_FILE, CHAIN_FILE, ROOT_FILE];
/// Some hundred roots; a larger file is the wrong one.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Peers do not follow longer chains (webpki's limit is six intermediates).
const MAX_INTERMEDIATES: usize = 6;
/// Any right of group or others.
const OTHERS: u32 = 0o077;

/// One certificate of a file.
struct Certificate {
    der: Vec<u8>,
    file: &'static str,
}

impl Authority {
    /// Takes the authority of a directory.
    ///
    /// # Errors
    /// When a file is missing or not what its name says, when the key is not that of the certificate, when the chain
    /// does not lead to one of the roots, or when a part of it is not valid now.
    pub fn of_operator(directory: &Path, now: OffsetDateTime) -> Result<Self, CaError> {
        let certificate = certificates(directory, CERTIFICATE_FILE)?;
        let chain = match certificates(directory, CHAIN_FILE) {
            Ok(chain) => chain,
            // A root that signs itself needs none.
            Err(CaError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        let roots = certificates(directory, ROOT_FILE)?;
        let key = key(directory)?;
        let Some(signing) = certificate.into_iter().next() else {
            return Err(unusable(CERTIFICATE_FILE, &"it holds no certificate"));
        };
        if parsed(&signing)?.public_key().raw != key.subject_public_key_info() {
            return Err(CaError::Foreign(KEY_FILE, CERTIFICATE_FILE));
        }
        let (intermediates, root) = path(signing, chain, &roots)?;
        let end = check(&intermediates, root, now)?;
        let signer = intermediates.first().unwrap_or(root);
        let issuer = Issuer::from_ca_cert_der(&signer.der.as_slice().into(), key)?;
        let authority = Self {
            issuer,
            intermediates: intermediates.iter().map(|c| c.der.clone()).collect(),
            roots_pem: roots_pem(root, &roots),
            end,
        };
        authority.is_named_as(&parsed(signer)?.subject, now)?;
        Ok(authority)
    }

    /// A name that the library cannot write as it was read would make leaves that nobody can follow to their issuer.
    fn is_named_as(&self, name: &X509Name<'_>, now: OffsetDateTime) -> Result<(), CaError> {
        let probe = Identity::new(TrustDomain::default(), "probe", "probe");
        let probe = probe.map_err(|error| unusable(CERTIFICATE_FILE, &error))?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let leaf = self.workload(&key, &probe, None, now);
        let leaf = leaf.map_err(|error| unusable(CERTIFICATE_FILE, &error))?;
        let (_, leaf) = X509Certificate::from_der(leaf.der())
            .map_err(|error| unusable(CERTIFICATE_FILE, &error))?;
        if leaf.issuer().as_raw() != name.as_raw() {
            let reason = format!("its subject {name} cannot be written into certificates as it is");
            return Err(unusable(CERTIFICATE_FILE, &reason));
        }
        Ok(())
    }
}

/// From the signing certificate up to, and without, the root; and the root.
fn path(
    signing: Certificate,
    mut chain: Vec<Certificate>,
    roots: &[Certificate],
) -> Result<(Vec<Certificate>, &Certificate), CaError> {
    let mut path: Vec<Certificate> = Vec::new();
    let mut current = signing;
    loop {
        if let Some(root) = roots.iter().find(|root| root.der == current.der) {
            return Ok((path, root));
        }
        if path.len() == MAX_INTERMEDIATES {
            let reason = format!("more than {MAX_INTERMEDIATES} intermediates");
            return Err(unusable(CHAIN_FILE, &reason));
        }
        let above = signer_of(&current, roots)?.and_then(|at| roots.get(at));
        if let Some(root) = above {
            path.push(current);
            return Ok((path, root));
        }
        let Some(next) = signer_of(&current, &chain)? else {
            let issuer = parsed(&current)?.issuer().to_string();
            return Err(CaError::NoPath(issuer));
        };
        path.push(current);
        current = chain.swap_remove(next);
    }
}

/// Which of the candidates has signed a certificate.
fn signer_of(
    certificate: &Certificate,
    candidates: &[Certificate],
) -> Result<Option<usize>, CaError> {
    let certificate = parsed(certificate)?;
    for (index, candidate) in candidates.iter().enumerate() {
        let candidate = parsed(candidate)?;
        let named = candidate.subject().as_raw() == certificate.issuer().as_raw();
        let itself = candidate.as_ref() == certificate.as_ref();
        if named && !itself {
            let key = Some(candidate.public_key());
            if certificate.verify_signature(key).is_ok() {
                return Ok(Some(index));
            }
        }
    }
    Ok(None)
}

/// Whether all of the path may sign what is below it, now. The answer is when the first of them ends.
fn check(
    intermediates: &[Certificate],
    root: &Certificate,
    now: OffsetDateTime,
) -> Result<OffsetDateTime, CaError> {
    let mut end = None;
    for (below, certificate) in intermediates.iter().chain([root]).enumerate() {
        let x509 = parsed(certificate)?;
        let refuse =
            |reason: &str| unusable(certificate.file, &format!("{}: {reason}", x509.subject()));
        let constraints = x509.basic_constraints();
        let constraints = constraints.map_err(|error| refuse(&error.to_string()))?;
        let Some(constraints) = constraints.filter(|found| found.value.ca) else {
            return Err(refuse("not a CA certificate"));
        };
        let longest = constraints.value.path_len_constraint;
        if longest.is_some_and(|longest| (longest as usize) < below) {
            return Err(refuse(
                "its path length does not allow so many intermediates",
            ));
        }
        let usage = x509
            .key_usage()
            .map_err(|error| refuse(&error.to_string()))?;
        if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(refuse(
                "its key usage does not allow it to sign certificates",
            ));
        }
        let (start, ends) = bounds(x509.validity());
        if now >= ends {
            return Err(CaError::Expired(certificate.file, ends));
        }
        if now < start {
            return Err(CaError::NotYetValid(certificate.file, start));
        }
        end = Some(end.map_or(ends, |end: OffsetDateTime| end.min(ends)));
    }
    end.ok_or_else(|| unusable(CERTIFICATE_FILE, &"it holds no certificate"))
}

fn bounds(validity: &Validity) -> (OffsetDateTime, OffsetDateTime) {
    (
        validity.not_before.to_datetime(),
        validity.not_after.to_datetime(),
    )
}

/// The root that signs comes first: whoever watches the published roots sees a change of the issuer, too.
fn roots_pem(first: &Certificate, all: &[Certificate]) -> String {
    let mut written: Vec<&[u8]> = vec![&first.der];
    for root in all {
        if !written.contains(&root.der.as_slice()) {
            written.push(&root.der);
        }
    }
    written.into_iter().map(pem_text).collect()
}

fn key(directory: &Path) -> Result<KeyPair, CaError> {
    let text = read(directory, KEY_FILE)?;
    let path = directory.join(KEY_FILE);
    // Not refused: a mounted Secret has such modes, and nobody else is in its container.
    if let Ok(metadata) = fs::metadata(&path)
        && metadata.permissions().mode() & OTHERS != 0
    {
        warn!(path = %path.display(), "others than its owner can read the key of the CA");
    }
    KeyPair::from_pem(&text).map_err(|error| unusable(KEY_FILE, &error))
}

fn certificates(directory: &Path, file: &'static str) -> Result<Vec<Certificate>, CaError> {
    let text = read(directory, file)?;
    let mut found = Vec::new();
    for pem in Pem::iter_from_buffer(text.as_bytes()) {
        let pem = pem.map_err(|error| unusable(file, &error))?;
        let certificate = Certificate {
            der: pem.contents,
            file,
        };
        parsed(&certificate)?;
        found.push(certificate);
    }
    Ok(found)
}

fn parsed(certificate: &Certificate) -> Result<X509Certificate<'_>, CaError> {
    X509Certificate::from_der(&certificate.der)
        .map(|(_, certificate)| certificate)
        .map_err(|error| unusable(certificate.file, &error))
}

fn read(directory: &Path, file: &'static str) -> Result<String, CaError> {
    let path = directory.join(file);
    let failed = |source| CaError::Read {
        path: path.clone(),
        source,
    };
    if fs::metadata(&path).map_err(failed)?.len() > MAX_FILE_BYTES {
        return Err(unusable(file, &"it is larger than 1 MiB"));
    }
    fs::read_to_string(&path).map_err(failed)
}

fn unusable(file: &'static str, reason: &dyn ToString) -> CaError {
    CaError::Unusable {
        file,
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests;
