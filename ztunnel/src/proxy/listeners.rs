//! The sockets that a pod's proxy listens on, in the pod's namespace.

use std::{
    io,
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::Context;
use leyline_capture::{Inbound, PodOptions, PodSockets};
use leyline_net::{
    ListenOptions, NetNs, Peers, listen, listen_on_loopback, release_ports, reserve_ports, sockopt,
};
use leyline_proto::istio::workload::zds as wire;
use leyline_telemetry::mesh;
use leyline_types::{InterfaceName, ports};
use tokio::net::TcpListener;
use tracing::{debug, warn};

use super::dns::DnsListeners;
use crate::config::{Carries, PortUse, ProxyConfig};

/// What of a pod is not captured, though the pod is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Exempt {
    /// `ambient.istio.io/dns-capture: "false"`: its queries go to its resolvers.
    pub(crate) dns: bool,
    /// `ambient.istio.io/bypass-inbound-capture: "true"`: what does not come in a tunnel goes to the application.
    pub(crate) inbound: bool,
}

impl Exempt {
    /// Nothing, unless it is said.
    fn from_wire(said: Option<wire::Exempt>) -> Self {
        let wire::Exempt { dns, inbound } = said.unwrap_or_default();
        Self { dns, inbound }
    }
}

/// What of a pod is captured, by its own word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) exempt: Exempt,
    /// `istio.io/reroute-virtual-interfaces`: what comes in by these is as the pod's own.
    pub(crate) guests: Vec<InterfaceName>,
}

impl Extent {
    /// What is no name of an interface is skipped: the control plane has told of it.
    pub(crate) fn from_wire(exempt: Option<wire::Exempt>, guests: &[String]) -> Self {
        let names = guests.iter().take(MAX_GUEST_INTERFACES);
        Self {
            exempt: Exempt::from_wire(exempt),
            guests: names.filter_map(|name| name.parse().ok()).collect(),
        }
    }

    /// For capture.
    pub(crate) fn options(&self) -> PodOptions {
        PodOptions {
            inbound: if self.exempt.inbound {
                Inbound::Direct
            } else {
                Inbound::Captured
            },
            guests: self.guests.clone(),
            ..PodOptions::default()
        }
    }
}

/// The sockets of one pod, open in its namespace.
pub(crate) struct Listeners {
    /// None where only DNS is captured.
    pub(super) tcp: Option<TcpListeners>,
    /// What became of them; none where DNS is not captured.
    pub(super) dns: Option<io::Result<DnsListeners>>,
    /// Likewise; one for each family.
    pub(super) socks5: Option<io::Result<Vec<TcpListener>>>,
}

/// Those that take connections.
pub(super) struct TcpListeners {
    pub(super) outbound: TcpListener,
    pub(super) inbound: TcpListener,
    pub(super) hbone: TcpListener,
    /// Where the pod has guests. Its port is of no meaning: capture hands connections to it.
    pub(super) guests: Option<TcpListener>,
}

/// A machine in a pod has an interface for each of its networks. Capture can take a few more.
const MAX_GUEST_INTERFACES: usize = 32;

/// What the proxy may listen on in a pod.
const PORTS: [u16; 5] = [
    ports::OUTBOUND,
    ports::INBOUND_PLAINTEXT,
    ports::HBONE,
    ports::DNS,
    ports::SOCKS5,
];

/// For the next time: what has one of the ports now, keeps it.
fn reserve(netns: &NetNs) {
    /// What keeps it from one pod, as settings of the kernel that are read-only, keeps it from all.
    static WARNED: AtomicBool = AtomicBool::new(false);
    let Err(error) = reserve_ports(netns, &PORTS) else {
        return;
    };
    mesh::ports_not_reserved();
    let text = "ports of the proxy are not reserved in the pod: a connection of the pod itself may take one, and the \
                pod then waits for it when it is enrolled again; is /proc/sys read-only?";
    if WARNED.swap(true, Ordering::Relaxed) {
        debug!(%error, "{text}");
    } else {
        warn!(%error, "{text} (said once, see leyline_ports_not_reserved_total)");
    }
}

/// Gives back what [`Listeners::open`] has taken from a pod that is not carried any more.
pub(crate) fn release(netns: &NetNs) {
    if let Err(error) = release_ports(netns, &PORTS) {
        debug!(%error, "ports of the proxy stay reserved in the pod");
    }
}

