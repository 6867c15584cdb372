//! What the control plane says, as one immutable tree: Envoy's listeners, clusters, endpoints and routes in the shape
//! that istiod gives an `istio-waypoint` (facts A), compiled into tables that the data plane reads without a lock.
//!
//! Each service is compiled alone. What cannot be compiled is refused: its connections are closed and its requests
//! answered with 503, the reason is in the NACK, the log and `/unsupported`. What comes again unchanged is kept, with its
//! connections.

pub(crate) mod entry;
pub(crate) mod leaving;
pub(crate) mod listener;
pub(crate) mod received;
pub(crate) mod store;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) mod destinations;
pub(crate) mod http;
pub(crate) mod tcp;

pub(crate) mod access_log;
pub(crate) mod cluster;
pub(crate) mod descriptors;
pub(crate) mod endpoints;
pub(crate) mod header_case;
pub(crate) mod rbac;
pub(crate) mod route;
pub(crate) mod secrets;
pub(crate) mod telemetry;
pub(crate) mod tracing;

pub(crate) mod any;
pub(crate) mod error;
pub(crate) mod text;
pub(crate) mod weighted;

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use envoy_types::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use imbl::{HashMap, OrdMap};
use leyline_proto::{ENDPOINT_TYPE, ROUTE_TYPE, SECRET_TYPE};
use leyline_types::{HboneAuthority, Str, TrustDomain};

use self::{
    cluster::{Cluster, EndpointSource},
    destinations::Leaf,
    endpoints::EndpointSet,
    http::RouteSource,
    leaving::Leaving,
    listener::{Chain, Main},
    received::Received,
    route::RouteTable,
    secrets::Secrets,
};

/// Everything, as of one update.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    pub(crate) main: Main,
    /// That clients may be of, besides our own.
    pub(crate) trust_domains: Arc<[TrustDomain]>,
    pub(crate) clusters: HashMap<Str, Arc<Cluster>>,
    pub(crate) assignments: HashMap<Str, Arc<EndpointSet>>,
    pub(crate) routes: HashMap<Str, Routes>,
    pub(crate) secrets: Secrets,
    /// What clusters that name secrets are compiled from, again when one of those comes.
    with_secrets: HashMap<Str, Arc<ClusterProto>>,
    /// What is refused, and why; by type and name.
    pub(crate) unsupported: OrdMap<String, Str>,
    /// What is not served any more, and whom it is still served to.
    pub(crate) leaving: Leaving,
    /// All of it as it came.
    pub(crate) received: Received,
}

/// A route table, or why there is none.
#[derive(Clone, Debug)]
pub(crate) enum Routes {
    Table(Arc<RouteTable>),
    Refused(Str),
}

impl Config {
    /// How a connection to this destination is served.
    pub(crate) fn destination(&self, authority: &HboneAuthority) -> Option<&Leaf> {
        self.main.destinations.find(authority)
    }

    /// A chain by its name.
    pub(crate) fn chain(&self, name: &str) -> Option<&Arc<Chain>> {
        self.main.chains.get(name).map(|known| &known.chain)
    }

    /// The routes of a chain.
    ///
    /// # Errors
    /// Why there are none.
    pub(crate) fn routes(&self, source: &RouteSource) -> Result<Arc<RouteTable>, Str> {
        match source {
            RouteSource::Inline(table) => Ok(table.clone()),
            RouteSource::Named(name) => match self.routes.get(name) {
                Some(Routes::Table(table)) => Ok(table.clone()),
                Some(Routes::Refused(reason)) => Err(reason.clone()),
                None => Err("its routes have not arrived yet".into()),
            },
        }
    }

    /// Which resources of a type are wanted: endpoints of the clusters and routes of the chains that there are, by name
    /// as Envoy asks for them; `None` is all.
    pub(crate) fn wanted(&self, type_url: &str) -> Option<BTreeSet<String>> {
        match type_url {
            SECRET_TYPE => Some(self.secret_names().map(|name| name.to_string()).collect()),
            ENDPOINT_TYPE => Some(self.endpoint_names().map(|name| name.to_string()).collect()),
            ROUTE_TYPE => {
                let chains = self.main.chains.values();
                let names = chains.filter_map(|known| match &*known.chain {
                    Chain::Http(chain) => match &chain.routes {
                        RouteSource::Named(name) => Some(name.to_string()),
                        RouteSource::Inline(_) => None,
                    },
                    Chain::Tcp(_) | Chain::Refused(_) => None,
                });
                Some(names.collect())
            }
            _ => None,
        }
    }

    /// Names of the secrets that clusters use.
    fn secret_names(&self) -> impl Iterator<Item = &Str> {
        let clusters = self.with_secrets.keys();
        let clusters = clusters.filter_map(|name| self.clusters.get(name));
        clusters.flat_map(|cluster| &cluster.transport.secrets)
    }

    /// Names of the assignments that clusters use.
    fn endpoint_names(&self) -> impl Iterator<Item = &Str> {
        self.clusters
            .values()
            .filter_map(|cluster| match &cluster.endpoints {
                EndpointSource::Eds(name) => Some(name),
                EndpointSource::Static(_)
                | EndpointSource::Dns(_)
                | EndpointSource::Client { .. }
                | EndpointSource::Request(_) => None,
            })
    }

    /// Forgets what no cluster and no chain uses any more: its removal is not told.
    fn forget_unused(&mut self) {
        let used = |cluster: &Arc<Cluster>| match &cluster.endpoints {
            EndpointSource::Eds(name) => Some(name.clone()),
            EndpointSource::Dns(_) => Some(cluster.name.clone()),
            EndpointSource::Static(_)
            | EndpointSource::Client { .. }
            | EndpointSource::Request(_) => None,
        };
        let used: HashSet<Str> = self.clusters.values().filter_map(used).collect();
        self.assignments.retain(|name, _| used.contains(name));
        let secrets: HashSet<Str> = self.secret_names().cloned().collect();
        self.secrets.retain(|name, _| secrets.contains(name));
        self.received
            .retain(ENDPOINT_TYPE, |name| used.contains(name));
        let routes = self.wanted(ROUTE_TYPE).unwrap_or_default();
        self.routes.retain(|name, _| routes.contains(name.as_str()));
        self.received
            .retain(ROUTE_TYPE, |name| routes.contains(name.as_str()));
    }

    /// The endpoints of a cluster; `None` when they have not arrived.
    pub(crate) fn endpoints<'a>(&'a self, cluster: &'a Cluster) -> Option<&'a Arc<EndpointSet>> {
        match &cluster.endpoints {
            EndpointSource::Eds(name) => self.assignments.get(name),
            EndpointSource::Static(set) => Some(set),
            EndpointSource::Dns(_) => self.assignments.get(&cluster.name),
            EndpointSource::Client { .. } | EndpointSource::Request(_) => None,
        }
    }
}
