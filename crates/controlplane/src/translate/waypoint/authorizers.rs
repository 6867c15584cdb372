//! External authorizers of MeshConfig (`extensionProviders`) as Envoy's ext_authz filters, as istiod makes them (facts A.8).

use std::time::Duration;

use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            ApiVersion, GrpcService, HeaderValue, HttpUri,
            grpc_service::{EnvoyGrpc, TargetSpecifier},
            http_uri::HttpUpstreamType,
        },
        extensions::filters::{
            http::ext_authz::v3::{
                AuthorizationRequest, AuthorizationResponse, BufferSettings, ExtAuthz, HttpService,
                ext_authz::Services,
            },
            network::ext_authz::v3::ExtAuthz as TcpExtAuthz,
        },
        r#type::{
            matcher::v3::{
                ListStringMatcher, MetadataMatcher, StringMatcher, ValueMatcher,
                metadata_matcher::{PathSegment, path_segment::Segment},
                string_matcher::MatchPattern,
                value_matcher,
            },
            v3::HttpStatus,
        },
    },
    google::protobuf::{Any, Duration as ProtoDuration},
};

use super::{pb, settings::Settings};
use crate::objects::{
    duration,
    mesh_config::{ExtAuthzGrpc, ExtAuthzHttp, ExtensionProvider, MeshConfig, RequestBody},
};

/// Istio's, where a provider says none.
const TIMEOUT: Duration = Duration::from_secs(600);

/// The authorizers that policies may name.
pub(super) struct Authorizers<'a> {
    pub(super) config: &'a MeshConfig,
    pub(super) settings: &'a Settings<'a>,
}

/// One that can be asked.
#[derive(Clone, Debug)]
pub(super) struct Authorizer {
    http: ExtAuthz,
    tcp: Option<TcpExtAuthz>,
}

/// Which requests it is asked about: those whose metadata of `filter` has a text with this prefix under `key`.
#[derive(Clone, Debug)]
pub(super) struct Condition {
    pub(super) filter: &'static str,
    pub(super) key: String,
    pub(super) prefix: String,
}

impl Authorizers<'_> {
    /// # Errors
    /// Why nobody can be asked.
    pub(super) fn of(&self, name: &str) -> Result<Authorizer, String> {
        let provider = self.config.provider(name);
        let provider = provider.ok_or_else(|| format!("there is no provider {name}"))?;
        match provider {
            ExtensionProvider {
                envoy_ext_authz_grpc: Some(grpc),
                ..
            } => Ok(of_grpc(grpc, &self.cluster(&grpc.service, grpc.port)?)),
            ExtensionProvider {
                envoy_ext_authz_http: Some(http),
                ..
            } => Ok(of_http(http, self.cluster(&http.service, http.port)?)),
            _ => Err(format!("provider {name} is no external authorizer")),
        }
    }

    fn cluster(&self, service: &str, port: u32) -> Result<String, String> {
        let cluster = self.settings.provider_cluster(service, port);
        cluster.ok_or_else(|| format!("there is no service {service} with port {port}"))
    }
}

impl Authorizer {
    pub(super) fn http(&self, asked: Condition) -> Any {
        pb::any(&ExtAuthz {
            filter_enabled_metadata: Some(asked.matcher()),
            ..self.http.clone()
        })
    }

    /// `None`: it cannot be asked about TCP connections.
    pub(super) fn tcp(&self, asked: Condition) -> Option<Any> {
        let tcp = self.tcp.clone()?;
        Some(pb::any(&TcpExtAuthz {
            filter_enabled_metadata: Some(asked.matcher()),
            ..tcp
        }))
    }
}

impl Condition {
    fn matcher(self) -> MetadataMatcher {
        MetadataMatcher {
            filter: self.filter.to_owned(),
            path: vec![PathSegment {
                segment: Some(Segment::Key(self.key)),
            }],
            value: Some(ValueMatcher {
                match_pattern: Some(value_matcher::MatchPattern::StringMatch(StringMatcher {
                    match_pattern: Some(MatchPattern::Prefix(self.prefix)),
                    ..StringMatcher::default()
                })),
            }),
            ..MetadataMatcher::default()
        }
    }
}

/// What both kinds of provider have in common, as far as it must be translated.
fn ask(services: Services, on_error: Option<&str>, in_check: Option<&RequestBody>) -> ExtAuthz {
    ExtAuthz {
        services: Some(services),
        status_on_error: status(on_error),
        with_request_body: in_check.map(body),
        transport_api_version: ApiVersion::V3.into(),
        ..ExtAuthz::default()
    }
}

