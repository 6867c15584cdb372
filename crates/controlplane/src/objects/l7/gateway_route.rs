//! `gateway.networking.k8s.io` HTTPRoute, GRPCRoute, TCPRoute, TLSRoute and ReferenceGrant (Gateway API 1.5).

use serde::Deserialize;
use serde_json::Value;

use super::Custom;

/// HTTP routes for services.
pub type HttpRoute = Custom<RouteSpec<HttpRule>>;
/// gRPC routes for services.
pub type GrpcRoute = Custom<RouteSpec<GrpcRule>>;
/// TCP routes for services.
pub type TcpRoute = Custom<RouteSpec<StreamRule>>;
/// TLS routes for services, by server name.
pub type TlsRoute = Custom<RouteSpec<StreamRule>>;
/// Leave to name objects of another namespace.
pub type ReferenceGrant = Custom<ReferenceGrantSpec>;

/// The body of a route.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteSpec<Rule> {
    /// What it is attached to: services, for a mesh.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// Host names; without effect in a mesh, where the service's address decides. Server names of a TLSRoute.
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// In order of precedence by their matches.
    #[serde(default = "Vec::new")]
    pub rules: Vec<Rule>,
    /// Which Gateways it may be attached to, of newer versions.
    #[serde(default)]
    pub use_default_gateways: Option<String>,
}

/// What a route is attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ParentRef {
    /// `gateway.networking.k8s.io` when absent; empty for a Service.
    pub group: Option<String>,
    /// `Gateway` when absent.
    pub kind: Option<String>,
    /// That of the route when absent.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// A part of it.
    pub section_name: Option<String>,
    /// One port of it.
    pub port: Option<i64>,
}

/// One rule of an HTTPRoute.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRule {
    /// Shown in the access log.
    pub name: Option<String>,
    /// Alternatives; everything when empty.
    pub matches: Vec<HttpMatch>,
    /// What is changed or done.
    pub filters: Vec<HttpFilter>,
    /// Destinations by weight.
    pub backend_refs: Vec<BackendRef<HttpFilter>>,
    /// Times.
    pub timeouts: Option<Timeouts>,
    /// Tries.
    pub retry: Option<Retry>,
    /// Stickiness, which waypoints do not have.
    pub session_persistence: Option<Value>,
}

/// All named parts must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpMatch {
    /// `/` as a prefix when absent.
    pub path: Option<PathMatch>,
    /// All of these.
    pub headers: Vec<NamedMatch>,
    /// All of these.
    pub query_params: Vec<NamedMatch>,
    /// In capitals.
    pub method: Option<String>,
}

/// A path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PathMatch {
    /// PathPrefix (default), Exact, RegularExpression.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// `/` when absent.
    pub value: Option<String>,
}

/// A header or a query parameter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NamedMatch {
    /// Exact (default) or RegularExpression.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// What is changed or done; the field that `type` names is set.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpFilter {
    /// Which.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of the request.
    pub request_header_modifier: Option<HeaderModifier>,
    /// Of the response.
    pub response_header_modifier: Option<HeaderModifier>,
    /// A copy.
    pub request_mirror: Option<RequestMirror>,
    /// An answer that sends elsewhere.
    pub request_redirect: Option<RequestRedirect>,
    /// Host and path.
    #[serde(rename = "urlRewrite")]
    pub url_rewrite: Option<UrlRewrite>,
    /// Cross-origin requests.
    pub cors: Option<Cors>,
    /// An external authorizer.
    pub external_auth: Option<Value>,
    /// Of another kind.
    pub extension_ref: Option<Value>,
}

/// Changes of headers; remove, then set, then add.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct HeaderModifier {
    /// In place of what is there.
    pub set: Vec<NameValue>,
    /// Beside what is there.
    pub add: Vec<NameValue>,
    /// By name.
    pub remove: Vec<String>,
}

/// A header.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NameValue {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A copy of requests.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestMirror {
    /// Where to.
    pub backend_ref: ObjectRef,
    /// Share; all when neither is set.
    pub percent: Option<i32>,
    /// Share.
    pub fraction: Option<Fraction>,
}

/// A share.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Fraction {
    /// Above.
    pub numerator: i32,
    /// Below; 100 when absent.
    pub denominator: Option<i32>,
}

