//! Why an outbound connection goes where it goes, for people. The decision itself is [`Snapshot::route_outbound`]'s, asked
//! on the same snapshot; what is told besides is read from the same indexes and the same tests of endpoints.

use std::{net::SocketAddr, sync::Arc};

use leyline_types::OrigDst;
use rand::Rng;

use crate::{
    balance::{Place, Request, Unusable, Wanted},
    choice::Unobserved,
    gateway::waypoint_of,
    outbound::{OutboundRoute, is_own_listener},
    service::{HealthPolicy, Service, ServicePort},
    snapshot::{ServiceState, Snapshot},
    workload::{Gateway, GatewayDestination, Health, Workload},
};

/// A decision and what led to it.
#[derive(Clone, Debug)]
pub struct RouteExplanation {
    /// Who is at the destination.
    pub destination: Destination,
    /// The waypoint that the destination asks for.
    pub waypoint: Option<WaypointExplanation>,
    /// The service's workloads, if it is a service that endpoints are picked for; in order of their uid.
    pub candidates: Vec<Candidate>,
    /// The decision. Where endpoints are equally good it is one of several.
    pub route: OutboundRoute,
}

/// Who is at a destination.
#[derive(Clone, Debug)]
pub enum Destination {
    /// Our own listeners.
    OwnListener,
    /// A service, by one of its addresses or blocks.
    Service {
        /// The service.
        service: Arc<Service>,
        /// The port that was asked for, if the service has it.
        port: Option<ServicePort>,
    },
    /// A workload, by its address.
    Workload(Arc<Workload>),
    /// Nobody of the mesh.
    Nobody,
}

/// A waypoint in the way.
#[derive(Clone, Debug)]
pub struct WaypointExplanation {
    /// Where it is said to be.
    pub gateway: Gateway,
    /// Whether the source is an instance of it, so that its connections go on directly.
    pub source_is_instance: bool,
    /// Its workloads, if it is known as a service.
    pub instances: Vec<Candidate>,
}

/// A workload that could have been picked.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The workload.
    pub workload: Arc<Workload>,
    /// What becomes of it.
    pub outcome: CandidateOutcome,
}

/// Whether a workload can be picked, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CandidateOutcome {
    /// At this address.
    Usable(SocketAddr),
    /// Through the gateway of its network.
    UsableBehindGateway,
    /// It could be reached, and another one is nearer by the service's routing preferences.
    Farther,
    /// It is not ready, and the service wants ready ones.
    NotReady,
    /// Its capacity is 0.
    NoCapacity,
    /// It does not share what the service's routing preferences demand.
    OtherLocality,
    /// It is in another network, and there is no way into it.
    OtherNetwork,
    /// It shall be captured and is not yet.
    Pending,
    /// Only a host name is known of it.
    HostnameOnly,
    /// It has no address of a family that the service serves, or no port for the one asked for.
    NoAddressOrPort,
}

impl CandidateOutcome {
    /// Whether it takes part in the choice.
    pub fn is_usable(&self) -> bool {
        match self {
            Self::Usable(_) | Self::UsableBehindGateway => true,
            Self::Farther
            | Self::NotReady
            | Self::NoCapacity
            | Self::OtherLocality
            | Self::OtherNetwork
            | Self::Pending
            | Self::HostnameOnly
            | Self::NoAddressOrPort => false,
        }
    }
}