fn of_grpc(provider: &ExtAuthzGrpc, cluster: &str) -> Authorizer {
    let service = GrpcService {
        timeout: timeout(provider.timeout.as_deref()),
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
            cluster_name: cluster.to_owned(),
            // Servers refuse an authority with the bar that is in names of clusters.
            authority: cluster.replace('|', "_."),
            ..EnvoyGrpc::default()
        })),
        ..GrpcService::default()
    };
    Authorizer {
        http: ExtAuthz {
            failure_mode_allow: provider.fail_open,
            clear_route_cache: provider.clear_route_cache,
            ..ask(
                Services::GrpcService(service.clone()),
                provider.status_on_error.as_deref(),
                provider.include_request_body_in_check.as_ref(),
            )
        },
        tcp: Some(TcpExtAuthz {
            stat_prefix: "tcp.".to_owned(),
            grpc_service: Some(service),
            failure_mode_allow: provider.fail_open,
            transport_api_version: ApiVersion::V3.into(),
            ..TcpExtAuthz::default()
        }),
    }
}

fn of_http(provider: &ExtAuthzHttp, cluster: String) -> Authorizer {
    let added = provider.include_additional_headers_in_check.iter();
    let request = AuthorizationRequest {
        headers_to_add: added
            .map(|(key, value)| HeaderValue {
                key: key.clone(),
                value: value.clone(),
                ..HeaderValue::default()
            })
            .collect(),
        ..in_check(&provider.include_request_headers_in_check)
    };
    let response = AuthorizationResponse {
        allowed_upstream_headers: headers(&provider.headers_to_upstream_on_allow),
        allowed_client_headers: headers(&provider.headers_to_downstream_on_deny),
        allowed_client_headers_on_success: headers(&provider.headers_to_downstream_on_allow),
        ..AuthorizationResponse::default()
    };
    let some = |message: AuthorizationRequest| {
        (message != AuthorizationRequest::default()).then_some(message)
    };
    let service = HttpService {
        server_uri: Some(HttpUri {
            uri: format!("http://{}", provider.service),
            timeout: timeout(provider.timeout.as_deref()),
            http_upstream_type: Some(HttpUpstreamType::Cluster(cluster)),
        }),
        path_prefix: provider.path_prefix.clone().unwrap_or_default(),
        authorization_request: some(request),
        authorization_response: (response != AuthorizationResponse::default()).then_some(response),
        ..HttpService::default()
    };
    Authorizer {
        http: ExtAuthz {
            failure_mode_allow: provider.fail_open,
            clear_route_cache: provider.clear_route_cache,
            ..ask(
                Services::HttpService(service),
                provider.status_on_error.as_deref(),
                provider.include_request_body_in_check.as_ref(),
            )
        },
        tcp: None,
    }
}

#[expect(deprecated, reason = "istiod sends the list of headers in this place")]
fn in_check(names: &[String]) -> AuthorizationRequest {
    AuthorizationRequest {
        allowed_headers: headers(names),
        ..AuthorizationRequest::default()
    }
}

/// `*` at the beginning or at the end stands for anything.
fn headers(names: &[String]) -> Option<ListStringMatcher> {
    let pattern = |name: &String| StringMatcher {
        ignore_case: true,
        match_pattern: Some(match (name.strip_prefix('*'), name.strip_suffix('*')) {
            (Some(suffix), _) => MatchPattern::Suffix(suffix.to_owned()),
            (None, Some(prefix)) => MatchPattern::Prefix(prefix.to_owned()),
            (None, None) => MatchPattern::Exact(name.clone()),
        }),
    };
    (!names.is_empty()).then(|| ListStringMatcher {
        patterns: names.iter().map(pattern).collect(),
    })
}

fn body(settings: &RequestBody) -> BufferSettings {
    BufferSettings {
        max_request_bytes: settings.max_request_bytes,
        allow_partial_message: settings.allow_partial_message,
        pack_as_bytes: settings.pack_as_bytes,
    }
}

fn timeout(text: Option<&str>) -> Option<ProtoDuration> {
    let told = text.and_then(|text| duration::parse(text).ok());
    pb::duration(told.unwrap_or(TIMEOUT))
}

fn status(text: Option<&str>) -> Option<HttpStatus> {
    let code = text?.parse().ok()?;
    Some(HttpStatus { code })
}
