//! The places that connections go through: waypoints, and the gateways of other networks. Pure, on one snapshot.
//!
//! Whoever says that traffic goes through a gateway means it: one that is not known, or has nobody behind it, is a
//! reason to refuse and never to go around it.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use leyline_types::{Identity, NetworkAddress, ports};
use rand::{Rng, RngExt};

use crate::{
    balance::{self, Place, Unusable, Wanted},
    choice::Chooser,
    endpoints::Endpoint,
    outbound::HboneEnd,
    service::{Service, ServicePort, WeightedGateway},
    snapshot::{ServiceState, Snapshot},
    workload::{Gateway, GatewayDestination, Protocol, Workload},
};

/// A gateway that was found.
pub(crate) enum Found {
    /// An instance that can be reached.
    Here(HboneEnd),
    /// Instances in another network.
    Behind {
        /// One of them.
        workload: Arc<Workload>,
        /// Who may be there.
        expected: Arc<[Identity]>,
    },
}

/// Why a gateway was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotFound {
    /// Nobody has told of it.
    Unknown,
    /// It has no instance that can be used.
    Unusable(Unusable),
}

/// The waypoint of a connection to a service: sampled by weight if there are several.
pub(crate) fn waypoint_of<'a>(service: &'a Service, rng: &mut impl Rng) -> Option<&'a Gateway> {
    let weighted = &service.weighted_waypoints;
    let total: u64 = weighted.iter().map(|one| u64::from(one.weight)).sum();
    if total > 0 {
        let mut ticket = rng.random_range(0..total);
        let drawn = weighted.iter().find(|one| {
            let weight = u64::from(one.weight);
            let hit = ticket < weight;
            ticket = ticket.saturating_sub(weight);
            hit
        });
        return drawn.map(|one| &one.destination);
    }
    let first = || {
        weighted
            .first()
            .map(|one: &WeightedGateway| &one.destination)
    };
    service.waypoint.as_ref().or_else(first)
}

impl Snapshot {
    /// Whether a workload is an instance of a gateway, so that what it sends has been through it.
    pub(crate) fn is_instance(&self, workload: &Workload, gateway: &Gateway) -> bool {
        match &gateway.destination {
            GatewayDestination::Service(key) => workload.services.contains_key(key),
            GatewayDestination::Address(address) => {
                let is_its_own = workload.network == address.network
                    && workload.addresses.contains(&address.address);
                let is_service = || self.service_of(address).map(|known| known.service.key());
                is_its_own || is_service().is_some_and(|key| workload.services.contains_key(&key))
            }
        }
    }

    /// An instance of a waypoint, for a connection to `asked`.
    pub(crate) fn find_waypoint(
        &self,
        waypoint: &Gateway,
        source: &Workload,
        asked: SocketAddr,
        choose: &mut Chooser<'_, impl Rng>,
    ) -> Result<Found, NotFound> {
        let known = match &waypoint.destination {
            GatewayDestination::Service(key) => self.services.get(key),
            GatewayDestination::Address(address) => {
                if let Some(workload) = self.workload_of(address) {
                    return self.at_address(workload, address, waypoint.hbone_mtls_port);
                }
                self.service_of(address)
            }
        };
        let known = known.ok_or(NotFound::Unknown)?;
        let port = gateway_port(&known.service, waypoint);
        let request = balance::Request {
            service: &known.service,
            port,
            source,
            network: &self.local.network,
            asked: asked.ip(),
            wanted: Wanted::Gateway,
        };
        match balance::pick(&request, &known.endpoints, choose) {
            Ok((endpoint, Place::Here(addr))) => Ok(Found::Here(tunnel_end(endpoint, addr))),
            Ok((endpoint, Place::Behind)) => Ok(Found::Behind {
                workload: Arc::clone(&endpoint.workload),
                expected: known
                    .endpoints
                    .expected_in(&known.service, &endpoint.workload.network),
            }),
            Err(why) => Err(NotFound::Unusable(why)),
        }
    }

