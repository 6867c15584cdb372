//! What a tunnelled stream that arrived at a pod is for. Called by the node proxy once for each stream, on one snapshot.
//! The target is always an address of the pod and never one of our own listeners.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use leyline_types::{HboneAuthority, ServiceKey, Str, ports};

use crate::{service::Service, snapshot::Snapshot, workload::Workload};

/// Whether a port is one of our listeners in a pod, so that no connection may be forwarded to it.
pub fn is_proxy_port(port: u16) -> bool {
    matches!(
        port,
        ports::OUTBOUND | ports::INBOUND_PLAINTEXT | ports::HBONE
    )
}

/// Where an inbound connection goes.
#[derive(Clone, Debug)]
pub struct InboundTarget {
    /// The application.
    pub addr: SocketAddr,
    /// The service that was asked for by name, if one was.
    pub service: Option<Arc<Service>>,
}

/// Why an inbound connection goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InboundRefusal {
    /// The authority names an address that is not the pod's.
    #[error("ip mismatch: {asked} != {local}")]
    AddressMismatch {
        /// The address in the authority.
        asked: IpAddr,
        /// The pod's.
        local: IpAddr,
    },
    /// The authority names a host that is no service.
    #[error("unknown host {0}")]
    UnknownHost(Str),
    /// The service does not have the port, or the pod has no target for it.
    #[error("service {service} has no target for port {port} on this workload")]
    NoPort {
        /// The service.
        service: ServiceKey,
        /// The port asked for.
        port: u16,
    },
    /// It would come back to our own listeners.
    #[error("attempted recursive call to ourselves: port {0}")]
    ProxyPort(u16),
    /// The application wants connections in a tunnel of its own, which is not built yet.
    #[error("the workload has an application tunnel, which is not supported")]
    ApplicationTunnel,
}

impl InboundRefusal {
    /// A short name for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::AddressMismatch { .. } => "address_mismatch",
            Self::UnknownHost(_) => "unknown_host",
            Self::NoPort { .. } => "no_port",
            Self::ProxyPort(_) => "proxy_port",
            Self::ApplicationTunnel => "application_tunnel",
        }
    }

    /// Whether the peer sent a request that is wrong in itself (400), and not one that we cannot serve (503).
    pub fn is_bad_request(&self) -> bool {
        match self {
            Self::AddressMismatch { .. } => true,
            Self::UnknownHost(_)
            | Self::NoPort { .. }
            | Self::ProxyPort(_)
            | Self::ApplicationTunnel => false,
        }
    }
}

impl Snapshot {
    /// Decides what a tunnelled stream to a local workload is for. `local_ip` is the address that the tunnel came to.
    ///
    /// # Errors
    /// When the authority is not for this workload, or leads to no port of it.
    pub fn resolve_inbound(
        &self,
        local: &Workload,
        local_ip: IpAddr,
        authority: &HboneAuthority,
    ) -> Result<InboundTarget, InboundRefusal> {
        if local.application_tunnel.is_some() {
            return Err(InboundRefusal::ApplicationTunnel);
        }
        let local_ip = local_ip.to_canonical();
        let (port, service) = match authority {
            HboneAuthority::Address(addr) => {
                let asked = addr.ip().to_canonical();
                if asked != local_ip {
                    return Err(InboundRefusal::AddressMismatch {
                        asked,
                        local: local_ip,
                    });
                }
                (addr.port(), None)
            }
            HboneAuthority::Host { host, port } => {
                let (port, service) = self.resolve_host(local, host, *port)?;
                (port, Some(service))
            }
        };
        if is_proxy_port(port) {
            return Err(InboundRefusal::ProxyPort(port));
        }
        Ok(InboundTarget {
            addr: SocketAddr::new(local_ip, port),
            service,
        })
    }

    /// The port of the workload for a service and its port, and the service.
    fn resolve_host(
        &self,
        local: &Workload,
        host: &Str,
        port: u16,
    ) -> Result<(u16, Arc<Service>), InboundRefusal> {
        let service = self
            .service_by_host(host.as_str(), &local.name.namespace)
            .ok_or_else(|| InboundRefusal::UnknownHost(host.clone()))?;
        let key = service.key();
        let of_workload = local.services.get(&key);
        of_workload
            .and_then(|ports| ports.target(port))
            .or_else(|| service.ports.find(port)?.target)
            .map(|target| (target, Arc::clone(service)))
            .ok_or(InboundRefusal::NoPort { service: key, port })
    }
}

#[cfg(test)]
mod tests;
