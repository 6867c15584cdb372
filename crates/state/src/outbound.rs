//! Where a captured outbound connection goes. Called by the node proxy once for each connection, on one snapshot.
//!
//! An enrolled destination is reached over HBONE or not at all, and a waypoint or network gateway is never left out:
//! what this version cannot do is refused with its own reason.

use std::{net::SocketAddr, sync::Arc};

use leyline_types::{HboneAuthority, Identity, Network, OrigDst, ServiceKey, ports};
use rand::Rng;

use crate::{
    balance::{self, Unusable},
    inbound::is_proxy_port,
    service::{Mode, Service},
    snapshot::{ServiceState, Snapshot},
    workload::{Gateway, Protocol, Workload},
};

/// The decision on an outbound connection.
#[derive(Clone, Debug)]
pub enum OutboundRoute {
    /// Through a tunnel to an enrolled workload.
    Hbone(HboneRoute),
    /// In plaintext to a workload that is not enrolled.
    Tcp {
        /// Where to connect.
        target: SocketAddr,
        /// The workload there.
        workload: Arc<Workload>,
        /// The service that was asked for, if one was.
        service: Option<Arc<Service>>,
    },
    /// In plaintext to where the client wanted, as nobody in the mesh is there.
    Passthrough {
        /// The original destination.
        target: SocketAddr,
        /// The service that was asked for, if one was.
        service: Option<Arc<Service>>,
    },
    /// Nowhere.
    Refused(OutboundRefusal),
}

/// A route through a tunnel.
#[derive(Clone, Debug)]
pub struct HboneRoute {
    /// Where the tunnel ends: the workload's address and the HBONE port.
    pub tunnel: SocketAddr,
    /// What to ask for in the tunnel.
    pub authority: HboneAuthority,
    /// Who may be at its end, sorted: one of these identities exactly.
    pub expected: Arc<[Identity]>,
    /// The workload at its end.
    pub workload: Arc<Workload>,
    /// The service that was asked for, if one was.
    pub service: Option<Arc<Service>>,
}

/// Why an outbound connection goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutboundRefusal {
    /// It would come back to our own listeners.
    #[error("attempted recursive call to ourselves: {0}")]
    SelfCall(SocketAddr),
    /// The destination may be in the mesh: the control plane has not told everything once.
    #[error("destination {0} is not known yet, hint: check the control plane logs")]
    NotSynced(SocketAddr),
    /// The service does not have the port.
    #[error("no healthy upstream: {target} (service {service} has no such port)")]
    UnknownPort {
        /// The original destination.
        target: SocketAddr,
        /// The service.
        service: ServiceKey,
    },
    /// The service has no endpoint that can be used.
    #[error("no healthy upstream: {target} (service {service})")]
    NoHealthyUpstream {
        /// The original destination.
        target: SocketAddr,
        /// The service.
        service: ServiceKey,
    },
    /// Traffic must go through a waypoint, which is not built yet.
    #[error("{target} has the waypoint {waypoint}, and waypoints are not supported")]
    Waypoint {
        /// The original destination.
        target: SocketAddr,
        /// The waypoint.
        waypoint: Box<Gateway>,
    },
    /// All usable endpoints are behind the gateway of another network, which is not built yet.
    #[error("no valid routing destination for workload: {target} is in another network")]
    OtherNetwork {
        /// The original destination.
        target: SocketAddr,
    },
    /// All usable endpoints have only a host name, whose resolution is not built yet.
    #[error("{target} has only endpoints with a host name, and those are not supported")]
    HostnameOnly {
        /// The original destination.
        target: SocketAddr,
    },
}

impl OutboundRefusal {
    /// A short name for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::SelfCall(_) => "self_call",
            Self::NotSynced(_) => "not_synced",
            Self::UnknownPort { .. } => "unknown_port",
            Self::NoHealthyUpstream { .. } => "no_healthy_upstream",
            Self::Waypoint { .. } => "waypoint",
            Self::OtherNetwork { .. } => "other_network",
            Self::HostnameOnly { .. } => "hostname_only",
        }
    }
}

