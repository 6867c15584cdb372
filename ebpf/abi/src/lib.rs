//! What the BPF programs (`ebpf/programs`) and their loader (`crates/capture`) say to each other: marks, ports, map keys
//! and values, sizes, names. Plain old data only; a change of any layout or meaning raises [`ABI_VERSION`], because
//! pinned maps outlive the process that made them.
#![no_std]
#![cfg_attr(
    feature = "user",
    expect(unsafe_code, reason = "aya::Pod is an unsafe marker trait")
)]

mod address;
mod counter;
mod flow;

pub use address::Address;
pub use counter::{NodeCounter, PodCounter};
pub use flow::{Enrolment, FlowKey, LocalKey, Node, Pod, SavedSysctl};

/// Raised with every change of a layout or meaning below. A loader refuses pins of another version. What is only added
/// (maps, flags, counters at the end) needs no other: older pins lack it, and older programs do not look at it.
pub const ABI_VERSION: u32 = 1;

/// Mark of every socket on the leg between application and proxy (C of the capture design); it selects the routing
/// table that delivers the application's connections to the proxy.
pub const CAPTURE_MARK: u32 = 0x1a5;
/// Mark of the proxy's own connections to the network (M); they are never captured. Istio's value.
pub const BYPASS_MARK: u32 = 0x539;
/// Mark of packets of a pod's guests (virtual machines or containers inside the pod, with a network stack of their own)
/// that are for the proxy. It selects the same table for what comes in by their interfaces. What the kernel answers by
/// itself bears it too and must not go the same way, so it is not [`CAPTURE_MARK`].
pub const GUEST_MARK: u32 = 0x1a6;

/// The port of DNS servers.
pub const DNS_PORT: u16 = 53;
/// The port that captured DNS datagrams carry between application and proxy. Istio's value.
pub const DNS_PROXY_PORT: u16 = 15053;
/// The port of HBONE. Istio's value.
pub const HBONE_PORT: u16 = 15008;

/// Slots of [`maps::SOCKETS`].
pub mod slot {
    /// The listener for captured outbound TCP.
    pub const OUTBOUND: u32 = 0;
    /// The listener for captured inbound TCP.
    pub const INBOUND: u32 = 1;
    /// The listener for HBONE tunnels.
    pub const HBONE: u32 = 2;
    /// The socket for captured DNS datagrams.
    pub const DNS_UDP: u32 = 3;
    /// The listener for captured DNS over TCP.
    pub const DNS_TCP: u32 = 4;
    /// How many there are.
    pub const COUNT: u32 = 5;
}

/// Flags of [`Enrolment`], read by the hooks on connect and on datagrams.
pub mod enrolment_flag {
    /// New TCP connections of the namespace go to the proxy.
    pub const TCP: u32 = 1;
    /// New DNS datagrams of the namespace go to the proxy.
    pub const DNS: u32 = 1 << 1;
    /// Answers from the proxy's DNS socket are shown as coming from port 53. Outlives [`DNS`] while a pod drains, so
    /// that a resolver's open socket keeps working.
    pub const DNS_ANSWERS: u32 = 1 << 2;
    /// The namespace has the routes that lead IPv4 to the proxy.
    pub const ROUTED_V4: u32 = 1 << 3;
    /// The namespace has the routes that lead IPv6 to the proxy.
    pub const ROUTED_V6: u32 = 1 << 4;
}

/// Flags of [`Pod`], read by the socket lookup of one pod.
pub mod pod_flag {
    /// Connections from the network to the pod go to the proxy.
    pub const INBOUND: u32 = 1;
    /// DNS has its own sockets.
    pub const DNS: u32 = 1 << 1;
    /// With no proxy, inbound connections reach the application directly instead of being refused.
    pub const INBOUND_FAIL_OPEN: u32 = 1 << 2;
    /// New connections of guests go to the proxy.
    pub const GUESTS: u32 = 1 << 3;
    /// The namespace has the routes that lead IPv4 of guests to the proxy.
    pub const GUESTS_ROUTED_V4: u32 = 1 << 4;
    /// The namespace has the routes that lead IPv6 of guests to the proxy.
    pub const GUESTS_ROUTED_V6: u32 = 1 << 5;
}

