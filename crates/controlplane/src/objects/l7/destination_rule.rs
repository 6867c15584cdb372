//! `networking.istio.io` DestinationRule (Istio's API reference, Destination Rule).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::Custom;
use crate::objects::security::Selector;

/// How traffic reaches a host.
pub type DestinationRule = Custom<DestinationRuleSpec>;

/// The body of a DestinationRule.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DestinationRuleSpec {
    /// Host name; short names are of its own namespace.
    pub host: String,
    /// For all endpoints.
    pub traffic_policy: Option<TrafficPolicy>,
    /// Named parts of the endpoints.
    pub subsets: Vec<Subset>,
    /// Namespaces that see it: `.`, `*` or names.
    pub export_to: Vec<String>,
    /// Clients it is for; not known to a waypoint.
    pub workload_selector: Option<Selector>,
}

/// A named part of the endpoints.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subset {
    /// Its name.
    pub name: String,
    /// All must be labels of the endpoint.
    pub labels: BTreeMap<String, String>,
    /// Over that of the rule.
    pub traffic_policy: Option<TrafficPolicy>,
}

/// How endpoints are chosen, connected to and given up on.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicy {
    /// Choice of the endpoint.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits.
    pub connection_pool: Option<ConnectionPool>,
    /// Ejection of endpoints that fail.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS to the endpoint.
    pub tls: Option<ClientTls>,
    /// In place of the above for single ports.
    pub port_level_settings: Vec<PortPolicy>,
    /// Tunnelling of TCP.
    pub tunnel: Option<Value>,
    /// PROXY protocol to the endpoint.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Retries in proportion to requests.
    pub retry_budget: Option<RetryBudget>,
}

/// The policy of one port.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortPolicy {
    /// Which.
    pub port: Option<super::virtual_service::PortSelector>,
    /// Choice of the endpoint.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits.
    pub connection_pool: Option<ConnectionPool>,
    /// Ejection of endpoints that fail.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS to the endpoint.
    pub tls: Option<ClientTls>,
}

/// Choice of the endpoint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancer {
    /// LEAST_REQUEST, ROUND_ROBIN, RANDOM, PASSTHROUGH; LEAST_CONN is an older name of the first.
    pub simple: Option<String>,
    /// By something of the request.
    pub consistent_hash: Option<ConsistentHash>,
    /// Nearness.
    pub locality_lb_setting: Option<LocalitySetting>,
    /// Nearness by zones.
    pub zone_aware_lb_setting: Option<Value>,
    /// Older form of `warmup`.
    pub warmup_duration_secs: Option<String>,
    /// Slow start of new endpoints.
    pub warmup: Option<Warmup>,
}

/// Slow start of new endpoints.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Warmup {
    /// Until an endpoint has its whole share.
    pub duration: Option<String>,
    /// In percent; 10 when absent.
    pub minimum_percent: Option<f64>,
    /// 1 when absent: linear.
    pub aggression: Option<f64>,
}

/// By something of the request; one of the four sources is set.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsistentHash {
    /// A header.
    pub http_header_name: Option<String>,
    /// A cookie, made when absent.
    pub http_cookie: Option<HttpCookie>,
    /// The client's address.
    pub use_source_ip: Option<bool>,
    /// A query parameter.
    pub http_query_parameter_name: Option<String>,
    /// Older place of `ringHash.minimumRingSize`.
    pub minimum_ring_size: Option<u64>,
    /// Ketama.
    pub ring_hash: Option<RingHash>,
    /// Maglev.
    pub maglev: Option<Maglev>,
}

/// A cookie that ties a client to an endpoint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct HttpCookie {
    /// Its name.
    pub name: String,
    /// Its path.
    pub path: Option<String>,
    /// Life of the cookie that is made; none is made when absent.
    pub ttl: Option<String>,
    /// Further attributes of the cookie that is made.
    pub attributes: Vec<CookieAttribute>,
}

/// `name=value` after the cookie.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct CookieAttribute {
    /// Such as `SameSite`.
    pub name: String,
    /// Such as `Strict`.
    pub value: Option<String>,
}

/// Ketama.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RingHash {
    /// 1024 when absent.
    pub minimum_ring_size: Option<u64>,
}

/// Maglev.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Maglev {
    /// A prime; 65537 when absent.
    pub table_size: Option<u64>,
}

