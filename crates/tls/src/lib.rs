//! Mutual TLS of the mesh: handshakes that prove workload identities, the certificates behind them and the TLS channel
//! to the control plane. The proxies call it for every tunnel.
//!
//! A stream that leaves [`accept`] or [`connect`] belongs to a peer whose identity was verified; there is no other way
//! to get one. Nothing here opens a data-plane socket or knows what a workload is.
#![warn(missing_docs)]

mod handshake;

mod certificate;
mod chains;
mod error;
mod provider;
mod revocation;
mod seen;
mod spiffe;
mod standing;
mod verify;

mod ca;
pub mod control_plane;
pub mod csr;
mod delegated_identity;
mod hello;
mod origination;
mod spiffe_agent;
mod store;
mod workload_api;

#[cfg(test)]
mod testing;

pub use ca::{BoxFuture, CaClient, CaError, CertificateAuthority};
pub use certificate::{CertificateError, WorkloadCertificate};
pub use delegated_identity::{DelegatedIdentity, DelegatedPod};
pub use error::{Refusal, TlsError};
pub use handshake::{ClientTls, ServerTls, Verdict, accept, connect, connect_over};
pub use hello::Hello;
pub use origination::{OriginTls, Origination, OriginationConfig, OriginationError, Pem, Trust};
pub use provider::{
    CryptoPolicy, KeyExchange, OldestVersion, install_crypto_policy, install_crypto_provider,
};
pub use revocation::{CrlError, CrlWatcher, Revocation, is_revocation};
pub use spiffe_agent::{EndpointError, SvidSourceError};
pub use standing::Leaving;
pub use store::{
    CertificateConfig, CertificateDump, CertificateEntry, CertificateSource, CertificateStore,
    CertificateWorker, FetchError, IdentityError,
};
pub use workload_api::WorkloadApi;
