//! The certificate of one workload with everything that a handshake needs, built once when the CA answers.
//! The store makes these; handshakes borrow them. What exists has been checked, by [`WorkloadCertificate::from_pem`].

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use leyline_types::{Identity, TrustDomain};
use rustls::{
    CertificateError as RustlsCertificateError, ClientConfig, Error as RustlsError, RootCertStore,
    ServerConfig,
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem, pem::PemObject},
    server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use x509_parser::{
    oid_registry::OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER,
    prelude::{FromDer, X509Certificate},
};

use crate::{
    chains::RootsDigest,
    provider::{ALPN_H2, mesh_provider, mesh_versions},
    revocation::{Issuers, Reporter, Revocation},
    spiffe::{SvidError, identity_of},
    standing::{Anchors, Trusted},
    verify::{InboundVerifier, OutboundVerifier},
};

/// A checked certificate of a workload, its key and its roots, as ready TLS configurations.
pub struct WorkloadCertificate {
    identity: Identity,
    not_after: SystemTime,
    serial: String,
    chain: Vec<CertificateDer<'static>>,
    trusted: Arc<Trusted>,
    /// What tells its tunnels of other roots; none where they never change.
    anchors: Option<Arc<Anchors>>,
    issuers: Issuers,
    server: Arc<ServerConfig>,
    /// What both sides show.
    resolver: Arc<SingleCertAndKey>,
    /// Refuses every server; each handshake takes a copy with a verifier of its own.
    client: ClientConfig,
}

