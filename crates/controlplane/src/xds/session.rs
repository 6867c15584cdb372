//! What one proxy knows and what it is to be told next. No I/O, no clock.
//!
//! A proxy refuses traffic to a workload whose policies it does not have. Therefore policies are sent before the
//! workloads that name them, and removed after the workloads that no longer do.

use std::collections::BTreeMap;

use leyline_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
};
use serde::Serialize;

use crate::{mesh::Published, translate::Resources};

/// Rejections that the status page shows for each type and proxy.
const MAX_REJECTIONS: usize = 8;
const WILDCARD: &str = "*";

/// What a request was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    Subscribed,
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
    /// All rejections so far.
    nacks: u64,
    /// The last few, with what the proxy said.
    rejections: Vec<String>,
}

struct OnTheWay {
    nonce: String,
    generation: u64,
    /// Whether the proxy has everything of that generation once it has this.
    complete: bool,
}

struct TypeState {
    type_url: &'static str,
    subscribed: bool,
    /// The first response is sent even when empty: it tells the proxy that it is in step.
    greeted: bool,
    /// Name to version, as sent or as the proxy brought it.
    known: BTreeMap<String, String>,
    on_the_way: Option<OnTheWay>,
    status: TypeStatus,
}

/// What a type lacks.
struct Difference<'a> {
    changed: Vec<&'a String>,
    removed: Vec<String>,
}

impl Difference<'_> {
    fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }
}

impl TypeState {
    fn new(type_url: &'static str) -> Self {
        Self {
            type_url,
            subscribed: false,
            greeted: false,
            known: BTreeMap::new(),
            on_the_way: None,
            status: TypeStatus::default(),
        }
    }

    fn difference<'a>(&self, current: &'a Resources) -> Difference<'a> {
        let differs = |(name, resource): &(&String, &crate::translate::Resource)| {
            self.known.get(*name) != Some(&resource.version)
        };
        let gone = |name: &&String| !current.contains_key(*name);
        Difference {
            changed: current
                .iter()
                .filter(differs)
                .map(|(name, _)| name)
                .collect(),
            removed: self.known.keys().filter(gone).cloned().collect(),
        }
    }

    fn receive(&mut self, request: DeltaDiscoveryRequest) -> Result<Received, SessionError> {
        let by_name = |names: &[String]| names.iter().any(|name| name != WILDCARD);
        if by_name(&request.resource_names_subscribe)
            || !request.resource_names_unsubscribe.is_empty()
        {
            return Err(SessionError::ByName(self.type_url));
        }
        if !self.subscribed {
            self.subscribed = true;
            self.known = request.initial_resource_versions.into_iter().collect();
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
        let Some(error) = request.error_detail else {
            return Ok(Received::Ack);
        };
        // The proxy keeps what it could use; the rest comes again once it changes.
        self.status.nacks += 1;
        if self.status.rejections.len() == MAX_REJECTIONS {
            self.status.rejections.remove(0);
        }
        self.status.rejections.push(error.message.clone());
        Ok(Received::Nack {
            type_url: self.type_url,
            reason: error.message,
        })
    }

    fn respond(
        &mut self,
        difference: Difference<'_>,
        current: &Resources,
        sent: OnTheWay,
    ) -> DeltaDiscoveryResponse {
        let mut resources = Vec::with_capacity(difference.changed.len());
        for name in difference.changed {
            let Some(resource) = current.get(name) else {
                continue;
            };
            self.known.insert(name.clone(), resource.version.clone());
            resources.push(resource.to_wire(name, self.type_url));
        }
        for name in &difference.removed {
            self.known.remove(name);
        }
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
    authorizations: TypeState,
    nonces: u64,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            addresses: TypeState::new(ADDRESS_TYPE),
            authorizations: TypeState::new(AUTHORIZATION_TYPE),
            nonces: 0,
        }
    }
}

impl Session {
    /// Takes a request.
    pub(super) fn receive(
        &mut self,
        request: DeltaDiscoveryRequest,
    ) -> Result<Received, SessionError> {
        match request.type_url.as_str() {
            ADDRESS_TYPE => self.addresses.receive(request),
            AUTHORIZATION_TYPE => self.authorizations.receive(request),
            _ => Ok(Received::UnknownType(request.type_url)),
        }
    }

    /// The next response that brings the proxy closer to `published`; `None` when it must answer first or has all.
    pub(super) fn next_response(
        &mut self,
        published: &Published,
    ) -> Option<DeltaDiscoveryResponse> {
        let translation = &published.translation;
        let addresses = self.addresses.difference(&translation.addresses);
        let mut policies = self.authorizations.difference(&translation.authorizations);
        let addresses_settled = !self.addresses.subscribed
            || (self.addresses.on_the_way.is_none() && addresses.is_empty());
        let policies_arrived = !self.authorizations.subscribed
            || (self.authorizations.on_the_way.is_none() && policies.changed.is_empty());
        let policies_complete = addresses_settled || policies.removed.is_empty();
        if !addresses_settled {
            policies.removed.clear();
        }

        if self.authorizations.is_due(&policies) {
            let sent = on_the_way(&mut self.nonces, published.generation, policies_complete);
            let all = &translation.authorizations;
            return Some(self.authorizations.respond(policies, all, sent));
        }
        if self.addresses.is_due(&addresses) && policies_arrived {
            let sent = on_the_way(&mut self.nonces, published.generation, true);
            return Some(
                self.addresses
                    .respond(addresses, &translation.addresses, sent),
            );
        }
        if self.addresses.on_the_way.is_none() && addresses.is_empty() {
            self.addresses.status.acked_generation = published.generation;
        }
        if self.authorizations.on_the_way.is_none() && policies.is_empty() && policies_complete {
            self.authorizations.status.acked_generation = published.generation;
        }
        None
    }

    pub(super) fn waits_for_ack(&self) -> bool {
        self.addresses.on_the_way.is_some() || self.authorizations.on_the_way.is_some()
    }

    /// The generation whose addresses the proxy has, if it subscribed to them.
    pub(super) fn addresses_generation(&self) -> Option<u64> {
        self.addresses
            .subscribed
            .then_some(self.addresses.status.acked_generation)
    }

    pub(super) fn status(&self) -> BTreeMap<&'static str, TypeStatus> {
        let subscribed = [&self.addresses, &self.authorizations]
            .into_iter()
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
    fn is_due(&self, difference: &Difference<'_>) -> bool {
        self.subscribed && self.on_the_way.is_none() && (!self.greeted || !difference.is_empty())
    }
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
