//! `networking.istio.io` VirtualService (Istio's API reference, Virtual Service).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Custom, Percent, StringMatch};

/// Routes for hosts.
pub type VirtualService = Custom<VirtualServiceSpec>;

/// The body of a VirtualService.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualServiceSpec {
    /// Host names; `*` as a whole first label.
    pub hosts: Vec<String>,
    /// Where it is bound; `mesh` when empty. Only `mesh` concerns waypoints.
    pub gateways: Vec<String>,
    /// In order; the first that matches counts.
    pub http: Vec<HttpRoute>,
    /// In order, for TLS that is passed through.
    pub tls: Vec<TlsRoute>,
    /// In order, for TCP.
    pub tcp: Vec<TcpRoute>,
    /// Namespaces that see it: `.`, `*` or names.
    pub export_to: Vec<String>,
}

/// One HTTP route.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRoute {
    /// Shown in the access log.
    pub name: Option<String>,
    /// Alternatives; everything when empty.
    #[serde(rename = "match")]
    pub matches: Vec<HttpMatch>,
    /// Destinations by weight.
    pub route: Vec<HttpDestination>,
    /// Instead of destinations.
    pub redirect: Option<Redirect>,
    /// Instead of destinations.
    pub direct_response: Option<DirectResponse>,
    /// Routes of another VirtualService in this place.
    pub delegate: Option<Delegate>,
    /// Changes of path and authority.
    pub rewrite: Option<Rewrite>,
    /// End to end, with retries; none when absent.
    pub timeout: Option<String>,
    /// Retries; Istio's default when absent.
    pub retries: Option<Retry>,
    /// Injected delays and errors.
    pub fault: Option<Fault>,
    /// One copy of each request (older form of `mirrors`).
    pub mirror: Option<Destination>,
    /// Share of requests that are copied.
    pub mirror_percentage: Option<Percent>,
    /// The same as a whole number, deprecated.
    #[serde(alias = "mirror_percent")]
    pub mirror_percent: Option<u32>,
    /// Copies of requests.
    pub mirrors: Vec<Mirror>,
    /// Cross-origin requests.
    pub cors_policy: Option<CorsPolicy>,
    /// Changes of headers.
    pub headers: Option<Headers>,
}

/// All named parts must hold.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpMatch {
    /// Shown in the access log.
    pub name: Option<String>,
    /// Path without query.
    pub uri: Option<StringMatch>,
    /// `http` or `https`.
    pub scheme: Option<StringMatch>,
    /// Method.
    pub method: Option<StringMatch>,
    /// Host with port as sent.
    pub authority: Option<StringMatch>,
    /// By lower-case name; an empty match means presence.
    pub headers: BTreeMap<String, StringMatch>,
    /// None of these.
    pub without_headers: BTreeMap<String, StringMatch>,
    /// First value of each parameter.
    pub query_params: BTreeMap<String, StringMatch>,
    /// Port of the service.
    pub port: Option<u32>,
    /// Labels of the client; not known to a waypoint in Istio.
    pub source_labels: BTreeMap<String, String>,
    /// Namespace of the client; not known to a waypoint in Istio.
    pub source_namespace: Option<String>,
    /// As of the VirtualService.
    pub gateways: Vec<String>,
    /// Letters of `uri` exact and prefix in either case.
    pub ignore_uri_case: bool,
    /// Prefix of the metrics.
    pub stat_prefix: Option<String>,
}

/// A destination with a weight.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpDestination {
    /// Where.
    pub destination: Destination,
    /// Share of the sum of weights; a single destination has all.
    pub weight: i32,
    /// Changes of headers for this destination.
    pub headers: Option<Headers>,
}

/// A service, a part of its endpoints, a port of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Destination {
    /// Host name; short names are of the VirtualService's namespace.
    pub host: String,
    /// Of the DestinationRule.
    pub subset: Option<String>,
    /// The request's port when absent.
    pub port: Option<PortSelector>,
}

/// A port by number.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(default)]
pub struct PortSelector {
    /// Of the service.
    pub number: u32,
}

/// Another VirtualService.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Delegate {
    /// Its name.
    pub name: String,
    /// Its namespace; the same when absent.
    pub namespace: Option<String>,
}

/// An answer that sends the client elsewhere.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Redirect {
    /// In place of the path.
    pub uri: Option<String>,
    /// In place of the matched prefix.
    pub prefix_rewrite: Option<String>,
    /// Host.
    pub authority: Option<String>,
    /// Port.
    pub port: Option<u32>,
    /// FROM_PROTOCOL_DEFAULT or FROM_REQUEST_PORT.
    pub derive_port: Option<String>,
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// 301 when absent.
    pub redirect_code: Option<u32>,
}

/// A fixed answer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: u32,
    /// None when absent.
    pub body: Option<Body>,
}

/// Text, or bytes in base64.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Body {
    /// Text.
    pub string: Option<String>,
    /// Base64.
    pub bytes: Option<String>,
}

