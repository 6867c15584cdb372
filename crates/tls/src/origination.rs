//! TLS towards servers outside of the mesh, as a user configures it: by host name, under roots of his choice, with or
//! without a client certificate. Waypoints call it for clusters with TLS of their own.
//!
//! Files are read when they are first needed and again when they have changed; where they cannot be read, or where what the
//! control plane is to send has not come, nothing is sent.

mod pem;

use std::{
    fs, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as RustlsError, RootCertStore,
    SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem as rustls_pem},
    server::ParsedCertificate,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer, X509Certificate},
};

use crate::revocation::{CrlError, Issuers, Reporter, Revocation};

pub use pem::Pem;
use pem::roots;

/// Files are looked at this often: certificates are renewed hours before their end.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// How servers are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginationConfig {
    /// Who may sign their certificates.
    pub trust: Trust,
    /// Lists of revoked certificates.
    pub revoked: Option<Pem>,
    /// Certificate chain and key that prove who we are.
    pub client: Option<(Pem, Pem)>,
    /// The server that is asked for, and must answer where no other names are given. Without one each connection says whom it
    /// asks for.
    pub server_name: Option<String>,
    /// One of them must be in the certificate: host names, addresses or URIs.
    pub subject_alt_names: Vec<String>,
    /// Protocols that are offered.
    pub alpn: Vec<String>,
}

