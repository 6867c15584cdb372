//! Clusters and their endpoints (facts A.5, A.6): one cluster for each port, protocol and subset of a service.

mod discovery;
pub(super) mod dynamic;
mod encap;
mod endpoints;
pub(super) mod locality;
mod policy;
mod transport;

use std::{collections::BTreeMap, time::Duration};

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{
            Cluster,
            cluster::{
                CommonLbConfig,
                common_lb_config::{LocalityConfigSpecifier, LocalityWeightedLbConfig},
            },
        },
        core::v3::{
            AggregatedConfigSource, ApiVersion, ConfigSource, Http1ProtocolOptions,
            Http2ProtocolOptions, HttpProtocolOptions as CommonHttp, Metadata,
            config_source::ConfigSourceSpecifier,
        },
        endpoint::v3::ClusterLoadAssignment,
    },
    extensions::upstreams::http::v3::{
        HttpProtocolOptions,
        http_protocol_options::{
            ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
            explicit_http_config::ProtocolConfig,
        },
    },
    r#type::v3::Percent,
};

use super::{
    pb, proxy_headers,
    view::{PortProtocol, PortView, ServiceView},
};
use crate::{
    objects::{duration, mesh_config::MeshConfig},
    translate::services::Resolution,
};
use locality::{Nearness, Standpoint};
use policy::{balance, circuit_breakers, connect_timeout, outlier_detection};

pub(super) use {
    encap::{ENCAP, encap},
    policy::{Policy, TcpOptions},
    transport::{CONFIG_MAP, ROOTS_SUFFIX, SECRET, originates, secrets, secrets_of},
};

/// The listener inside a waypoint that opens tunnels.
pub(super) const CONNECT_ORIGINATE: &str = "connect_originate";
/// Metadata of an endpoint: where its tunnel leads.
const ORIGINAL_DST: &str = "envoy.filters.listener.original_dst";
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// HTTP or bytes: the same port of a service has a cluster for each that it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Traffic {
    Http,
    Tcp,
}

impl Traffic {
    fn word(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
        }
    }
}

/// Which cluster of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Which {
    pub(super) traffic: Traffic,
    pub(super) port: u16,
    pub(super) subset: Option<String>,
    /// Whether the service is behind this waypoint, or only named by a route.
    pub(super) owned: bool,
}

impl Which {
    pub(super) fn name(&self, host: &str) -> String {
        let subset = self.subset.as_deref().unwrap_or_default();
        let (port, word) = (self.port, self.traffic.word());
        match (self.owned, subset) {
            (true, "") => format!("inbound-vip|{port}|{word}|{host}"),
            (true, subset) => format!("inbound-vip|{port}|{word}/{subset}|{host}"),
            (false, subset) => format!("outbound|{port}|{subset}|{host}"),
        }
    }
}

/// The endpoints of a cluster, as seen from nowhere or from the pod of a waypoint. `None` where that makes no difference.
pub(super) fn assignment(
    service: &ServiceView<'_>,
    which: &Which,
    policy: &Policy,
    labels: Option<&BTreeMap<String, String>>,
    from: Option<&Standpoint>,
) -> Option<ClusterLoadAssignment> {
    if service.resolution != Resolution::Address || policy.passes_through() {
        return None;
    }
    let name = which.name(service.host);
    let nearness = match from {
        Some(_) => Some(Nearness::of(policy, service)?),
        None => None,
    };
    let near = nearness.as_ref().zip(from);
    Some(endpoints::assignment(
        &name, service, which.port, labels, near,
    ))
}

