//! The cluster of traffic to workloads themselves (facts A.5): its only endpoint is the listener that opens tunnels, and the
//! client's own destination is the tunnel's.

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{
            Cluster,
            cluster::{ClusterDiscoveryType, DiscoveryType},
        },
        core::v3::{
            Address, EnvoyInternalAddress, Http2ProtocolOptions, address::Address as AddressKind,
            envoy_internal_address::AddressNameSpecifier,
        },
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
            lb_endpoint::HostIdentifier,
        },
    },
    extensions::upstreams::http::v3::{
        HttpProtocolOptions,
        http_protocol_options::{UpstreamProtocolOptions, UseDownstreamHttpConfig},
    },
};

use super::{
    super::{pb, proxy_headers},
    CONNECT_ORIGINATE, HTTP_OPTIONS, transport,
};
use crate::objects::mesh_config::MeshConfig;

/// Its name.
pub(in crate::translate::waypoint) const ENCAP: &str = "encap";

/// Leads into a tunnel to where the client wants to go.
pub(in crate::translate::waypoint) fn encap(mesh: &MeshConfig) -> Cluster {
    let tunnel = EnvoyInternalAddress {
        endpoint_id: String::new(),
        address_name_specifier: Some(AddressNameSpecifier::ServerListenerName(
            CONNECT_ORIGINATE.to_owned(),
        )),
    };
    let endpoint = LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(Address {
                address: Some(AddressKind::EnvoyInternalAddress(tunnel)),
            }),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    let protocol = UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
        http_protocol_options: Some(proxy_headers::http1(mesh).unwrap_or_default()),
        http2_protocol_options: Some(Http2ProtocolOptions::default()),
        http3_protocol_options: None,
    });
    let options = HttpProtocolOptions {
        upstream_protocol_options: Some(protocol),
        ..HttpProtocolOptions::default()
    };
    Cluster {
        name: ENCAP.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: ENCAP.to_owned(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![endpoint],
                ..LocalityLbEndpoints::default()
            }],
            ..ClusterLoadAssignment::default()
        }),
        transport_socket: Some(transport::passed_through()),
        typed_extension_protocol_options: [(HTTP_OPTIONS.to_owned(), pb::any(&options))].into(),
        ..Cluster::default()
    }
}
