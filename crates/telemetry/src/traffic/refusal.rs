//! Connections that end before they are one: no workload, no certificate, no valid request.
//!
//! Istio counts these nowhere. Here each has a reason, a log line and a counter.

use std::{fmt::Display, net::SocketAddr};

use super::Direction;

/// Why a connection was refused before it was opened. A closed list: it becomes a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The pod's own workload is not known (yet).
    UnknownSource,
    /// The destination's workload is not known.
    UnknownDestination,
    /// The destination shall be captured and is not yet.
    EnrolmentPending,
    /// The waypoint that the destination asks for is not known.
    UnknownWaypoint,
    /// No endpoint of the service is healthy.
    NoHealthyUpstream,
    /// The host that the client named has no address.
    UnknownHost,
    /// A client of the SOCKS5 port that is not understood, or is too slow.
    Socks5,
    /// The socket does not tell where the connection was going.
    NoOriginalDestination,
    /// The connection goes to a port of the proxy itself.
    SelfCall,
    /// The workload has no certificate.
    NoCertificate,
    /// The peer sent no certificate.
    TlsNoPeerCertificate,
    /// The peer's certificate is of an unknown root.
    TlsUnknownRoot,
    /// The peer's certificate is not valid now.
    TlsExpired,
    /// The peer's certificate is on a revocation list.
    TlsRevoked,
    /// The peer is of another trust domain.
    TlsTrustDomain,
    /// The peer is not who it should be.
    TlsIdentity,
    /// The peer's certificate names no workload.
    TlsNotSpiffe,
    /// The peer does not speak our TLS version.
    TlsVersion,
    /// The peer does not speak HTTP/2.
    TlsAlpn,
    /// The handshake did not end in time.
    TlsDeadline,
    /// The TLS handshake failed otherwise.
    Tls,
    /// The tunnel's HTTP/2 handshake failed.
    Http2,
    /// A request in a tunnel that is not CONNECT.
    Method,
    /// A CONNECT with a malformed authority.
    Authority,
    /// A request in a tunnel with more headers than allowed.
    Headers,
    /// A CONNECT to an address that is not one of the workload's.
    WrongTarget,
    /// Too many connections are open.
    Limit,
    /// The proxy, or the pod's part of it, is shutting down.
    Draining,
}

impl Refusal {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownSource => "unknown_source",
            Self::UnknownDestination => "unknown_destination",
            Self::EnrolmentPending => "enrolment_pending",
            Self::UnknownWaypoint => "unknown_waypoint",
            Self::NoHealthyUpstream => "no_healthy_upstream",
            Self::UnknownHost => "unknown_host",
            Self::Socks5 => "socks5",
            Self::NoOriginalDestination => "no_original_destination",
            Self::SelfCall => "self_call",
            Self::NoCertificate => "no_certificate",
            Self::TlsNoPeerCertificate => "tls_no_peer_certificate",
            Self::TlsUnknownRoot => "tls_unknown_root",
            Self::TlsExpired => "tls_expired",
            Self::TlsRevoked => "tls_revoked",
            Self::TlsTrustDomain => "tls_trust_domain",
            Self::TlsIdentity => "tls_identity",
            Self::TlsNotSpiffe => "tls_not_spiffe",
            Self::TlsVersion => "tls_version",
            Self::TlsAlpn => "tls_alpn",
            Self::TlsDeadline => "tls_deadline",
            Self::Tls => "tls",
            Self::Http2 => "http2",
            Self::Method => "method",
            Self::Authority => "authority",
            Self::Headers => "headers",
            Self::WrongTarget => "wrong_target",
            Self::Limit => "limit",
            Self::Draining => "draining",
        }
    }
}

/// Logs and counts a connection that was refused before it was opened. It is in no traffic metric.
pub fn early_failure(
    direction: Direction,
    src: SocketAddr,
    dst: SocketAddr,
    reason: Refusal,
    error: impl Display,
) {
    let (direction, reason) = (direction.as_str(), reason.as_str());
    metrics::counter!(
        "leyline_connections_refused_total",
        "direction" => direction,
        "reason" => reason
    )
    .increment(1);
    tracing::event!(
        target: "access",
        parent: None,
        tracing::Level::WARN,
        src.addr = %src,
        dst.addr = %dst,
        direction,
        error = error.to_string(),
        reason,
        "connection failed"
    );
}
