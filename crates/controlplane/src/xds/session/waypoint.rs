//! What a waypoint subscribes to: clusters, their secrets and endpoints, listeners, routes, in the order in which they depend on each other.
//! What is used is told before what uses it, and taken away after.

use std::{collections::BTreeSet, sync::Arc};

use leyline_proto::{
    CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE, SECRET_TYPE,
    envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
};
use leyline_types::NamespacedName;

use super::{Difference, Received, SessionError, TypeState, WILDCARD, cut, on_the_way};
use crate::{mesh::Published, translate::Resources};

/// Names that one proxy may subscribe to; a waypoint of a thousand services has some thousand clusters.
const MAX_NAMES: usize = 100_000;

/// Which pod a proxy says that it is, and the service account that it has proven.
#[derive(Clone, Debug)]
pub(in super::super) struct Pod {
    pub(in super::super) name: NamespacedName,
    pub(in super::super) service_account: String,
}

/// How many types there are.
const KINDS: usize = 5;

/// All types.
pub(super) struct WaypointTypes {
    pod: Option<Pod>,
    /// In the order of dependence.
    kinds: [TypeState; KINDS],
}

impl Default for WaypointTypes {
    fn default() -> Self {
        let kinds = [
            CLUSTER_TYPE,
            SECRET_TYPE,
            ENDPOINT_TYPE,
            LISTENER_TYPE,
            ROUTE_TYPE,
        ];
        Self {
            pod: None,
            kinds: kinds.map(TypeState::new),
        }
    }
}

impl WaypointTypes {
    pub(super) fn identify(&mut self, pod: Pod) {
        self.pod = Some(pod);
    }

    pub(super) fn types(&self) -> impl Iterator<Item = &TypeState> {
        self.kinds.iter()
    }

    pub(super) fn receive(
        &mut self,
        mut request: DeltaDiscoveryRequest,
    ) -> Result<Received, SessionError> {
        let kind = self
            .kinds
            .iter_mut()
            .find(|kind| kind.type_url == request.type_url);
        let Some(kind) = kind else {
            return Ok(Received::UnknownType(cut(request.type_url)));
        };
        kind.take_names(&mut request)?;
        kind.receive(request)
    }

    /// Nothing while the pod is not known as one of a waypoint, or is not who it must be.
    pub(super) fn next_response(
        &mut self,
        published: &Published,
        nonces: &mut u64,
    ) -> Option<DeltaDiscoveryResponse> {
        let pod = self.pod.as_ref()?;
        let translation = &published.translation;
        let known = translation.waypoint_pods.get(&pod.name)?;
        if known.service_account != pod.service_account {
            return None;
        }
        let config = translation.waypoints.get(&known.gateway)?;
        let all = [
            &config.clusters.resources,
            &config.secrets.resources,
            config.endpoints_of(&pod.name),
            &config.listeners.resources,
            &config.routes.resources,
        ];
        let current: [Arc<Resources>; KINDS] =
            std::array::from_fn(|index| self.kinds[index].wanted(all[index]));
        let mut lacking: [Difference; KINDS] =
            std::array::from_fn(|index| self.kinds[index].difference(&current[index], None));
        let mut earlier_arrived = true;
        // Envoy holds its answer for new clusters back until it has their secrets and endpoints.
        let mut earlier_sent = true;
        for index in 0..self.kinds.len() {
            let later_settled = (index + 1..self.kinds.len()).all(|later| {
                let kind = &self.kinds[later];
                !kind.subscribed || (kind.on_the_way.is_none() && lacking[later].is_empty())
            });
            let mut difference = std::mem::take(&mut lacking[index]);
            let kind = &mut self.kinds[index];
            let held_back = if later_settled {
                Vec::new()
            } else {
                std::mem::take(&mut difference.removed)
            };
            let may_follow = if [SECRET_TYPE, ENDPOINT_TYPE].contains(&kind.type_url) {
                earlier_sent
            } else {
                earlier_arrived
            };
            if may_follow && kind.is_due(&difference) {
                let complete = held_back.is_empty();
                let sent = on_the_way(nonces, published.generation, complete);
                return Some(kind.respond(difference, &held_back, &current[index], sent));
            }
            if kind.is_in_step(&difference) && held_back.is_empty() {
                kind.known.set(&current[index], &[]);
                kind.status.acked_generation = published.generation;
            }
            earlier_sent &= !kind.subscribed || difference.changed.is_empty();
            earlier_arrived &=
                !kind.subscribed || (kind.on_the_way.is_none() && difference.changed.is_empty());
        }
        None
    }
}

impl TypeState {
    /// Takes the names out of a request, so that what is left reads like one for everything.
    fn take_names(&mut self, request: &mut DeltaDiscoveryRequest) -> Result<(), SessionError> {
        let is_name = |name: &&String| name.as_str() != WILDCARD;
        let wanted: Vec<String> = request
            .resource_names_subscribe
            .iter()
            .filter(is_name)
            .cloned()
            .collect();
        let unwanted: BTreeSet<String> = request
            .resource_names_unsubscribe
            .iter()
            .filter(is_name)
            .cloned()
            .collect();
        request
            .resource_names_subscribe
            .retain(|name| name == WILDCARD);
        request
            .resource_names_unsubscribe
            .retain(|name| name == WILDCARD);
        if wanted.is_empty() && unwanted.is_empty() {
            return Ok(());
        }
        // Nothing is both asked for by name and by wildcard here: everything has the names too.
        if self.subscribed && self.names.is_none() {
            return Ok(());
        }
        self.named = None;
        let names = self.names.get_or_insert_default();
        for name in wanted {
            // Asked for again: told again, as the protocol says.
            self.known.forget(&name);
            names.insert(name);
        }
        for name in &unwanted {
            names.remove(name);
            self.known.forget(name);
        }
        if names.len() > MAX_NAMES {
            return Err(SessionError::TooManyNames(self.type_url));
        }
        Ok(())
    }

    /// What of all there is the proxy is to have; the same in memory as long as that stays the same.
    fn wanted(&mut self, all: &Arc<Resources>) -> Arc<Resources> {
        let Some(names) = &self.names else {
            return Arc::clone(all);
        };
        if let Some((of, found)) = &self.named
            && Arc::ptr_eq(of, all)
        {
            return Arc::clone(found);
        }
        let found = names
            .iter()
            .filter_map(|name| Some((name.clone(), all.get(name)?.clone())));
        let found = Arc::new(found.collect());
        self.named = Some((Arc::clone(all), Arc::clone(&found)));
        found
    }
}
