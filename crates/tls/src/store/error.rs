//! Why there is no certificate.

use std::{sync::Arc, time::Duration};

use leyline_types::Identity;

use crate::{
    ca::CaError, certificate::CertificateError, csr::CsrError, spiffe_agent::SvidSourceError,
};

/// Why a fetch gave no certificate.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No key or request could be made.
    #[error(transparent)]
    Request(#[from] CsrError),
    /// The CA did not sign.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// What the CA signed is not usable.
    #[error("the CA's answer is unusable: {0}")]
    Certificate(#[from] CertificateError),
    /// The Workload API has none.
    #[error(transparent)]
    Svid(#[from] SvidSourceError),
}

/// Why there is no certificate for an identity now.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IdentityError {
    /// The last fetch failed, and the next one is not due yet.
    #[error("no certificate for {identity}: {source}")]
    Unavailable {
        /// Whose certificate.
        identity: Identity,
        /// How the last fetch failed.
        source: Arc<FetchError>,
    },
    /// The first fetch takes too long. It goes on.
    #[error("no certificate for {identity} within {deadline:?}")]
    Deadline {
        /// Whose certificate.
        identity: Identity,
        /// How long we waited.
        deadline: Duration,
    },
    /// The identity was forgotten while we waited.
    #[error("{identity} has left this node")]
    Forgotten {
        /// Whose certificate.
        identity: Identity,
    },
    /// The bound on identities is reached.
    #[error("no certificate for {identity}: {limit} identities are in use, which is the limit")]
    Full {
        /// Whose certificate.
        identity: Identity,
        /// The bound.
        limit: usize,
    },
    /// The worker has ended; only certificates that are there are given out.
    #[error("no certificate for {identity}: certificates are not fetched any more, shutting down")]
    Stopped {
        /// Whose certificate.
        identity: Identity,
    },
}
