//! Where a captured outbound connection goes. Called by the node proxy once for each connection, on one snapshot.
//!
//! An enrolled destination is reached over HBONE or not at all, and a waypoint or network gateway is never left out:
//! where there is none to be reached, the connection is refused.

use std::{net::SocketAddr, sync::Arc};

use leyline_types::{HboneAuthority, Identity, Network, OrigDst, ServiceKey, Str, ports};
use rand::Rng;

use crate::{
    balance::{self, Place, Unusable, Wanted},
    choice::{Chooser, EndpointView, Unobserved},
    gateway::{Found, NotFound, waypoint_of},
    inbound::is_proxy_port,
    service::{Mode, Service},
    snapshot::{ServiceState, Snapshot},
    workload::{Enrolment, Gateway, Protocol, Workload},
};

/// The decision on an outbound connection.
#[derive(Clone, Debug)]
pub enum OutboundRoute {
    /// Through a tunnel to an enrolled workload, or to a waypoint.
    Hbone(HboneRoute),
    /// Through a tunnel within a tunnel to the gateway of another network.
    DoubleHbone(DoubleHboneRoute),
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

/// The end of a tunnel.
#[derive(Clone, Debug)]
pub struct HboneEnd {
    /// Where it is.
    pub tunnel: SocketAddr,
    /// Who may be there, sorted: one of these identities exactly.
    pub expected: Arc<[Identity]>,
    /// The workload there.
    pub workload: Arc<Workload>,
}

/// A route into another network. Its gateway sees the authority and chooses the endpoint; what is said in the inner
/// tunnel only the endpoint sees.
#[derive(Clone, Debug)]
pub struct DoubleHboneRoute {
    /// The gateway, where the outer tunnel ends.
    pub gateway: HboneEnd,
    /// What to ask for, in both tunnels.
    pub authority: HboneAuthority,
    /// Who may be at the end of the inner tunnel, sorted.
    pub expected: Arc<[Identity]>,
    /// The workload that was chosen, or that stands for all in that network.
    pub workload: Arc<Workload>,
    /// The service that was asked for.
    pub service: Arc<Service>,
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
    /// The destination shall be in the mesh and is not captured yet.
    #[error("{0} shall be captured and is not yet, hint: check the logs of its node's ztunnel")]
    EnrolmentPending(SocketAddr),
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
    /// Traffic must go through a waypoint that nobody has told of.
    #[error("unknown waypoint: {waypoint} (for {target})")]
    UnknownWaypoint {
        /// The original destination.
        target: SocketAddr,
        /// The waypoint.
        waypoint: Box<Gateway>,
    },
    /// The waypoint has no instance that can be used.
    #[error("no healthy upstream: waypoint {waypoint} (for {target})")]
    NoHealthyWaypoint {
        /// The original destination.
        target: SocketAddr,
        /// The waypoint.
        waypoint: Box<Gateway>,
    },
    /// All usable endpoints are in another network, and there is no known way into it.
    #[error("no valid routing destination for workload: {target} is in another network")]
    OtherNetwork {
        /// The original destination.
        target: SocketAddr,
    },
    /// All usable endpoints have only a host name, and none is resolved.
    #[error(
        "no address is known for the host names of {target} (service {service}), hint: is the DNS server reachable?"
    )]
    HostnameOnly {
        /// The original destination.
        target: SocketAddr,
        /// The service.
        service: ServiceKey,
    },
}

impl OutboundRefusal {
    /// Whether the answer may soon be another one, without anybody doing anything: worth to wait for.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::NotSynced(_) | Self::EnrolmentPending(_))
    }

    /// A short name for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::SelfCall(_) => "self_call",
            Self::NotSynced(_) => "not_synced",
            Self::EnrolmentPending(_) => "enrolment_pending",
            Self::UnknownPort { .. } => "unknown_port",
            Self::NoHealthyUpstream { .. } => "no_healthy_upstream",
            Self::UnknownWaypoint { .. } => "unknown_waypoint",
            Self::NoHealthyWaypoint { .. } => "no_healthy_waypoint",
            Self::OtherNetwork { .. } => "other_network",
            Self::HostnameOnly { .. } => "hostname_only",
        }
    }
}

