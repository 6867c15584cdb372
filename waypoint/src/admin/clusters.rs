//! `/clusters`: endpoints, their health and their load; as text in Envoy's form, or as JSON.

use std::{collections::BTreeMap, fmt::Write, sync::Arc};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    config::{
        Config,
        cluster::Cluster,
        endpoints::{Endpoint, EndpointAddress},
    },
    upstream::state::Resource,
};

pub(super) fn as_json(config: &Config) -> Value {
    let shown = |cluster: &Arc<Cluster>| {
        let set = config.endpoints(cluster);
        let endpoints = set.into_iter().flat_map(|set| set.all());
        let endpoints = endpoints.map(|endpoint| {
            json!({
                "address": endpoint.address.addr(),
                "tunnel": matches!(endpoint.address, EndpointAddress::Hbone(_)),
                "weight": endpoint.weight,
                "active": endpoint.state.active(),
                "healthy": endpoint.told_healthy,
                "ejected": endpoint.state.back_at(Instant::now()).is_some(),
            })
        });
        (cluster.name.to_string(), Value::from_iter(endpoints))
    };
    let clusters: BTreeMap<String, Value> = config.clusters.values().map(shown).collect();
    json!(clusters)
}

/// Lines of `cluster::what::value` and `cluster::address::what::value`.
pub(super) fn as_text(config: &Config) -> String {
    let mut text = String::new();
    let clusters: BTreeMap<&str, &Arc<Cluster>> = config
        .clusters
        .values()
        .map(|cluster| (cluster.name.as_str(), cluster))
        .collect();
    for (name, cluster) in clusters {
        let mut line = |what: &str, value: &dyn std::fmt::Display| {
            // Writing to a string does not fail.
            writeln!(text, "{name}::{what}::{value}").ok();
        };
        let limits = &cluster.limits;
        for (what, most) in [
            ("max_connections", limits.connections),
            ("max_pending_requests", limits.pending),
            ("max_requests", limits.requests),
            ("max_retries", limits.retries),
        ] {
            line(&format!("default_priority::{what}"), &most);
        }
        line("cx_active", &cluster.state.in_use(Resource::Connections));
        line(
            "rq_pending_active",
            &cluster.state.in_use(Resource::Pending),
        );
        line("rq_retry_active", &cluster.state.in_use(Resource::Retries));
        let Some(set) = config.endpoints(cluster) else {
            continue;
        };
        for (priority, localities) in set.priorities.iter().enumerate() {
            for endpoint in localities.iter().flat_map(|one| &one.endpoints) {
                let address = endpoint.address.addr();
                let active = endpoint.state.active();
                line(&format!("{address}::rq_active"), &active);
                line(&format!("{address}::weight"), &endpoint.weight);
                line(&format!("{address}::priority"), &priority);
                line(&format!("{address}::health_flags"), &health(endpoint));
                let tunnel = matches!(endpoint.address, EndpointAddress::Hbone(_));
                line(&format!("{address}::tunnel"), &tunnel);
            }
        }
    }
    text
}

/// Envoy's words for what is wrong.
fn health(endpoint: &Endpoint) -> String {
    let ejected = endpoint.state.back_at(Instant::now()).is_some();
    let flags: String = [
        (!endpoint.told_healthy, "/failed_eds_health"),
        (ejected, "/failed_outlier_check"),
    ]
    .iter()
    .filter_map(|(holds, flag)| holds.then_some(*flag))
    .collect();
    if flags.is_empty() {
        "healthy".to_owned()
    } else {
        flags
    }
}
