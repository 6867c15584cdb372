//! What one proxy knows and what it is to be told next. No I/O, no clock.
//!
//! Node proxies subscribe to everything of a type, or name the addresses that they want (`on_demand`). Waypoints
//! (`waypoint`) may name what they want, as Envoy does.
//!
//! A proxy refuses traffic to a workload whose policies it does not have. Therefore policies are sent before the
//! workloads that name them, and removed after the workloads that no longer do.

mod on_demand;
mod waypoint;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use leyline_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
};
use serde::Serialize;

use crate::{
    mesh::{Changes, Published},
    translate::{Resource, Resources},
};
use on_demand::OnDemand;
use waypoint::WaypointTypes;

pub(crate) use on_demand::AddressIndex;

pub(super) use waypoint::Pod;

/// Rejections that the status page shows for each type and proxy.
const MAX_REJECTIONS: usize = 8;
/// A rejection names some resources; a proxy could send megabytes, and each is kept and logged.
const MAX_REASON_BYTES: usize = 2048;
const WILDCARD: &str = "*";

/// What a request was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    Subscribed,
    Unsubscribed,
    Ack,
    Nack {
        type_url: &'static str,
        reason: String,
    },
    /// An answer to an earlier response, or to none.
    Stale,
    UnknownType(String),
}

/// A request that cannot be served.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SessionError {
    #[error("subscriptions by name are not supported, subscribe to everything of {0}")]
    ByName(&'static str),
    #[error("too many names of {0}")]
    TooManyNames(&'static str),
}

/// What the status page says about one type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct TypeStatus {
    /// Resources that the proxy has.
    resources: usize,
    /// The generation up to which it has everything.
    acked_generation: u64,
    /// Whether a response waits for its acknowledgement.
    waiting: bool,
    /// Whether the last response was rejected.
    rejecting: bool,
    /// All rejections so far.
    nacks: u64,
    /// The last few, with what the proxy said.
    rejections: Vec<String>,
}

impl TypeStatus {
    /// What the proxy said of the last response, if it rejected it.
    pub(crate) fn rejecting(&self) -> Option<&str> {
        let last = self.rejections.last().filter(|_| self.rejecting);
        last.map(String::as_str)
    }

    /// Whether it has all of a generation.
    pub(crate) fn has_acknowledged(&self, generation: u64) -> bool {
        self.acked_generation >= generation
    }
}

struct OnTheWay {
    nonce: String,
    generation: u64,
    /// Whether the proxy has everything of that generation once it has this.
    complete: bool,
}

/// What a proxy has: a state that was sent to it, shared with all that are in step.
#[derive(Default)]
struct Known {
    state: Arc<Resources>,
    /// What it has besides, by name and version: brought by it, or gone and not yet told.
    besides: HashMap<String, String>,
}

impl Known {
    fn version(&self, name: &str) -> Option<&str> {
        let besides = self.besides.get(name).map(String::as_str);
        besides.or_else(|| {
            self.state
                .get(name)
                .map(|resource| resource.version.as_str())
        })
    }

    fn difference(&self, current: &Arc<Resources>, changes: Option<&Changes>) -> Difference {
        if self.besides.is_empty() {
            if Arc::ptr_eq(&self.state, current) {
                return Difference::default();
            }
            if let Some(changes) = changes.filter(|changes| Arc::ptr_eq(&changes.from, &self.state))
            {
                return Difference {
                    changed: changes.changed.clone(),
                    removed: changes.removed.clone(),
                };
            }
        }
        let differs = |(name, resource): &(&String, &Resource)| {
            self.version(name) != Some(resource.version.as_str())
        };
        let changed = current.iter().filter(differs);
        let names = self.state.keys().chain(self.besides.keys());
        let mut removed: Vec<String> = names
            .filter(|name| !current.contains_key(*name))
            .cloned()
            .collect();
        removed.sort();
        removed.dedup();
        Difference {
            changed: changed.map(|(name, _)| name.clone()).collect(),
            removed,
        }
    }

    /// All of `current` was sent, and nothing was told of what is gone but in `held_back`.
    fn set(&mut self, current: &Arc<Resources>, held_back: &[String]) {
        let keep = |name: &String| Some((name.clone(), self.version(name)?.to_owned()));
        self.besides = held_back.iter().filter_map(keep).collect();
        self.state = Arc::clone(current);
    }

    /// The proxy no longer has it, or is to be told of it again.
    fn forget(&mut self, name: &str) {
        self.besides.remove(name);
        if self.state.contains_key(name) {
            let mut state = Resources::clone(&self.state);
            state.remove(name);
            self.state = Arc::new(state);
        }
    }

