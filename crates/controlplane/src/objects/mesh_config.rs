//! Istio's MeshConfig, the key `mesh` of the ConfigMap `istio` in the root namespace (Istio's API reference, Global Mesh
//! Options). Only fields that are acted on are here; every other one is named in a warning.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

use crate::objects::l7::virtual_service::Retry;

/// Name of the ConfigMap.
pub(crate) const MESH_CONFIG_NAME: &str = "istio";
/// Its key.
pub(crate) const MESH_CONFIG_KEY: &str = "mesh";

/// The ConfigMap, read.
#[derive(Clone, Debug, Default)]
pub struct MeshConfigMap {
    /// Of the ConfigMap.
    pub metadata: ObjectMeta,
    /// What it says.
    pub mesh: MeshConfig,
    /// Fields of the text that are not acted on.
    pub(crate) unknown: Vec<String>,
}

/// Settings of the whole mesh.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshConfig {
    /// `/dev/stdout`; no access log when empty and no provider is named.
    pub access_log_file: String,
    /// Of a line, or a JSON object of operators; Envoy's default when empty.
    pub access_log_format: String,
    /// TEXT (default) or JSON.
    pub access_log_encoding: Option<String>,
    /// What policies and Telemetry name.
    pub extension_providers: Vec<ExtensionProvider>,
    /// Providers for what Telemetry leaves open.
    pub default_providers: DefaultProviders,
    /// Spans also without a Telemetry object.
    pub enable_tracing: bool,
    /// Settings of proxies.
    pub default_config: DefaultConfig,
    /// What is done to paths before policies and routes.
    pub path_normalization: PathNormalization,
    /// Other trust domains whose identities are of the mesh, as far as its roots vouch for them.
    pub trust_domain_aliases: Vec<String>,
    /// Of routes that say nothing of retries; Istio's own when absent.
    pub default_http_retry_policy: Option<Retry>,
}

/// Names of providers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DefaultProviders {
    /// Of spans.
    pub tracing: Vec<String>,
    /// Of metrics.
    pub metrics: Vec<String>,
    /// Of access logs.
    pub access_logging: Vec<String>,
}

/// Istio's ProxyConfig as far as waypoints have it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DefaultConfig {
    /// Of spans.
    pub tracing: Option<ProxyTracing>,
    /// Headers that proxies add or change.
    pub proxy_headers: Option<ProxyHeaders>,
}

/// What proxies do to headers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyHeaders {
    /// Names of HTTP/1.1 headers stay as they were written; else they are sent in lower case.
    pub preserve_http1_header_case: Option<bool>,
    /// `server` of responses.
    pub server: Option<ServerHeader>,
    /// `x-request-id` of requests.
    pub request_id: Option<RequestIdHeader>,
}

/// `server` of responses.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerHeader {
    /// The application's own is passed on.
    pub disabled: Option<bool>,
    /// In place of `istio-envoy`.
    pub value: String,
}

/// `x-request-id` of requests.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestIdHeader {
    /// None is made.
    pub disabled: Option<bool>,
}

/// How proxies sample and tag spans.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyTracing {
    /// Percent of requests, 0 to 100; 1 when absent.
    pub sampling: Option<f64>,
    /// By the name of the tag, in the form of Telemetry's custom tags.
    pub custom_tags: BTreeMap<String, Value>,
    /// Longest path in a span.
    pub max_path_tag_length: Option<u32>,
}

/// What is done to paths.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathNormalization {
    /// DEFAULT (the same as BASE), NONE, BASE, MERGE_SLASHES, DECODE_AND_MERGE_SLASHES.
    pub normalization: Option<String>,
}

/// Something outside of the proxy that policies or Telemetry name; exactly one kind is set.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtensionProvider {
    /// What it is called.
    pub name: String,
    /// An authorizer that is asked by HTTP.
    pub envoy_ext_authz_http: Option<ExtAuthzHttp>,
    /// An authorizer that is asked by gRPC.
    pub envoy_ext_authz_grpc: Option<ExtAuthzGrpc>,
    /// An access log in a file.
    pub envoy_file_access_log: Option<FileAccessLog>,
    /// An access log of requests at a service of Envoy's protocol.
    pub envoy_http_als: Option<HttpAls>,
    /// An access log of connections at such a service.
    pub envoy_tcp_als: Option<TcpAls>,
    /// An access log at a collector of OpenTelemetry.
    pub envoy_otel_als: Option<OtelAls>,
    /// A collector of spans.
    pub opentelemetry: Option<OpenTelemetry>,
    /// Metrics that are scraped.
    pub prometheus: Option<Prometheus>,
}

