//! The current configuration and the one who writes it: the xDS client's task.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use envoy_types::pb::envoy::config::{
    cluster::v3::Cluster as ClusterProto, endpoint::v3::ClusterLoadAssignment,
    listener::v3::Listener, route::v3::RouteConfiguration,
};
use leyline_proto::{CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE};
use leyline_types::Str;
use leyline_xds::session::{Rejection, Resource, Update};
use metrics::gauge;
use parking_lot::Mutex;
use tokio::sync::{Notify, futures::Notified};
use tracing::{info, warn};

use super::{
    Config, Routes,
    any::decode_bytes,
    cluster::Cluster,
    endpoints::EndpointSet,
    error::{Compiled, Unsupported},
    listener::{Chain, Main},
    route::RouteTable,
};
use crate::upstream::balance;

/// The listener with the services.
const MAIN: &str = "main_internal";
/// Listeners that stand for what this proxy does by itself: accept tunnels, and open them.
const BUILT_IN: [&str; 2] = ["connect_terminate", "connect_originate"];
/// Clusters likewise.
const BUILT_IN_CLUSTERS: [&str; 2] = ["main_internal", "connect_originate"];

/// Publishes configurations.
#[derive(Debug, Default)]
pub(crate) struct ConfigStore {
    current: ArcSwap<Config>,
    /// Held for a whole update.
    writer: Mutex<()>,
    /// Told after each update.
    changed: Notify,
}

impl ConfigStore {
    /// The configuration now; keep it for as long as one decision takes.
    pub(crate) fn load(&self) -> Guard<Arc<Config>> {
        self.current.load()
    }

    /// The same, to be kept over awaits.
    pub(crate) fn load_full(&self) -> Arc<Config> {
        self.current.load_full()
    }

    /// Resolves after the next update.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Takes in what the names of a cluster were resolved to.
    ///
    /// # Errors
    /// When the endpoints cannot be used; those before are kept.
    pub(crate) fn resolved(&self, cluster: &Str, found: &ClusterLoadAssignment) -> Compiled<()> {
        let _writing = self.writer.lock();
        let mut next = Config::clone(&self.current.load());
        next.put_assignment(cluster.clone(), found)?;
        self.current.store(Arc::new(next));
        Ok(())
    }

    /// Applies an update of one of Envoy's types, all of it at once. What is rejected is refused from now on; what
    /// is of a type or kind that has no place here keeps what was before.
    pub(crate) fn apply(&self, update: &Update) -> Vec<Rejection> {
        let _writing = self.writer.lock();
        let mut next = Config::clone(&self.current.load());
        let mut rejections = Vec::new();
        for name in &update.removed {
            next.remove(update.type_url, name);
        }
        for resource in &update.resources {
            let problems = next.put(update.type_url, resource);
            let key = format!("{} {}", short(update.type_url), resource.name);
            if problems.is_empty() {
                next.unsupported.remove(&key);
                continue;
            }
            let reason = problems.join("; ");
            warn!(
                resource = key,
                reason, "configuration is not supported and refused"
            );
            next.unsupported.insert(key, reason.as_str().into());
            rejections.push(Rejection {
                name: resource.name.clone(),
                reason,
            });
        }
        next.forget_unused();
        gauge!("leyline_waypoint_unsupported")
            .set(u32::try_from(next.unsupported.len()).unwrap_or(u32::MAX));
        info!(
            resource_type = short(update.type_url),
            changed = update.resources.len(),
            removed = update.removed.len(),
            rejected = rejections.len(),
            "configuration applied"
        );
        self.current.store(Arc::new(next));
        self.changed.notify_waiters();
        rejections
    }
}

impl Config {
    fn remove(&mut self, type_url: &str, name: &str) {
        self.unsupported
            .remove(&format!("{} {name}", short(type_url)));
        match type_url {
            LISTENER_TYPE if name == MAIN => self.main = Main::default(),
            CLUSTER_TYPE => {
                self.clusters.remove(name);
            }
            ENDPOINT_TYPE => {
                self.assignments.remove(name);
            }
            ROUTE_TYPE => {
                self.routes.remove(name);
            }
            _ => {}
        }
    }

