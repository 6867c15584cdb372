//! What the control plane says, as one immutable tree: Envoy's listeners, clusters, endpoints and routes in the shape
//! that istiod gives an `istio-waypoint` (facts A), compiled into tables that the data plane reads without a lock.
//!
//! Each service is compiled alone. What cannot be compiled is refused: its connections are closed and its requests
//! answered with 503, the reason is in the NACK, the log and `/unsupported`. What comes again unchanged is kept, with its
//! connections.

pub(crate) mod listener;
pub(crate) mod store;

pub(crate) mod destinations;
pub(crate) mod http;
pub(crate) mod tcp;

pub(crate) mod cluster;
pub(crate) mod descriptors;
pub(crate) mod endpoints;
pub(crate) mod rbac;
pub(crate) mod route;

pub(crate) mod any;
pub(crate) mod error;
pub(crate) mod text;
pub(crate) mod weighted;

use std::sync::Arc;

use imbl::{HashMap, OrdMap};
use leyline_types::{HboneAuthority, Str};

use self::{
    cluster::{Cluster, EndpointSource},
    destinations::Leaf,
    endpoints::EndpointSet,
    http::RouteSource,
    listener::{Chain, Main},
    route::RouteTable,
};

/// Everything, as of one update.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    pub(crate) main: Main,
    pub(crate) clusters: HashMap<Str, Arc<Cluster>>,
    pub(crate) assignments: HashMap<Str, Arc<EndpointSet>>,
    pub(crate) routes: HashMap<Str, Routes>,
    /// What is refused, and why; by type and name.
    pub(crate) unsupported: OrdMap<String, Str>,
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

    /// The endpoints of a cluster; `None` when they have not arrived.
    pub(crate) fn endpoints<'a>(&'a self, cluster: &'a Cluster) -> Option<&'a Arc<EndpointSet>> {
        match &cluster.endpoints {
            EndpointSource::Eds(name) => self.assignments.get(name),
            EndpointSource::Static(set) => Some(set),
        }
    }
}