/// Whom to believe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The roots of the system.
    System,
    /// These roots.
    Roots(Pem),
    /// Anybody, because the user says so (`insecureSkipVerify`).
    Anybody,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum OriginationError {
    /// A file is not there.
    #[error("cannot read {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file, or what was sent in its place, is not what it should be.
    #[error("{origin} holds no usable PEM")]
    Pem {
        /// Which.
        origin: String,
        /// Why.
        #[source]
        source: rustls_pem::Error,
    },
    /// The control plane was asked, and has not answered or knows no such secret.
    #[error("secret {0} has not come from the control plane, or is of another kind")]
    Awaited(String),
    /// Revocation lists cannot be used.
    #[error("{origin} holds no usable revocation list")]
    Revocation {
        /// Which.
        origin: String,
        /// Why.
        #[source]
        source: CrlError,
    },
    /// There is nobody to believe.
    #[error("there is no root certificate, so that no server can be believed")]
    NoRoots,
    /// Not a name that can be asked for.
    #[error("`{0}` is no server name")]
    Name(String),
    /// rustls does not take it.
    #[error("certificate and key are of no use")]
    Unusable(#[source] RustlsError),
    /// The handshake failed.
    #[error("TLS handshake failed: {0}")]
    Handshake(#[source] io::Error),
    /// The server is too slow.
    #[error("TLS handshake not finished within {0:?}")]
    Deadline(Duration),
}

/// A client of servers of one kind.
#[derive(Debug)]
pub struct Origination {
    config: OriginationConfig,
    loaded: Mutex<Option<Loaded>>,
}

#[derive(Clone, Debug)]
struct Loaded {
    client: Arc<ClientConfig>,
    /// When the files were changed, in the order of [`Origination::files`].
    changed: Vec<Option<SystemTime>>,
    looked: Instant,
}

impl Origination {
    /// Reads nothing yet.
    pub fn new(config: OriginationConfig) -> Self {
        Self {
            config,
            loaded: Mutex::new(None),
        }
    }

    /// What it was made from.
    pub fn config(&self) -> &OriginationConfig {
        &self.config
    }

    /// Shakes hands over a connection; `asked` is whom it is for, where the configuration does not say. Not cancel safe: dropping the future closes the connection.
    ///
    /// # Errors
    /// When a file is of no use, or the server is slow, not acceptable or does not accept us.
    pub async fn connect<IO: AsyncRead + AsyncWrite + Unpin>(
        self: &Arc<Self>,
        stream: IO,
        asked: Option<&str>,
        deadline: Duration,
    ) -> Result<OriginTls<IO>, OriginationError> {
        let client = self.client().await?;
        let name = self.config.server_name.as_deref().or(asked);
        let name = name.unwrap_or_default().to_owned();
        let server = ServerName::try_from(name.clone());
        let server = server.map_err(|_invalid| OriginationError::Name(name))?;
        let connecting = TlsConnector::from(client).connect(server, stream);
        match timeout(deadline, connecting).await {
            Ok(Ok(stream)) => Ok(OriginTls(stream)),
            Ok(Err(error)) => Err(OriginationError::Handshake(error)),
            Err(_elapsed) => Err(OriginationError::Deadline(deadline)),
        }
    }

    async fn client(self: &Arc<Self>) -> Result<Arc<ClientConfig>, OriginationError> {
        let known = self.loaded.lock().clone();
        if let Some(known) = &known
            && known.looked.elapsed() < LOOK_INTERVAL
        {
            return Ok(known.client.clone());
        }
        let this = self.clone();
        let load = move || {
            let changed = this.changed();
            match known {
                Some(known) if known.changed == changed => Ok((known.client, changed)),
                Some(_) | None => this.load().map(|client| (client, changed)),
            }
        };
        let loaded = tokio::task::spawn_blocking(load).await;
        let stopped = |_cut| {
            let source = io::Error::other("the process ends");
            OriginationError::Handshake(source)
        };
        let (client, changed) = loaded.map_err(stopped)??;
        *self.loaded.lock() = Some(Loaded {
            client: client.clone(),
            changed,
            looked: Instant::now(),
        });
        Ok(client)
    }

    fn changed(&self) -> Vec<Option<SystemTime>> {
        let when = |path: &Path| {
            fs::metadata(path)
                .and_then(|metadata| metadata.modified())
                .ok()
        };
        self.files().map(when).collect()
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        let roots = match &self.config.trust {
            Trust::Roots(roots) => Some(roots),
            Trust::System | Trust::Anybody => None,
        };
        let client = self.config.client.iter();
        let client = client.flat_map(|(chain, key)| [chain, key]);
        let all = roots.into_iter().chain(&self.config.revoked).chain(client);
        all.filter_map(Pem::file)
    }

    fn load(&self) -> Result<Arc<ClientConfig>, OriginationError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(OriginationError::Unusable)?;
        let authorities = match &self.config.trust {
            Trust::Anybody => None,
            Trust::Roots(roots) => Some(roots.certificates()?),
            Trust::System => Some(rustls_native_certs::load_native_certs().certs),
        };
        let issuers = self.issuers(authorities.as_deref().unwrap_or_default())?;
        let verifier = Verifier {
            roots: authorities.map(roots).transpose()?,
            issuers,
            names: self.config.subject_alt_names.clone(),
            provider,
        };
        let builder = builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut client = match &self.config.client {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder
                .with_client_auth_cert(chain.certificates()?, key.private_key()?)
                .map_err(OriginationError::Unusable)?,
        };
        let alpn = self.config.alpn.iter();
        client.alpn_protocols = alpn.map(|protocol| protocol.as_bytes().to_vec()).collect();
        Ok(Arc::new(client))
    }

    /// Whose certificates may be revoked.
    fn issuers(
        &self,
        authorities: &[CertificateDer<'_>],
    ) -> Result<Option<Issuers>, OriginationError> {
        let Some(lists) = &self.config.revoked else {
            return Ok(None);
        };
        let revocation = Revocation::of_lists(&lists.read()?);
        let revocation = revocation.map_err(|source| OriginationError::Revocation {
            origin: lists.origin(),
            source,
        })?;
        Ok(Some(Issuers::new(revocation, authorities)))
    }
}

/// A connection to a server that was verified, or that the user wants to be believed.
#[derive(Debug)]
pub struct OriginTls<IO>(TlsStream<IO>);

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for OriginTls<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for OriginTls<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The chain by webpki; then the server's name, or one of the names that the user gives.
#[derive(Debug)]
struct Verifier {
    /// None: anybody.
    roots: Option<RootCertStore>,
    issuers: Option<Issuers>,
    names: Vec<String>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        let Some(roots) = &self.roots else {
            return Ok(ServerCertVerified::assertion());
        };
        let leaf = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&leaf, roots, intermediates, now, algorithms)?;
        if self.names.is_empty() {
            verify_server_name(&leaf, server_name)?;
        } else if !self.names.iter().any(|name| bears(&leaf, end_entity, name)) {
            return Err(CertificateError::NotValidForName.into());
        }
        if let Some(issuers) = &self.issuers {
            issuers.check(Reporter::Source, end_entity, intermediates)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Whether a certificate is for a host, an address or a URI.
fn bears(leaf: &ParsedCertificate<'_>, der: &CertificateDer<'_>, name: &str) -> bool {
    if !name.contains("://") {
        return ServerName::try_from(name)
            .is_ok_and(|name| verify_server_name(leaf, &name).is_ok());
    }
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return false;
    };
    let extensions = certificate.extensions().iter();
    let mut names = extensions
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten();
    names.any(|known| matches!(known, GeneralName::URI(uri) if *uri == name))
}

#[cfg(test)]
mod tests;
