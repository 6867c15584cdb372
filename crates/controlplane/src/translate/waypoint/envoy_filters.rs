//! EnvoyFilters: of all that they may change, the rate limit filters that users write them for. Whatever else a patch asks
//! for is told as advice, and the patch has no effect; it is never applied in part.

mod place;

use std::{cmp::Reverse, collections::BTreeMap};

use envoy_types::pb::{
    envoy::{
        config::route::v3::{
            RateLimit, RouteConfiguration, VirtualHost, route::Action as RouteAction,
        },
        extensions::filters::network::http_connection_manager::v3::HttpFilter,
    },
    google::protobuf::Any,
};
use leyline_types::NamespacedName;
use serde_json::{Map, Value};

use super::{
    listeners::http_filter,
    settings::Settings,
    view::{ServiceView, View},
};
use crate::{
    objects::{
        Kind, ObjectKey, Objects,
        l7::envoy_filter::{ConfigPatch, EnvoyFilter},
    },
    translate::Advice,
};

const MANAGER: &str = "envoy.filters.network.http_connection_manager";
const ROUTER: &str = "envoy.filters.http.router";
/// The label of waypoints' pods, by which a selector may mean one.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Both names of the type.
const TYPED_STRUCTS: [&str; 2] = [
    "type.googleapis.com/udpa.type.v1.TypedStruct",
    "type.googleapis.com/xds.type.v3.TypedStruct",
];

/// A patch that is understood.
#[derive(Clone, Debug)]
struct Patch {
    port: Option<u32>,
    change: Change,
    /// The rate limit service that it names.
    cluster: Option<String>,
}

#[derive(Clone, Debug)]
enum Change {
    /// A filter before the router.
    Filter(Box<HttpFilter>),
    Host {
        name: Option<String>,
        settings: RouteSettings,
    },
    Route {
        host: Option<String>,
        name: Option<String>,
        settings: RouteSettings,
    },
}

/// What is merged into a virtual host or a route.
#[derive(Clone, Debug, Default)]
struct RouteSettings {
    per_filter: BTreeMap<String, Any>,
    rate_limits: Vec<RateLimit>,
}

/// Why a patch has no effect: the field within the patch, and the reason.
type NoEffect = (String, String);

/// All patches for one port of a service, in the order in which they are applied.
pub(super) struct Patches(Vec<Patch>);

/// Those that are for this service of this waypoint.
pub(super) fn patches<'a>(
    view: &View<'a>,
    settings: &Settings<'a>,
    gateway: &NamespacedName,
    service: &ServiceView<'_>,
    port: u16,
) -> Patches {
    let root = view.mesh.root_namespace.as_str();
    let index = &view.index.envoy_filters;
    let aimed = settings.aimed_at(index, service).into_iter();
    let mut filters: Vec<(&NamespacedName, &EnvoyFilter)> = aimed
        .chain(index.untargeted())
        .filter(|(name, filter)| {
            let namespace = name.namespace.as_str();
            let near = namespace == root || namespace == gateway.namespace.as_str();
            near && applies(filter, namespace, settings, gateway, service)
        })
        .collect();
    filters.sort_by_key(|(name, filter)| {
        let created = filter.metadata.creation_timestamp.clone();
        let is_root = name.namespace.as_str() == root;
        (filter.spec.priority, Reverse(is_root), created, *name)
    });
    let patches = filters
        .into_iter()
        .flat_map(|(_, filter)| &filter.spec.config_patches);
    let patches: Vec<Patch> = patches
        .filter_map(|patch| parse(patch).ok())
        .filter(|patch| patch.port.is_none_or(|number| number == u32::from(port)))
        .collect();
    for patch in &patches {
        if let Some(cluster) = &patch.cluster {
            settings.named_cluster(cluster);
        }
    }
    Patches(patches)
}

fn applies(
    filter: &EnvoyFilter,
    namespace: &str,
    settings: &Settings<'_>,
    gateway: &NamespacedName,
    service: &ServiceView<'_>,
) -> bool {
    let spec = &filter.spec;
    let targeted = |target| settings.targets(target, namespace, service);
    if !spec.target_refs.is_empty() {
        return spec.target_refs.iter().any(targeted);
    }
    let labels = spec.workload_selector.as_ref().map(|it| &it.labels);
    labels.is_some_and(|labels| {
        labels.len() == 1
            && labels.get(GATEWAY_NAME).map(String::as_str) == Some(gateway.name.as_str())
    })
}

