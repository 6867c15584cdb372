//! Choice of an endpoint among the usable ones of the best rank: two are drawn at random by capacity, and the one with
//! fewer connections for its capacity is taken. Pure and without allocation, as it runs for each connection to a service.

use std::net::{IpAddr, SocketAddr};

use leyline_types::Network;
use rand::{Rng, RngExt};

use crate::{
    choice::{Chooser, EndpointView, Standing},
    endpoints::{Endpoint, Endpoints},
    service::{Mode, RoutingScope, Service, ServicePort},
    workload::{Enrolment, Protocol, Workload},
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
    /// There are some that shall be captured and are not yet.
    Pending,
}

/// An endpoint and the place to reach it at.
type Picked<'a> = (&'a Endpoint, Place);

/// Picks an endpoint and the place to reach it at: the one that the client is to be kept with, else by load.
pub(crate) fn pick<'a>(
    request: &Request<'_>,
    endpoints: &'a Endpoints,
    choose: &mut Chooser<'_, impl Rng>,
) -> Result<(&'a Endpoint, Place), Unusable> {
    if request.service.session_affinity.is_some()
        && let Some(kept) = request.kept(endpoints, choose.view)
    {
        return Ok(kept);
    }
    if request.has_no_preference()
        && let Some(drawn) = request.draw(endpoints, choose)
    {
        return Ok(drawn);
    }
    request.scan(endpoints, choose)
}

/// Of two draws the one with fewer connections for its capacity, the first if they are even: so idle endpoints are
/// picked exactly by capacity.
fn less_loaded<'a>(view: &dyn EndpointView, first: Picked<'a>, second: Picked<'a>) -> Picked<'a> {
    let (one, other) = (&first.0.workload, &second.0.workload);
    if one.uid == other.uid {
        return first;
    }
    let (load, other_load) = (view.load(&one.uid), view.load(&other.uid));
    let weighed = u128::from(load) * u128::from(other.capacity);
    let other_weighed = u128::from(other_load) * u128::from(one.capacity);
    if other_weighed < weighed {
        second
    } else {
        first
    }
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

    /// The endpoint that the client was given before, if it can still be used.
    fn kept<'a>(&self, endpoints: &'a Endpoints, view: &dyn EndpointView) -> Option<Picked<'a>> {
        let uid = view.kept(self.service)?;
        let endpoint = endpoints.by_uid(&uid)?;
        self.rank(&endpoint.workload)?;
        let usable = endpoint.workload.capacity > 0 && view.standing(&uid) == Standing::Good;
        let place = self.target(endpoint, view).ok()?;
        usable.then_some((endpoint, place))
    }

    /// Two draws where every endpoint has the same rank; none if no draw fell on one that can be used.
    fn draw<'a>(
        &self,
        endpoints: &'a Endpoints,
        choose: &mut Chooser<'_, impl Rng>,
    ) -> Option<Picked<'a>> {
        let total = endpoints.total_capacity();
        let mut first: Option<Picked<'a>> = None;
        for _ in 0..DRAWS {
            if total == 0 {
                break;
            }
            let Some(drawn) = endpoints.at_ticket(choose.rng.random_range(0..total)) else {
                continue;
            };
            let Ok(place) = self.target(drawn, choose.view) else {
                continue;
            };
            if choose.view.standing(&drawn.workload.uid) != Standing::Good {
                continue;
            }
            match first {
                None => first = Some((drawn, place)),
                Some(first) => return Some(less_loaded(choose.view, first, (drawn, place))),
            }
        }
        first
    }

    /// Looks at every endpoint twice: for the best rank and its capacity, then for the two that the draws fell on.
    ///
    /// One that has failed lately is worse than any that has not, wherever that is.
    fn scan<'a>(
        &self,
        endpoints: &'a Endpoints,
        choose: &mut Chooser<'_, impl Rng>,
    ) -> Result<Picked<'a>, Unusable> {
        let (mut best, mut total, mut why) = (None, 0, Unusable::NoneHealthy);
        let rank = |endpoint: &Endpoint| {
            let workload = &endpoint.workload;
            let rank = self.rank(workload).filter(|_| workload.capacity > 0)?;
            let standing = choose.view.standing(&workload.uid);
            (standing > Standing::Excluded).then_some((standing, rank))
        };
        for endpoint in endpoints.iter() {
            let capacity = u64::from(endpoint.workload.capacity);
            let Some(rank) = rank(endpoint) else {
                continue;
            };
            match self.target(endpoint, choose.view) {
                Err(reason) => why = why.max(reason),
                Ok(_) if Some(rank) > best => (best, total) = (Some(rank), capacity),
                Ok(_) if Some(rank) == best => total += capacity,
                Ok(_) => {}
            }
        }
        if total == 0 {
            return Err(why);
        }
        let mut tickets = [0, 0].map(|_: u64| choose.rng.random_range(0..total));
        let mut drawn: [Option<Picked<'a>>; 2] = [None, None];
        for endpoint in endpoints.iter() {
            if rank(endpoint) != best {
                continue;
            }
            let Ok(place) = self.target(endpoint, choose.view) else {
                continue;
            };
            let capacity = u64::from(endpoint.workload.capacity);
            for (ticket, drawn) in tickets.iter_mut().zip(&mut drawn) {
                if drawn.is_some() {
                    continue;
                }
                if *ticket < capacity {
                    *drawn = Some((endpoint, place));
                }
                *ticket = ticket.saturating_sub(capacity);
            }
            if let [Some(first), Some(second)] = drawn {
                return Ok(less_loaded(choose.view, first, second));
            }
        }
        // A draw can miss when the view changed between the two looks.
        let [first, second] = drawn;
        first.or(second).ok_or(why)
    }

    /// How near a workload is to the source, larger is nearer; `None` if it may not be used.
    pub(crate) fn rank(&self, workload: &Workload) -> Option<usize> {
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
    pub(crate) fn target(
        &self,
        endpoint: &Endpoint,
        view: &dyn EndpointView,
    ) -> Result<Place, Unusable> {
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
        // A gateway speaks HBONE by itself.
        let plain = workload.protocol == Protocol::Tcp && self.wanted == Wanted::Destination;
        if plain && workload.enrolment == Enrolment::Pending {
            return Err(Unusable::Pending);
        }
        let port = endpoint.ports.target(self.port.port).or(self.port.target);
        let address = if workload.has_only_hostname() {
            let resolved = view.resolved(workload.hostname.as_str(), self.asked);
            let served = resolved.filter(|ip| self.service.serves_family_of(*ip));
            Some(served.ok_or(Unusable::HostnameOnly)?)
        } else {
            self.address(workload)
        };
        address
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
