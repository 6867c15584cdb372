//! Connections of workloads: who talks to whom, the access log and the `istio_tcp_*` metrics.
//!
//! A proxy opens one [`AccessLog`] per admitted connection and drops it at the end; what never became a connection is
//! reported by [`early_failure`]. Labels, keys and their order are Istio's (facts A19, A20).

mod access_log;
mod labels;
mod refusal;
mod series;
mod sockets;

use std::{net::SocketAddr, sync::Arc};

use leyline_types::{Identity, Str};

pub use access_log::AccessLog;
pub use labels::KeptLabels;
pub use refusal::{Refusal, early_failure};
pub(crate) use series::{append, expire};
pub use sockets::OpenSocket;
pub(crate) use sockets::describe;

/// Which end of a connection reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The proxy of the workload that opened it.
    Source,
    /// The proxy of the workload that accepts it.
    Destination,
}

impl Reporter {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// Whether the workload opened or accepted the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// It opened it.
    Outbound,
    /// It accepted it.
    Inbound,
}

impl Direction {
    /// The value in logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// How the connection is secured on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    /// Both ends have proven who they are.
    MutualTls,
    /// Anything else.
    Unknown,
}

impl Security {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::Unknown => "unknown",
        }
    }
}

/// How a connection gets from one end to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carrier {
    /// By a network, as Istio's connections do.
    #[default]
    Wire,
    /// Inside the process, which serves both ends.
    Node,
}

impl Carrier {
    /// The value in the log, where it is told.
    fn shown(self) -> Option<&'static str> {
        match self {
            Self::Wire => None,
            Self::Node => Some("node-local"),
        }
    }
}

/// Why a connection failed, as Istio abbreviates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResponseFlag {
    /// It did not fail, or for no reason that has a flag.
    None,
    /// Authorization denied it.
    Deny,
    /// The upstream could not be connected.
    Connect,
    /// TLS failed.
    TlsFailure,
    /// The HTTP/2 handshake of the tunnel failed.
    H2HandshakeFailure,
    /// The upstream did not answer on the tunnel port, probably because of a network policy.
    NetworkPolicy,
    /// There is no certificate for the workload.
    IdentityError,
    /// The peer's certificate, or an issuer of it, is revoked.
    CertRevoked,
}

impl ResponseFlag {
    const COUNT: usize = Self::ALL.len();
    /// In order of their index.
    const ALL: [Self; 8] = [
        Self::None,
        Self::Deny,
        Self::Connect,
        Self::TlsFailure,
        Self::H2HandshakeFailure,
        Self::NetworkPolicy,
        Self::IdentityError,
        Self::CertRevoked,
    ];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::None => 0,
            Self::Deny => 1,
            Self::Connect => 2,
            Self::TlsFailure => 3,
            Self::H2HandshakeFailure => 4,
            Self::NetworkPolicy => 5,
            Self::IdentityError => 6,
            Self::CertRevoked => 7,
        }
    }
}

/// What logs and labels say of one workload. Empty texts count as unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct WorkloadLabels {
    /// Name of the pod; the access log's `workload`.
    pub name: Str,
    /// Name of what owns the pod (a deployment); the metrics' `workload`.
    pub workload: Str,
    /// Its namespace.
    pub namespace: Str,
    /// Canonical service.
    pub canonical_service: Str,
    /// Canonical revision.
    pub canonical_revision: Str,
    /// Label `app`, or what stands for it.
    pub app: Str,
    /// Label `version`, or what stands for it.
    pub version: Str,
    /// Cluster it runs in.
    pub cluster: Str,
    /// Region of its node.
    pub region: Str,
    /// Zone of its node.
    pub zone: Str,
}

/// What logs and labels say of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServiceLabels {
    /// Fully qualified host name.
    pub hostname: Str,
    /// Name of the object.
    pub name: Str,
    /// Its namespace.
    pub namespace: Str,
}

/// One connection, as the reporting proxy knows it.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Which end reports.
    pub reporter: Reporter,
    /// Seen from the reporting workload.
    pub direction: Direction,
    /// On the wire between the two ends.
    pub security: Security,
    /// The workload that opened it, if known.
    pub source: Option<Arc<WorkloadLabels>>,
    /// The workload that accepts it, if known.
    pub destination: Option<Arc<WorkloadLabels>>,
    /// The service that was addressed, if any.
    pub service: Option<Arc<ServiceLabels>>,
    /// Proven, or expected, identity of the source.
    pub source_identity: Option<Identity>,
    /// Proven, or expected, identity of the destination.
    pub destination_identity: Option<Identity>,
    /// Where it came from.
    pub src_addr: SocketAddr,
    /// Where it went on the wire.
    pub dst_addr: SocketAddr,
    /// The target inside the tunnel, if there is one.
    pub hbone_addr: Option<String>,
}

#[cfg(test)]
mod tests;
