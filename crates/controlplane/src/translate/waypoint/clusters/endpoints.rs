//! The endpoints of a cluster by locality, each in a tunnel or in plaintext (facts A.6).

use std::{collections::BTreeMap, net::SocketAddr};

use envoy_types::pb::envoy::config::{
    core::v3::{
        Address, EnvoyInternalAddress, Locality, Metadata, SocketAddress,
        address::Address as AddressKind, envoy_internal_address::AddressNameSpecifier,
        socket_address::PortSpecifier,
    },
    endpoint::v3::{
        ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
        lb_endpoint::HostIdentifier,
    },
};

use super::{
    super::{
        pb,
        view::{EndpointView, ServiceView},
    },
    CONNECT_ORIGINATE, ORIGINAL_DST,
};

/// Endpoints by locality, each in a tunnel or in plaintext.
pub(super) fn assignment(
    name: &str,
    service: &ServiceView<'_>,
    port: u16,
    labels: Option<&BTreeMap<String, String>>,
) -> ClusterLoadAssignment {
    type Place = (String, String, String);
    let mut by_place: BTreeMap<Place, Vec<LbEndpoint>> = BTreeMap::new();
    for endpoint in &service.endpoints {
        let chosen = labels.is_none_or(|labels| {
            labels
                .iter()
                .all(|(key, value)| endpoint.member.labels.get(key) == Some(value))
        });
        let Some(target) = endpoint.ports.get(&port).filter(|_| chosen) else {
            continue;
        };
        let place = endpoint.locality().cloned().unwrap_or_default();
        by_place
            .entry((place.region, place.zone, place.subzone))
            .or_default()
            .push(lb_endpoint(endpoint, *target));
    }
    let endpoints = by_place
        .into_iter()
        .map(|((region, zone, sub_zone), mut endpoints)| {
            endpoints.sort_by_key(sort_key);
            let weights = endpoints
                .iter()
                .filter_map(|one| Some(one.load_balancing_weight?.value));
            LocalityLbEndpoints {
                locality: Some(Locality {
                    region,
                    zone,
                    sub_zone,
                }),
                load_balancing_weight: pb::uint32(weights.fold(0, u32::saturating_add)),
                lb_endpoints: endpoints,
                ..LocalityLbEndpoints::default()
            }
        });
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: endpoints.collect(),
        ..ClusterLoadAssignment::default()
    }
}

fn sort_key(endpoint: &LbEndpoint) -> String {
    match &endpoint.host_identifier {
        Some(HostIdentifier::Endpoint(endpoint)) => format!("{:?}", endpoint.address),
        Some(HostIdentifier::EndpointName(name)) => name.clone(),
        None => String::new(),
    }
}

fn lb_endpoint(endpoint: &EndpointView<'_>, port: u16) -> LbEndpoint {
    let at = SocketAddr::new(endpoint.address, port);
    let workload = &endpoint.member.workload;
    let described = format!(
        "{};{};{};{};{}",
        workload.workload_name,
        workload.namespace,
        workload.canonical_name,
        workload.canonical_revision,
        workload.cluster_id
    );
    let mut metadata = vec![("istio", "workload", described)];
    let address = if endpoint.is_hbone() {
        metadata.push((ORIGINAL_DST, "local", at.to_string()));
        AddressKind::EnvoyInternalAddress(EnvoyInternalAddress {
            endpoint_id: at.to_string(),
            address_name_specifier: Some(AddressNameSpecifier::ServerListenerName(
                CONNECT_ORIGINATE.to_owned(),
            )),
        })
    } else {
        AddressKind::SocketAddress(SocketAddress {
            address: endpoint.address.to_string(),
            port_specifier: Some(PortSpecifier::PortValue(port.into())),
            ..SocketAddress::default()
        })
    };
    let metadata = metadata
        .into_iter()
        .map(|(filter, key, value)| (filter.to_owned(), pb::fields([(key, pb::text(value))])));
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(Address {
                address: Some(address),
            }),
            ..Endpoint::default()
        })),
        load_balancing_weight: pb::uint32(workload.capacity.unwrap_or(1)),
        metadata: Some(Metadata {
            filter_metadata: metadata.collect(),
            ..Metadata::default()
        }),
        ..LbEndpoint::default()
    }
}
