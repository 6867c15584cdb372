//! Traffic to workloads themselves (facts A.4.2): two chains for all of them, `direct-http` and `direct-tcp`, whose cluster
//! leads to where the client wants to go. Objects of the waypoint and of its class apply; those of services do not.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use envoy_types::pb::envoy::config::route::v3::{RouteConfiguration, route_action::HashPolicy};
use leyline_proto::istio::workload::GatewayAddress;
use leyline_types::NamespacedName;

use super::{
    Member, clusters, limits,
    listeners::{Lookups, ServedPort},
    routes::{self, Clusters, Domain},
    rule::Target,
    rules, telemetry,
    view::{PortProtocol, PortView, ServiceView, ip},
};
use crate::{
    objects::mesh_config::MeshConfig,
    translate::{
        Advice,
        services::{ConnectStrategy, Resolution},
    },
};

/// Of the chain of HTTP, and of its routes.
pub(super) const HTTP: &str = "direct-http";
const TCP: &str = "direct-tcp";
/// A port of a workload, whichever it is.
const PORT: PortView = PortView {
    number: super::listeners::ANY_PORT,
    target: None,
    protocol: PortProtocol::Unknown,
};
static NO_WAYPOINTS: BTreeSet<NamespacedName> = BTreeSet::new();

/// The addresses of the workloads behind each of these waypoints.
pub(in crate::translate) fn by_gateway(
    members: &[Member],
    gateways: &[(GatewayAddress, NamespacedName)],
) -> BTreeMap<NamespacedName, BTreeSet<IpAddr>> {
    let mut found: BTreeMap<_, BTreeSet<IpAddr>> = BTreeMap::new();
    for member in members {
        let named = member.workload.waypoint.as_ref();
        let known = named.and_then(|named| gateways.iter().find(|(address, _)| address == named));
        if let Some((_, gateway)) = known {
            let addresses = member.workload.addresses.iter();
            let of_gateway = found.entry(gateway.clone()).or_default();
            of_gateway.extend(addresses.filter_map(|bytes| ip(bytes)));
        }
    }
    found
}

/// What stands for the workloads where chains ask for a service. No object can have its name, which is none.
pub(super) fn workloads<'a>(
    gateway: &'a NamespacedName,
    addresses: &BTreeSet<IpAddr>,
) -> ServiceView<'a> {
    let whole = |ip: &IpAddr| (ip.to_string(), if ip.is_ipv4() { 32 } else { 128 });
    ServiceView {
        namespace: gateway.namespace.as_str(),
        name: "",
        host: "",
        addresses: addresses.iter().map(whole).collect(),
        ports: Vec::new(),
        sections: Vec::new(),
        endpoints: Vec::new(),
        waypoints: &NO_WAYPOINTS,
        preference: Vec::new(),
        resolution: Resolution::Client,
        connect_strategy: ConnectStrategy::Default,
    }
}

/// Both chains.
pub(super) fn serve(context: &super::PortContext<'_, '_>, advice: &mut Vec<Advice>) -> ServedPort {
    let mut checks = context.checks(&PORT, advice);
    let limits = limits::filters(context.view, context.settings, context.service);
    checks.http.extend(limits);
    ServedPort {
        port: PORT.number,
        protocol: PORT.protocol,
        identity: context.identity(),
        http: HTTP.to_owned(),
        tcp: TCP.to_owned(),
        checks,
        lookups: Lookups::default(),
        told: telemetry::of(
            context.view,
            context.settings,
            context.gateway,
            context.service,
        ),
        tcp_targets: vec![(clusters::ENCAP.to_owned(), 1)],
        tcp_options: clusters::TcpOptions::default(),
    }
}

/// One route.
pub(super) fn routes(config: &MeshConfig) -> RouteConfiguration {
    let table = routes::Table {
        name: HTTP,
        host: HTTP,
        port: PORT.number,
        default_retry: rules::default_retry(config),
        domain: Domain::Any,
    };
    routes::table(&table, &[], &ToEncap)
}

struct ToEncap;

impl Clusters for ToEncap {
    fn cluster(&self, _target: &Target) -> String {
        clusters::ENCAP.to_owned()
    }

    fn hash_policies(&self, _target: &Target) -> Vec<HashPolicy> {
        Vec::new()
    }
}
