//! Kinds that only waypoints act on: Istio's networking, security and telemetry kinds, the Gateway API's routes, and our
//! RateLimit. Each has every field that a valid object may have, so that an unknown one is found; what the mesh does not
//! act on is warned of by the translation, never ignored in silence.

pub mod backend_tls_policy;
pub mod destination_rule;
pub mod envoy_filter;
pub mod gateway_route;
pub mod proxy_config;
pub mod rate_limit;
pub mod request_authentication;
pub mod telemetry;
pub mod virtual_service;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

/// An object of a custom kind: metadata, and a body of its own type.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Custom<Spec> {
    #[expect(
        dead_code,
        reason = "checked when the document was classified; named so that it is not unknown"
    )]
    api_version: String,
    #[expect(
        dead_code,
        reason = "checked when the document was classified; named so that it is not unknown"
    )]
    kind: String,
    /// Name, namespace, labels, annotations.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The body.
    #[serde(default)]
    pub spec: Spec,
    #[serde(default)]
    #[expect(
        dead_code,
        reason = "written by controllers; named so that it is not unknown"
    )]
    status: Option<Value>,
}

/// A text that must be equal, start with, or match; one of them is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct StringMatch {
    /// Equal.
    pub exact: Option<String>,
    /// Starts with.
    pub prefix: Option<String>,
    /// RE2, the whole text.
    pub regex: Option<String>,
}

/// A share of requests in percent, 0 to 100, with four decimals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub struct Percent {
    /// In percent.
    #[serde(default)]
    pub value: f64,
}
