//! `telemetry.istio.io` Telemetry (Istio's API reference, Telemetry).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Custom;
use crate::objects::security::{Selector, TargetRef};

/// What is logged, counted and traced.
pub type Telemetry = Custom<TelemetrySpec>;

/// The body of a Telemetry.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TelemetrySpec {
    /// Workloads; never acted on by a waypoint.
    pub selector: Option<Selector>,
    /// One target.
    pub target_ref: Option<TargetRef>,
    /// Several targets.
    pub target_refs: Vec<TargetRef>,
    /// Spans.
    pub tracing: Vec<Tracing>,
    /// Metrics.
    pub metrics: Vec<Metrics>,
    /// Access log.
    pub access_logging: Vec<AccessLogging>,
}

impl TelemetrySpec {
    /// What it is attached to, by either field.
    pub(crate) fn targets(&self) -> impl Iterator<Item = &TargetRef> {
        self.target_ref.iter().chain(&self.target_refs)
    }
}

/// Names a provider of the mesh configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ProviderRef {
    /// Its name.
    pub name: String,
}

/// Which side it is for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ModeMatch {
    /// CLIENT, SERVER, CLIENT_AND_SERVER (default).
    pub mode: Option<String>,
}

/// Spans.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Tracing {
    /// Which side.
    #[serde(rename = "match")]
    pub matches: Option<ModeMatch>,
    /// At most one.
    pub providers: Vec<ProviderRef>,
    /// 0 to 100; that of the mesh when absent.
    pub random_sampling_percentage: Option<f64>,
    /// No spans from here.
    pub disable_span_reporting: Option<bool>,
    /// Tags of the user.
    pub custom_tags: BTreeMap<String, CustomTag>,
    /// The request's identifier decides on sampling.
    pub use_request_id_for_trace_sampling: Option<bool>,
    /// Istio's own tags.
    pub enable_istio_tags: Option<bool>,
    /// Take the headers of the trace as they come.
    pub disable_context_propagation: Option<bool>,
}

/// Where the value of a tag is from; one is set.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct CustomTag {
    /// As it stands.
    pub literal: Option<LiteralTag>,
    /// From the proxy's environment.
    pub environment: Option<NamedTag>,
    /// From the request.
    pub header: Option<NamedTag>,
    /// By Envoy's operators.
    pub formatter: Option<LiteralTag>,
}

/// A value as it stands.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LiteralTag {
    /// The value.
    pub value: String,
}

/// A value by name.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NamedTag {
    /// The name.
    pub name: String,
    /// When there is none.
    pub default_value: Option<String>,
}

/// Metrics.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metrics {
    /// `prometheus`, or others of the mesh configuration.
    pub providers: Vec<ProviderRef>,
    /// In order; later ones win.
    pub overrides: Vec<MetricOverride>,
    /// Of TCP metrics.
    pub reporting_interval: Option<String>,
}

/// A change of one or all metrics.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MetricOverride {
    /// Which; all when absent.
    #[serde(rename = "match")]
    pub matches: Option<MetricMatch>,
    /// Not at all.
    pub disabled: Option<bool>,
    /// Labels.
    pub tag_overrides: BTreeMap<String, TagOverride>,
}

/// Which metric.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MetricMatch {
    /// ALL_METRICS, REQUEST_COUNT and so on.
    pub metric: Option<String>,
    /// By its own name.
    pub custom_metric: Option<String>,
    /// CLIENT, SERVER, CLIENT_AND_SERVER (default).
    pub mode: Option<String>,
}

/// A change of one label.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TagOverride {
    /// UPSERT (default) or REMOVE.
    pub operation: Option<String>,
    /// An expression in CEL.
    pub value: Option<String>,
}

/// Access log.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AccessLogging {
    /// Which side.
    #[serde(rename = "match")]
    pub matches: Option<ModeMatch>,
    /// Of the mesh configuration.
    pub providers: Vec<ProviderRef>,
    /// Not at all.
    pub disabled: Option<bool>,
    /// Which requests.
    pub filter: Option<LogFilter>,
}

/// Which requests are logged.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LogFilter {
    /// In CEL.
    pub expression: String,
}