/// Changes on the way to the destination.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rewrite {
    /// The path, or what replaces the matched prefix.
    pub uri: Option<String>,
    /// The host.
    pub authority: Option<String>,
    /// By regular expression.
    pub uri_regex_rewrite: Option<RegexRewrite>,
}

/// A replacement by regular expression.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RegexRewrite {
    /// RE2.
    #[serde(rename = "match")]
    pub pattern: String,
    /// With `\1` for groups.
    pub rewrite: String,
}

/// When and how often to try again.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Retry {
    /// At most this many more tries; 0 turns retries off.
    pub attempts: i32,
    /// For each try.
    pub per_try_timeout: Option<String>,
    /// Comma separated conditions and status codes.
    pub retry_on: Option<String>,
    /// Other localities too.
    pub retry_remote_localities: Option<bool>,
    /// Not the same endpoint again; true when absent.
    pub retry_ignore_previous_hosts: Option<bool>,
    /// Base of the exponential back-off; 25 ms when absent.
    pub backoff: Option<String>,
}

/// Injected trouble.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Fault {
    /// Waits.
    pub delay: Option<Delay>,
    /// Errors.
    pub abort: Option<Abort>,
}

/// A wait before the request goes on.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Delay {
    /// Share of requests; all when absent.
    pub percentage: Option<Percent>,
    /// The same as a whole number, deprecated.
    pub percent: Option<i32>,
    /// How long.
    pub fixed_delay: Option<String>,
    /// Published, and refused by Istio as by us.
    pub exponential_delay: Option<String>,
}

/// An error in place of the answer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Abort {
    /// Share of requests; all when absent.
    pub percentage: Option<Percent>,
    /// Status of an HTTP answer.
    pub http_status: Option<u32>,
    /// Name of a gRPC status.
    pub grpc_status: Option<String>,
    /// Published, and refused by Istio as by us.
    pub http2_error: Option<String>,
}

/// Copies of requests, whose answers nobody waits for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Mirror {
    /// Where to.
    pub destination: Destination,
    /// Share of requests; all when absent.
    pub percentage: Option<Percent>,
}

/// Cross-origin requests (the Fetch standard, CORS protocol).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CorsPolicy {
    /// Alternatives.
    pub allow_origins: Vec<StringMatch>,
    /// The same by equality, deprecated.
    pub allow_origin: Vec<String>,
    /// Access-Control-Allow-Methods.
    pub allow_methods: Vec<String>,
    /// Access-Control-Allow-Headers.
    pub allow_headers: Vec<String>,
    /// Access-Control-Expose-Headers.
    pub expose_headers: Vec<String>,
    /// Access-Control-Max-Age.
    pub max_age: Option<String>,
    /// Access-Control-Allow-Credentials.
    pub allow_credentials: Option<bool>,
    /// FORWARD (default) or IGNORE.
    pub unmatched_preflights: Option<String>,
}

/// Changes of headers both ways.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Headers {
    /// On the way to the destination.
    pub request: Option<HeaderOperations>,
    /// On the way back.
    pub response: Option<HeaderOperations>,
}

/// Changes of headers; remove, then set, then add.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct HeaderOperations {
    /// In place of what is there.
    pub set: BTreeMap<String, String>,
    /// Beside what is there.
    pub add: BTreeMap<String, String>,
    /// By name.
    pub remove: Vec<String>,
}

/// One TLS route.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TlsRoute {
    /// Alternatives, at least one.
    #[serde(rename = "match")]
    pub matches: Vec<TlsMatch>,
    /// Destinations by weight.
    pub route: Vec<TcpDestination>,
}

/// All named parts must hold.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsMatch {
    /// Server names.
    pub sni_hosts: Vec<String>,
    /// Address blocks of the destination.
    pub destination_subnets: Vec<String>,
    /// Port of the service.
    pub port: Option<u32>,
    /// Not known to a waypoint in Istio.
    pub source_labels: BTreeMap<String, String>,
    /// As of the VirtualService.
    pub gateways: Vec<String>,
    /// Not known to a waypoint in Istio.
    pub source_namespace: Option<String>,
}

/// One TCP route.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TcpRoute {
    /// Alternatives; everything when empty.
    #[serde(rename = "match")]
    pub matches: Vec<TcpMatch>,
    /// Destinations by weight.
    pub route: Vec<TcpDestination>,
}

/// All named parts must hold.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpMatch {
    /// Address blocks of the destination.
    pub destination_subnets: Vec<String>,
    /// Port of the service.
    pub port: Option<u32>,
    /// Not known to a waypoint in Istio.
    pub source_labels: BTreeMap<String, String>,
    /// As of the VirtualService.
    pub gateways: Vec<String>,
    /// Not known to a waypoint in Istio.
    pub source_namespace: Option<String>,
    /// Address block of the client, deprecated.
    pub source_subnet: Option<String>,
}

/// A destination with a weight.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TcpDestination {
    /// Where.
    pub destination: Destination,
    /// Share of the sum of weights; a single destination has all.
    pub weight: i32,
}