    /// Takes one resource in; the reasons why parts of it, or all of it, are refused.
    fn put(&mut self, type_url: &str, resource: &Resource) -> Vec<String> {
        let name: Str = resource.name.as_str().into();
        let put = match type_url {
            LISTENER_TYPE => return self.put_listener(resource),
            CLUSTER_TYPE => self.put_cluster(name, &resource.body),
            ENDPOINT_TYPE => self.put_endpoints(name, &resource.body),
            ROUTE_TYPE => self.put_routes(name, &resource.body),
            other => Err(Unsupported::new(format!("type {other} was not asked for"))),
        };
        put.err()
            .map(|error| error.to_string())
            .into_iter()
            .collect()
    }

    fn put_listener(&mut self, resource: &Resource) -> Vec<String> {
        if BUILT_IN.contains(&resource.name.as_str()) {
            return Vec::new();
        }
        if resource.name != MAIN {
            return vec!["a waypoint has no listener of this name".to_owned()];
        }
        let compiled = decode_bytes::<Listener>(&resource.body)
            .and_then(|listener| Main::compile(&listener, &self.main));
        match compiled {
            Ok(main) => {
                self.main = main;
                self.main.problems()
            }
            Err(error) => vec![error.to_string()],
        }
    }

    fn put_cluster(&mut self, name: Str, body: &[u8]) -> Compiled<()> {
        if BUILT_IN_CLUSTERS.contains(&name.as_str()) {
            return Ok(());
        }
        let before = self.clusters.get(&name).cloned();
        let compiled = decode_bytes::<ClusterProto>(body)
            .and_then(|proto| Cluster::compile(&proto, before.as_deref()));
        match compiled {
            Ok(cluster) => {
                let cluster = Arc::new(cluster);
                // Here and not with the first request, because tables for hashes take a while.
                if let Some(set) = self.endpoints(&cluster) {
                    balance::prepare(&cluster, set);
                }
                self.clusters.insert(name, cluster);
                Ok(())
            }
            Err(error) => {
                // A cluster of another meaning must not be used in its place.
                self.clusters.remove(&name);
                Err(error)
            }
        }
    }

    fn put_endpoints(&mut self, name: Str, body: &[u8]) -> Compiled<()> {
        self.put_assignment(name, &decode_bytes(body)?)
    }

    fn put_assignment(&mut self, name: Str, assignment: &ClusterLoadAssignment) -> Compiled<()> {
        let before = self.assignments.get(&name).cloned();
        let set = EndpointSet::compile(assignment, before.as_deref())?;
        let set = Arc::new(set);
        // Assignments bear the name of their cluster, with istiod and with our control plane.
        if let Some(cluster) = self.clusters.get(&name) {
            balance::prepare(cluster, &set);
        }
        self.assignments.insert(name, set);
        Ok(())
    }

    fn put_routes(&mut self, name: Str, body: &[u8]) -> Compiled<()> {
        let compiled =
            decode_bytes::<RouteConfiguration>(body).and_then(|proto| RouteTable::compile(&proto));
        let (routes, result) = match compiled {
            Ok(table) => (Routes::Table(Arc::new(table)), Ok(())),
            Err(error) => (Routes::Refused(error.to_string().into()), Err(error)),
        };
        self.routes.insert(name, routes);
        result
    }
}

impl Main {
    /// What of it is refused.
    fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self
            .chains
            .iter()
            .filter_map(|(name, known)| match &*known.chain {
                Chain::Refused(reason) => Some(format!("{name}: {reason}")),
                Chain::Http(_) | Chain::Tcp(_) => None,
            })
            .collect();
        let refused = self.destinations.refused();
        problems.extend(
            refused
                .into_iter()
                .map(|(what, why)| format!("{what}: {why}")),
        );
        problems.sort();
        problems
    }
}

/// The last part of a type's name.
pub(crate) fn short(type_url: &str) -> &str {
    type_url.rsplit('.').next().unwrap_or(type_url)
}