    fn len(&self) -> usize {
        let besides = self.besides.keys();
        self.state.len()
            + besides
                .filter(|name| !self.state.contains_key(*name))
                .count()
    }
}

struct TypeState {
    type_url: &'static str,
    subscribed: bool,
    /// What is wanted, where the proxy names it; everything else.
    names: Option<BTreeSet<String>>,
    /// All that there was when it was last looked through by the names, and what was found.
    named: Option<(Arc<Resources>, Arc<Resources>)>,
    /// It has unsubscribed, and must say so to come back.
    left: bool,
    /// The first response is sent even when empty: it tells the proxy that it is in step.
    greeted: bool,
    known: Known,
    on_the_way: Option<OnTheWay>,
    status: TypeStatus,
}

/// What a type lacks.
#[derive(Default)]
struct Difference {
    changed: Vec<String>,
    removed: Vec<String>,
}

impl Difference {
    fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }
}

impl TypeState {
    fn new(type_url: &'static str) -> Self {
        Self {
            type_url,
            subscribed: false,
            names: None,
            named: None,
            left: false,
            greeted: false,
            known: Known::default(),
            on_the_way: None,
            status: TypeStatus::default(),
        }
    }

    /// Nothing to look for while a response is on its way or nothing is asked for.
    fn difference(&self, current: &Arc<Resources>, changes: Option<&Changes>) -> Difference {
        if self.subscribed && self.on_the_way.is_none() {
            self.known.difference(current, changes)
        } else {
            Difference::default()
        }
    }

    fn receive(&mut self, request: DeltaDiscoveryRequest) -> Result<Received, SessionError> {
        let is_wildcard = |name: &String| name == WILDCARD;
        if !request.resource_names_subscribe.iter().all(is_wildcard) {
            return Err(SessionError::ByName(self.type_url));
        }
        // Names besides: nothing was subscribed to by name, so that there is nothing to leave.
        if request.resource_names_unsubscribe.iter().any(is_wildcard) {
            *self = Self {
                left: true,
                status: std::mem::take(&mut self.status),
                ..Self::new(self.type_url)
            };
            return Ok(Received::Unsubscribed);
        }
        if !self.subscribed {
            // Without a name at first it means everything; after an unsubscription it is the answer to what came before.
            if self.left && request.resource_names_subscribe.is_empty() {
                return Ok(Received::Stale);
            }
            self.subscribed = true;
            self.known.besides = request.initial_resource_versions;
            return Ok(Received::Subscribed);
        }
        let answered = self
            .on_the_way
            .take_if(|sent| sent.nonce == request.response_nonce);
        let Some(answered) = answered else {
            return Ok(Received::Stale);
        };
        if answered.complete {
            self.status.acked_generation = answered.generation;
        }
        self.status.rejecting = request.error_detail.is_some();
        let Some(error) = request.error_detail else {
            return Ok(Received::Ack);
        };
        // The proxy keeps what it could use; the rest comes again once it changes.
        self.status.nacks += 1;
        if self.status.rejections.len() == MAX_REJECTIONS {
            self.status.rejections.remove(0);
        }
        let reason = cut(error.message);
        self.status.rejections.push(reason.clone());
        Ok(Received::Nack {
            type_url: self.type_url,
            reason,
        })
    }

    fn respond(
        &mut self,
        difference: Difference,
        held_back: &[String],
        current: &Arc<Resources>,
        sent: OnTheWay,
    ) -> DeltaDiscoveryResponse {
        let wire = |name: &String| Some(current.get(name)?.to_wire(name, self.type_url));
        let resources = difference.changed.iter().filter_map(wire).collect();
        self.known.set(current, held_back);
        self.greeted = true;
        let response = DeltaDiscoveryResponse {
            system_version_info: sent.generation.to_string(),
            resources,
            type_url: self.type_url.to_owned(),
            nonce: sent.nonce.clone(),
            removed_resources: difference.removed,
        };
        self.on_the_way = Some(sent);
        response
    }
}

/// The state of one stream.
pub(super) struct Session {
    addresses: TypeState,
    on_demand: OnDemand,
    authorizations: TypeState,
    waypoint: WaypointTypes,
    nonces: u64,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            addresses: TypeState::new(ADDRESS_TYPE),
            on_demand: OnDemand::default(),
            authorizations: TypeState::new(AUTHORIZATION_TYPE),
            waypoint: WaypointTypes::default(),
            nonces: 0,
        }
    }
}

impl Session {
    /// Of a proxy on this node.
    pub(super) fn of_node(node: String) -> Self {
        let mut session = Self::default();
        session.on_demand.set_node(node);
        session
    }

