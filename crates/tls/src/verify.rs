//! Verification of peers, both directions: the chain by webpki, then the workload identity in the leaf.
//! Host names play no part: a workload is who its SPIFFE name says, under a root of the mesh.

use std::sync::{Arc, OnceLock};

use leyline_types::{Identity, TrustDomain};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as RustlsError, OtherError,
    RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use crate::{
    provider::mesh_provider,
    revocation::{Issuers, Reporter},
    spiffe::{SvidError, identity_in},
    standing::Trusted,
};

/// Why the name in a trusted certificate is not acceptable. Travels through rustls inside its "other" error.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum PeerNameError {
    #[error("no workload identity: {0}")]
    NotSpiffe(#[from] SvidError),
    #[error("{got} is not of trust domain {want}")]
    TrustDomain { got: Identity, want: TrustDomain },
    #[error("{got} is not expected here")]
    Identity { got: Identity, want: Vec<Identity> },
}

impl From<PeerNameError> for RustlsError {
    fn from(error: PeerNameError) -> Self {
        CertificateError::Other(OtherError(Arc::new(error))).into()
    }
}

/// Judges the clients of a workload: signed by our roots, of our trust domain or one of its aliases.
#[derive(Debug)]
pub(crate) struct InboundVerifier {
    pub(crate) trusted: Arc<Trusted>,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) aliases: Arc<[TrustDomain]>,
    pub(crate) issuers: Issuers,
}

impl ClientCertVerifier for InboundVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // The names of our roots, for the certificate request.
        self.trusted.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, RustlsError> {
        let reporter = Reporter::Destination;
        self.trusted
            .check(reporter, end_entity, intermediates, now)?;
        let got = identity_in(end_entity).map_err(PeerNameError::from)?;
        if *got.trust_domain() != self.trust_domain && !self.aliases.contains(got.trust_domain()) {
            let want = self.trust_domain.clone();
            return Err(PeerNameError::TrustDomain { got, want }.into());
        }
        self.issuers.check(reporter, end_entity, intermediates)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        self.trusted
            .clients
            .verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        self.trusted
            .clients
            .verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trusted.clients.supported_verify_schemes()
    }
}

/// Judges one server that we call: signed by our roots and exactly one of the expected workloads.
///
/// Made for one handshake, which leaves the verified identity in it. An empty expectation refuses everybody.
#[derive(Debug)]
pub(crate) struct OutboundVerifier {
    trusted: Arc<Trusted>,
    issuers: Issuers,
    expected: Vec<Identity>,
    verified: OnceLock<Identity>,
}

impl OutboundVerifier {
    pub(crate) fn new(trusted: Arc<Trusted>, issuers: Issuers, expected: &[Identity]) -> Self {
        Self {
            trusted,
            issuers,
            expected: expected.to_vec(),
            verified: OnceLock::new(),
        }
    }

    /// Who the peer is, once the handshake has passed the certificate.
    pub(crate) fn verified(&self) -> Option<Identity> {
        self.verified.get().cloned()
    }
}

impl ServerCertVerifier for OutboundVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        let reporter = Reporter::Source;
        self.trusted
            .check(reporter, end_entity, intermediates, now)?;
        let got = identity_in(end_entity).map_err(PeerNameError::from)?;
        if !self.expected.contains(&got) {
            let want = self.expected.clone();
            return Err(PeerNameError::Identity { got, want }.into());
        }
        self.issuers.check(reporter, end_entity, intermediates)?;
        self.verified.get_or_init(|| got);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        verify_tls12_signature(message, cert, dss, algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        verify_tls13_signature(message, cert, dss, algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// The signature algorithms of the mesh.
pub(crate) fn algorithms() -> &'static WebPkiSupportedAlgorithms {
    &mesh_provider().signature_verification_algorithms
}

/// Checks that a server's chain ends in one of the roots, is valid now and may be used by a server.
pub(crate) fn verify_server_chain(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    now: UnixTime,
) -> Result<(), RustlsError> {
    let leaf = ParsedCertificate::try_from(end_entity)?;
    verify_server_cert_signed_by_trust_anchor(&leaf, roots, intermediates, now, algorithms().all)
        .map_err(name_foreign_issuer)
}

/// Roots of different meshes often bear the same name. webpki then finds "the" root and a signature that does not fit;
/// what that means is an unknown root, for the log here and for the alert that the peer gets.
pub(crate) fn name_foreign_issuer(error: RustlsError) -> RustlsError {
    match error {
        RustlsError::InvalidCertificate(CertificateError::BadSignature) => {
            CertificateError::UnknownIssuer.into()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests;
