//! `/config_dump` in Envoy's shape (`envoy.admin.v3.ConfigDump`), so that programs for Envoy can read it, istioctl among them:
//! what the control plane sent, and when. Whether it can be used is said where Envoy says it, in `error_state`.

use std::time::SystemTime;

use leyline_envoy_json::describe;
use leyline_proto::{CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE};
use leyline_types::Str;
use leyline_xds::NodeInfo;
use serde_json::{Map, Value, json};

use crate::{
    config::{
        Config,
        received::{Known, Version},
    },
    format::time::utc,
};

/// What of it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    endpoints: bool,
    /// Only this list of one of the parts, each of its items alone.
    resource: Option<String>,
}

impl Asked {
    pub(super) fn parse(query: Option<&str>) -> Self {
        let mut asked = Self::default();
        for pair in query.unwrap_or_default().split('&') {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("include_eds", _) => asked.endpoints = true,
                ("resource", name) => asked.resource = Some(name.to_owned()),
                _ => {}
            }
        }
        asked
    }
}

/// The page.
pub(super) fn dump(config: &Config, node: &NodeInfo, started: SystemTime, asked: &Asked) -> Value {
    let mut parts = vec![
        bootstrap(node, started),
        json!({
            "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
            "dynamic_active_clusters": states(config, CLUSTER_TYPE, "cluster"),
        }),
        listeners(config),
        json!({
            "@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump",
            "dynamic_route_configs": states(config, ROUTE_TYPE, "route_config"),
        }),
    ];
    if asked.endpoints || asked.resource.as_deref() == Some("dynamic_endpoint_configs") {
        parts.push(json!({
            "@type": "type.googleapis.com/envoy.admin.v3.EndpointsConfigDump",
            "dynamic_endpoint_configs": states(config, ENDPOINT_TYPE, "endpoint_config"),
        }));
    }
    let Some(name) = &asked.resource else {
        return json!({ "configs": parts });
    };
    let items = parts
        .iter()
        .filter_map(|part| Some((part, part.get(name)?.as_array()?)));
    let items = items.flat_map(|(part, items)| items.iter().map(move |item| (part, item)));
    let configs = items.filter_map(|(part, item)| {
        let mut item = item.as_object()?.clone();
        let kind = format!("{}.{}", part.get("@type")?.as_str()?, message(name)?);
        item.insert("@type".to_owned(), json!(kind));
        Some(Value::Object(item))
    });
    json!({ "configs": configs.collect::<Vec<_>>() })
}

/// The message of the items of a list.
fn message(list: &str) -> Option<&'static str> {
    Some(match list {
        "dynamic_active_clusters" => "DynamicCluster",
        "dynamic_listeners" => "DynamicListener",
        "dynamic_route_configs" => "DynamicRouteConfig",
        "dynamic_endpoint_configs" => "DynamicEndpointConfig",
        _ => return None,
    })
}

fn bootstrap(node: &NodeInfo, started: SystemTime) -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump",
        "bootstrap": {
            "node": {
                "id": node.id,
                "cluster": node.cluster,
                "metadata": node.metadata,
                "user_agent_name": "leyline",
            },
        },
        "last_updated": utc(started),
    })
}

fn listeners(config: &Config) -> Value {
    let all = config.received.of(LISTENER_TYPE);
    let listeners = all.map(|(name, known)| {
        let mut listener = named(name);
        if let Some(active) = &known.active {
            let state = state(LISTENER_TYPE, "listener", active);
            listener.insert("active_state".to_owned(), Value::Object(state));
        }
        refused(LISTENER_TYPE, known, &mut listener);
        listener
    });
    json!({
        "@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
        "dynamic_listeners": listeners.collect::<Vec<_>>(),
    })
}

/// The states of all resources of a type.
fn states(config: &Config, type_url: &'static str, field: &str) -> Value {
    let all = config.received.of(type_url);
    all.map(|(_, known)| {
        let refused_one = known.refused.as_ref().map(|(version, _)| version);
        let shown = known.active.as_ref().or(refused_one);
        let mut shown = shown.map_or_else(Map::new, |version| state(type_url, field, version));
        refused(type_url, known, &mut shown);
        Value::Object(shown)
    })
    .collect()
}

fn named(name: &Str) -> Map<String, Value> {
    Map::from_iter([("name".to_owned(), json!(name.as_str()))])
}

/// A resource, its version and its time.
fn state(type_url: &str, field: &str, version: &Version) -> Map<String, Value> {
    Map::from_iter([
        ("version_info".to_owned(), json!(version.version)),
        (field.to_owned(), describe(type_url, &version.body)),
        ("last_updated".to_owned(), json!(utc(version.at))),
    ])
}

fn refused(type_url: &str, known: &Known, shown: &mut Map<String, Value>) {
    let Some((version, reason)) = &known.refused else {
        return;
    };
    let error = json!({
        "failed_configuration": describe(type_url, &version.body),
        "last_update_attempt": utc(version.at),
        "details": reason,
        "version_info": version.version,
    });
    shown.insert("error_state".to_owned(), error);
}
