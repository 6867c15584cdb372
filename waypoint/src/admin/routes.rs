//! `/routes`: the tables that requests are looked up in.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::config::{
    Config, Routes,
    http::RouteSource,
    listener::Chain,
    route::{Route, RouteTable, action::Action},
};

/// By the name of the table; those that are in their listener by that of the chain.
pub(super) fn page(config: &Config) -> Value {
    let named = config.routes.iter().map(|(name, routes)| {
        let shown = match routes {
            Routes::Table(shown) => table(shown),
            Routes::Refused(reason) => json!({ "refused": reason }),
        };
        (name.as_str(), shown)
    });
    let chains = config.main.chains.iter();
    let inline = chains.filter_map(|(name, known)| match &*known.chain {
        Chain::Http(chain) => match &chain.routes {
            RouteSource::Inline(shown) => Some((name.as_str(), table(shown))),
            RouteSource::Named(_) => None,
        },
        Chain::Tcp(_) | Chain::Refused(_) => None,
    });
    let tables: BTreeMap<&str, Value> = named.chain(inline).collect();
    json!(tables)
}

fn table(table: &RouteTable) -> Value {
    let hosts = table.hosts().iter().map(|host| {
        json!({
            "domains": host.domains().collect::<Vec<_>>(),
            "routes": host.routes.iter().map(route).collect::<Vec<_>>(),
        })
    });
    json!({ "virtual_hosts": hosts.collect::<Vec<_>>() })
}

fn route(route: &Route) -> Value {
    let action = match &route.action {
        Action::Forward(forward) => {
            let clusters = forward.clusters.iter();
            let clusters = clusters.map(
                |(weight, target)| json!({ "cluster": target.cluster.as_str(), "weight": weight }),
            );
            let mirrors = forward.mirrors.iter().map(|mirror| mirror.cluster.as_str());
            json!({
                "clusters": clusters.collect::<Vec<_>>(),
                "mirrors": mirrors.collect::<Vec<_>>(),
                "timeout": forward.timeout.map(|timeout| format!("{timeout:?}")),
                "retries": forward.retry.as_ref().map(|retry| retry.retries),
            })
        }
        Action::Redirect(redirect) => json!({ "redirect": redirect.status.as_u16() }),
        Action::Direct { status, .. } => json!({ "direct_response": status.as_u16() }),
    };
    json!({
        "name": route.name.as_str(),
        "match": route.matching.shown(),
        "action": action,
    })
}