/// Names of the maps in the object, their sizes and what happens when one is full.
pub mod maps {
    /// Array of one [`Node`](crate::Node); pinned per node.
    pub const NODE: &str = "NODE";
    /// Hash of netns cookie to [`Enrolment`](crate::Enrolment); pinned per node. Full: the enrolment of one more pod fails.
    pub const ENROLLED: &str = "ENROLLED";
    /// Hash of [`LocalKey`](crate::LocalKey): the addresses of enrolled namespaces; pinned per node. Full: as `ENROLLED`.
    pub const LOCALS: &str = "LOCALS";
    /// Sockhash of netns cookie to the outbound listener; pinned per node. The kernel removes an entry with its socket,
    /// so that a missing entry means that no proxy listens. Full: as `ENROLLED`.
    pub const PROXIES: &str = "PROXIES";
    /// LRU hash of [`FlowKey`](crate::FlowKey): connections of the node itself that are being opened or are open; pinned
    /// per node. Full: the oldest entry goes, and a probe whose entry went before its SYN arrived is treated as any
    /// inbound connection.
    pub const PROBES: &str = "PROBES";
    /// Per-CPU array of [`NodeCounter`](crate::NodeCounter)s; pinned per node.
    pub const NODE_COUNTERS: &str = "NODE_COUNTERS";
    /// Array of one [`Pod`](crate::Pod); pinned per pod.
    pub const POD: &str = "POD";
    /// Hash of the [`Address`](crate::Address)es of one pod; pinned per pod. Full: enrolment fails.
    pub const ADDRESSES: &str = "ADDRESSES";
    /// Sockmap of the proxy's sockets for one pod, see [`slot`](crate::slot); pinned per pod. An empty slot refuses.
    pub const SOCKETS: &str = "SOCKETS";
    /// LRU hash of [`FlowKey`](crate::FlowKey): connections of the proxy to the application in the guise of the client,
    /// announced before connect; pinned per pod, read only where the kernel does not tell the interface (before 5.17).
    /// Full: the oldest goes, and that connection comes back to the proxy, which must refuse it as its own.
    pub const LOCAL_CONNECTS: &str = "LOCAL_CONNECTS";
    /// Per-CPU array of [`PodCounter`](crate::PodCounter)s; pinned per pod.
    pub const POD_COUNTERS: &str = "POD_COUNTERS";

    /// Sockmap of one: the listener for connections of the pod's guests; pinned per pod. Empty: they are refused.
    pub const GUEST_LISTENER: &str = "GUEST_LISTENER";
    /// Hash of the indexes of interfaces whose new connections are rerouted; pinned per pod. Full: those of one more
    /// interface are not.
    pub const GUEST_INTERFACES: &str = "GUEST_INTERFACES";
    /// LRU hash of [`FlowKey`](crate::FlowKey): connections of guests that went to the proxy, so that nothing of them is
    /// forwarded when the proxy dies; pinned per pod that has guests, of one entry elsewhere. Full: the oldest goes, and is
    /// put back when its socket is found.
    pub const GUEST_FLOWS: &str = "GUEST_FLOWS";

    /// Maps that a node has once.
    pub const OF_NODE: [&str; 6] = [NODE, ENROLLED, LOCALS, PROXIES, PROBES, NODE_COUNTERS];
    /// Maps that each pod has.
    pub const OF_POD: [&str; 7] = [
        POD,
        ADDRESSES,
        SOCKETS,
        LOCAL_CONNECTS,
        POD_COUNTERS,
        GUEST_LISTENER,
        GUEST_INTERFACES,
    ];

    /// Pods on a node: kubelet's default limit is 110, managed offers end at 250 to 500.
    pub const MAX_PODS: u32 = 1024;
    /// Addresses of a pod: one or two from the CNI, a few more with several networks.
    pub const MAX_ADDRESSES: u32 = 16;
    /// Room for an average of eight addresses on a completely full node; allocated entry by entry.
    pub const MAX_LOCALS: u32 = MAX_PODS * 8;
    /// Connections that the host namespace has open to anywhere: probes are short, but node agents keep connections.
    pub const MAX_PROBES: u32 = 16384;
    /// An announced connection lives for the round trip over loopback.
    pub const MAX_LOCAL_CONNECTS: u32 = 4096;
    /// Interfaces towards guests: one for each network of a virtual machine; a few more for containers in a pod.
    pub const MAX_GUEST_INTERFACES: u32 = 64;
    /// Live connections of the guests of one pod, and those that have just ended.
    pub const MAX_GUEST_FLOWS: u32 = 8192;
}

/// Names of the programs in the object.
pub mod programs {
    /// Marks IPv4 connections, diverts DNS; refuses with `ECONNREFUSED` when there is no proxy.
    pub const CONNECT4: &str = "connect4";
    /// As `connect4`, for IPv6.
    pub const CONNECT6: &str = "connect6";
    /// `connect4` for kernels before 5.18, where a refusal is `EPERM`.
    pub const CONNECT4_EPERM: &str = "connect4_eperm";
    /// `connect6` for kernels before 5.18, where a refusal is `EPERM`.
    pub const CONNECT6_EPERM: &str = "connect6_eperm";
    /// Diverts unconnected IPv4 DNS datagrams.
    pub const SENDMSG4: &str = "sendmsg4";
    /// Diverts unconnected IPv6 DNS datagrams.
    pub const SENDMSG6: &str = "sendmsg6";
    /// Shows the server's port on answers.
    pub const RECVMSG4: &str = "recvmsg4";
    /// Shows the server's port on answers.
    pub const RECVMSG6: &str = "recvmsg6";
    /// Shows the server's port as peer.
    pub const GETPEERNAME4: &str = "getpeername4";
    /// Shows the server's port as peer.
    pub const GETPEERNAME6: &str = "getpeername6";
    /// Notes connections that the node itself opens; spares those that applications accept from the proxy their pace.
    pub const PROBES: &str = "probes";
    /// Hands a pod's connections to the proxy's sockets.
    pub const STEER: &str = "steer";
    /// `steer` for kernels before 5.17, which do not tell the interface.
    pub const STEER_BEFORE_5_17: &str = "steer_before_5_17";
    /// Marks what a pod's guests send, on the interfaces that it comes in by.
    pub const REROUTE: &str = "reroute";
}
