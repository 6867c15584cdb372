//! Why a handshake failed, as closed enums: what we refused, and what the peer refused about us.
//! Callers put [`TlsError::reason`] into metrics and the text into the log.

use std::{io, time::Duration};

use leyline_types::{Identity, TrustDomain};
use rustls::{AlertDescription, CertificateError, Error as RustlsError, PeerIncompatible};

use crate::verify::PeerNameError;

/// Why a handshake did not end in an authenticated stream.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The peer was too slow.
    #[error("TLS handshake not finished within {0:?}")]
    Deadline(Duration),
    /// The peer sent no certificate.
    #[error("peer sent no certificate")]
    NoCertificate,
    /// The peer's chain does not end in one of our roots.
    #[error("peer certificate is not signed by a root of this mesh")]
    UnknownRoot,
    /// The peer's certificate or an issuer of it is past its end.
    #[error("peer certificate has expired")]
    Expired,
    /// The peer's certificate or an issuer of it is not valid yet.
    #[error("peer certificate is not valid yet, check the clocks")]
    NotYetValid,
    /// The peer's certificate or an issuer of it is on a revocation list.
    #[error("peer certificate has been revoked")]
    Revoked,
    /// The peer's certificate has been made for something else.
    #[error("peer certificate is not meant for this side of TLS (extended key usage)")]
    Purpose,
    /// The peer's certificate cannot be used for another reason.
    #[error("peer certificate is unusable: {0}")]
    BadCertificate(#[source] RustlsError),
    /// The peer's certificate names no workload.
    #[error("peer certificate names no workload: {0}")]
    NotSpiffe(String),
    /// The peer belongs to another trust domain.
    #[error("peer {got} is not of trust domain {want}")]
    TrustDomain {
        /// Who the peer is.
        got: Identity,
        /// Our trust domain.
        want: TrustDomain,
    },
    /// The peer is a workload of the mesh, but not the one we called.
    #[error("peer is {got}, expected one of [{}]", list(.want))]
    Identity {
        /// Who the peer is.
        got: Identity,
        /// Who it had to be.
        want: Vec<Identity>,
    },
    /// The peer does not speak TLS 1.3.
    #[error("peer does not speak TLS 1.3")]
    Version,
    /// No cipher suite, group or signature scheme in common.
    #[error("no TLS parameters in common with the peer: {0}")]
    Parameters(#[source] RustlsError),
    /// The peer did not agree to HTTP/2.
    #[error("peer did not negotiate HTTP/2 (ALPN h2)")]
    Alpn,
    /// What the peer sent is not TLS.
    #[error("peer does not speak TLS or sent a malformed message: {0}")]
    Malformed(#[source] RustlsError),
    /// The peer broke the protocol in another way.
    #[error("TLS protocol error: {0}")]
    Protocol(#[source] RustlsError),
    /// The peer refused us and said why.
    #[error("peer refused us: {0}")]
    Refused(Refusal),
    /// The peer went away in the middle.
    #[error("peer closed the connection during the TLS handshake")]
    Closed,
    /// The socket failed.
    #[error("socket failed during the TLS handshake: {0}")]
    Io(#[source] io::Error),
}

/// What a peer said when it refused us (the alerts of RFC 8446 section 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// It does not know the root of our certificate.
    #[error("it does not trust the root of our certificate")]
    UnknownRoot,
    /// Our certificate is not valid now by its clock.
    #[error("our certificate is expired or not valid yet by its clock")]
    Expired,
    /// Our certificate is revoked.
    #[error("our certificate is revoked")]
    Revoked,
    /// It wants a certificate.
    #[error("it wants a certificate from us")]
    CertificateRequired,
    /// It does not accept the identity or another property of our certificate.
    #[error("it does not accept our certificate or identity")]
    Certificate,
    /// It does not speak TLS 1.3.
    #[error("it does not accept our TLS version")]
    Version,
    /// It does not speak HTTP/2.
    #[error("it does not accept HTTP/2 (ALPN)")]
    Alpn,
    /// No parameters in common.
    #[error("it has no TLS parameters in common with us")]
    Parameters,
    /// Any other alert, by number.
    #[error("alert {0}")]
    Other(u8),
}

impl TlsError {
    /// A short fixed name, for a metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Deadline(_) => "deadline",
            Self::NoCertificate => "no_certificate",
            Self::UnknownRoot => "unknown_root",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Revoked => "revoked",
            Self::Purpose => "purpose",
            Self::BadCertificate(_) => "bad_certificate",
            Self::NotSpiffe(_) => "not_spiffe",
            Self::TrustDomain { .. } => "trust_domain",
            Self::Identity { .. } => "identity",
            Self::Version => "version",
            Self::Parameters(_) => "parameters",
            Self::Alpn => "alpn",
            Self::Malformed(_) => "malformed",
            Self::Protocol(_) => "protocol",
            Self::Refused(refusal) => refusal.reason(),
            Self::Closed => "closed",
            Self::Io(_) => "io",
        }
    }

    /// Whether the peer has been told why by an alert of ours.
    pub(crate) fn was_told(&self) -> bool {
        match self {
            Self::NoCertificate
            | Self::UnknownRoot
            | Self::Expired
            | Self::NotYetValid
            | Self::Revoked
            | Self::Purpose
            | Self::BadCertificate(_)
            | Self::NotSpiffe(_)
            | Self::TrustDomain { .. }
            | Self::Identity { .. }
            | Self::Version
            | Self::Parameters(_)
            | Self::Alpn
            | Self::Malformed(_)
            | Self::Protocol(_) => true,
            Self::Deadline(_) | Self::Refused(_) | Self::Closed | Self::Io(_) => false,
        }
    }

    /// What a failed handshake future returned.
    pub(crate) fn from_handshake(error: io::Error) -> Self {
        if let Some(tls) = error
            .get_ref()
            .and_then(|e| e.downcast_ref::<RustlsError>())
        {
            return Self::from_rustls(tls.clone());
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Io(error),
        }
    }

    fn from_rustls(error: RustlsError) -> Self {
        match error {
            RustlsError::InvalidCertificate(certificate) => Self::from_certificate(certificate),
            RustlsError::NoCertificatesPresented => Self::NoCertificate,
            RustlsError::AlertReceived(alert) => Self::Refused(Refusal::from_alert(alert)),
            RustlsError::NoApplicationProtocol => Self::Alpn,
            RustlsError::PeerIncompatible(
                PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled,
            ) => Self::Version,
            RustlsError::PeerIncompatible(_) => Self::Parameters(error),
            RustlsError::InvalidMessage(_)
            | RustlsError::InappropriateMessage { .. }
            | RustlsError::PeerSentOversizedRecord => Self::Malformed(error),
            _ => Self::Protocol(error),
        }
    }

    fn from_certificate(error: CertificateError) -> Self {
        match error {
            CertificateError::UnknownIssuer => Self::UnknownRoot,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotYetValid
            }
            CertificateError::Revoked => Self::Revoked,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Self::Purpose
            }
            CertificateError::Other(ref other) => match other.0.downcast_ref::<PeerNameError>() {
                Some(name) => name.clone().into(),
                None => Self::BadCertificate(RustlsError::InvalidCertificate(error)),
            },
            _ => Self::BadCertificate(RustlsError::InvalidCertificate(error)),
        }
    }
}

