//! Listeners (facts A.4): `connect_terminate` takes tunnels, `main_internal` chooses a chain by address, port and
//! protocol, `connect_originate` opens tunnels.
//!
//! What is encoded into an `Any` must come out the same each time. Maps of these messages have no order, so that those
//! with several entries are written here, sorted.

mod identity;
mod tunnels;

use std::{collections::BTreeMap, time::Duration};

use envoy_types::pb::envoy::{
    config::listener::v3::{
        Filter, FilterChain, Listener, ListenerFilter,
        filter::ConfigType as FilterConfig,
        listener::{InternalListenerConfig, ListenerSpecifier},
        listener_filter::ConfigType as ListenerFilterConfig,
    },
    extensions::{
        filters::{
            http::{
                cors::v3::Cors, fault::v3::HttpFault, grpc_stats::v3::FilterConfig as GrpcStats,
                grpc_web::v3::GrpcWeb, router::v3::Router,
            },
            listener::{http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst},
            network::{
                http_connection_manager::v3::{
                    HttpConnectionManager, HttpFilter, Rds,
                    http_connection_manager::{
                        PathWithEscapedSlashesAction as EscapedSlashes, RouteSpecifier,
                        UpgradeConfig,
                    },
                    http_filter::ConfigType as HttpFilterConfig,
                },
                tcp_proxy::v3::{
                    TcpProxy,
                    tcp_proxy::{
                        ClusterSpecifier as TcpClusters, WeightedCluster,
                        weighted_cluster::ClusterWeight,
                    },
                },
            },
        },
        matching::common_inputs::network::v3::{
            ApplicationProtocolInput, DestinationIpInput, DestinationPortInput,
        },
    },
};
use envoy_types::pb::{
    envoy::r#type::v3::{
        HashPolicy,
        hash_policy::{PolicySpecifier, SourceIp},
    },
    google::protobuf::{Any, StringValue},
    xds::{
        core::v3::TypedExtensionConfig,
        r#type::matcher::v3::{
            Matcher,
            matcher::{MatcherTree, MatcherType, matcher_tree::TreeType},
        },
    },
};
use leyline_proto::{IP_MATCHER_TYPE, xds::matcher::v3 as ip};
use prost::{Message, Name};

use super::{
    clusters::{TcpOptions, by_ads},
    pb, proxy_headers,
    telemetry::Told,
    view::{PortProtocol, ServiceView},
};
use crate::{objects::mesh_config::MeshConfig, translate::trust_domains::TrustDomains};

pub(super) use identity::ClientIdentity;

/// Where a chain is for whatever port the client asks for.
pub(super) const ANY_PORT: u16 = 0;
const MAIN_INTERNAL: &str = "main_internal";
/// What the HTTP inspector calls HTTP, with the quotes of the matcher's form.
const HTTP_PROTOCOLS: [&str; 2] = ["'h2c'", "'http/1.1'"];
/// What Istio's proxies call themselves to clients.
const SERVER_NAME: &str = "istio-envoy";

/// Filters of one port's chains, in order, before those that every chain has.
#[derive(Clone, Debug, Default)]
pub(super) struct Checks {
    pub(super) http: Vec<HttpFilter>,
    pub(super) tcp: Vec<Filter>,
}

impl Checks {
    /// Those of `other` come after.
    pub(super) fn extend(&mut self, other: Self) {
        self.http.extend(other.http);
        self.tcp.extend(other.tcp);
    }
}

/// Filters that look names up.
#[derive(Clone, Debug, Default)]
pub(super) struct Lookups {
    pub(super) http: Option<HttpFilter>,
    pub(super) tls: Option<Filter>,
}

/// Where the bytes of a TCP port go: clusters by weight.
pub(super) type TcpTargets = Vec<(String, u32)>;

/// One service port with the names of its chains.
pub(super) struct ServedPort {
    pub(super) port: u16,
    pub(super) protocol: PortProtocol,
    /// Names of the chain, and of the routes.
    pub(super) http: String,
    pub(super) tcp: String,
    pub(super) identity: ClientIdentity,
    pub(super) checks: Checks,
    /// Finds hosts that requests name.
    pub(super) lookups: Lookups,
    pub(super) told: Told,
    pub(super) tcp_targets: TcpTargets,
    pub(super) tcp_options: TcpOptions,
}

/// A service with its ports.
pub(super) struct Served<'a> {
    pub(super) service: &'a ServiceView<'a>,
    pub(super) ports: Vec<ServedPort>,
}

/// All listeners of a waypoint.
pub(super) fn listeners(
    served: &[Served<'_>],
    trust_domains: &TrustDomains,
    mesh: &MeshConfig,
) -> Vec<Listener> {
    vec![
        tunnels::connect_terminate(trust_domains),
        main_internal(served, mesh),
        tunnels::connect_originate(),
    ]
}

pub(super) fn network_filter<M: Message + Name>(name: &str, message: &M) -> Filter {
    Filter {
        name: name.to_owned(),
        config_type: Some(FilterConfig::TypedConfig(pb::any(message))),
    }
}

pub(super) fn http_filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(HttpFilterConfig::TypedConfig(config)),
        ..HttpFilter::default()
    }
}