/// Why an answer of the CA is not a usable certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A leaf and the roots are needed at least.
    #[error("the CA returned {0} chain elements, at least a leaf and the roots are needed")]
    Incomplete(usize),
    /// An element of the chain is not PEM.
    #[error("chain element {index} is not a PEM certificate: {source}")]
    Pem {
        /// Which one, from 0.
        index: usize,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// None of the roots can be used.
    #[error("the CA returned no usable root certificate")]
    NoRoots,
    /// The leaf is not a certificate.
    #[error("the leaf is not an X.509 certificate: {0}")]
    Leaf(String),
    /// The leaf carries no identity.
    #[error("the leaf names no workload: {0}")]
    NotSpiffe(String),
    /// The leaf is somebody else's.
    #[error("the leaf is for {got}, asked for {want}")]
    Identity {
        /// Who it is for.
        got: Identity,
        /// Who we asked for.
        want: Identity,
    },
    /// The leaf certifies another key.
    #[error("the leaf does not certify the key that was sent")]
    KeyMismatch,
    /// The chain does not end in the roots that came with it.
    #[error("the chain is not signed by the roots that came with it")]
    Untrusted,
    /// The chain is not valid now.
    #[error("the chain is not valid now, check the clocks and the CA: {0}")]
    NotValidNow(#[source] RustlsError),
    /// The chain cannot be used for another reason.
    #[error("the chain is unusable: {0}")]
    Unusable(#[source] RustlsError),
    /// The roots cannot be used to verify clients.
    #[error("the roots are unusable: {0}")]
    Roots(#[source] VerifierBuilderError),
}

impl WorkloadCertificate {
    /// Takes the answer of a CA (leaf, intermediates, and the roots as the last element) to a request for `identity`
    /// with `key`, and checks all of it. Peers are held against the revocation lists.
    ///
    /// # Errors
    /// When the chain is malformed, not for this identity or key, not valid now, or not signed by its roots.
    pub fn from_pem(
        identity: &Identity,
        chain_pem: &[String],
        key: PrivateKeyDer<'static>,
        revocation: &Arc<Revocation>,
    ) -> Result<Self, CertificateError> {
        let [presented @ .., roots] = chain_pem else {
            return Err(CertificateError::Incomplete(0));
        };
        let mut chain = Vec::new();
        for (index, element) in presented.iter().enumerate() {
            chain.extend(parse_pem(element, index)?);
        }
        let roots = parse_pem(roots, presented.len())?;
        if chain.is_empty() {
            return Err(CertificateError::Incomplete(chain_pem.len()));
        }
        Self::from_der(identity, chain, roots, key, revocation)
    }

    /// The same of certificates that are no PEM.
    pub(crate) fn from_der(
        identity: &Identity,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        revocation: &Arc<Revocation>,
    ) -> Result<Self, CertificateError> {
        let certificate = Self::assemble(chain, roots, key, revocation)?;
        if certificate.identity != *identity {
            return Err(CertificateError::Identity {
                got: certificate.identity,
                want: identity.clone(),
            });
        }
        certificate.check_chain(UnixTime::now())?;
        Ok(certificate)
    }

    /// Builds the configurations without judging whether the certificate is any good.
    pub(crate) fn assemble(
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        revocation: &Arc<Revocation>,
    ) -> Result<Self, CertificateError> {
        let leaf = chain.first().ok_or(CertificateError::Incomplete(0))?;
        let leaf = Leaf::parse(leaf)?;
        let resolver = Arc::new(SingleCertAndKey::from(
            CertifiedKey::from_der(chain.clone(), key, mesh_provider()).map_err(key_error)?,
        ));
        let issuers = Issuers::new(Arc::clone(revocation), &roots);
        let trusted = Arc::new(trust(roots, leaf.issuer)?);
        let inbound = InboundVerifier {
            issuers: issuers.clone(),
            trusted: Arc::clone(&trusted),
            trust_domain: leaf.identity.trust_domain().clone(),
            aliases: Arc::default(),
        };
        let server = server_config(inbound, Arc::clone(&resolver));
        let server = server.map_err(CertificateError::Unusable)?;
        let client = client_config(
            OutboundVerifier::new(Arc::clone(&trusted), issuers.clone(), &[]),
            Arc::clone(&resolver),
        )?;
        Ok(Self {
            identity: leaf.identity,
            not_after: leaf.not_after,
            serial: leaf.serial,
            chain,
            trusted,
            anchors: None,
            issuers,
            server: Arc::new(server),
            client,
            resolver,
        })
    }

    /// Whose certificate this is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// When it expires.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Its serial number, decimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// What is sent to peers: the leaf and its intermediates, DER.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// What peers are judged by, DER.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.trusted.roots
    }

    /// The configuration of the server side, for one handshake with a peer that may be of these trust domains, too. Only
    /// meshes that have some pay for it, a fraction of what the handshake costs.
    pub(crate) fn server_config(
        &self,
        aliases: &[TrustDomain],
    ) -> Result<Arc<ServerConfig>, RustlsError> {
        if aliases.is_empty() {
            return Ok(Arc::clone(&self.server));
        }
        let inbound = InboundVerifier {
            issuers: self.issuers.clone(),
            trusted: Arc::clone(&self.trusted),
            trust_domain: self.identity.trust_domain().clone(),
            aliases: aliases.into(),
        };
        server_config(inbound, Arc::clone(&self.resolver)).map(Arc::new)
    }

    /// What verification wants.
    pub(crate) fn trusted(&self) -> &Arc<Trusted> {
        &self.trusted
    }

    /// Has its tunnels told of other roots.
    pub(crate) fn follow(&mut self, anchors: Arc<Anchors>) {
        self.anchors = Some(anchors);
    }

    pub(crate) fn anchors(&self) -> Option<&Arc<Anchors>> {
        self.anchors.as_ref()
    }

    /// What decides on revocation.
    pub(crate) fn issuers(&self) -> &Issuers {
        &self.issuers
    }

    /// A configuration of the client side for one handshake. Copying is a handful of reference counts: that is cheaper
    /// than a lookup by expected identities, and needs no bound.
    pub(crate) fn client_config(&self, verifier: Arc<OutboundVerifier>) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        config.dangerous().set_certificate_verifier(verifier);
        Arc::new(config)
    }

    /// Judges our own chain as our peers will, in both directions.
    fn check_chain(&self, now: UnixTime) -> Result<(), CertificateError> {
        let [leaf, intermediates @ ..] = &self.chain[..] else {
            return Err(CertificateError::Incomplete(0));
        };
        for reporter in [Reporter::Source, Reporter::Destination] {
            self.trusted
                .verify(reporter, leaf, intermediates, now)
                .map_err(chain_error)?;
        }
        Ok(())
    }
}

impl fmt::Debug for WorkloadCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCertificate")
            .field("identity", &self.identity)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// What we need to know of the first certificate of a chain.
struct Leaf {
    identity: Identity,
    not_after: SystemTime,
    serial: String,
    /// Who signed it: name and, where it says so, key.
    issuer: Box<[u8]>,
}

impl Leaf {
    fn parse(der: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let (_rest, parsed) = X509Certificate::from_der(der)
            .map_err(|error| CertificateError::Leaf(error.to_string()))?;
        let identity = identity_of(&parsed)
            .map_err(|error: SvidError| CertificateError::NotSpiffe(error.to_string()))?;
        Ok(Self {
            identity,
            not_after: time_of(parsed.validity().not_after.timestamp()),
            serial: parsed.tbs_certificate.serial.to_string(),
            issuer: issuer_of(&parsed),
        })
    }
}

fn issuer_of(leaf: &X509Certificate<'_>) -> Box<[u8]> {
    let key = leaf
        .extensions()
        .iter()
        .find(|extension| extension.oid == OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER);
    let key = key.map_or(&[][..], |extension| extension.value);
    [leaf.issuer().as_raw(), key].concat().into()
}

/// Times before 1970 count as 1970: they are past in any case.
fn time_of(timestamp: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(timestamp.try_into().unwrap_or(0))
}

fn parse_pem(text: &str, index: usize) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|source| CertificateError::Pem { index, source })
}