/// An answer that sends elsewhere.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestRedirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Host.
    pub hostname: Option<String>,
    /// Path.
    pub path: Option<PathModifier>,
    /// Port.
    pub port: Option<i64>,
    /// 302 when absent.
    pub status_code: Option<u32>,
}

/// Host and path.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct UrlRewrite {
    /// Host.
    pub hostname: Option<String>,
    /// Path.
    pub path: Option<PathModifier>,
}

/// A change of the path.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathModifier {
    /// ReplaceFullPath or ReplacePrefixMatch.
    #[serde(rename = "type")]
    pub kind: String,
    /// All of it.
    pub replace_full_path: Option<String>,
    /// The matched prefix.
    pub replace_prefix_match: Option<String>,
}

/// Cross-origin requests.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cors {
    /// `scheme://host`, with `*` in the host, or `*`.
    pub allow_origins: Vec<String>,
    /// Access-Control-Allow-Credentials.
    pub allow_credentials: Option<bool>,
    /// Access-Control-Allow-Methods.
    pub allow_methods: Vec<String>,
    /// Access-Control-Allow-Headers.
    pub allow_headers: Vec<String>,
    /// Access-Control-Expose-Headers.
    pub expose_headers: Vec<String>,
    /// Seconds; 5 when absent.
    pub max_age: Option<i64>,
}

/// Names a service or the like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ObjectRef {
    /// The core group when absent.
    pub group: Option<String>,
    /// Service when absent.
    pub kind: Option<String>,
    /// Its name.
    pub name: String,
    /// That of the route when absent.
    pub namespace: Option<String>,
    /// Needed for a Service.
    pub port: Option<i64>,
}

/// A destination with a weight.
#[derive(Clone, Debug, Deserialize)]
pub struct BackendRef<Filter> {
    /// The core group when absent.
    #[serde(default)]
    pub group: Option<String>,
    /// Service when absent.
    #[serde(default)]
    pub kind: Option<String>,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// That of the route when absent.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Needed for a Service.
    #[serde(default)]
    pub port: Option<i64>,
    /// 1 when absent.
    #[serde(default)]
    pub weight: Option<i32>,
    /// For this destination alone.
    #[serde(default = "Vec::new")]
    pub filters: Vec<Filter>,
}

/// Times.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Timeouts {
    /// End to end, with retries.
    pub request: Option<String>,
    /// Each try.
    pub backend_request: Option<String>,
}

/// Tries (GEP-1731).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Retry {
    /// Status codes.
    pub codes: Vec<u32>,
    /// How many more.
    pub attempts: Option<i32>,
    /// The least time between.
    pub backoff: Option<String>,
}

/// One rule of a GRPCRoute.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcRule {
    /// Shown in the access log.
    pub name: Option<String>,
    /// Alternatives; everything when empty.
    pub matches: Vec<GrpcMatch>,
    /// What is changed or done.
    pub filters: Vec<HttpFilter>,
    /// Destinations by weight.
    pub backend_refs: Vec<BackendRef<HttpFilter>>,
    /// Stickiness, which waypoints do not have.
    pub session_persistence: Option<Value>,
}

/// All named parts must hold.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct GrpcMatch {
    /// Every method when absent.
    pub method: Option<GrpcMethod>,
    /// All of these.
    pub headers: Vec<NamedMatch>,
}

/// A method of a service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct GrpcMethod {
    /// Exact (default) or RegularExpression.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// With its package.
    pub service: Option<String>,
    /// Its name.
    pub method: Option<String>,
}

/// One rule of a TCPRoute or a TLSRoute.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StreamRule {
    /// Shown in the access log.
    pub name: Option<String>,
    /// Destinations by weight.
    pub backend_refs: Vec<BackendRef<Value>>,
}

/// The body of a ReferenceGrant.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ReferenceGrantSpec {
    /// Who may.
    pub from: Vec<GrantFrom>,
    /// What they may name.
    pub to: Vec<GrantTo>,
}

/// Objects that may name.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct GrantFrom {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
}

/// Objects that may be named.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct GrantTo {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// All of the kind when absent.
    pub name: Option<String>,
}
