//! What a tunnelled stream that arrived at a pod is for. Called by the node proxy once for each stream, on one snapshot.
//! The target is always a port of the pod and never one of our own listeners. Only a waypoint is asked for addresses
//! that are not its own: those that traffic reaches through it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use leyline_types::{HboneAuthority, Identity, NetworkAddress, ServiceKey, Str, ports};

use crate::{
    index::SmallSet,
    service::Service,
    snapshot::Snapshot,
    workload::{GatewayDestination, TunnelProtocol, Workload},
};

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
    /// The service that was asked for by name, or by its address where that leads through this workload.
    pub service: Option<Arc<Service>>,
    /// How the application is told what it was asked for.
    pub delivery: Delivery,
}

/// How a connection is handed to the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// As if the client had connected to it.
    Direct,
    /// In its application tunnel, without a word.
    Tunnel,
    /// In its application tunnel, after a PROXY header that names this destination.
    ProxyHeader(SocketAddr),
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
    /// The application wants to be told an address, and the service that was asked for by name has none here.
    #[error("service {0} has no address to tell the application")]
    NoAddress(ServiceKey),
}

impl InboundRefusal {
    /// A short name for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::AddressMismatch { .. } => "address_mismatch",
            Self::UnknownHost(_) => "unknown_host",
            Self::NoPort { .. } => "no_port",
            Self::ProxyPort(_) => "proxy_port",
            Self::NoAddress(_) => "no_address",
        }
    }

    /// Whether the peer sent a request that is wrong in itself (400), and not one that we cannot serve (503).
    pub fn is_bad_request(&self) -> bool {
        match self {
            Self::AddressMismatch { .. } => true,
            Self::UnknownHost(_)
            | Self::NoPort { .. }
            | Self::ProxyPort(_)
            | Self::NoAddress(_) => false,
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
        let local_ip = local_ip.to_canonical();
        let (port, asked, service) = match authority {
            HboneAuthority::Address(addr) => {
                let asked = addr.ip().to_canonical();
                let service = self.check_address(local, local_ip, asked)?;
                (addr.port(), Some(asked), service)
            }
            HboneAuthority::Host { host, port } => {
                let (port, service) = self.resolve_host(local, host, *port)?;
                (port, None, Some(service))
            }
        };
        let tunnel = local.application_tunnel;
        let delivery = match tunnel.map(|tunnel| tunnel.protocol) {
            None => Delivery::Direct,
            Some(TunnelProtocol::None) => Delivery::Tunnel,
            Some(TunnelProtocol::Proxy) => {
                let asked = asked.or_else(|| self.address_of(service.as_deref()?));
                let asked = asked.ok_or_else(|| match &service {
                    Some(service) => InboundRefusal::NoAddress(service.key()),
                    None => InboundRefusal::UnknownHost(authority.to_string().as_str().into()),
                })?;
                Delivery::ProxyHeader(SocketAddr::new(asked, authority.port()))
            }
        };
        let port = tunnel.and_then(|tunnel| tunnel.port).unwrap_or(port);
        if is_proxy_port(port) {
            return Err(InboundRefusal::ProxyPort(port));
        }
        Ok(InboundTarget {
            addr: SocketAddr::new(local_ip, port),
            service,
            delivery,
        })
    }

    /// Whether an address leads to this workload, and the service that it is of if it is not the workload's own.
    fn check_address(
        &self,
        local: &Workload,
        local_ip: IpAddr,
        asked: IpAddr,
    ) -> Result<Option<Arc<Service>>, InboundRefusal> {
        if asked == local_ip {
            return Ok(None);
        }
        let through_here = |service: &&Arc<Service>| {
            let weighted = service.weighted_waypoints.iter();
            let mut waypoints = weighted
                .map(|one| &one.destination)
                .chain(&service.waypoint);
            waypoints.any(|waypoint| self.is_instance(local, waypoint))
        };
        let service = self.services_at(asked).find(through_here).cloned();
        let workload_through_here = || {
            let mut waypoints = self
                .candidates(asked)
                .filter_map(|one| one.waypoint.as_ref());
            waypoints.any(|waypoint| self.is_instance(local, waypoint))
        };
        if service.is_some() || local.application_tunnel.is_some() || workload_through_here() {
            return Ok(service);
        }
        Err(InboundRefusal::AddressMismatch {
            asked,
            local: local_ip,
        })
    }

    /// All services of our network that have an address, whoever sees them.
    fn services_at(&self, ip: IpAddr) -> impl Iterator<Item = &Arc<Service>> {
        let network = self.networks.get(&self.local.network).into_iter();
        let keys = network.flat_map(move |network| {
            let exact = network.vips.get(&ip).into_iter();
            exact.chain(network.blocks.containing(ip))
        });
        keys.flat_map(SmallSet::iter)
            .filter_map(|key| self.services.get(key))
            .map(|known| &known.service)
    }

    /// The address of a service in our network, IPv4 first.
    fn address_of(&self, service: &Service) -> Option<IpAddr> {
        let own = service.vips.iter();
        let own = own.filter(|vip| vip.network == self.local.network);
        own.map(|vip| vip.address).min_by_key(IpAddr::is_ipv6)
    }

    /// Whether connections from an address come through the gateway of the network of this workload. Only then the
    /// source may be in another network, and what its proxy says of that is all that is known.
    pub fn is_from_network_gateway(&self, local: &Workload, ip: IpAddr) -> bool {
        let Some(gateway) = &local.network_gateway else {
            return false;
        };
        let of_gateway = |identity: &Identity| match &gateway.destination {
            GatewayDestination::Address(address) => self.is_identity_at(address, identity),
            GatewayDestination::Service(_) => false,
        };
        let is_address = match &gateway.destination {
            GatewayDestination::Address(address) => {
                address.network == self.local.network && address.address == ip
            }
            GatewayDestination::Service(_) => false,
        };
        is_address
            || self.candidates(ip).any(|workload| {
                self.is_instance(workload, gateway) || of_gateway(&workload.identity)
            })
    }

    fn is_identity_at(&self, address: &NetworkAddress, identity: &Identity) -> bool {
        let workload = self.workload_of(address);
        workload.is_some_and(|workload| workload.identity == *identity)
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
        let in_tunnel = || local.application_tunnel.map(|_tunnel| port);
        of_workload
            .and_then(|ports| ports.target(port))
            .or_else(|| service.ports.find(port)?.target)
            .or_else(in_tunnel)
            .map(|target| (target, Arc::clone(service)))
            .ok_or(InboundRefusal::NoPort { service: key, port })
    }
}

#[cfg(test)]
mod tests;
