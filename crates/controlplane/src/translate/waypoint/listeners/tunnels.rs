//! The listeners at the ends of tunnels: `connect_terminate` and `connect_originate` (facts A.4.1, A.4.3).

use std::time::Duration;

use envoy_types::pb::envoy::{
    config::{
        core::v3::{
            Address, Http2ProtocolOptions, KeepaliveSettings, SocketAddress, TransportSocket,
            address::Address as AddressKind, socket_address::PortSpecifier,
            transport_socket::ConfigType as SocketConfig,
        },
        listener::v3::{FilterChain, Listener},
        route::v3::{
            Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
            route::Action,
            route_action::{
                ClusterSpecifier, UpgradeConfig as RouteUpgrade, upgrade_config::ConnectConfig,
            },
            route_match::{ConnectMatcher, PathSpecifier},
        },
    },
    extensions::{
        filters::{
            listener::original_dst::v3::OriginalDst,
            network::{
                http_connection_manager::v3::{
                    HttpConnectionManager,
                    http_connection_manager::{RouteSpecifier, UpgradeConfig},
                },
                tcp_proxy::v3::{
                    TcpProxy,
                    tcp_proxy::{ClusterSpecifier as TcpClusters, TunnelingConfig},
                },
            },
        },
        transport_sockets::tls::v3::{
            CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
            SubjectAltNameMatcher, TlsParameters,
            common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
            subject_alt_name_matcher::SanType,
            tls_parameters::TlsProtocol,
        },
    },
    r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
};

use super::{
    super::{
        clusters::{CONNECT_ORIGINATE, by_ads},
        pb,
    },
    MAIN_INTERNAL, internal, listener_filter, network_filter, router,
};
use crate::translate::trust_domains::TrustDomains;

const HBONE_PORT: u32 = 15008;
/// Streams of one tunnel, and its liveness, as Istio sets them.
const MAX_STREAMS: u32 = 100;
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) fn connect_terminate(trust_domains: &TrustDomains) -> Listener {
    let manager = terminating();
    let address = SocketAddress {
        address: "0.0.0.0".to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(HBONE_PORT)),
        ..SocketAddress::default()
    };
    Listener {
        name: "connect_terminate".to_owned(),
        address: Some(Address {
            address: Some(AddressKind::SocketAddress(address)),
        }),
        filter_chains: vec![FilterChain {
            name: "default".to_owned(),
            filters: vec![network_filter(
                "envoy.filters.network.http_connection_manager",
                &manager,
            )],
            transport_socket: Some(downstream_tls(trust_domains)),
            ..FilterChain::default()
        }],
        ..Listener::default()
    }
}

/// Every CONNECT goes on to `main_internal`.
fn terminating() -> HttpConnectionManager {
    let connect = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(MAIN_INTERNAL.to_owned())),
        upgrade_configs: vec![RouteUpgrade {
            upgrade_type: "CONNECT".to_owned(),
            connect_config: Some(ConnectConfig::default()),
            ..RouteUpgrade::default()
        }],
        ..RouteAction::default()
    };
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::ConnectMatcher(ConnectMatcher {})),
            ..RouteMatch::default()
        }),
        action: Some(Action::Route(connect)),
        ..Route::default()
    };
    HttpConnectionManager {
        stat_prefix: "connect_terminate".to_owned(),
        route_specifier: Some(RouteSpecifier::RouteConfig(RouteConfiguration {
            name: "default".to_owned(),
            virtual_hosts: vec![VirtualHost {
                name: "default".to_owned(),
                domains: vec!["*".to_owned()],
                routes: vec![route],
                ..VirtualHost::default()
            }],
            validate_clusters: pb::boolean(false),
            ..RouteConfiguration::default()
        })),
        http_filters: vec![router()],
        stream_idle_timeout: pb::duration(Duration::ZERO),
        use_remote_address: pb::boolean(false),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "CONNECT".to_owned(),
            ..UpgradeConfig::default()
        }],
        http2_protocol_options: Some(Http2ProtocolOptions {
            allow_connect: true,
            max_concurrent_streams: pb::uint32(MAX_STREAMS),
            connection_keepalive: Some(KeepaliveSettings {
                interval: pb::duration(PING_INTERVAL),
                timeout: pb::duration(PING_TIMEOUT),
                ..KeepaliveSettings::default()
            }),
            ..Http2ProtocolOptions::default()
        }),
        ..HttpConnectionManager::default()
    }
}

/// Mutual TLS 1.3 with a certificate of the mesh on both sides; both are known by name (facts A.1).
fn downstream_tls(trust_domains: &TrustDomains) -> TransportSocket {
    let secret = |name: &str| SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(by_ads()),
    };
    let of_mesh = trust_domains.iter().map(|name| SubjectAltNameMatcher {
        san_type: SanType::Uri.into(),
        matcher: Some(StringMatcher {
            match_pattern: Some(MatchPattern::Prefix(format!("spiffe://{name}/"))),
            ..StringMatcher::default()
        }),
        ..SubjectAltNameMatcher::default()
    });
    let validation = CombinedCertificateValidationContext {
        default_validation_context: Some(CertificateValidationContext {
            match_typed_subject_alt_names: of_mesh.collect(),
            ..CertificateValidationContext::default()
        }),
        validation_context_sds_secret_config: Some(secret("ROOTCA")),
        ..CombinedCertificateValidationContext::default()
    };
    let context = DownstreamTlsContext {
        require_client_certificate: pb::boolean(true),
        common_tls_context: Some(CommonTlsContext {
            tls_params: Some(TlsParameters {
                tls_minimum_protocol_version: TlsProtocol::TlSv13.into(),
                tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
                ..TlsParameters::default()
            }),
            alpn_protocols: vec!["h2".to_owned()],
            tls_certificate_sds_secret_configs: vec![secret("default")],
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(
                validation,
            )),
            ..CommonTlsContext::default()
        }),
        ..DownstreamTlsContext::default()
    };
    TransportSocket {
        name: "tls".to_owned(),
        config_type: Some(SocketConfig::TypedConfig(pb::any(&context))),
    }
}

pub(super) fn connect_originate() -> Listener {
    let proxy = TcpProxy {
        stat_prefix: CONNECT_ORIGINATE.to_owned(),
        cluster_specifier: Some(TcpClusters::Cluster(CONNECT_ORIGINATE.to_owned())),
        tunneling_config: Some(TunnelingConfig {
            hostname: "%DOWNSTREAM_LOCAL_ADDRESS%".to_owned(),
            ..TunnelingConfig::default()
        }),
        ..TcpProxy::default()
    };
    Listener {
        listener_filters: vec![listener_filter(
            "envoy.filters.listener.original_dst",
            &OriginalDst::default(),
        )],
        filter_chains: vec![FilterChain {
            filters: vec![network_filter("envoy.filters.network.tcp_proxy", &proxy)],
            ..FilterChain::default()
        }],
        ..internal(CONNECT_ORIGINATE)
    }
}
