//! The control plane's own certificate, signed by its own authority and renewed while it runs, and when the authority is
//! another.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use leyline_runtime::Drain;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};
use time::OffsetDateTime;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use crate::{
    ca::{Authority, CaError, Current as CurrentAuthority},
    server::ServeError,
};

/// Short enough that a lost one matters little; a new one costs nothing.
const LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// At half life, as workloads renew theirs.
const RENEWAL: Duration = Duration::from_secs(15 * 24 * 3600);
/// Signing is local; should it fail, the clock or the memory is to blame and a later try may do.
const RETRY: Duration = Duration::from_secs(60);

pub(super) struct ServerCertificate {
    authority: CurrentAuthority,
    names: Vec<String>,
    current: Arc<Current>,
}

struct Current(ArcSwap<CertifiedKey>);

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current")
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl ServerCertificate {
    pub(super) fn new(
        mut authority: CurrentAuthority,
        names: Vec<String>,
    ) -> Result<Self, ServeError> {
        let first = issue(&authority.borrow_and_update().clone(), &names)?;
        Ok(Self {
            authority,
            names,
            current: Arc::new(Current(ArcSwap::from_pointee(first))),
        })
    }

    /// TLS 1.3 only, HTTP/2 only.
    pub(super) fn acceptor(&self) -> Result<TlsAcceptor, ServeError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(self.current.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    pub(super) async fn renew(mut self, drain: Drain) {
        let mut pause = RENEWAL;
        loop {
            tokio::select! {
                () = drain.started() => return,
                () = sleep(pause) => {}
                () = another(&mut self.authority) => {}
            }
            let authority = Arc::clone(&self.authority.borrow());
            pause = match issue(&authority, &self.names) {
                Ok(renewed) => {
                    self.current.0.store(Arc::new(renewed));
                    info!("own certificate renewed");
                    RENEWAL
                }
                Err(error) => {
                    warn!(%error, "own certificate is not renewed");
                    RETRY
                }
            };
        }
    }
}

/// Waits until another authority signs; for ever if this one stays.
async fn another(authority: &mut CurrentAuthority) {
    if authority.changed().await.is_err() {
        std::future::pending().await
    }
}

fn issue(authority: &Authority, names: &[String]) -> Result<CertifiedKey, ServeError> {
    let identity = authority.server_identity(names, LIFETIME, OffsetDateTime::now_utc());
    let identity = identity.map_err(|error: CaError| ServeError::Ca(error))?;
    let key =
        aws_lc_rs::sign::any_supported_type(&PrivatePkcs8KeyDer::from(identity.key_der).into())?;
    let chain = identity.chain_der.into_iter().map(CertificateDer::from);
    Ok(CertifiedKey::new(chain.collect(), key))
}