impl Snapshot {
    /// Host names of the endpoints of a service that have nothing else, at most `most`.
    pub fn hostnames_of(&self, service: &ServiceKey, most: usize) -> Vec<Str> {
        let endpoints = self.services.get(service).map(|known| &known.endpoints);
        let workloads = endpoints.into_iter().flat_map(|all| all.iter());
        let named = workloads.filter(|endpoint| endpoint.workload.has_only_hostname());
        named
            .take(most)
            .map(|endpoint| endpoint.workload.hostname.clone())
            .collect()
    }

    /// Decides where a connection of a workload goes, as if nothing were known of endpoints but what the snapshot says.
    pub fn route_outbound(
        &self,
        source: &Workload,
        dst: OrigDst,
        rng: &mut impl Rng,
    ) -> OutboundRoute {
        self.route_outbound_among(source, dst, &Unobserved, rng)
    }

    /// Decides where a connection of a workload goes, by what is seen of endpoints too.
    pub fn route_outbound_among(
        &self,
        source: &Workload,
        dst: OrigDst,
        view: &dyn EndpointView,
        rng: &mut impl Rng,
    ) -> OutboundRoute {
        let choose = &mut Chooser { view, rng };
        let target = dst.addr();
        if is_own_listener(source, target) {
            return OutboundRoute::Refused(OutboundRefusal::SelfCall(target));
        }
        if let Some(known) = self.service_at(target.ip(), &source.name.namespace) {
            return self.route_to_service(source, target, known, choose);
        }
        if let Some(workload) = self.workload_by_ip(target.ip()) {
            return self.route_to_workload(source, target, workload, None, choose);
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
        choose: &mut Chooser<'_, impl Rng>,
    ) -> OutboundRoute {
        let service = &known.service;
        if let Some(waypoint) = waypoint_of(service, choose.rng) {
            // What comes from the waypoint has been through it, though it is captured like anything else.
            if !self.is_instance(source, waypoint) {
                return self.through_waypoint(source, target, waypoint, Some(service), choose);
            }
        }
        if service.mode() == Mode::Passthrough {
            return self.pass_through(source, target, service, choose);
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
            wanted: Wanted::Destination,
        };
        match balance::pick(&request, &known.endpoints, choose) {
            // The workload's own waypoint is for traffic by its address only.
            Ok((endpoint, Place::Here(addr))) => connect(
                addr,
                &endpoint.workload,
                &endpoint.expected,
                Some(Arc::clone(service)),
            ),
            Ok((endpoint, Place::Behind)) => {
                let workload = &endpoint.workload;
                let expected = known.endpoints.expected_in(service, &workload.network);
                self.across_networks(source, target, workload, expected, service, choose)
            }
            Err(why) => OutboundRoute::Refused(refusal(why, target, service)),
        }
    }

    /// To the original destination; if that is a workload, by the rules for it (encrypted when it is enrolled).
    fn pass_through(
        &self,
        source: &Workload,
        target: SocketAddr,
        service: &Arc<Service>,
        choose: &mut Chooser<'_, impl Rng>,
    ) -> OutboundRoute {
        let service = Some(Arc::clone(service));
        match self.workload_by_ip(target.ip()) {
            Some(workload) => self.route_to_workload(source, target, workload, service, choose),
            None if !self.synced => OutboundRoute::Refused(OutboundRefusal::NotSynced(target)),
            None => OutboundRoute::Passthrough { target, service },
        }
    }

    fn route_to_workload(
        &self,
        source: &Workload,
        target: SocketAddr,
        workload: &Arc<Workload>,
        service: Option<Arc<Service>>,
        choose: &mut Chooser<'_, impl Rng>,
    ) -> OutboundRoute {
        match &workload.waypoint {
            Some(waypoint) if !self.is_instance(source, waypoint) => {
                self.through_waypoint(source, target, waypoint, service.as_ref(), choose)
            }
            Some(_) | None => connect(target, workload, workload.expected_identities(), service),
        }
    }

    /// The waypoint is told what the client asked for.
    fn through_waypoint(
        &self,
        source: &Workload,
        target: SocketAddr,
        waypoint: &Gateway,
        service: Option<&Arc<Service>>,
        choose: &mut Chooser<'_, impl Rng>,
    ) -> OutboundRoute {
        let named = || Box::new(waypoint.clone());
        let refused = match self.find_waypoint(waypoint, source, target, choose) {
            Ok(Found::Here(end)) => {
                return OutboundRoute::Hbone(HboneRoute {
                    tunnel: end.tunnel,
                    authority: HboneAuthority::Address(target),
                    expected: end.expected,
                    workload: end.workload,
                    service: service.cloned(),
                });
            }
            Ok(Found::Behind { workload, expected }) => match service {
                Some(service) => {
                    return self
                        .across_networks(source, target, &workload, expected, service, choose);
                }
                // Its address means nothing in another network.
                None => OutboundRefusal::OtherNetwork { target },
            },
            Err(NotFound::Unknown) => OutboundRefusal::UnknownWaypoint {
                target,
                waypoint: named(),
            },
            Err(NotFound::Unusable(Unusable::OtherNetwork)) => {
                OutboundRefusal::OtherNetwork { target }
            }
            Err(NotFound::Unusable(
                Unusable::NoneHealthy | Unusable::HostnameOnly | Unusable::Pending,
            )) => OutboundRefusal::NoHealthyWaypoint {
                target,
                waypoint: named(),
            },
        };
        OutboundRoute::Refused(refused)
    }

    /// Through the gateway of the network that a workload is in. Addresses mean nothing there, the service's name does.
    fn across_networks(
        &self,
        source: &Workload,
        target: SocketAddr,
        workload: &Arc<Workload>,
        expected: Arc<[Identity]>,
        service: &Arc<Service>,
        choose: &mut Chooser<'_, impl Rng>,
    ) -> OutboundRoute {
        let gateway = self.find_network_gateway(workload, source, target, choose);
        // Somebody must be expected at the end.
        let Some(gateway) = gateway.filter(|_| !expected.is_empty()) else {
            return OutboundRoute::Refused(OutboundRefusal::OtherNetwork { target });
        };
        OutboundRoute::DoubleHbone(DoubleHboneRoute {
            gateway,
            authority: HboneAuthority::Host {
                host: service.hostname.clone(),
                port: target.port(),
            },
            expected,
            workload: Arc::clone(workload),
            service: Arc::clone(service),
        })
    }
}

/// Ports of ours at an address where we listen for this pod.
pub(crate) fn is_own_listener(source: &Workload, target: SocketAddr) -> bool {
    let ip = target.ip();
    is_proxy_port(target.port())
        && (ip.is_loopback() || ip.is_unspecified() || source.addresses.contains(&ip))
}

fn refusal(why: Unusable, target: SocketAddr, service: &Service) -> OutboundRefusal {
    match why {
        Unusable::NoneHealthy => OutboundRefusal::NoHealthyUpstream {
            target,
            service: service.key(),
        },
        Unusable::HostnameOnly => OutboundRefusal::HostnameOnly {
            target,
            service: service.key(),
        },
        Unusable::OtherNetwork => OutboundRefusal::OtherNetwork { target },
        Unusable::Pending => OutboundRefusal::EnrolmentPending(target),
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
        Protocol::Tcp if workload.enrolment == Enrolment::Pending => {
            OutboundRoute::Refused(OutboundRefusal::EnrolmentPending(addr))
        }
        Protocol::Tcp => OutboundRoute::Tcp {
            target: addr,
            workload,
            service,
        },
    }
}

#[cfg(test)]
mod tests;