fn trust(
    roots: Vec<CertificateDer<'static>>,
    issuer: Box<[u8]>,
) -> Result<Trusted, CertificateError> {
    let mut store = RootCertStore::empty();
    // One root that we cannot read must not take the others away: they are what most peers are signed by.
    let (usable, ignored) = store.add_parsable_certificates(roots.iter().cloned());
    if usable == 0 {
        return Err(CertificateError::NoRoots);
    }
    if ignored > 0 {
        tracing::warn!(usable, ignored, "some roots from the CA are unusable");
    }
    let store = Arc::new(store);
    let clients = WebPkiClientVerifier::builder_with_provider(
        Arc::clone(&store),
        Arc::clone(mesh_provider()),
    )
    .build()
    .map_err(CertificateError::Roots)?;
    Ok(Trusted {
        roots,
        digest: RootsDigest::of(&store),
        store,
        clients,
        issuer,
    })
}

fn server_config(
    verifier: InboundVerifier,
    resolver: Arc<SingleCertAndKey>,
) -> Result<ServerConfig, RustlsError> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(mesh_provider()))
        .with_protocol_versions(mesh_versions())?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    // Every tunnel proves both identities anew, so that an expired or replaced certificate ends with its tunnels.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_config(
    verifier: OutboundVerifier,
    resolver: Arc<SingleCertAndKey>,
) -> Result<ClientConfig, CertificateError> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(mesh_provider()))
        .with_protocol_versions(mesh_versions())
        .map_err(CertificateError::Unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn key_error(error: RustlsError) -> CertificateError {
    match error {
        RustlsError::InconsistentKeys(_) => CertificateError::KeyMismatch,
        other => CertificateError::Unusable(other),
    }
}

fn chain_error(error: RustlsError) -> CertificateError {
    match error {
        RustlsError::InvalidCertificate(RustlsCertificateError::UnknownIssuer) => {
            CertificateError::Untrusted
        }
        RustlsError::InvalidCertificate(
            RustlsCertificateError::Expired
            | RustlsCertificateError::ExpiredContext { .. }
            | RustlsCertificateError::NotValidYet
            | RustlsCertificateError::NotValidYetContext { .. },
        ) => CertificateError::NotValidNow(error),
        other => CertificateError::Unusable(other),
    }
}

#[cfg(test)]
mod tests;
