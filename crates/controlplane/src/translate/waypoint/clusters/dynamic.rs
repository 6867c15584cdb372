//! Hosts that requests name (ServiceEntries of resolution DYNAMIC_DNS, facts A.5): Envoy's dynamic forward proxy. The cluster
//! and the filter that looks names up share a cache by its name.

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{
            Cluster,
            cluster::{ClusterDiscoveryType, CustomClusterType, DnsLookupFamily, LbPolicy},
        },
        listener::v3::Filter,
    },
    extensions::{
        clusters::dynamic_forward_proxy::v3::{
            ClusterConfig, cluster_config::ClusterImplementationSpecifier,
        },
        common::dynamic_forward_proxy::v3::DnsCacheConfig,
        filters::{
            http::dynamic_forward_proxy::v3::{
                FilterConfig, filter_config::ImplementationSpecifier,
            },
            network::{
                http_connection_manager::v3::HttpFilter,
                sni_dynamic_forward_proxy::v3::{
                    FilterConfig as SniConfig, filter_config::PortSpecifier,
                },
            },
        },
    },
};

use super::{Policy, Which};
use crate::translate::{
    services::Resolution,
    waypoint::{
        listeners::{http_filter, network_filter},
        pb,
        view::{PortView, ServiceView},
    },
};

/// What our waypoints read besides: on which port the hosts are called. Envoy goes by the request.
const METADATA: &str = "leyline.io";

pub(super) fn set(
    cluster: &mut Cluster,
    service: &ServiceView<'_>,
    which: &Which,
    policy: &Policy,
) {
    let config = ClusterConfig {
        // Without it Envoy wants every certificate to be for the host.
        allow_insecure_cluster_options: policy.may_take_another_name(),
        cluster_implementation_specifier: Some(ClusterImplementationSpecifier::DnsCacheConfig(
            cache(service.host),
        )),
        ..ClusterConfig::default()
    };
    cluster.lb_policy = LbPolicy::ClusterProvided.into();
    cluster.lb_config = None;
    cluster.cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
        name: "envoy.clusters.dynamic_forward_proxy".to_owned(),
        typed_config: Some(pb::any(&config)),
    }));
    let mut ports = service.ports.iter();
    if let Some(port) = ports.find(|port| port.number == which.port) {
        let port = f64::from(target(port));
        let fields = pb::fields([("target_port", pb::number(port))]);
        let metadata = cluster.metadata.get_or_insert_default();
        metadata.filter_metadata.insert(METADATA.to_owned(), fields);
    }
}

/// Looks up the host of each request, if the service is one of such hosts.
pub(in super::super) fn http(service: &ServiceView<'_>) -> Option<HttpFilter> {
    let config = FilterConfig {
        implementation_specifier: Some(ImplementationSpecifier::DnsCacheConfig(cache(
            service.host,
        ))),
        ..FilterConfig::default()
    };
    (service.resolution == Resolution::Request)
        .then(|| http_filter("envoy.filters.http.dynamic_forward_proxy", pb::any(&config)))
}

/// Looks up what each connection calls its server in TLS.
pub(in super::super) fn tls(service: &ServiceView<'_>, port: &PortView) -> Option<Filter> {
    let config = SniConfig {
        dns_cache_config: Some(cache(service.host)),
        port_specifier: Some(PortSpecifier::PortValue(target(port).into())),
        ..SniConfig::default()
    };
    (service.resolution == Resolution::Request)
        .then(|| network_filter("envoy.filters.network.sni_dynamic_forward_proxy", &config))
}

fn target(port: &PortView) -> u16 {
    port.target.unwrap_or(port.number)
}

fn cache(host: &str) -> DnsCacheConfig {
    DnsCacheConfig {
        name: format!("{host}_dfp_dns_cache"),
        dns_lookup_family: DnsLookupFamily::V4Preferred.into(),
        ..DnsCacheConfig::default()
    }
}
