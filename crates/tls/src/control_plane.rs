//! The channel to the control plane (xDS and CA): gRPC over TLS, credentials on each call. Roots and tokens that live in
//! files are read when they are used, so that a rotation needs no restart.

mod roots;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    DigitallySignedStruct, Error as RustlsError, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{
        CertificateDer, InvalidDnsNameError, ServerName, UnixTime,
        pem::{self, PemObject},
    },
    server::ParsedCertificate,
};
use tonic::{
    Request, Status,
    metadata::{Ascii, AsciiMetadataKey, AsciiMetadataValue, MetadataValue},
    service::Interceptor,
    transport::{Channel, ClientTlsConfig, Endpoint},
};

use crate::{
    install_crypto_provider,
    verify::{algorithms, verify_server_chain},
};

pub use roots::RootWatcher;

/// As Istio's proxies: a control plane that does not answer by then is tried at another address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A TLS handshake is two round trips and a signature.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A control plane that vanished without FIN is noticed after the two together.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Keeps entries of firewalls and connection trackers alive while the pings above are not seen as traffic.
const TCP_KEEPALIVE: Duration = Duration::from_secs(300);
/// Root bundles and tokens are small; a larger file is the wrong one.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Where the control plane is and how both sides prove who they are.
#[derive(Clone, Debug)]
pub struct ControlPlaneConfig {
    /// `https://host:port`; `https://` may be left out. An empty address is refused.
    pub address: String,
    /// What its certificate has to be signed by.
    pub root: RootSource,
    /// Another DNS name that its certificate may carry instead of the host of the address.
    pub alt_hostname: Option<String>,
    /// Our credential.
    pub token: TokenSource,
    /// Sent as `clusterid`; says which cluster the token belongs to.
    pub cluster_id: String,
    /// Further headers of each call.
    pub headers: Vec<(String, String)>,
}

/// Where the roots of the control plane come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootSource {
    /// A PEM file, read at each connection.
    File(PathBuf),
    /// PEM text.
    Pem(String),
    /// The trust store of the operating system.
    System,
}

/// Where our token comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// A file, read at each call.
    File(PathBuf),
    /// A fixed token.
    Static(String),
    /// Calls carry no token.
    None,
}

/// Why no channel could be made.
#[derive(Debug, thiserror::Error)]
pub enum ControlPlaneError {
    /// The address is not one.
    #[error("`{address}` is not a control plane address, use https://host:port: {why}")]
    Address {
        /// The address.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// The alternative name is not a DNS name.
    #[error("`{name}` is not a DNS name: {source}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        source: InvalidDnsNameError,
    },
    /// The roots cannot be used.
    #[error(transparent)]
    Root(#[from] RootError),
    /// A header cannot be sent.
    #[error("`{0}` is not a header that can be sent, check its name and value")]
    Header(String),
    /// The channel does not accept the configuration.
    #[error("control plane channel: {0}")]
    Channel(#[from] tonic::transport::Error),
}

/// Why roots could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The file cannot be read.
    #[error("cannot read root file {path}: {source}", path = .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The text is not PEM.
    #[error("root certificates are not PEM: {0}")]
    Pem(#[source] pem::Error),
    /// There is no certificate to be found.
    #[error("no usable root certificate in {0}")]
    Empty(String),
}

/// A channel that connects when it is first used, and again when the connection is lost. Needs a tokio runtime.
///
/// # Errors
/// When the address, the alternative name or literal roots are malformed. A missing root file is not an error yet.
pub fn channel(config: &ControlPlaneConfig) -> Result<Channel, ControlPlaneError> {
    install_crypto_provider();
    let (uri, host) = address(&config.address)?;
    if let RootSource::Pem(_) = &config.root {
        config.root.load()?;
    }
    let verifier = ControlPlaneVerifier {
        root: config.root.clone(),
        alternative: alternative(config.alt_hostname.as_deref())?,
    };
    let tls = ClientTlsConfig::new()
        .domain_name(host)
        .timeout(HANDSHAKE_TIMEOUT);
    let endpoint = Endpoint::from_shared(uri)?
        .tls_config_with_verifier(tls, Arc::new(verifier))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_keepalive(Some(TCP_KEEPALIVE))
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_lazy())
}

impl RootSource {
    /// Reads a setting as Istio does: `SYSTEM`, PEM text, or the path of a file.
    pub fn from_setting(setting: &str) -> Self {
        if setting == "SYSTEM" {
            Self::System
        } else if setting.contains("-----BEGIN") {
            Self::Pem(setting.to_owned())
        } else {
            // Not there yet is normal at start; it is looked for again at each connection.
            Self::File(setting.into())
        }
    }

