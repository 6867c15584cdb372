//! What the caller decides.

use std::{os::fd::BorrowedFd, path::PathBuf};

use leyline_ebpf_abi::{BYPASS_MARK, CAPTURE_MARK};
use leyline_types::InterfaceName;

/// Settings of a node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Names the directory of pins, so that several meshes or test nodes share a machine. 1 to 64 of `[A-Za-z0-9_-]`.
    pub instance: String,
    /// A BPF file system; one is mounted there when none is. Default `/sys/fs/bpf`.
    pub bpffs: PathBuf,
    /// Root of the cgroup2 hierarchy; `None` finds or mounts it. Only the true root sees every pod.
    pub cgroup: Option<PathBuf>,
    /// Mark of sockets between application and proxy. Default [`CAPTURE_MARK`].
    pub capture_mark: u32,
    /// Mark of the proxy's own sockets towards the network. Default [`BYPASS_MARK`].
    pub bypass_mark: u32,
    /// Whose connections to captured pods are left alone.
    pub host_probes: HostProbes,
    /// Which variant of the socket lookup is used.
    pub steer: SteerProgram,
}

impl NodeConfig {
    /// Defaults for an instance.
    pub fn new(instance: impl Into<String>) -> Self {
        Self {
            instance: instance.into(),
            bpffs: PathBuf::from("/sys/fs/bpf"),
            cgroup: None,
            capture_mark: CAPTURE_MARK,
            bypass_mark: BYPASS_MARK,
            host_probes: HostProbes::OfThisProcess,
            steer: SteerProgram::ByKernel,
        }
    }
}

/// Whose connections to captured pods are probes of the node, and so reach the application directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostProbes {
    /// Of the network namespace in which this process runs: the node's.
    OfThisProcess,
    /// Of the namespace with this cookie.
    OfNamespace(u64),
    /// Nobody's.
    Off,
}

/// Variants of the socket lookup program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SteerProgram {
    /// The best that this kernel accepts.
    ByKernel,
    /// The variant for kernels before 5.17, which wants [`PodCapture::announce`](crate::PodCapture::announce).
    Before5_17,
}

/// Sockets that the caller opened inside the pod's namespace and keeps open as long as the pod is captured. Port numbers
/// are labels only: what arrives is taken by the map, so a second process may listen on others while it takes over.
///
/// All are `AF_INET6` with `IPV6_V6ONLY=0` (one socket serves IPv4 too; `AF_INET` where IPv6 is off) and
/// `IP_TRANSPARENT` + `IPV6_TRANSPARENT`, set before bind: without it the answer to an IPv4 SYN for a foreign address is
/// not sent. The local address of an accepted connection is the original destination. Further, per socket:
///
/// | socket | `SO_MARK` | why |
/// |---|---|---|
/// | `outbound`, `dns_tcp`, `dns_udp` | [`CAPTURE_MARK`] | accepted sockets inherit it, and all packets between proxy and application must carry it, or they leave by the network |
/// | `inbound`, `hbone`, `guests` | [`BYPASS_MARK`] | answers must leave by the network, or to the guest |
///
/// A guest's datagram comes to `dns_udp` with port 53, and its answer must leave from there, with [`BYPASS_MARK`].
///
/// `dns_udp` needs `IP_PKTINFO`, `IPV6_RECVPKTINFO`, `IP_RECVORIGDSTADDR`, `IPV6_RECVORIGDSTADDR`, and answers with the
/// original server as source by `IPV6_PKTINFO`. Connections of the proxy: towards the network `SO_MARK` =
/// [`BYPASS_MARK`] before connect; towards the pod's own application `SO_MARK` = [`CAPTURE_MARK`], `SO_BINDTODEVICE` =
/// `lo`, `IP_TRANSPARENT` or `IPV6_TRANSPARENT`, `SO_REUSEADDR`, bound to the client's address and a port of 1024..32768.
#[derive(Clone, Copy, Debug)]
pub struct PodSockets<'a> {
    /// Listener for what the application sends (15001).
    pub outbound: BorrowedFd<'a>,
    /// Listener for what the network sends (15006).
    pub inbound: BorrowedFd<'a>,
    /// Listener for tunnels (15008).
    pub hbone: BorrowedFd<'a>,
    /// Socket for DNS datagrams (15053). DNS is captured when both DNS sockets are given.
    pub dns_udp: Option<BorrowedFd<'a>>,
    /// Listener for DNS over TCP (15053).
    pub dns_tcp: Option<BorrowedFd<'a>>,
    /// Listener for what the pod's guests send, DNS over TCP included. Without it they are not captured.
    pub guests: Option<BorrowedFd<'a>>,
}

/// Settings of one pod.
#[derive(Clone, Debug, Default)]
pub struct PodOptions {
    /// Who takes inbound connections that do not come in a tunnel.
    pub inbound: Inbound,
    /// What inbound connections meet while no proxy runs.
    pub when_down: WhenDown,
    /// Interfaces behind which there are guests: what comes in by them is as the pod's own. They take effect with
    /// [`PodCapture::reroute`](crate::PodCapture::reroute).
    pub guests: Vec<InterfaceName>,
}

/// Who takes inbound connections that do not come in a tunnel. Tunnels are the proxy's in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Inbound {
    /// The proxy.
    #[default]
    Captured,
    /// The application. Tunnels then come to the listener of [`PodSockets::hbone`] by its port, not by the map.
    Direct,
}

/// What inbound connections meet while no proxy runs. Outbound connections are always refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenDown {
    /// They are refused.
    #[default]
    Refuse,
    /// They reach the application, unencrypted and unauthorized.
    InboundDirect,
}