/// Tells of everything that has no effect.
pub(super) fn advise(objects: &Objects, advice: &mut Vec<Advice>) {
    for (name, filter) in &objects.envoy_filters {
        let mut tell = |field: String, reason: String| {
            advice.push(Advice {
                object: ObjectKey::new(
                    Kind::EnvoyFilter,
                    Some(name.namespace.as_str()),
                    name.name.as_str(),
                ),
                field,
                reason,
            });
        };
        let spec = &filter.spec;
        let labels = spec.workload_selector.as_ref().map(|it| &it.labels);
        let selects = labels.is_some_and(|it| it.len() == 1 && it.contains_key(GATEWAY_NAME));
        if spec.target_refs.is_empty() && !selects {
            tell(
                "spec".to_owned(),
                format!(
                    "has no effect: waypoints are chosen by targetRefs, or by a selector of the one label {GATEWAY_NAME}"
                ),
            );
            continue;
        }
        for (index, patch) in spec.config_patches.iter().enumerate() {
            if let Err((field, reason)) = parse(patch) {
                tell(
                    format!("spec.configPatches[{index}].{field}"),
                    format!("this patch has no effect: {reason}"),
                );
            }
        }
    }
}

impl Patches {
    /// Filters before the router.
    pub(super) fn filters(&self) -> impl Iterator<Item = HttpFilter> + '_ {
        self.0.iter().filter_map(|patch| match &patch.change {
            Change::Filter(filter) => Some(HttpFilter::clone(filter)),
            Change::Host { .. } | Change::Route { .. } => None,
        })
    }

    /// Changes of routes.
    pub(super) fn apply(&self, table: &mut RouteConfiguration) {
        for patch in &self.0 {
            for host in &mut table.virtual_hosts {
                apply(&patch.change, host);
            }
        }
    }
}

fn apply(change: &Change, host: &mut VirtualHost) {
    let is = |wanted: &Option<String>, name: &str| wanted.as_deref().is_none_or(|it| it == name);
    match change {
        Change::Filter(_) => {}
        Change::Host { name, settings } => {
            if is(name, &host.name) {
                host.typed_per_filter_config
                    .extend(settings.per_filter.clone());
                host.rate_limits.extend(settings.rate_limits.clone());
            }
        }
        Change::Route {
            host: of,
            name,
            settings,
        } => {
            let routes = host.routes.iter_mut();
            let of_host = is(of, &host.name);
            for route in routes.filter(|route| of_host && is(name, &route.name)) {
                route
                    .typed_per_filter_config
                    .extend(settings.per_filter.clone());
                if let Some(RouteAction::Route(action)) = &mut route.action {
                    action.rate_limits.extend(settings.rate_limits.clone());
                }
            }
        }
    }
}

fn no_effect<T>(field: &str, reason: impl Into<String>) -> Result<T, NoEffect> {
    Err((field.to_owned(), reason.into()))
}

fn parse(patch: &ConfigPatch) -> Result<Patch, NoEffect> {
    let matches = &patch.matches;
    match matches.context.as_deref() {
        None | Some("ANY" | "SIDECAR_INBOUND" | "WAYPOINT") => {}
        Some(other) => return no_effect("match.context", format!("{other} is no waypoint")),
    }
    if matches.proxy.is_some() {
        let reason = "a choice by the proxy's version is not supported";
        return no_effect("match.proxy", reason);
    }
    if matches.cluster.is_some() {
        return no_effect("match.cluster", "clusters are not patched");
    }
    if patch.patch.filter_class.is_some() {
        let reason = "filters are put before the router and no other place";
        return no_effect("patch.filterClass", reason);
    }
    match (patch.apply_to.as_str(), patch.patch.operation.as_str()) {
        ("HTTP_FILTER", "INSERT_BEFORE" | "INSERT_FIRST") => Ok(Patch {
            port: place::of_filters(matches)?,
            change: Change::Filter(Box::new(filter(&patch.patch.value)?)),
            cluster: named_cluster(&patch.patch.value),
        }),
        ("HTTP_FILTER", other) => no_effect(
            "patch.operation",
            format!("of filters, INSERT_BEFORE and INSERT_FIRST are supported, {other} is not"),
        ),
        ("VIRTUAL_HOST", "MERGE") => {
            let (port, host, _) = place::of_hosts(matches)?;
            let settings = settings(&patch.patch.value, &[])?;
            Ok(Patch {
                port,
                change: Change::Host {
                    name: host,
                    settings,
                },
                cluster: None,
            })
        }
        ("HTTP_ROUTE", "MERGE") => {
            let (port, host, name) = place::of_routes(matches)?;
            let settings = settings(&patch.patch.value, &["route"])?;
            Ok(Patch {
                port,
                change: Change::Route {
                    host,
                    name,
                    settings,
                },
                cluster: None,
            })
        }
        ("VIRTUAL_HOST" | "HTTP_ROUTE", other) => no_effect(
            "patch.operation",
            format!("of routes, MERGE is supported, {other} is not"),
        ),
        (other, _) => no_effect("applyTo", format!("{other} is not supported")),
    }
}

