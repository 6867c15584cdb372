//! Reads the workload identity out of a certificate (SPIFFE X.509-SVID, section 2: exactly one URI name).

use leyline_types::Identity;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Why a certificate names no workload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SvidError {
    #[error("not an X.509 certificate: {0}")]
    Malformed(String),
    #[error("it has no URI name")]
    NoUri,
    #[error("it has {0} URI names, a SPIFFE certificate has one")]
    SeveralUris(usize),
    #[error("{0}")]
    NotAnIdentity(String),
}

/// The identity that an encoded certificate carries. Says nothing about whether the certificate is trusted.
pub(crate) fn identity_in(leaf: &CertificateDer<'_>) -> Result<Identity, SvidError> {
    let (_rest, parsed) =
        X509Certificate::from_der(leaf).map_err(|error| SvidError::Malformed(error.to_string()))?;
    identity_of(&parsed)
}

/// The identity that a parsed certificate carries.
pub(crate) fn identity_of(leaf: &X509Certificate<'_>) -> Result<Identity, SvidError> {
    let names = leaf
        .subject_alternative_name()
        .map_err(|error| SvidError::Malformed(error.to_string()))?;
    let mut uris = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    let uri = uris.next().ok_or(SvidError::NoUri)?;
    let more = uris.count();
    if more > 0 {
        return Err(SvidError::SeveralUris(more + 1));
    }
    uri.parse()
        .map_err(|error: leyline_types::IdentityError| SvidError::NotAnIdentity(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::{collection::vec, prelude::any, prop_assert, proptest, sample::Index};

    use super::*;
    use crate::testing::{Leaf, TestCa};

    const URI: &str = "spiffe://cluster.local/ns/shop/sa/web";

    static LEAF: LazyLock<CertificateDer<'static>> = LazyLock::new(|| {
        let (chain, _key) = TestCa::new().issue(&Leaf::workload(URI));
        chain[0].clone()
    });

    /// Where the URI name begins in the leaf.
    static NAME: LazyLock<usize> = LazyLock::new(|| {
        let mut windows = LEAF.windows(URI.len());
        windows.position(|text| text == URI.as_bytes()).unwrap()
    });

    proptest! {
        /// Whatever a certificate holds, it names one workload or is refused.
        #[test]
        fn damaged_certificates_name_a_workload_or_none(
            anywhere in vec((any::<Index>(), any::<u8>()), 0..4),
            in_name in vec((0..URI.len(), any::<u8>()), 0..4),
        ) {
            let mut der = LEAF.to_vec();
            for (at, byte) in anywhere {
                let at = at.index(der.len());
                der[at] = byte;
            }
            for (at, byte) in in_name {
                der[*NAME + at] = byte;
            }
            if let Ok(identity) = identity_in(&der.into()) {
                let again: Result<Identity, _> = identity.to_string().parse();
                prop_assert!(again.is_ok_and(|again| again == identity));
            }
        }
    }
}