impl Snapshot {
    /// Decides as [`Self::route_outbound`] does, and tells why.
    pub fn explain_outbound(
        &self,
        source: &Workload,
        dst: OrigDst,
        rng: &mut impl Rng,
    ) -> RouteExplanation {
        let target = dst.addr();
        let route = self.route_outbound(source, dst, rng);
        let mut explanation = RouteExplanation {
            destination: Destination::Nobody,
            waypoint: None,
            candidates: Vec::new(),
            route,
        };
        if is_own_listener(source, target) {
            explanation.destination = Destination::OwnListener;
        } else if let Some(known) = self.service_at(target.ip(), &source.name.namespace) {
            let port = known.service.ports.find(target.port());
            explanation.destination = Destination::Service {
                service: Arc::clone(&known.service),
                port,
            };
            let waypoint = waypoint_of(&known.service, rng);
            explanation.waypoint =
                waypoint.map(|gateway| self.explain_waypoint(source, gateway, target));
            if let Some(port) = port {
                explanation.candidates =
                    self.explain_candidates(known, source, port, target, Wanted::Destination);
            }
        } else if let Some(workload) = self.workload_by_ip(target.ip()) {
            explanation.destination = Destination::Workload(Arc::clone(workload));
            let waypoint = workload.waypoint.as_ref();
            explanation.waypoint =
                waypoint.map(|gateway| self.explain_waypoint(source, gateway, target));
        }
        explanation
    }

    fn explain_waypoint(
        &self,
        source: &Workload,
        gateway: &Gateway,
        target: SocketAddr,
    ) -> WaypointExplanation {
        let known = match &gateway.destination {
            GatewayDestination::Service(key) => self.services.get(key),
            GatewayDestination::Address(address) => self.service_of(address),
        };
        let port = gateway.hbone_mtls_port;
        let port = ServicePort {
            port,
            target: Some(port),
        };
        let instances = known
            .map(|known| self.explain_candidates(known, source, port, target, Wanted::Gateway));
        WaypointExplanation {
            gateway: gateway.clone(),
            source_is_instance: self.is_instance(source, gateway),
            instances: instances.unwrap_or_default(),
        }
    }

    fn explain_candidates(
        &self,
        known: &ServiceState,
        source: &Workload,
        port: ServicePort,
        target: SocketAddr,
        wanted: Wanted,
    ) -> Vec<Candidate> {
        let request = Request {
            service: &known.service,
            port,
            source,
            network: &self.local.network,
            asked: target.ip(),
            wanted,
        };
        let kept = known.endpoints.iter();
        let mut judged: Vec<(Candidate, usize)> = kept
            .map(|endpoint| {
                let workload = Arc::clone(&endpoint.workload);
                let rank = request.rank(&workload);
                let outcome = match (request.target(endpoint, &Unobserved), rank) {
                    _ if workload.capacity == 0 => CandidateOutcome::NoCapacity,
                    (_, None) => CandidateOutcome::OtherLocality,
                    (Ok(Place::Here(addr)), Some(_)) => CandidateOutcome::Usable(addr),
                    (Ok(Place::Behind), Some(_)) => CandidateOutcome::UsableBehindGateway,
                    (Err(Unusable::OtherNetwork), Some(_)) => CandidateOutcome::OtherNetwork,
                    (Err(Unusable::Pending), Some(_)) => CandidateOutcome::Pending,
                    (Err(Unusable::HostnameOnly), Some(_)) => CandidateOutcome::HostnameOnly,
                    (Err(Unusable::NoneHealthy), Some(_)) => CandidateOutcome::NoAddressOrPort,
                };
                (Candidate { workload, outcome }, rank.unwrap_or(0))
            })
            .collect();
        let usable = judged.iter().filter(|(one, _)| one.outcome.is_usable());
        let nearest = usable.map(|(_, rank)| *rank).max();
        for (candidate, rank) in &mut judged {
            if candidate.outcome.is_usable() && Some(*rank) < nearest {
                candidate.outcome = CandidateOutcome::Farther;
            }
        }
        let mut candidates: Vec<Candidate> = judged.into_iter().map(|(one, _)| one).collect();
        candidates.extend(self.unready(&known.service));
        candidates.sort_by(|a, b| a.workload.uid.cmp(&b.workload.uid));
        candidates
    }

    /// Workloads that name the service and are kept out of its endpoints.
    fn unready(&self, service: &Service) -> impl Iterator<Item = Candidate> {
        let members = self.members.get(&service.key());
        let members = members.into_iter().flat_map(imbl::OrdMap::values);
        let kept_out = match service.health_policy() {
            HealthPolicy::AllowAll => None,
            HealthPolicy::OnlyHealthy => Some(Health::Unhealthy),
        };
        members
            .filter(move |workload| Some(workload.status) == kept_out)
            .map(|workload| Candidate {
                workload: Arc::clone(workload),
                outcome: CandidateOutcome::NotReady,
            })
    }
}