    fn load(&self) -> Result<RootCertStore, RootError> {
        let (certificates, place) = match self {
            Self::File(path) => {
                let text = read_small(path).map_err(|source| RootError::Read {
                    path: path.clone(),
                    source,
                })?;
                (parse_roots(&text)?, path.display().to_string())
            }
            Self::Pem(text) => (parse_roots(text)?, "the given text".to_owned()),
            Self::System => {
                let found = rustls_native_certs::load_native_certs();
                (found.certs, "the system's trust store".to_owned())
            }
        };
        let mut store = RootCertStore::empty();
        match store.add_parsable_certificates(certificates) {
            (0, _) => Err(RootError::Empty(place)),
            _ => Ok(store),
        }
    }
}

impl TokenSource {
    /// Reads a setting as Istio does: a path, or the token itself. Empty is no token.
    pub fn from_setting(setting: &str) -> Self {
        match setting {
            "" => Self::None,
            // A JWT is base64url with dots, so that a slash tells a path, also one that does not exist yet.
            path if path.contains('/') || Path::new(path).exists() => Self::File(path.into()),
            token => Self::Static(token.to_owned()),
        }
    }

    /// A status of our own says "unavailable": "unauthenticated" is what a server says about a token that it got.
    fn read(&self) -> Result<Option<String>, Status> {
        match self {
            Self::File(path) => match read_small(path) {
                Ok(text) => Ok(Some(text.trim().to_owned())),
                Err(error) => Err(Status::unavailable(format!(
                    "cannot read token file {}: {error}",
                    path.display()
                ))),
            },
            Self::Static(token) => Ok(Some(token.clone())),
            Self::None => Ok(None),
        }
    }
}

impl fmt::Debug for TokenSource {
    /// Never shows a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Static(_) => f.write_str("Static(..)"),
            Self::None => f.write_str("None"),
        }
    }
}

/// Puts the token, the cluster and further headers on each call.
#[derive(Clone)]
pub struct AuthInterceptor {
    token: TokenSource,
    headers: Arc<[(AsciiMetadataKey, AsciiMetadataValue)]>,
}

impl AuthInterceptor {
    /// Prepares the headers.
    ///
    /// # Errors
    /// When a header has a name or a value that HTTP does not allow.
    pub fn new(config: &ControlPlaneConfig) -> Result<Self, ControlPlaneError> {
        let cluster = ("clusterid".to_owned(), config.cluster_id.clone());
        let headers = config
            .headers
            .iter()
            .chain([&cluster])
            .map(|(name, value)| {
                let invalid = || ControlPlaneError::Header(name.clone());
                let key = name.to_lowercase().parse().ok().ok_or_else(invalid)?;
                let value = value.parse().ok().ok_or_else(invalid)?;
                Ok((key, value))
            })
            .collect::<Result<_, ControlPlaneError>>()?;
        Ok(Self {
            token: config.token.clone(),
            headers,
        })
    }
}

impl Interceptor for AuthInterceptor {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        for (key, value) in self.headers.iter() {
            request.metadata_mut().insert(key.clone(), value.clone());
        }
        if let Some(token) = self.token.read()? {
            let mut value: MetadataValue<Ascii> =
                format!("Bearer {token}").parse().map_err(|_invalid| {
                    Status::unavailable("the token is not text that a header can carry")
                })?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// Judges the control plane's certificate: signed by the configured roots as they are now, for the host or its
/// alternative name.
#[derive(Debug)]
struct ControlPlaneVerifier {
    root: RootSource,
    alternative: Option<ServerName<'static>>,
}

impl ServerCertVerifier for ControlPlaneVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        // A small file once per connection to the control plane: not worth leaving the task for.
        let roots = self
            .root
            .load()
            .map_err(|error| RustlsError::General(error.to_string()))?;
        verify_server_chain(end_entity, intermediates, &roots, now)?;
        let leaf = ParsedCertificate::try_from(end_entity)?;
        let named = verify_server_name(&leaf, server_name);
        match &self.alternative {
            Some(name) if verify_server_name(&leaf, name).is_ok() => {}
            _ => named?,
        }
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

/// The URI to connect to and the name to find in the certificate.
fn address(address: &str) -> Result<(String, String), ControlPlaneError> {
    let invalid = |why: &str| ControlPlaneError::Address {
        address: address.to_owned(),
        why: why.to_owned(),
    };
    let text = match address.split_once("://") {
        Some(("https", _)) => address.to_owned(),
        Some((scheme, _)) => return Err(invalid(&format!("scheme {scheme} is not https"))),
        None => format!("https://{address}"),
    };
    let uri: tonic::codegen::http::Uri = text.parse().map_err(|_invalid| invalid("not a URI"))?;
    let host = uri.host().filter(|host| !host.is_empty());
    let host = host.ok_or_else(|| invalid("no host"))?;
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    Ok((text, host))
}

fn alternative(name: Option<&str>) -> Result<Option<ServerName<'static>>, ControlPlaneError> {
    let Some(name) = name else { return Ok(None) };
    match ServerName::try_from(name.to_owned()) {
        Ok(parsed) => Ok(Some(parsed)),
        Err(source) => Err(ControlPlaneError::Name {
            name: name.to_owned(),
            source,
        }),
    }
}

fn parse_roots(text: &str) -> Result<Vec<CertificateDer<'static>>, RootError> {
    CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(RootError::Pem)
}

fn read_small(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > MAX_FILE_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "the file is larger than 1 MiB",
        ));
    }
    fs::read_to_string(path)
}

#[cfg(test)]
mod tests;
