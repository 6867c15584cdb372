//! `networking.istio.io` EnvoyFilter, as far as its readers need it: every field has a name, and what is acted on is
//! decided by the translation, which warns of the rest.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::Custom;
use crate::objects::security::TargetRef;

/// Patches of the configuration of proxies.
pub type EnvoyFilter = Custom<EnvoyFilterSpec>;

/// The body of an EnvoyFilter.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvoyFilterSpec {
    /// Proxies by the labels of their pods.
    pub workload_selector: Option<WorkloadSelector>,
    /// Services and waypoints.
    pub target_refs: Vec<TargetRef>,
    /// What is changed.
    pub config_patches: Vec<ConfigPatch>,
    /// Lower ones first.
    pub priority: i32,
}

/// Labels of pods.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WorkloadSelector {
    /// All of them.
    pub labels: BTreeMap<String, String>,
}

/// One change.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigPatch {
    /// HTTP_FILTER, VIRTUAL_HOST, and so on.
    pub apply_to: String,
    /// Where; everywhere when absent.
    #[serde(rename = "match")]
    pub matches: PatchMatch,
    /// What.
    pub patch: Patch,
}

/// Where a change is made.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PatchMatch {
    /// ANY (default), SIDECAR_INBOUND, SIDECAR_OUTBOUND, GATEWAY, WAYPOINT.
    pub context: Option<String>,
    /// By version of the proxy.
    pub proxy: Option<Value>,
    /// Of a listener.
    pub listener: Option<ListenerMatch>,
    /// Of routes.
    pub route_configuration: Option<RouteConfigurationMatch>,
    /// Of a cluster.
    pub cluster: Option<Value>,
    /// Of a waypoint.
    pub waypoint: Option<WaypointMatch>,
}

/// What a waypoint has of a service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WaypointMatch {
    /// Port of the service.
    pub port_number: Option<u32>,
    /// A filter.
    pub filter: Option<FilterMatch>,
    /// A route.
    pub route: Option<WaypointRouteMatch>,
}

/// A route.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WaypointRouteMatch {
    /// Its name.
    pub name: Option<String>,
}

/// A listener.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerMatch {
    /// Port of the service.
    pub port_number: Option<u32>,
    /// Its name.
    pub port_name: Option<String>,
    /// A chain in it.
    pub filter_chain: Option<FilterChainMatch>,
    /// A filter of the listener.
    pub listener_filter: Option<String>,
    /// Name of the listener.
    pub name: Option<String>,
}

/// A chain of filters.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FilterChainMatch {
    /// Its name.
    pub name: Option<String>,
    /// Server name.
    pub sni: Option<String>,
    /// `tls` or `raw_buffer`.
    pub transport_protocol: Option<String>,
    /// ALPN.
    pub application_protocols: Option<String>,
    /// A filter in it.
    pub filter: Option<FilterMatch>,
    /// Port.
    pub destination_port: Option<u32>,
}

/// A filter.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FilterMatch {
    /// Its name.
    pub name: Option<String>,
    /// A filter within it.
    pub sub_filter: Option<SubFilterMatch>,
}

/// A filter within another.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SubFilterMatch {
    /// Its name.
    pub name: Option<String>,
}

/// Routes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteConfigurationMatch {
    /// Port of the service.
    pub port_number: Option<u32>,
    /// Its name.
    pub port_name: Option<String>,
    /// Of ingress gateways.
    pub gateway: Option<String>,
    /// A virtual host.
    pub vhost: Option<VirtualHostMatch>,
    /// Name of the routes.
    pub name: Option<String>,
}

/// A virtual host.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualHostMatch {
    /// Its name.
    pub name: Option<String>,
    /// One of its domains.
    pub domain_name: Option<String>,
    /// A route in it.
    pub route: Option<RouteMatch>,
}

/// A route.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RouteMatch {
    /// Its name.
    pub name: Option<String>,
    /// ANY, ROUTE, REDIRECT, DIRECT_RESPONSE.
    pub action: Option<String>,
}

/// How, and with what.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Patch {
    /// MERGE, ADD, REMOVE, INSERT_BEFORE, INSERT_AFTER, INSERT_FIRST, REPLACE.
    pub operation: String,
    /// JSON of the message.
    pub value: Value,
    /// Of filters: AUTHN, AUTHZ, STATS.
    pub filter_class: Option<String>,
}