    /// Takes a request.
    pub(super) fn receive(
        &mut self,
        mut request: DeltaDiscoveryRequest,
    ) -> Result<Received, SessionError> {
        match request.type_url.as_str() {
            ADDRESS_TYPE => {
                self.on_demand.take_names(&self.addresses, &mut request)?;
                self.addresses.receive(request)
            }
            AUTHORIZATION_TYPE => self.authorizations.receive(request),
            _ => self.waypoint.receive(request),
        }
    }

    /// Says which pod the proxy is, with an account that it has proven.
    pub(super) fn identify(&mut self, pod: Pod) {
        self.waypoint.identify(pod);
    }

    /// The next response that brings the proxy closer to `published`; `None` when it must answer first or has all.
    pub(super) fn next_response(
        &mut self,
        published: &Published,
    ) -> Option<DeltaDiscoveryResponse> {
        self.next_of_node(published)
            .or_else(|| self.waypoint.next_response(published, &mut self.nonces))
    }

    fn next_of_node(&mut self, published: &Published) -> Option<DeltaDiscoveryResponse> {
        let translation = &published.translation;
        let changes = published.address_changes.as_ref();
        let all = self.on_demand.wanted(&mut self.addresses, published);
        let mut addresses = self.addresses.difference(&all, changes);
        if self.addresses.on_the_way.is_none() {
            self.on_demand.tell_absent(&mut addresses, published);
        }
        let mut policies = self
            .authorizations
            .difference(&translation.authorizations, None);
        let addresses_settled = !self.addresses.subscribed
            || (self.addresses.on_the_way.is_none() && addresses.is_empty());
        let policies_arrived = !self.authorizations.subscribed
            || (self.authorizations.on_the_way.is_none() && policies.changed.is_empty());
        let mut held_back = Vec::new();
        if !addresses_settled {
            held_back = std::mem::take(&mut policies.removed);
        }
        let policies_complete = held_back.is_empty();

        if self.authorizations.is_due(&policies) {
            let sent = on_the_way(&mut self.nonces, published.generation, policies_complete);
            let all = &translation.authorizations;
            return Some(self.authorizations.respond(policies, &held_back, all, sent));
        }
        if self.addresses.is_due(&addresses) && policies_arrived {
            let sent = on_the_way(&mut self.nonces, published.generation, true);
            let mut response = self.addresses.respond(addresses, &[], &all, sent);
            self.on_demand.answered(&mut response, published);
            return Some(response);
        }
        if self.addresses.is_in_step(&addresses) {
            self.addresses.known.set(&all, &[]);
            self.addresses.status.acked_generation = published.generation;
        }
        if self.authorizations.is_in_step(&policies) && policies_complete {
            self.authorizations
                .known
                .set(&translation.authorizations, &[]);
            self.authorizations.status.acked_generation = published.generation;
        }
        None
    }

    pub(super) fn waits_for_ack(&self) -> bool {
        let mut types = [&self.addresses, &self.authorizations]
            .into_iter()
            .chain(self.waypoint.types());
        types.any(|kind| kind.on_the_way.is_some())
    }

    /// The generation whose addresses the proxy has, if it subscribed to them.
    pub(super) fn addresses_generation(&self) -> Option<u64> {
        self.addresses
            .subscribed
            .then_some(self.addresses.status.acked_generation)
    }

    pub(super) fn status(&self) -> BTreeMap<&'static str, TypeStatus> {
        let types = [&self.addresses, &self.authorizations].into_iter();
        let subscribed = types
            .chain(self.waypoint.types())
            .filter(|kind| kind.subscribed);
        subscribed
            .map(|kind| {
                let status = TypeStatus {
                    resources: kind.known.len(),
                    waiting: kind.on_the_way.is_some(),
                    ..kind.status.clone()
                };
                (super::short(kind.type_url), status)
            })
            .collect()
    }
}

impl TypeState {
    fn is_due(&self, difference: &Difference) -> bool {
        self.subscribed && self.on_the_way.is_none() && (!self.greeted || !difference.is_empty())
    }

    fn is_in_step(&self, difference: &Difference) -> bool {
        self.subscribed && self.on_the_way.is_none() && self.greeted && difference.is_empty()
    }
}

/// Text of a peer, bounded.
fn cut(mut text: String) -> String {
    let end = text.floor_char_boundary(MAX_REASON_BYTES);
    text.truncate(end);
    text
}

fn on_the_way(nonces: &mut u64, generation: u64, complete: bool) -> OnTheWay {
    *nonces += 1;
    OnTheWay {
        nonce: nonces.to_string(),
        generation,
        complete,
    }
}

#[cfg(test)]
mod tests;
