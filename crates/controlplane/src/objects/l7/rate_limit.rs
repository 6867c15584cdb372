//! `leyline.io` RateLimit: limits of requests without an EnvoyFilter.
//!
//! ```yaml
//! apiVersion: leyline.io/v1alpha1
//! kind: RateLimit
//! metadata: {name: per-client, namespace: shop}
//! spec:
//!   targetRefs: [{kind: Service, group: "", name: server}]
//!   limits:
//!   - requests: 100
//!     unit: Minute
//!     burst: 20
//!     key: [{clientIdentity: {}}]
//! ```

use serde::Deserialize;

use super::Custom;
use crate::objects::security::TargetRef;

/// Limits of requests to services or through waypoints.
pub type RateLimit = Custom<RateLimitSpec>;

/// The body of a RateLimit.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RateLimitSpec {
    /// Services, or Gateways of class `istio-waypoint`, of the same namespace.
    pub target_refs: Vec<TargetRef>,
    /// Each must allow the request.
    pub limits: Vec<Limit>,
    /// Counted by a rate limit service for all waypoints together; by each waypoint alone when absent.
    pub global: Option<Global>,
}

/// One limit.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limit {
    /// So many in each unit, at least 1.
    pub requests: u32,
    /// Second, Minute, Hour or Day.
    pub unit: String,
    /// So many more at once, out of what was not used; 0 when absent. Local limits only.
    pub burst: Option<u32>,
    /// Requests that have the same values share a limit; one limit for all when empty.
    pub key: Vec<KeyPart>,
}

/// What is told apart; one is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KeyPart {
    /// The value of a header; requests without it are not limited.
    pub header: Option<String>,
    /// The path without query.
    pub path: Option<Empty>,
    /// The SPIFFE identity of the client.
    pub client_identity: Option<Empty>,
    /// The address of the client.
    pub client_ip: Option<Empty>,
}

/// `{}`: named, with nothing to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Empty {}

/// A service of the Envoy rate limit protocol.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Global {
    /// Host name of the service in the mesh.
    pub host: String,
    /// Its port.
    pub port: u32,
    /// Domain of the descriptors.
    pub domain: String,
    /// For an answer; 20 ms when absent.
    pub timeout: Option<String>,
    /// Refuse when the service does not answer; requests pass when absent.
    pub fail_closed: bool,
}
