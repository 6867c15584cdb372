//! What the mesh looks like: workloads, services and policies, and the decisions that follow from them.
//!
//! `convert` turns resources of the control plane into domain types, [`Store::apply`] publishes a new [`Snapshot`], and
//! a connection asks one snapshot where to go ([`Snapshot::route_outbound`]), what it reached
//! ([`Snapshot::resolve_inbound`]) and which policies judge it ([`Snapshot::policies_for`]).
//! No I/O, no clock, no tasks, no certificates, no xDS.
#![warn(missing_docs)]

mod workload;

mod service;

pub mod convert;

mod snapshot;

mod store;

mod outbound;

mod gateway;

mod inbound;

mod choice;

mod balance;

mod endpoints;

mod index;

mod dump;

mod explain;
mod hosts;

#[cfg(test)]
mod testing;

pub use choice::{EndpointView, Standing, Unobserved};
pub use dump::Dump;
pub use explain::{
    Candidate, CandidateOutcome, Destination, RouteExplanation, WaypointExplanation,
};
pub use hosts::{HostView, KnownHost};
pub use inbound::{Delivery, InboundRefusal, InboundTarget, is_proxy_port};
pub use outbound::{DoubleHboneRoute, HboneEnd, HboneRoute, OutboundRefusal, OutboundRoute};
pub use service::{
    HealthPolicy, IpFamilies, LoadBalancing, Mode, NetworkBlock, RoutingScope, Service,
    ServicePort, ServicePorts, SessionAffinity, Visibility, WeightedGateway,
};
pub use snapshot::{LocalNode, Snapshot};
pub use store::{Applied, Change, Store};
pub use workload::{
    ApplicationTunnel, Enrolment, Gateway, GatewayDestination, Health, Locality, NetworkMode,
    PortMap, Protocol, TunnelProtocol, Workload, WorkloadType,
};