impl Snapshot {
    /// Decides where a connection of a workload goes.
    pub fn route_outbound(
        &self,
        source: &Workload,
        dst: OrigDst,
        rng: &mut impl Rng,
    ) -> OutboundRoute {
        let target = dst.addr();
        if is_own_listener(source, target) {
            return OutboundRoute::Refused(OutboundRefusal::SelfCall(target));
        }
        if let Some(known) = self.service_at(target.ip(), &source.name.namespace) {
            return self.route_to_service(source, target, known, rng);
        }
        if let Some(workload) = self.workload_by_ip(target.ip()) {
            return route_to_workload(target, workload, None);
        }
        if !self.synced {
            return OutboundRoute::Refused(OutboundRefusal::NotSynced(target));
        }
        OutboundRoute::Passthrough {
            target,
            service: None,
        }
    }

    fn route_to_service(
        &self,
        source: &Workload,
        target: SocketAddr,
        known: &ServiceState,
        rng: &mut impl Rng,
    ) -> OutboundRoute {
        let service = &known.service;
        if let Some(waypoint) = service_waypoint(service) {
            return refused_by_waypoint(target, waypoint);
        }
        if service.mode() == Mode::Passthrough {
            return self.pass_through(target, service);
        }
        let Some(port) = service.ports.find(target.port()) else {
            return OutboundRoute::Refused(OutboundRefusal::UnknownPort {
                target,
                service: service.key(),
            });
        };
        let network: &Network = &self.local.network;
        let request = balance::Request {
            service,
            port,
            source,
            network,
            asked: target.ip(),
        };
        match balance::pick(&request, &known.endpoints, rng) {
            // The workload's own waypoint is for traffic by its address only.
            Ok((endpoint, addr)) => connect(
                addr,
                &endpoint.workload,
                &endpoint.expected,
                Some(Arc::clone(service)),
            ),
            Err(why) => OutboundRoute::Refused(refusal(why, target, service)),
        }
    }

    /// To the original destination; if that is a workload, by the rules for it (encrypted when it is enrolled).
    fn pass_through(&self, target: SocketAddr, service: &Arc<Service>) -> OutboundRoute {
        let service = Some(Arc::clone(service));
        match self.workload_by_ip(target.ip()) {
            Some(workload) => route_to_workload(target, workload, service),
            None if !self.synced => OutboundRoute::Refused(OutboundRefusal::NotSynced(target)),
            None => OutboundRoute::Passthrough { target, service },
        }
    }
}

/// Ports of ours at an address where we listen for this pod.
fn is_own_listener(source: &Workload, target: SocketAddr) -> bool {
    let ip = target.ip();
    is_proxy_port(target.port())
        && (ip.is_loopback() || ip.is_unspecified() || source.addresses.contains(&ip))
}

fn service_waypoint(service: &Service) -> Option<&Gateway> {
    let weighted = service.weighted_waypoints.first();
    service
        .waypoint
        .as_ref()
        .or_else(|| weighted.map(|one| &one.destination))
}

fn refused_by_waypoint(target: SocketAddr, waypoint: &Gateway) -> OutboundRoute {
    OutboundRoute::Refused(OutboundRefusal::Waypoint {
        target,
        waypoint: Box::new(waypoint.clone()),
    })
}

fn refusal(why: Unusable, target: SocketAddr, service: &Service) -> OutboundRefusal {
    match why {
        Unusable::NoneHealthy => OutboundRefusal::NoHealthyUpstream {
            target,
            service: service.key(),
        },
        Unusable::HostnameOnly => OutboundRefusal::HostnameOnly { target },
        Unusable::OtherNetwork => OutboundRefusal::OtherNetwork { target },
    }
}

fn route_to_workload(
    target: SocketAddr,
    workload: &Arc<Workload>,
    service: Option<Arc<Service>>,
) -> OutboundRoute {
    match &workload.waypoint {
        Some(waypoint) => refused_by_waypoint(target, waypoint),
        None => connect(target, workload, workload.expected_identities(), service),
    }
}

fn connect(
    addr: SocketAddr,
    workload: &Arc<Workload>,
    expected: &Arc<[Identity]>,
    service: Option<Arc<Service>>,
) -> OutboundRoute {
    let workload = Arc::clone(workload);
    match workload.protocol {
        Protocol::Hbone => OutboundRoute::Hbone(HboneRoute {
            tunnel: SocketAddr::new(addr.ip(), ports::HBONE),
            authority: HboneAuthority::Address(addr),
            expected: Arc::clone(expected),
            workload,
            service,
        }),
        Protocol::Tcp => OutboundRoute::Tcp {
            target: addr,
            workload,
            service,
        },
    }
}

#[cfg(test)]
mod tests;
