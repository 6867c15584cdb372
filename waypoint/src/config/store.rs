//! The current configuration and the one who writes it: the xDS client's task.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use envoy_types::pb::envoy::config::{
    cluster::v3::Cluster as ClusterProto, endpoint::v3::ClusterLoadAssignment,
    listener::v3::Listener, route::v3::RouteConfiguration,
};
use leyline_proto::{CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE, SECRET_TYPE};
use leyline_types::Str;
use leyline_xds::session::{Rejection, Resource, Update};
use metrics::gauge;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, futures::Notified},
    time::Instant,
};
use tracing::{info, warn};

use super::{
    Config, Routes,
    any::decode_bytes,
    cluster::Cluster,
    endpoints::EndpointSet,
    entry,
    error::{Compiled, Unsupported},
    listener::{Chain, Main},
    received::Fate,
    route::RouteTable,
    secrets::Secret,
};
use crate::upstream::balance;

/// The listener with the services.
const MAIN: &str = "main_internal";
/// The listener of tunnels.
const ENTRY: &str = "connect_terminate";
/// The listener that stands for what this proxy does by itself: open tunnels.
const BUILT_IN: &str = "connect_originate";
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
    /// Told when services are not served any more.
    departed: Notify,
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

    /// The configuration in which this holds: the one now, or else one of a moment ago.
    pub(crate) fn serving(&self, holds: impl Fn(&Config) -> bool) -> Arc<Config> {
        let now = self.load_full();
        if holds(&now) {
            return now;
        }
        now.former(Instant::now(), holds).unwrap_or(now)
    }

    /// Forgets configurations of a moment ago that have had their time.
    pub(crate) fn forget_ended(&self) {
        let _writing = self.writer.lock();
        if let Some(next) = self.current.load().without_ended(Instant::now()) {
            self.current.store(Arc::new(next));
        }
    }

    /// Resolves after the next update with which a service is not served any more.
    pub(crate) fn departed(&self) -> Notified<'_> {
        self.departed.notified()
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
        let before = self.current.load();
        let mut next = Config::clone(&before);
        let mut rejections = Vec::new();
        for name in &update.removed {
            next.remove(update.type_url, name);
        }
        for resource in &update.resources {
            let problems = next.put(update.type_url, resource);
            let key = format!("{} {}", short(update.type_url), resource.name);
            if problems.is_empty() {
                next.unsupported.remove(&key);
                next.received.put(update.type_url, resource, Fate::Used);
                continue;
            }
            let reason = problems.join("; ");
            let fate = next.fate(update.type_url, &resource.name, &before, &reason);
            next.received.put(update.type_url, resource, fate);
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
        let departs =
            update.type_url == LISTENER_TYPE && next.leave_behind(&before, Instant::now());
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
        if departs {
            self.departed.notify_waiters();
        }
        rejections
    }
}

impl Config {
    /// What becomes of a resource with such a reason against it.
    fn fate<'a>(&self, type_url: &str, name: &str, before: &Self, reason: &'a str) -> Fate<'a> {
        match type_url {
            LISTENER_TYPE if name == ENTRY => Fate::Refused(reason),
            LISTENER_TYPE if Arc::ptr_eq(&self.main.destinations, &before.main.destinations) => {
                Fate::Kept(reason)
            }
            LISTENER_TYPE => Fate::UsedInPart(reason),
            ENDPOINT_TYPE => Fate::Kept(reason),
            _ => Fate::Refused(reason),
        }
    }

    fn remove(&mut self, type_url: &'static str, name: &str) {
        self.received.remove(type_url, name);
        self.unsupported
            .remove(&format!("{} {name}", short(type_url)));
        match type_url {
            LISTENER_TYPE if name == MAIN => self.main = Main::default(),
            LISTENER_TYPE if name == ENTRY => self.trust_domains = Arc::default(),
            CLUSTER_TYPE => {
                self.clusters.remove(name);
                self.with_secrets.remove(name);
            }
            SECRET_TYPE => {
                self.secrets.remove(name);
                self.compile_again(name);
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
            SECRET_TYPE => self.put_secret(name, &resource.body),
            other => Err(Unsupported::new(format!("type {other} was not asked for"))),
        };
        put.err()
            .map(|error| error.to_string())
            .into_iter()
            .collect()
    }

    fn put_listener(&mut self, resource: &Resource) -> Vec<String> {
        if resource.name == BUILT_IN {
            return Vec::new();
        }
        if resource.name == ENTRY {
            let domains = decode_bytes::<Listener>(&resource.body)
                .and_then(|listener| entry::trust_domains(&listener));
            let (domains, problem) = match domains {
                Ok(domains) => (domains, None),
                // Who may come in is not guessed.
                Err(error) => (Arc::default(), Some(error.to_string())),
            };
            self.trust_domains = domains;
            return problem.into_iter().collect();
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
        let put = decode_bytes::<ClusterProto>(body)
            .and_then(|proto| self.put_decoded_cluster(name.clone(), Arc::new(proto)));
        if put.is_err() {
            // A cluster of another meaning must not be used in its place.
            self.clusters.remove(&name);
            self.with_secrets.remove(&name);
        }
        put
    }

    fn put_decoded_cluster(&mut self, name: Str, proto: Arc<ClusterProto>) -> Compiled<()> {
        let before = self.clusters.get(&name).cloned();
        let cluster = Cluster::compile(&proto, before.as_deref(), &self.secrets)?;
        if cluster.transport.secrets.is_empty() {
            self.with_secrets.remove(&name);
        } else {
            self.with_secrets.insert(name.clone(), proto);
        }
        let cluster = Arc::new(cluster);
        // Here and not with the first request, because tables for hashes take a while.
        if let Some(set) = self.endpoints(&cluster) {
            balance::prepare(&cluster, set);
        }
        self.clusters.insert(name, cluster);
        Ok(())
    }

    /// What was known under the name before stays where the new one is of no use.
    fn put_secret(&mut self, name: Str, body: &[u8]) -> Compiled<()> {
        let secret = decode_bytes(body).and_then(|proto| Secret::compile(&proto))?;
        self.secrets.insert(name.clone(), Arc::new(secret));
        self.compile_again(name.as_str());
        Ok(())
    }

    /// Gives a secret to the clusters that name it.
    fn compile_again(&mut self, secret: &str) {
        let names = |cluster: &Str| {
            let cluster = self.clusters.get(cluster);
            cluster.is_some_and(|one| one.transport.secrets.iter().any(|name| name == secret))
        };
        let using = self.with_secrets.iter();
        let using = using.filter(|(cluster, _)| names(cluster));
        let using: Vec<_> = using
            .map(|(name, proto)| (name.clone(), proto.clone()))
            .collect();
        for (name, proto) in using {
            if let Err(error) = self.put_decoded_cluster(name.clone(), proto) {
                warn!(cluster = %name, %error, "cluster cannot be compiled with its secret and is refused");
                self.clusters.remove(&name);
                self.with_secrets.remove(&name);
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

#[cfg(test)]
mod tests;