/// The cluster.
pub(super) fn cluster(
    service: &ServiceView<'_>,
    which: &Which,
    policy: &Policy,
    labels: Option<&BTreeMap<String, String>>,
    mesh: &MeshConfig,
) -> Cluster {
    let name = which.name(service.host);
    let port = service.ports.iter().find(|port| port.number == which.port);
    let mut cluster = Cluster {
        name,
        connect_timeout: connect_timeout(policy),
        metadata: Some(service_metadata(service, which)),
        circuit_breakers: Some(circuit_breakers(policy)),
        outlier_detection: policy.outlier_detection.as_ref().map(outlier_detection),
        common_lb_config: Some(CommonLbConfig {
            healthy_panic_threshold: Some(Percent {
                value: policy
                    .outlier_detection
                    .as_ref()
                    .and_then(|outlier| outlier.min_health_percent)
                    .map_or(0.0, f64::from),
            }),
            locality_config_specifier: matches!(
                Nearness::of(policy, service),
                Some(Nearness::Shares(_))
            )
            .then(|| LocalityConfigSpecifier::LocalityWeightedLbConfig(by_locality())),
            ..CommonLbConfig::default()
        }),
        ..Cluster::default()
    };
    let http1 = proxy_headers::http1(mesh).unwrap_or_default();
    let mut options = http_options(port, policy, http1);
    let http2 = is_http2(&options);
    let dynamic = service.resolution == Resolution::Request;
    if dynamic {
        options.upstream_http_protocol_options = transport::each_its_own_name(policy);
    }
    let host = (!dynamic).then_some(service.host);
    cluster.transport_socket = Some(transport::socket(policy, host, which, http2));
    if which.traffic == Traffic::Http {
        let options = pb::any(&options);
        cluster.typed_extension_protocol_options = [(HTTP_OPTIONS.to_owned(), options)].into();
    }
    balance(&mut cluster, policy.load_balancer.as_ref());
    discovery::set(&mut cluster, service, which, policy, labels);
    cluster
}

/// Localities count by their weights, not by their endpoints.
fn by_locality() -> LocalityWeightedLbConfig {
    LocalityWeightedLbConfig {}
}

/// Endpoints and routes come on the same stream.
pub(super) fn by_ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    }
}

fn time(text: Option<&String>) -> Option<Duration> {
    duration::parse(text?).ok()
}

fn service_metadata(service: &ServiceView<'_>, which: &Which) -> Metadata {
    let named = pb::object(pb::fields([
        ("name", pb::text(service.name)),
        ("host", pb::text(service.host)),
        ("namespace", pb::text(service.namespace)),
    ]));
    let mut fields = pb::fields([("services", pb::list(vec![named]))]);
    if let Some(subset) = &which.subset {
        fields.fields.insert("subset".to_owned(), pb::text(subset));
    }
    Metadata {
        filter_metadata: [("istio".to_owned(), fields)].into(),
        ..Metadata::default()
    }
}

fn is_http2(options: &HttpProtocolOptions) -> bool {
    let Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) =
        &options.upstream_protocol_options
    else {
        return false;
    };
    matches!(
        explicit.protocol_config,
        Some(ProtocolConfig::Http2ProtocolOptions(_))
    )
}

fn http_options(
    port: Option<&PortView>,
    policy: &Policy,
    http1: Http1ProtocolOptions,
) -> HttpProtocolOptions {
    let http = policy
        .connection_pool
        .as_ref()
        .and_then(|pool| pool.http.as_ref());
    let upgrade = http.and_then(|http| http.h2_upgrade_policy.as_deref());
    let client = http.and_then(|http| http.use_client_protocol) == Some(true);
    let is_declared = port.is_some_and(|port| port.protocol.is_http2());
    let http2 = is_declared || upgrade == Some("UPGRADE");
    let streams = http.and_then(|http| http.max_concurrent_streams);
    let http2_options = Http2ProtocolOptions {
        max_concurrent_streams: streams
            .filter(|streams| *streams > 0)
            .and_then(|streams| u32::try_from(streams).ok())
            .and_then(pb::uint32),
        ..Http2ProtocolOptions::default()
    };
    let unknown = port.is_none_or(|port| port.protocol == PortProtocol::Unknown);
    let protocol = if client || (unknown && !http2) {
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options: Some(http1),
            http2_protocol_options: Some(http2_options),
            http3_protocol_options: None,
        })
    } else {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(if http2 {
                ProtocolConfig::Http2ProtocolOptions(http2_options)
            } else {
                ProtocolConfig::HttpProtocolOptions(http1)
            }),
        })
    };
    let requests = http.and_then(|http| http.max_requests_per_connection);
    let common = CommonHttp {
        idle_timeout: http
            .and_then(|http| time(http.idle_timeout.as_ref()))
            .and_then(pb::duration),
        max_requests_per_connection: requests
            .filter(|requests| *requests > 0)
            .and_then(|requests| u32::try_from(requests).ok())
            .and_then(pb::uint32),
        ..CommonHttp::default()
    };
    HttpProtocolOptions {
        common_http_protocol_options: (common != CommonHttp::default()).then_some(common),
        upstream_protocol_options: Some(protocol),
        ..HttpProtocolOptions::default()
    }
}