impl Listeners {
    /// Marks as facts/capture.md 2.2: what the application opened stays on loopback, what came from outside leaves again.
    /// Behind istio-cni's rules all are the proxy's (facts A4).
    pub(crate) fn open(
        netns: &NetNs,
        config: &ProxyConfig,
        extent: &Extent,
    ) -> anyhow::Result<Self> {
        reserve(netns);
        let open = |port: u16, options: ListenOptions| {
            let listener = listen(netns, port, &options)
                .with_context(|| format!("cannot listen on port {port} in the pod"))?;
            take_over(&listener, config)
                .with_context(|| format!("cannot take port {port} over"))?;
            anyhow::Ok(listener)
        };
        let tcp = match config.carries {
            Carries::Nothing => None,
            Carries::Connections => Some(TcpListeners {
                outbound: open(ports::OUTBOUND, for_application(config))?,
                inbound: open(ports::INBOUND_PLAINTEXT, for_peers(config))?,
                hbone: open(ports::HBONE, for_tunnels(config))?,
                guests: match extent.guests.as_slice() {
                    [] => None,
                    _ => Some(open_for_guests(netns, config)?),
                },
            }),
        };
        Ok(Self {
            socks5: (config.socks5 && tcp.is_some()).then(|| open_socks5(netns, config)),
            tcp,
            dns: (config.dns.enabled && !extent.exempt.dns)
                .then(|| DnsListeners::open(netns, config)),
        })
    }

    /// For capture, which takes connections or nothing.
    pub(crate) fn sockets(&self) -> Option<PodSockets<'_>> {
        let tcp = self.tcp.as_ref()?;
        let dns = self.dns.as_ref().and_then(|dns| dns.as_ref().ok());
        Some(PodSockets {
            outbound: tcp.outbound.as_fd(),
            inbound: tcp.inbound.as_fd(),
            hbone: tcp.hbone.as_fd(),
            dns_udp: dns.map(DnsListeners::udp_fd),
            dns_tcp: dns.map(DnsListeners::tcp_fd),
            guests: tcp.guests.as_ref().map(AsFd::as_fd),
        })
    }
}

/// Where the pod's own application connects.
fn for_application(config: &ProxyConfig) -> ListenOptions {
    ListenOptions {
        mark: Some(config.application_mark()),
        peers: Peers::Local,
        ..for_peers(config)
    }
}

/// Where other pods and nodes connect.
fn for_peers(config: &ProxyConfig) -> ListenOptions {
    ListenOptions {
        mark: Some(config.bypass_mark),
        transparent: true,
        // A pod that is enrolled again listens while its earlier instance still drains.
        reuse_port: config.port_use == PortUse::Shared,
        loopback_only: false,
        peers: Peers::Anywhere,
        keepalive: config.keepalive,
        families: config.families,
    }
}

/// Where other proxies connect.
fn for_tunnels(config: &ProxyConfig) -> ListenOptions {
    ListenOptions {
        peers: Peers::tunnels(config.pace_tunnels),
        ..for_peers(config)
    }
}

/// What is nested in the pod is as near as its application, and yet is answered by an interface.
fn open_for_guests(netns: &NetNs, config: &ProxyConfig) -> anyhow::Result<TcpListener> {
    let options = ListenOptions {
        peers: Peers::Local,
        reuse_port: false,
        ..for_peers(config)
    };
    listen(netns, 0, &options).context("cannot listen for guests in the pod")
}

/// Where the port is shared, new connections are for the newest of those that listen.
fn take_over(listener: &TcpListener, config: &ProxyConfig) -> io::Result<()> {
    match config.port_use {
        PortUse::Shared => sockopt::prefer_newest_listener(listener),
        PortUse::Exclusive => Ok(()),
    }
}

fn open_socks5(netns: &NetNs, config: &ProxyConfig) -> io::Result<Vec<TcpListener>> {
    let options = ListenOptions {
        transparent: false,
        ..for_application(config)
    };
    let listeners = listen_on_loopback(netns, ports::SOCKS5, &options)?;
    for listener in &listeners {
        take_over(listener, config)?;
    }
    Ok(listeners)
}
