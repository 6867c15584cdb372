//! The sockets that a pod's proxy listens on, in the pod's namespace.

use std::{io, os::fd::AsFd};

use anyhow::Context;
use leyline_capture::PodSockets;
use leyline_net::{ListenOptions, NetNs, listen, sockopt};
use leyline_types::ports;
use tokio::net::TcpListener;

use super::dns::DnsListeners;
use crate::config::{Carries, PortUse, ProxyConfig};

/// The sockets of one pod, open in its namespace.
pub(crate) struct Listeners {
    /// None where only DNS is captured.
    pub(super) tcp: Option<TcpListeners>,
    /// What became of them; none where DNS is not captured.
    pub(super) dns: Option<io::Result<DnsListeners>>,
}

/// Those that take connections.
pub(super) struct TcpListeners {
    pub(super) outbound: TcpListener,
    pub(super) inbound: TcpListener,
    pub(super) hbone: TcpListener,
}

impl Listeners {
    /// Marks as facts/capture.md 2.2: what the application opened stays on loopback, what came from outside leaves again.
    /// Behind istio-cni's rules all are the proxy's (facts A4).
    pub(crate) fn open(netns: &NetNs, config: &ProxyConfig) -> anyhow::Result<Self> {
        let open = |port: u16, mark: u32| {
            let options = ListenOptions {
                mark: Some(mark),
                transparent: true,
                // A pod that is enrolled again listens while its earlier instance still drains.
                reuse_port: config.port_use == PortUse::Shared,
                loopback_only: false,
                keepalive: config.keepalive,
                families: config.families,
            };
            let listener = listen(netns, port, &options)
                .with_context(|| format!("cannot listen on port {port} in the pod"))?;
            if config.port_use == PortUse::Shared {
                sockopt::prefer_newest_listener(&listener)
                    .with_context(|| format!("cannot take port {port} over"))?;
            }
            anyhow::Ok(listener)
        };
        let tcp = match config.carries {
            Carries::Nothing => None,
            Carries::Connections => Some(TcpListeners {
                outbound: open(ports::OUTBOUND, config.application_mark())?,
                inbound: open(ports::INBOUND_PLAINTEXT, config.bypass_mark)?,
                hbone: open(ports::HBONE, config.bypass_mark)?,
            }),
        };
        Ok(Self {
            tcp,
            dns: config
                .dns
                .enabled
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
        })
    }
}