/// The cluster within a filter's configuration, wherever it stands.
fn named_cluster(value: &Value) -> Option<String> {
    match value {
        Value::Object(fields) => {
            let named = get(fields, "cluster_name", "clusterName").and_then(Value::as_str);
            let within = || fields.values().find_map(named_cluster);
            named.map(str::to_owned).or_else(within)
        }
        Value::Array(items) => items.iter().find_map(named_cluster),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

fn fields<'a>(value: &'a Value, field: &str) -> Result<&'a Map<String, Value>, NoEffect> {
    match value {
        Value::Object(fields) => Ok(fields),
        _ => no_effect(field, "is not an object"),
    }
}

/// Both forms of the names of proto3 JSON.
fn get<'a>(fields: &'a Map<String, Value>, snake: &str, camel: &str) -> Option<&'a Value> {
    fields.get(snake).or_else(|| fields.get(camel))
}

fn filter(value: &Value) -> Result<HttpFilter, NoEffect> {
    let fields = fields(value, "patch.value")?;
    let known = ["name", "typed_config", "typedConfig"];
    if let Some(other) = fields.keys().find(|key| !known.contains(&key.as_str())) {
        return no_effect(&format!("patch.value.{other}"), "is not supported");
    }
    let name = fields.get("name").and_then(Value::as_str);
    let Some(name) = name else {
        return no_effect("patch.value.name", "is missing");
    };
    let Some(config) = get(fields, "typed_config", "typedConfig") else {
        return no_effect("patch.value.typed_config", "is missing");
    };
    Ok(http_filter(
        name,
        message(config, "patch.value.typed_config")?,
    ))
}

/// A message with its type in `@type`, or within a `TypedStruct`.
fn message(value: &Value, field: &str) -> Result<Any, NoEffect> {
    let mut fields = fields(value, field)?.clone();
    let Some(Value::String(mut type_url)) = fields.remove("@type") else {
        return no_effect(field, "@type is missing");
    };
    let mut inner = Value::Object(fields.clone());
    if TYPED_STRUCTS.contains(&type_url.as_str()) {
        let Some(Value::String(of)) = get(&fields, "type_url", "typeUrl") else {
            return no_effect(field, "type_url is missing");
        };
        type_url.clone_from(of);
        inner = fields.get("value").cloned().unwrap_or_default();
        if inner.is_null() {
            inner = Value::Object(Map::new());
        }
    }
    match leyline_envoy_json::to_any(&type_url, &inner) {
        Some(Ok(any)) => Ok(any),
        Some(Err(error)) => no_effect(field, error.to_string()),
        None => no_effect(
            field,
            format!("{type_url} is not supported; rate limits are"),
        ),
    }
}

/// `typed_per_filter_config` and `rate_limits`; of a route, the latter is within `route`.
fn settings(value: &Value, inside: &[&str]) -> Result<RouteSettings, NoEffect> {
    let outer = fields(value, "patch.value")?;
    let mut found = RouteSettings::default();
    for (key, value) in outer {
        let field = format!("patch.value.{key}");
        match key.as_str() {
            "typed_per_filter_config" | "typedPerFilterConfig" => {
                for (name, config) in fields(value, &field)? {
                    let field = format!("{field}[{name}]");
                    found
                        .per_filter
                        .insert(name.clone(), message(config, &field)?);
                }
            }
            "rate_limits" | "rateLimits" if inside.is_empty() => {
                found.rate_limits = rate_limits(value, &field)?;
            }
            name if inside.contains(&name) => {
                for (key, value) in fields(value, &field)? {
                    let field = format!("{field}.{key}");
                    match key.as_str() {
                        "rate_limits" | "rateLimits" => {
                            found.rate_limits = rate_limits(value, &field)?;
                        }
                        _ => return no_effect(&field, "is not supported"),
                    }
                }
            }
            _ => return no_effect(&field, "is not supported"),
        }
    }
    Ok(found)
}

fn rate_limits(value: &Value, field: &str) -> Result<Vec<RateLimit>, NoEffect> {
    leyline_envoy_json::route_rate_limits(value)
        .or_else(|error| no_effect(field, error.to_string()))
}
