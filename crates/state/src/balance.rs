//! Choice of an endpoint: weighted random by capacity among the usable endpoints of the best rank.
//! Pure and without allocation, as it runs for each connection to a service.

use std::net::{IpAddr, SocketAddr};

use leyline_types::Network;
use rand::{Rng, RngExt};

use crate::{
    endpoints::{Endpoint, Endpoints},
    service::{Mode, RoutingScope, Service, ServicePort},
    workload::{Protocol, Workload},
};

/// Draws before looking at every endpoint. A draw fails only on an endpoint that cannot be used for this port, so with
/// half of them unusable one in 256 connections pays for the full look.
const DRAWS: usize = 8;

/// A connection in search of an endpoint.
pub(crate) struct Request<'a> {
    pub(crate) service: &'a Service,
    pub(crate) port: ServicePort,
    pub(crate) source: &'a Workload,
    /// The network that can be reached without a gateway.
    pub(crate) network: &'a Network,
    /// The address that the client asked for.
    pub(crate) asked: IpAddr,
    pub(crate) wanted: Wanted,
}

/// What an endpoint is wanted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The destination: enrolled or not.
    Destination,
    /// A gateway, which speaks HBONE whether it is enrolled or not.
    Gateway,
}

/// Where an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// At an address.
    Here(SocketAddr),
    /// In another network that has a gateway.
    Behind,
}

/// Why no endpoint was found; the last one that applies is the most telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Unusable {
    /// There is none, or none with the port, of the family, or of the required locality.
    NoneHealthy,
    /// There are some that only a host name is known of.
    HostnameOnly,
    /// There are some, in another network that has no gateway.
    OtherNetwork,
}

/// Picks an endpoint and the place to reach it at.
pub(crate) fn pick<'a>(
    request: &Request<'_>,
    endpoints: &'a Endpoints,
    rng: &mut impl Rng,
) -> Result<(&'a Endpoint, Place), Unusable> {
    if request.has_no_preference() {
        let total = endpoints.total_capacity();
        for _ in 0..DRAWS {
            if total == 0 {
                break;
            }
            let drawn = endpoints.at_ticket(rng.random_range(0..total));
            if let Some(endpoint) = drawn
                && let Ok(target) = request.target(endpoint)
            {
                return Ok((endpoint, target));
            }
        }
    }
    request.scan(endpoints, rng)
}

impl Request<'_> {
    /// Whether every endpoint has the same rank.
    fn has_no_preference(&self) -> bool {
        match &self.service.load_balancer {
            None => true,
            Some(lb) => match lb.mode {
                Mode::Standard | Mode::Passthrough => true,
                Mode::Strict | Mode::Failover => lb.routing_preferences.is_empty(),
            },
        }
    }

    /// Looks at every endpoint twice: for the best rank and its capacity, then for the one that the draw fell on.
    fn scan<'a>(
        &self,
        endpoints: &'a Endpoints,
        rng: &mut impl Rng,
    ) -> Result<(&'a Endpoint, Place), Unusable> {
        let (mut best, mut total, mut why) = (0, 0, Unusable::NoneHealthy);
        for endpoint in endpoints.iter() {
            let capacity = u64::from(endpoint.workload.capacity);
            let Some(rank) = self.rank(&endpoint.workload).filter(|_| capacity > 0) else {
                continue;
            };
            match self.target(endpoint) {
                Err(reason) => why = why.max(reason),
                Ok(_) if rank > best || total == 0 => (best, total) = (rank, capacity),
                Ok(_) if rank == best => total += capacity,
                Ok(_) => {}
            }
        }
        if total == 0 {
            return Err(why);
        }
        let mut ticket = rng.random_range(0..total);
        for endpoint in endpoints.iter() {
            if self.rank(&endpoint.workload) != Some(best) {
                continue;
            }
            let Ok(target) = self.target(endpoint) else {
                continue;
            };
            let capacity = u64::from(endpoint.workload.capacity);
            if ticket < capacity {
                return Ok((endpoint, target));
            }
            ticket -= capacity;
        }
        Err(why)
    }

    /// How near a workload is to the source, larger is nearer; `None` if it may not be used.
    fn rank(&self, workload: &Workload) -> Option<usize> {
        let Some(lb) = &self.service.load_balancer else {
            return Some(0);
        };
        let shared = || {
            let scopes = lb.routing_preferences.iter();
            scopes
                .take_while(|scope| shares(**scope, self.source, workload))
                .count()
        };
        match lb.mode {
            Mode::Standard | Mode::Passthrough => Some(0),
            Mode::Failover => Some(shared()),
            Mode::Strict => (shared() == lb.routing_preferences.len()).then_some(0),
        }
    }

    /// Where an endpoint is reached, if it can be: by an address of a family that is served and with a known port (its
    /// own, else the service's), or in a tunnel through the gateway of its network.
    fn target(&self, endpoint: &Endpoint) -> Result<Place, Unusable> {
        let workload = &endpoint.workload;
        if workload.network != *self.network {
            let speaks_hbone =
                workload.protocol == Protocol::Hbone || self.wanted == Wanted::Gateway;
            let behind = workload.network_gateway.is_some() && speaks_hbone;
            return if behind {
                Ok(Place::Behind)
            } else {
                Err(Unusable::OtherNetwork)
            };
        }
        if workload.addresses.is_empty() && !workload.hostname.is_empty() {
            return Err(Unusable::HostnameOnly);
        }
        let port = endpoint.ports.target(self.port.port).or(self.port.target);
        self.address(workload)
            .zip(port)
            .map(|target| Place::Here(target.into()))
            .ok_or(Unusable::NoneHealthy)
    }

    /// The address asked for if it is the workload's own, else one of the same family, else any that is served.
    fn address(&self, workload: &Workload) -> Option<IpAddr> {
        let served = || {
            let all = workload.addresses.iter().copied();
            all.filter(|ip| self.service.serves_family_of(*ip))
        };
        served()
            .find(|ip| *ip == self.asked)
            .or_else(|| served().find(|ip| ip.is_ipv4() == self.asked.is_ipv4()))
            .or_else(|| served().next())
    }
}

fn shares(scope: RoutingScope, source: &Workload, other: &Workload) -> bool {
    match scope {
        RoutingScope::Region => source.locality.region == other.locality.region,
        RoutingScope::Zone => source.locality.zone == other.locality.zone,
        RoutingScope::Subzone => source.locality.subzone == other.locality.subzone,
        RoutingScope::Node => source.node == other.node,
        RoutingScope::Cluster => source.cluster_id == other.cluster_id,
        RoutingScope::Network => source.network == other.network,
    }
}

#[cfg(test)]
mod tests;