fn router() -> HttpFilter {
    http_filter("envoy.filters.http.router", pb::any(&Router::default()))
}

fn internal(name: &str) -> Listener {
    Listener {
        name: name.to_owned(),
        listener_specifier: Some(ListenerSpecifier::InternalListener(
            InternalListenerConfig {},
        )),
        ..Listener::default()
    }
}

fn listener_filter<M: Message + Name>(name: &str, message: &M) -> ListenerFilter {
    ListenerFilter {
        name: name.to_owned(),
        config_type: Some(ListenerFilterConfig::TypedConfig(pb::any(message))),
        ..ListenerFilter::default()
    }
}

fn main_internal(served: &[Served<'_>], mesh: &MeshConfig) -> Listener {
    let mut chains: BTreeMap<String, FilterChain> = BTreeMap::new();
    let mut ranges = Vec::new();
    for service in served {
        for port in &service.ports {
            if port.protocol.may_be_http() {
                chains.insert(port.http.clone(), http_chain(port, mesh));
            }
            if port.protocol.may_be_tcp() {
                chains.insert(port.tcp.clone(), tcp_chain(port));
            }
        }
        if !service.service.addresses.is_empty() {
            ranges.push(range(service));
        }
    }
    Listener {
        listener_filters: vec![
            listener_filter(
                "envoy.filters.listener.original_dst",
                &OriginalDst::default(),
            ),
            listener_filter(
                "envoy.filters.listener.http_inspector",
                &HttpInspector::default(),
            ),
        ],
        filter_chain_matcher: Some(by_address(ranges)),
        filter_chains: chains.into_values().collect(),
        ..internal(MAIN_INTERNAL)
    }
}

fn http_filters(port: &ServedPort) -> Vec<HttpFilter> {
    let mut filters: Vec<HttpFilter> = port.identity.filter().into_iter().collect();
    filters.extend(port.checks.http.iter().cloned());
    if port.protocol == PortProtocol::GrpcWeb {
        let web = pb::any(&GrpcWeb::default());
        filters.push(http_filter("envoy.filters.http.grpc_web", web));
    }
    filters.extend([
        http_filter(
            "envoy.filters.http.grpc_stats",
            pb::any(&GrpcStats {
                emit_filter_state: true,
                ..GrpcStats::default()
            }),
        ),
        http_filter("envoy.filters.http.fault", pb::any(&HttpFault::default())),
        http_filter("envoy.filters.http.cors", pb::any(&Cors::default())),
    ]);
    filters.extend(port.lookups.http.clone());
    filters.extend(port.told.http_filter());
    filters.push(router());
    filters
}

fn http_chain(port: &ServedPort, mesh: &MeshConfig) -> FilterChain {
    let normalization = mesh.path_normalization.normalization.as_deref();
    let (normalize, merge_slashes, slashes) = match normalization {
        Some("NONE") => (false, false, EscapedSlashes::KeepUnchanged),
        Some("MERGE_SLASHES") => (true, true, EscapedSlashes::KeepUnchanged),
        Some("DECODE_AND_MERGE_SLASHES") => (true, true, EscapedSlashes::UnescapeAndForward),
        Some(_) | None => (true, false, EscapedSlashes::KeepUnchanged),
    };
    let traced = port.told.traced.as_ref();
    let mut manager = HttpConnectionManager {
        stat_prefix: port.http.clone(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(by_ads()),
            route_config_name: port.http.clone(),
        })),
        http_filters: http_filters(port),
        access_log: port.told.access_logs.clone(),
        tracing: traced.map(|traced| traced.tracer.clone()),
        request_id_extension: traced.map(|traced| traced.request_id.clone()),
        normalize_path: pb::boolean(normalize),
        merge_slashes,
        path_with_escaped_slashes_action: slashes.into(),
        server_name: SERVER_NAME.to_owned(),
        stream_idle_timeout: pb::duration(Duration::ZERO),
        forward_client_cert_details: port.identity.forwarding().into(),
        use_remote_address: pb::boolean(false),
        generate_request_id: pb::boolean(true),
        preserve_external_request_id: true,
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..UpgradeConfig::default()
        }],
        ..HttpConnectionManager::default()
    };
    proxy_headers::set(&mut manager, mesh);
    FilterChain {
        name: port.http.clone(),
        filters: vec![network_filter(
            "envoy.filters.network.http_connection_manager",
            &manager,
        )],
        ..FilterChain::default()
    }
}