impl From<PeerNameError> for TlsError {
    fn from(error: PeerNameError) -> Self {
        match error {
            PeerNameError::NotSpiffe(why) => Self::NotSpiffe(why.to_string()),
            PeerNameError::TrustDomain { got, want } => Self::TrustDomain { got, want },
            PeerNameError::Identity { got, want } => Self::Identity { got, want },
        }
    }
}

impl Refusal {
    /// A short fixed name, for a metric label.
    pub fn reason(self) -> &'static str {
        match self {
            Self::UnknownRoot => "refused_unknown_root",
            Self::Expired => "refused_expired",
            Self::Revoked => "refused_revoked",
            Self::CertificateRequired => "refused_no_certificate",
            Self::Certificate => "refused_certificate",
            Self::Version => "refused_version",
            Self::Alpn => "refused_alpn",
            Self::Parameters => "refused_parameters",
            Self::Other(_) => "refused_other",
        }
    }

    /// The refusal inside an error of an established stream, if that is what it was. In TLS 1.3 a server judges our
    /// certificate only after our side of the handshake has ended, so that its alert meets the first read.
    pub(crate) fn in_io(error: &io::Error) -> Option<Self> {
        match error.get_ref()?.downcast_ref::<RustlsError>()? {
            RustlsError::AlertReceived(alert) => Some(Self::from_alert(*alert)),
            _ => None,
        }
    }

    fn from_alert(alert: AlertDescription) -> Self {
        match alert {
            AlertDescription::UnknownCA => Self::UnknownRoot,
            AlertDescription::CertificateExpired => Self::Expired,
            AlertDescription::CertificateRevoked => Self::Revoked,
            AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
                Self::CertificateRequired
            }
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError => Self::Certificate,
            AlertDescription::ProtocolVersion => Self::Version,
            AlertDescription::NoApplicationProtocol => Self::Alpn,
            AlertDescription::HandshakeFailure
            | AlertDescription::InsufficientSecurity
            | AlertDescription::IllegalParameter
            | AlertDescription::MissingExtension => Self::Parameters,
            other => Self::Other(other.into()),
        }
    }
}

fn list(identities: &[Identity]) -> String {
    let texts: Vec<String> = identities.iter().map(ToString::to_string).collect();
    texts.join(", ")
}
