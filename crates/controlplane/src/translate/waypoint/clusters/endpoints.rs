//! The endpoints of a cluster by locality, each in a tunnel or in plaintext (facts A.6).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

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

use crate::translate::services::Resolution;

use super::{
    super::{
        pb,
        view::{EndpointView, ServiceView},
    },
    CONNECT_ORIGINATE, ORIGINAL_DST,
    locality::{Nearness, Place, Standpoint},
};

/// Endpoints by rank and locality, each in a tunnel or in plaintext.
pub(super) fn assignment(
    name: &str,
    service: &ServiceView<'_>,
    port: u16,
    labels: Option<&BTreeMap<String, String>>,
    near: Option<(&Nearness, &Standpoint)>,
) -> ClusterLoadAssignment {
    let mut by_place: BTreeMap<(usize, Place), Vec<LbEndpoint>> = BTreeMap::new();
    for endpoint in &service.endpoints {
        let chosen = labels.is_none_or(|labels| {
            labels
                .iter()
                .all(|(key, value)| endpoint.member.labels.get(key) == Some(value))
        });
        // A name is looked up only where the service says so.
        let known = endpoint.address.is_some() || service.resolution != Resolution::Address;
        let Some(target) = endpoint.ports.get(&port).filter(|_| chosen && known) else {
            continue;
        };
        let rank = near.map_or(0, |(nearness, from)| nearness.rank(from, endpoint));
        by_place
            .entry((rank, Place::of(&endpoint.member.workload)))
            .or_default()
            .push(lb_endpoint(endpoint, *target));
    }
    // Priorities follow each other without gaps.
    let ranks: BTreeSet<usize> = by_place.keys().map(|(rank, _)| *rank).collect();
    let priority = |rank: usize| ranks.range(..rank).count();
    let places = by_place
        .iter()
        .map(|((_, place), endpoints)| (place.clone(), weight(endpoints)))
        .collect();
    let shares = near.and_then(|(nearness, from)| nearness.weights(from, &places));
    let endpoints = by_place
        .into_iter()
        .filter_map(|((rank, place), mut endpoints)| {
            endpoints.sort_by_key(sort_key);
            let weight = match &shares {
                Some(shares) => *shares.get(&place)?,
                None => weight(&endpoints),
            };
            Some(LocalityLbEndpoints {
                locality: Some(Locality {
                    region: place.region,
                    zone: place.zone,
                    sub_zone: place.subzone,
                }),
                priority: u32::try_from(priority(rank)).unwrap_or(u32::MAX),
                load_balancing_weight: pb::uint32(weight),
                lb_endpoints: endpoints,
                ..LocalityLbEndpoints::default()
            })
        });
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: endpoints.collect(),
        ..ClusterLoadAssignment::default()
    }
}

fn weight(endpoints: &[LbEndpoint]) -> u32 {
    let weights = endpoints
        .iter()
        .filter_map(|one| Some(one.load_balancing_weight?.value));
    weights.fold(0, u32::saturating_add)
}

fn sort_key(endpoint: &LbEndpoint) -> String {
    match &endpoint.host_identifier {
        Some(HostIdentifier::Endpoint(endpoint)) => format!("{:?}", endpoint.address),
        Some(HostIdentifier::EndpointName(name)) => name.clone(),
        None => String::new(),
    }
}

fn lb_endpoint(endpoint: &EndpointView<'_>, port: u16) -> LbEndpoint {
    let workload = &endpoint.member.workload;
    let host = match endpoint.address {
        Some(ip) => ip.to_string(),
        None => workload.hostname.clone(),
    };
    let described = format!(
        "{};{};{};{};{}",
        workload.workload_name,
        workload.namespace,
        workload.canonical_name,
        workload.canonical_revision,
        workload.cluster_id
    );
    let mut metadata = vec![("istio", "workload", described)];
    let tunnel = endpoint.address.filter(|_| endpoint.is_hbone());
    let address = if let Some(ip) = tunnel {
        let at = SocketAddr::new(ip, port);
        metadata.push((ORIGINAL_DST, "local", at.to_string()));
        AddressKind::EnvoyInternalAddress(EnvoyInternalAddress {
            endpoint_id: at.to_string(),
            address_name_specifier: Some(AddressNameSpecifier::ServerListenerName(
                CONNECT_ORIGINATE.to_owned(),
            )),
        })
    } else {
        AddressKind::SocketAddress(SocketAddress {
            address: host,
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
