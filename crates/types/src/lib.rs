//! The vocabulary of the mesh: addresses, names and identities as types that cannot be swapped by mistake.
//! Every other crate uses these; this one does no I/O and knows no wire format beyond the text forms.
#![warn(missing_docs)]

mod addr;
mod authority;
mod identity;
mod interface;
mod names;

pub use addr::{NetworkAddress, OrigDst, PeerAddr, canonical};
pub use authority::{AuthorityError, HboneAuthority};
pub use identity::{Identity, IdentityError, TrustDomain};
pub use interface::{InterfaceName, InterfaceNameError};
pub use names::{
    NamespacedName, NamespacedNameError, Network, ServiceKey, ServiceKeyError, Str, WorkloadName,
    WorkloadUid,
};

/// Name of the extension of a workload that is to be captured and is not yet. An extension, because the wire has no field
/// for it; who does not know it takes the workload for one outside of the mesh, as before.
pub const ENROLMENT_PENDING: &str = "leyline.io/enrolment-pending";

/// Name of the extension of a service whose clients stay with one endpoint (`sessionAffinity: ClientIP`); it holds a
/// `google.protobuf.Duration`, for how long.
pub const SESSION_AFFINITY: &str = "leyline.io/session-affinity";

/// Name of the extension of a workload whose peers may be of other trust domains than its own, and which may be of them
/// itself (MeshConfig's `trustDomainAliases`); it holds a `google.protobuf.ListValue` of their names.
pub const TRUST_DOMAIN_ALIASES: &str = "leyline.io/trust-domain-aliases";

/// Ports of the data plane inside a pod and of the process itself.
pub mod ports {
    /// Outbound capture, in each pod.
    pub const OUTBOUND: u16 = 15001;
    /// Inbound plaintext capture, in each pod.
    pub const INBOUND_PLAINTEXT: u16 = 15006;
    /// Inbound HBONE, in each pod.
    pub const HBONE: u16 = 15008;
    /// Captured DNS, in each pod.
    pub const DNS: u16 = 15053;
    /// SOCKS5, loopback of each pod, where it is wanted.
    pub const SOCKS5: u16 = 15080;
    /// Admin server, loopback of the node.
    pub const ADMIN: u16 = 15000;
    /// Prometheus metrics.
    pub const METRICS: u16 = 15020;
    /// Readiness.
    pub const READINESS: u16 = 15021;
}