/// Nearness.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LocalitySetting {
    /// Shares by locality of the client.
    pub distribute: Vec<Distribute>,
    /// Where to when a region fails.
    pub failover: Vec<Failover>,
    /// Labels by which endpoints are ranked.
    pub failover_priority: Vec<String>,
    /// True when absent.
    pub enabled: Option<bool>,
}

/// Shares by locality of the client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Distribute {
    /// `region/zone/subzone`, `*` for any.
    pub from: String,
    /// Percent by locality, 100 together.
    pub to: BTreeMap<String, u32>,
}

/// Where to when a region fails.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Failover {
    /// A region.
    pub from: String,
    /// A region.
    pub to: String,
}

/// Limits.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ConnectionPool {
    /// Of connections.
    pub tcp: Option<TcpSettings>,
    /// Of requests.
    pub http: Option<HttpSettings>,
}

/// Limits of connections.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpSettings {
    /// At the same time; no limit when absent.
    pub max_connections: Option<i64>,
    /// 10 s when absent.
    pub connect_timeout: Option<String>,
    /// Keepalive.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Life of a connection.
    pub max_connection_duration: Option<String>,
    /// Silence after which a connection is closed; 1 h when absent.
    pub idle_timeout: Option<String>,
}

/// Keepalive.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TcpKeepalive {
    /// Probes before the connection counts as dead.
    pub probes: Option<u32>,
    /// Before the first probe.
    pub time: Option<String>,
    /// Between probes.
    pub interval: Option<String>,
}

/// Limits of requests.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpSettings {
    /// Requests that wait for a connection.
    pub http1_max_pending_requests: Option<i64>,
    /// Requests at the same time.
    pub http2_max_requests: Option<i64>,
    /// Then the connection is closed; 0 means no limit.
    pub max_requests_per_connection: Option<i64>,
    /// Retries at the same time.
    pub max_retries: Option<i64>,
    /// Of a connection without requests; 1 h when absent.
    pub idle_timeout: Option<String>,
    /// DEFAULT, DO_NOT_UPGRADE, UPGRADE.
    pub h2_upgrade_policy: Option<String>,
    /// The version that the client spoke.
    pub use_client_protocol: Option<bool>,
    /// Of one HTTP/2 connection.
    pub max_concurrent_streams: Option<i64>,
    /// Pings.
    pub http2_keep_alive: Option<Value>,
}

/// Ejection of endpoints that fail.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutlierDetection {
    /// Deprecated, without effect in Istio too.
    pub consecutive_errors: Option<i32>,
    /// Answers 5xx in a row; 5 when absent.
    pub consecutive5xx_errors: Option<u32>,
    /// Answers 502, 503, 504 in a row.
    pub consecutive_gateway_errors: Option<u32>,
    /// Failures without an answer in a row.
    pub consecutive_local_origin_failures: Option<u32>,
    /// Count the last apart.
    pub split_external_local_origin_errors: Option<bool>,
    /// Between looks; 10 s when absent.
    pub interval: Option<String>,
    /// Times the number of ejections; 30 s when absent.
    pub base_ejection_time: Option<String>,
    /// 10 when absent.
    pub max_ejection_percent: Option<i32>,
    /// Below it, all endpoints are used; 0 when absent.
    pub min_health_percent: Option<i32>,
    /// Statuses that count as failures in place of 5xx.
    pub outlier_detection_http_error_codes: Vec<Value>,
}

/// TLS to the endpoint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientTls {
    /// DISABLE, SIMPLE, MUTUAL, ISTIO_MUTUAL.
    pub mode: Option<String>,
    /// A file.
    pub client_certificate: Option<String>,
    /// A file.
    pub private_key: Option<String>,
    /// A file; the system's roots when absent.
    pub ca_certificates: Option<String>,
    /// A file.
    pub ca_crl: Option<String>,
    /// A Secret in place of files.
    pub credential_name: Option<String>,
    /// Names of the server, one of which must be in its certificate.
    pub subject_alt_names: Vec<String>,
    /// Server name to ask for; the host when absent.
    pub sni: Option<String>,
    /// Take any certificate.
    pub insecure_skip_verify: Option<bool>,
}

/// PROXY protocol to the endpoint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ProxyProtocol {
    /// V1 (default) or V2.
    pub version: Option<String>,
}

/// Retries in proportion to requests.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryBudget {
    /// Of the requests at the time; 20 when absent.
    pub percent: Option<f64>,
    /// Always allowed; 3 when absent.
    pub min_retry_concurrency: Option<u32>,
    /// Over which requests are counted.
    pub budget_interval: Option<String>,
}