/// An authorizer that is asked by HTTP.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtAuthzHttp {
    /// Host name of the service, or `namespace/hostname`.
    pub service: String,
    /// Its port.
    pub port: u32,
    /// For an answer; 600 s when absent.
    pub timeout: Option<String>,
    /// Stands before the path of the request.
    pub path_prefix: Option<String>,
    /// Let requests pass when the authorizer does not answer.
    pub fail_open: bool,
    /// Choose the route again after it has answered.
    pub clear_route_cache: bool,
    /// For requests that are refused because it does not answer; 403 when absent.
    pub status_on_error: Option<String>,
    /// Headers that it is told, `x-*` and `*-x` too; besides method, path, host and authorization.
    #[serde(alias = "includeHeadersInCheck")]
    pub include_request_headers_in_check: Vec<String>,
    /// Headers that it is told with these values.
    pub include_additional_headers_in_check: BTreeMap<String, String>,
    /// The beginning of the body.
    pub include_request_body_in_check: Option<RequestBody>,
    /// Headers of its answer that are set on the request.
    pub headers_to_upstream_on_allow: Vec<String>,
    /// Headers of its answer that the client gets with a refusal; all when empty.
    pub headers_to_downstream_on_deny: Vec<String>,
    /// Headers of its answer that the client gets with the response.
    pub headers_to_downstream_on_allow: Vec<String>,
}

/// An authorizer that is asked by gRPC (`envoy.service.auth.v3.Authorization`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtAuthzGrpc {
    /// Host name of the service, or `namespace/hostname`.
    pub service: String,
    /// Its port.
    pub port: u32,
    /// For an answer; 600 s when absent.
    pub timeout: Option<String>,
    /// Let requests pass when the authorizer does not answer.
    pub fail_open: bool,
    /// Choose the route again after it has answered.
    pub clear_route_cache: bool,
    /// For requests that are refused because it does not answer; 403 when absent.
    pub status_on_error: Option<String>,
    /// The beginning of the body.
    pub include_request_body_in_check: Option<RequestBody>,
}

/// How much of the body an authorizer is told.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestBody {
    /// Of a longer one.
    pub max_request_bytes: u32,
    /// Tell the beginning of a longer one; without it a longer one is refused with 413.
    pub allow_partial_message: bool,
    /// As bytes and not as text; gRPC only.
    pub pack_as_bytes: bool,
}

/// An access log in a file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FileAccessLog {
    /// `/dev/stdout` when empty.
    pub path: String,
    /// Envoy's default when absent.
    pub log_format: Option<LogFormat>,
}

/// An access log of requests at a service (`envoy.service.accesslog.v3.AccessLogService`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpAls {
    /// Host name of the service, or `namespace/hostname`.
    pub service: String,
    /// Its port.
    pub port: u32,
    /// What the service calls it; `http_envoy_accesslog` when empty.
    pub log_name: String,
    /// Headers that are told besides those that always are.
    pub additional_request_headers_to_log: Vec<String>,
    /// The same of the response.
    pub additional_response_headers_to_log: Vec<String>,
    /// Its trailers.
    pub additional_response_trailers_to_log: Vec<String>,
}

/// An access log of connections at such a service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpAls {
    /// Host name of the service, or `namespace/hostname`.
    pub service: String,
    /// Its port.
    pub port: u32,
    /// What the service calls it; `tcp_envoy_accesslog` when empty.
    pub log_name: String,
}

/// An access log at a collector of OpenTelemetry.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OtelAls {
    /// Host name of the service, or `namespace/hostname`.
    pub service: String,
    /// Its port.
    pub port: u32,
    /// Attribute of the resource; `otel_envoy_accesslog` when empty.
    pub log_name: String,
    /// Bodies and attributes of records.
    pub log_format: Option<LogFormat>,
}

/// How a line looks; one is set.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LogFormat {
    /// A line with operators.
    pub text: Option<String>,
    /// A JSON object with operators.
    pub labels: Option<serde_json::Map<String, Value>>,
}

/// A collector of spans by OTLP.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OpenTelemetry {
    /// Host name of the service, or `namespace/hostname`.
    pub service: String,
    /// Its port.
    pub port: u32,
    /// Longest path in a span.
    pub max_tag_length: Option<u32>,
    /// By HTTP; by gRPC when absent.
    pub http: Option<OtlpHttp>,
    /// More of gRPC.
    pub grpc: Option<OtlpGrpc>,
}

/// OTLP over gRPC.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OtlpGrpc {
    /// For an answer.
    pub timeout: Option<String>,
    /// Sent with each.
    pub initial_metadata: Vec<OtlpHeader>,
}

/// OTLP over HTTP.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OtlpHttp {
    /// `/v1/traces`.
    pub path: String,
    /// For an answer.
    pub timeout: Option<String>,
    /// Sent with each.
    pub headers: Vec<OtlpHeader>,
}

/// A header of OTLP over HTTP.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OtlpHeader {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Option<String>,
}

/// Metrics that are scraped; there is nothing to say.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Prometheus {}

impl ExtensionProvider {
    /// How many kinds it is of, of those that are acted on; one is right.
    pub(crate) fn kinds(&self) -> usize {
        let kinds = [
            self.envoy_ext_authz_http.is_some(),
            self.envoy_ext_authz_grpc.is_some(),
            self.envoy_file_access_log.is_some(),
            self.envoy_http_als.is_some(),
            self.envoy_tcp_als.is_some(),
            self.envoy_otel_als.is_some(),
            self.opentelemetry.is_some(),
            self.prometheus.is_some(),
        ];
        kinds.into_iter().filter(|is_set| *is_set).count()
    }
}

impl MeshConfig {
    /// The provider of that name.
    pub fn provider(&self, name: &str) -> Option<&ExtensionProvider> {
        let mut providers = self.extension_providers.iter();
        providers.find(|provider| provider.name == name)
    }
}
