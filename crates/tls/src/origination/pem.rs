//! Where certificates, keys and revocation lists of origination come from.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::OriginationError;

/// A text in PEM, or where it will come from.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    /// A file, which is looked at again and again.
    File(PathBuf),
    /// As the control plane sent it.
    Sent(Arc<[u8]>),
    /// The control plane has been asked for it by this name, and has not sent it.
    Awaited(String),
}

/// Keys are not shown.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin())
    }
}

impl Pem {
    /// The file, where it is one.
    pub(super) fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Sent(_) | Self::Awaited(_) => None,
        }
    }

    pub(super) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, OriginationError> {
        let text = self.read()?;
        let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
        certificates.map_err(|source| self.unusable(source))
    }

    pub(super) fn private_key(&self) -> Result<PrivateKeyDer<'static>, OriginationError> {
        PrivateKeyDer::from_pem_slice(&self.read()?).map_err(|source| self.unusable(source))
    }

    pub(super) fn read(&self) -> Result<Arc<[u8]>, OriginationError> {
        match self {
            Self::File(path) => match fs::read(path) {
                Ok(bytes) => Ok(bytes.into()),
                Err(source) => Err(OriginationError::Read {
                    path: path.clone(),
                    source,
                }),
            },
            Self::Sent(bytes) => Ok(bytes.clone()),
            Self::Awaited(name) => Err(OriginationError::Awaited(name.clone())),
        }
    }

    fn unusable(&self, source: rustls::pki_types::pem::Error) -> OriginationError {
        OriginationError::Pem {
            origin: self.origin(),
            source,
        }
    }

    /// What it is called in messages.
    pub(super) fn origin(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Sent(_) => "what the control plane sent".to_owned(),
            Self::Awaited(name) => format!("secret {name}"),
        }
    }
}

pub(super) fn roots(
    certificates: Vec<CertificateDer<'static>>,
) -> Result<RootCertStore, OriginationError> {
    let mut store = RootCertStore::empty();
    match store.add_parsable_certificates(certificates) {
        (0, _) => Err(OriginationError::NoRoots),
        _ => Ok(store),
    }
}