#[cfg(test)]
mod tests {
    use leyline_proto::istio::workload as wire;

    use super::*;
    use crate::testing::{hbone, in_service, pod, rng, service, store, workload_of};

    fn unhealthy(workload: wire::Workload) -> wire::Workload {
        wire::Workload {
            status: wire::WorkloadStatus::Unhealthy.into(),
            ..workload
        }
    }

    fn of_capacity(capacity: u32, workload: wire::Workload) -> wire::Workload {
        wire::Workload {
            capacity: Some(capacity),
            ..workload
        }
    }

    fn mesh() -> Snapshot {
        let member = |workload| in_service(workload, "web", &[(80, 8080)]);
        let elsewhere = wire::Workload {
            network: "other".into(),
            ..hbone("four", &["10.0.0.5"])
        };
        let store = store([
            hbone("client", &["10.0.0.1"]).into(),
            member(hbone("one", &["10.0.0.2"])).into(),
            unhealthy(member(hbone("two", &["10.0.0.3"]))).into(),
            of_capacity(0, member(pod("three", &["10.0.0.4"]))).into(),
            member(elsewhere).into(),
            service("web", &["10.1.0.1"]).into(),
        ]);
        Snapshot::clone(&store.snapshot())
    }

    fn explain(snapshot: &Snapshot, to: &str) -> RouteExplanation {
        let source = workload_of(snapshot, "client");
        snapshot.explain_outbound(source, OrigDst::new(to.parse().unwrap()), &mut rng())
    }

    #[test]
    fn every_workload_of_the_service_is_told_with_its_reason() {
        let explained = explain(&mesh(), "10.1.0.1:80");
        assert!(matches!(
            explained.destination,
            Destination::Service { port: Some(_), .. }
        ));
        let candidates: Vec<(&str, &CandidateOutcome)> = explained
            .candidates
            .iter()
            .map(|one| (one.workload.name.name.as_str(), &one.outcome))
            .collect();
        assert_eq!(
            candidates,
            [
                ("four", &CandidateOutcome::OtherNetwork),
                (
                    "one",
                    &CandidateOutcome::Usable("10.0.0.2:8080".parse().unwrap())
                ),
                ("three", &CandidateOutcome::NoCapacity),
                ("two", &CandidateOutcome::NotReady),
            ]
        );
        let OutboundRoute::Hbone(route) = explained.route else {
            panic!("{:?}", explained.route)
        };
        assert_eq!(route.tunnel, "10.0.0.2:15008".parse().unwrap());
    }

    /// What is told never contradicts the decision: a route leads to a usable candidate, and a refusal leaves none.
    #[test]
    fn the_candidates_agree_with_the_decision() {
        let snapshot = mesh();
        for to in [
            "10.1.0.1:80",
            "10.1.0.1:81",
            "10.0.0.2:80",
            "10.0.0.3:80",
            "9.9.9.9:1",
            "127.0.0.1:15001",
        ] {
            let explained = explain(&snapshot, to);
            let usable = || {
                explained
                    .candidates
                    .iter()
                    .filter(|one| one.outcome.is_usable())
            };
            match (&explained.destination, &explained.route) {
                (Destination::Service { .. }, OutboundRoute::Refused(_)) => {
                    assert_eq!(usable().count(), 0, "{to}");
                }
                (Destination::Service { .. }, OutboundRoute::Hbone(route)) => {
                    let found = usable().any(|one| one.workload.uid == route.workload.uid);
                    assert!(found, "{to}");
                }
                (Destination::Workload(workload), OutboundRoute::Hbone(route)) => {
                    assert_eq!(workload.uid, route.workload.uid, "{to}");
                }
                (Destination::OwnListener, OutboundRoute::Refused(_)) => {}
                (Destination::Nobody, OutboundRoute::Passthrough { .. }) => {}
                other => panic!("{to}: {other:?}"),
            }
        }
    }
}