    fn at_address(
        &self,
        workload: &Arc<Workload>,
        address: &NetworkAddress,
        port: u16,
    ) -> Result<Found, NotFound> {
        let expected = Arc::clone(workload.expected_identities());
        let workload = Arc::clone(workload);
        if address.network == self.local.network {
            return Ok(Found::Here(HboneEnd {
                tunnel: SocketAddr::new(address.address, port),
                expected,
                workload,
            }));
        }
        if workload.network_gateway.is_none() {
            return Err(NotFound::Unusable(Unusable::OtherNetwork));
        }
        Ok(Found::Behind { workload, expected })
    }

    /// The gateway of the network that a workload is in.
    pub(crate) fn find_network_gateway(
        &self,
        of: &Workload,
        source: &Workload,
        asked: SocketAddr,
        choose: &mut Chooser<'_, impl Rng>,
    ) -> Option<HboneEnd> {
        let gateway = of.network_gateway.as_ref()?;
        let port = gateway.hbone_mtls_port;
        match &gateway.destination {
            // Its address is the one that is open to other networks.
            GatewayDestination::Address(address) => {
                let tunnel = SocketAddr::new(address.address, port);
                if let Some(workload) = self.workload_of(address) {
                    return Some(HboneEnd {
                        tunnel,
                        expected: Arc::clone(workload.expected_identities()),
                        workload: Arc::clone(workload),
                    });
                }
                let known = self.service_of(address)?;
                let workload = Arc::clone(&known.endpoints.iter().next()?.workload);
                let expected = known
                    .endpoints
                    .expected_in(&known.service, &workload.network);
                Some(HboneEnd {
                    tunnel,
                    expected,
                    workload,
                })
            }
            GatewayDestination::Service(key) => {
                let known = self.services.get(key)?;
                let request = balance::Request {
                    service: &known.service,
                    port: gateway_port(&known.service, gateway),
                    source,
                    network: &of.network,
                    asked: asked.ip(),
                    wanted: Wanted::Gateway,
                };
                match balance::pick(&request, &known.endpoints, choose) {
                    Ok((endpoint, Place::Here(addr))) => Some(tunnel_end(endpoint, addr)),
                    Ok((_, Place::Behind)) | Err(_) => None,
                }
            }
        }
    }

    /// Whether anybody is known under a name or an address.
    pub fn knows(&self, what: &GatewayDestination) -> bool {
        match what {
            GatewayDestination::Service(key) => self.services.contains_key(key),
            GatewayDestination::Address(address) => {
                let Some(network) = self.networks.get(&address.network) else {
                    return false;
                };
                let ip = address.address;
                network.workloads.contains_key(&ip)
                    || network.vips.contains_key(&ip)
                    || network.blocks.containing(ip).next().is_some()
            }
        }
    }

    pub(crate) fn workload_of(&self, address: &NetworkAddress) -> Option<&Arc<Workload>> {
        let network = self.networks.get(&address.network)?;
        let candidates = network.workloads.get(&address.address)?;
        candidates.iter().next().map(|candidate| &candidate.0)
    }

    pub(crate) fn service_of(&self, address: &NetworkAddress) -> Option<&ServiceState> {
        let network = self.networks.get(&address.network)?;
        let keys = network.vips.get(&address.address)?;
        keys.iter().find_map(|key| self.services.get(key))
    }
}

/// A gateway takes tunnels on its port even where its service does not name it.
fn gateway_port(service: &Service, gateway: &Gateway) -> ServicePort {
    let port = gateway.hbone_mtls_port;
    let named = service.ports.find(port);
    ServicePort {
        port,
        target: named.and_then(|named| named.target).or(Some(port)),
    }
}

/// Before a captured instance stands its node proxy, whose port is always the same.
fn tunnel_end(endpoint: &Endpoint, addr: SocketAddr) -> HboneEnd {
    let port = match endpoint.workload.protocol {
        Protocol::Hbone if !endpoint.workload.native_tunnel => ports::HBONE,
        Protocol::Hbone | Protocol::Tcp => addr.port(),
    };
    HboneEnd {
        tunnel: SocketAddr::new(addr.ip(), port),
        expected: Arc::clone(&endpoint.expected),
        workload: Arc::clone(&endpoint.workload),
    }
}

/// Sorted and without repetition.
pub(crate) fn union<'a>(identities: impl Iterator<Item = &'a Identity>) -> Arc<[Identity]> {
    let all: BTreeSet<&Identity> = identities.collect();
    all.into_iter().cloned().collect()
}