fn tcp_chain(port: &ServedPort) -> FilterChain {
    let clusters = match port.tcp_targets.as_slice() {
        [] => TcpClusters::Cluster(port.tcp.clone()),
        [(only, _)] => TcpClusters::Cluster(only.clone()),
        several => TcpClusters::WeightedClusters(WeightedCluster {
            clusters: several
                .iter()
                .filter(|(_, weight)| *weight > 0)
                .map(|(name, weight)| ClusterWeight {
                    name: name.clone(),
                    weight: *weight,
                    ..ClusterWeight::default()
                })
                .collect(),
        }),
    };
    let options = port.tcp_options;
    let by_client = HashPolicy {
        policy_specifier: Some(PolicySpecifier::SourceIp(SourceIp {})),
    };
    let proxy = TcpProxy {
        stat_prefix: port.tcp.clone(),
        idle_timeout: options.idle_timeout.and_then(pb::duration),
        max_downstream_connection_duration: options.max_duration.and_then(pb::duration),
        hash_policy: options.by_client.then_some(by_client).into_iter().collect(),
        cluster_specifier: Some(clusters),
        access_log: port.told.access_logs.clone(),
        ..TcpProxy::default()
    };
    let mut filters: Vec<Filter> = port.lookups.tls.clone().into_iter().collect();
    filters.extend(port.checks.tcp.iter().cloned());
    filters.extend(port.told.network_filter());
    filters.push(network_filter("envoy.filters.network.tcp_proxy", &proxy));
    FilterChain {
        name: port.tcp.clone(),
        filters,
        ..FilterChain::default()
    }
}

/// The outermost matcher. A destination that no range has is closed.
fn by_address(range_matchers: Vec<ip::ip_matcher::IpRangeMatcher>) -> Matcher {
    let custom = TypedExtensionConfig {
        name: "ip".to_owned(),
        typed_config: Some(Any {
            type_url: IP_MATCHER_TYPE.to_owned(),
            value: ip::IpMatcher { range_matchers }.encode_to_vec(),
        }),
    };
    Matcher {
        matcher_type: Some(MatcherType::MatcherTree(MatcherTree {
            input: Some(xds_extension("destination-ip", &DestinationIpInput {})),
            tree_type: Some(TreeType::CustomMatch(custom)),
        })),
        on_no_match: None,
    }
}

fn xds_extension<M: Message + Name>(name: &str, message: &M) -> TypedExtensionConfig {
    TypedExtensionConfig {
        name: name.to_owned(),
        typed_config: Some(pb::any(message)),
    }
}

fn range(served: &Served<'_>) -> ip::ip_matcher::IpRangeMatcher {
    let addresses = served.service.addresses.iter();
    let on_match = match served.ports.as_slice() {
        [only] if only.port == ANY_PORT => leaf(only),
        ports => {
            let by_port = ports.iter().map(|port| (port.port.to_string(), leaf(port)));
            let input = xds_extension("port", &DestinationPortInput {});
            ordered::OnMatch::map(input, by_port.collect(), None)
        }
    };
    ip::ip_matcher::IpRangeMatcher {
        ranges: addresses
            .map(|(address, length)| ip::CidrRange {
                address_prefix: address.clone(),
                prefix_len: Some(*length),
            })
            .collect(),
        on_match: on_match.encode_to_vec(),
        exclusive: false,
    }
}

fn leaf(port: &ServedPort) -> ordered::OnMatch {
    let chain = |name: &str| {
        ordered::OnMatch::action(xds_extension(
            name,
            &StringValue {
                value: name.to_owned(),
            },
        ))
    };
    match port.protocol {
        PortProtocol::Http1 | PortProtocol::Http2 | PortProtocol::GrpcWeb => chain(&port.http),
        PortProtocol::Tcp | PortProtocol::Tls => chain(&port.tcp),
        PortProtocol::Unknown => {
            let http = HTTP_PROTOCOLS.map(|name| (name.to_owned(), chain(&port.http)));
            ordered::OnMatch::map(
                xds_extension("application-protocol", &ApplicationProtocolInput {}),
                http.into(),
                Some(chain(&port.tcp)),
            )
        }
    }
}

/// The inner matchers (xds.type.matcher.v3, the same field numbers), with maps that have an order.
mod ordered {
    use std::collections::BTreeMap;

    use envoy_types::pb::xds::core::v3::TypedExtensionConfig;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct OnMatch {
        #[prost(message, optional, boxed, tag = "1")]
        matcher: Option<Box<Matcher>>,
        #[prost(message, optional, tag = "2")]
        action: Option<TypedExtensionConfig>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct Matcher {
        #[prost(message, optional, tag = "2")]
        tree: Option<MatcherTree>,
        #[prost(message, optional, boxed, tag = "3")]
        on_no_match: Option<Box<OnMatch>>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct MatcherTree {
        #[prost(message, optional, tag = "1")]
        input: Option<TypedExtensionConfig>,
        #[prost(message, optional, tag = "2")]
        exact: Option<MatchMap>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct MatchMap {
        #[prost(btree_map = "string, message", tag = "1")]
        map: BTreeMap<String, OnMatch>,
    }

    impl OnMatch {
        pub(super) fn action(action: TypedExtensionConfig) -> Self {
            Self {
                matcher: None,
                action: Some(action),
            }
        }

        pub(super) fn map(
            input: TypedExtensionConfig,
            map: BTreeMap<String, Self>,
            on_no_match: Option<Self>,
        ) -> Self {
            Self {
                matcher: Some(Box::new(Matcher {
                    tree: Some(MatcherTree {
                        input: Some(input),
                        exact: Some(MatchMap { map }),
                    }),
                    on_no_match: on_no_match.map(Box::new),
                })),
                action: None,
            }
        }
    }
}
