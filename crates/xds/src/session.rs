//! The protocol of delta ADS as a state machine without I/O: what to ask on a new stream, what a response means, what
//! to answer. `client` drives it; call order per stream: [`Session::open_stream`], then for each response
//! [`Session::receive`], apply the update, [`Session::answer`].
//!
//! Invariant: a version is remembered only for what was applied and accepted, so the server is never told that we hold
//! something we do not.

use std::collections::{BTreeSet, HashMap, HashSet};

use leyline_proto::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource,
        },
    },
    google::rpc::Status,
};

use crate::NodeInfo;

/// Resources of one type that a session keeps names of: ten times the largest mesh known, about 200 MB of names.
const MAX_RESOURCES: usize = 1_000_000;
/// Longest name or version: names are at most namespace (63), slash and host name (253), uids a little more.
const MAX_NAME: usize = 1024;
/// Longest explanation in a NACK: servers accept messages of 4 MiB, and an operator reads the first lines.
const MAX_NACK_MESSAGE: usize = 16 * 1024;
/// Everything of a type, where it is named (xDS protocol).
const WILDCARD: &str = "*";
/// `INVALID_ARGUMENT` of google.rpc.Code.
const INVALID_ARGUMENT: i32 = 3;

/// What one response says about one type, ready to be applied: first `removed`, then `resources`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The type of all resources.
    pub type_url: &'static str,
    /// New or changed resources, each name once.
    pub resources: Vec<Resource>,
    /// Names of resources that are gone; some may never have been known here.
    pub removed: Vec<String>,
    /// Other names that the resources go by.
    pub aliases: Vec<String>,
}

/// One resource as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its name within the type.
    pub name: String,
    /// The server's version of it.
    pub version: String,
    /// The encoded protobuf message.
    pub body: Vec<u8>,
}

/// A resource that is not accepted; what was known under its name before stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Name of the resource.
    pub name: String,
    /// Why, for the operator; sent to the control plane.
    pub reason: String,
}

/// What a response means.
#[derive(Debug)]
pub enum Received {
    /// Apply the update, then call [`Session::answer`] with the rest.
    Apply(Update, Pending),
    /// A type that was never asked for. It gets no answer: naming it would subscribe to it.
    NotSubscribed {
        /// The type.
        type_url: String,
    },
}

/// A response that waits for its answer.
#[must_use = "a response without an answer keeps the server from sending more"]
#[derive(Debug)]
pub struct Pending {
    stream: u64,
    type_url: &'static str,
    nonce: String,
    offered: Vec<(String, String)>,
    removed: Vec<String>,
    rejections: Vec<Rejection>,
}

/// What to tell the server about a response.
#[derive(Debug)]
pub struct Answer {
    /// The ACK or NACK; none when its stream is gone, or when the response had no nonce to refer to.
    pub request: Option<DeltaDiscoveryRequest>,
    /// All that was rejected, by this session or by the application; empty in an ACK.
    pub rejections: Vec<Rejection>,
}

/// Subscriptions and what is held of them, across streams.
#[derive(Debug)]
pub struct Session {
    node: Node,
    subscriptions: Vec<Subscription>,
    /// Number of the current stream; nonces of older ones mean nothing.
    stream: u64,
}

#[derive(Debug)]
struct Subscription {
    type_url: &'static str,
    /// What is asked for by name; `None` is everything.
    names: Option<BTreeSet<String>>,
    /// Names come one by one, and what the server sends without them counts too.
    on_demand: bool,
    /// It may stay unanswered.
    optional: bool,
    /// Names of the accepted resources with their versions.
    held: HashMap<String, String>,
    answered: bool,
}

impl Session {
    /// A session that subscribes to everything of these types.
    pub fn new(node: NodeInfo, types: &[&'static str]) -> Self {
        let subscriptions = types.iter().map(|type_url| Subscription {
            type_url,
            names: None,
            on_demand: false,
            optional: false,
            held: HashMap::new(),
            answered: false,
        });
        Self {
            node: node.into(),
            subscriptions: subscriptions.collect(),
            stream: 0,
        }
    }

    /// Asks for nothing of a type at first, and later for what [`Self::want`] says. The type is in step once the server has
    /// answered for the first time, whatever is asked for then.
    pub fn set_on_demand(&mut self, type_url: &'static str) {
        let mut all = self.subscriptions.iter_mut();
        if let Some(subscription) = all.find(|subscription| subscription.type_url == type_url) {
            subscription.on_demand = true;
            subscription.names.get_or_insert_default();
        }
    }

    /// Does not wait for an answer about a type: what is asked for may not exist.
    pub fn set_optional(&mut self, type_url: &'static str) {
        let mut all = self.subscriptions.iter_mut();
        if let Some(subscription) = all.find(|subscription| subscription.type_url == type_url) {
            subscription.optional = true;
        }
    }

    /// Asks for these resources of a type in place of all: the request for what is new and what is not wanted any more,
    /// if anything is. It refers to no response (empty nonce): with one, servers take it for an answer.
    ///
    /// What is not wanted any more is forgotten here, and no removal will be told.
    pub fn want(
        &mut self,
        type_url: &'static str,
        names: BTreeSet<String>,
    ) -> Option<DeltaDiscoveryRequest> {
        let mut all = self.subscriptions.iter_mut();
        let subscription = all.find(|subscription| subscription.type_url == type_url)?;
        let before = subscription.names.replace(names).unwrap_or_default();
        let now = subscription.names.as_ref()?;
        let added: Vec<String> = now.difference(&before).cloned().collect();
        let dropped: Vec<String> = before.difference(now).cloned().collect();
        for name in &dropped {
            subscription.held.remove(name);
        }
        if added.is_empty() && dropped.is_empty() {
            return None;
        }
        // New names have not been answered, whatever was answered before.
        subscription.answered &= added.is_empty() || subscription.on_demand;
        Some(DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: added,
            resource_names_unsubscribe: dropped,
            ..DeltaDiscoveryRequest::default()
        })
    }

    /// Starts a stream: its first requests, one per type, with all that is held.
    ///
    /// An empty list of names is the wildcard; only the first request carries the node (xDS protocol, "ADS"). A type of
    /// which nothing is wanted by name is not asked for.
    pub fn open_stream(&mut self) -> Vec<DeltaDiscoveryRequest> {
        self.stream += 1;
        let mut node = Some(self.node.clone());
        self.subscriptions
            .iter()
            .filter(|subscription| !subscription.wants_nothing())
            .map(|subscription| DeltaDiscoveryRequest {
                node: node.take(),
                type_url: subscription.type_url.to_owned(),
                resource_names_subscribe: subscription.first_names(),
                resource_names_unsubscribe: subscription.first_left(),
                initial_resource_versions: subscription.held.clone(),
                ..DeltaDiscoveryRequest::default()
            })
            .collect()
    }

    /// Takes a response of the current stream.
    pub fn receive(&mut self, mut response: DeltaDiscoveryResponse) -> Received {
        let Some(subscription) = self
            .subscriptions
            .iter()
            .find(|subscription| subscription.type_url == response.type_url)
        else {
            return Received::NotSubscribed {
                type_url: response.type_url,
            };
        };
        let type_url = subscription.type_url;
        let aliases = response.resources.iter_mut();
        let aliases = aliases.flat_map(|resource| std::mem::take(&mut resource.aliases));
        let aliases = aliases.collect();
        let (resources, rejections) = subscription.sort_out(response.resources);
        let pending = Pending {
            stream: self.stream,
            type_url,
            nonce: response.nonce,
            offered: resources
                .iter()
                .map(|resource| (resource.name.clone(), resource.version.clone()))
                .collect(),
            removed: response.removed_resources.clone(),
            rejections,
        };
        let update = Update {
            type_url,
            resources,
            removed: response.removed_resources,
            aliases,
        };
        Received::Apply(update, pending)
    }

    /// Ends a response: remembers what was accepted and makes the ACK or NACK.
    ///
    /// A rejected resource leaves the version that is held: it is what the application still uses, and the server
    /// sends the newer one again after a reconnect, or its removal.
    pub fn answer(&mut self, pending: Pending, rejected: Vec<Rejection>) -> Answer {
        if let Some(subscription) = self
            .subscriptions
            .iter_mut()
            .find(|subscription| subscription.type_url == pending.type_url)
        {
            // What this session rejected was never offered; of a resource that is listed twice the first was.
            subscription.settle(&pending.removed, pending.offered, &rejected);
        }
        let mut rejections = pending.rejections;
        rejections.extend(rejected);
        let current = pending.stream == self.stream && !pending.nonce.is_empty();
        let request = current.then(|| DeltaDiscoveryRequest {
            type_url: pending.type_url.to_owned(),
            response_nonce: pending.nonce,
            error_detail: error_detail(&rejections),
            ..DeltaDiscoveryRequest::default()
        });
        Answer {
            request,
            rejections,
        }
    }

    /// Whether each type had a response that was applied and answered, on whatever stream, but for optional ones.
    ///
    /// A NACK counts: one broken resource must not keep a node out of service for ever.
    pub fn is_synced(&self) -> bool {
        self.subscriptions
            .iter()
            .all(|one| one.answered || one.optional || one.wants_nothing())
    }

    /// The number of subscribed types, which is the number of first requests of a stream.
    pub fn types(&self) -> usize {
        self.subscriptions.len()
    }
}

impl Subscription {
    fn wants_nothing(&self) -> bool {
        !self.on_demand && self.has_no_names()
    }

    fn has_no_names(&self) -> bool {
        self.names.as_ref().is_some_and(BTreeSet::is_empty)
    }

    /// No name in a first request means everything, so that who wants nothing yet says that it leaves everything.
    fn first_names(&self) -> Vec<String> {
        if self.on_demand && self.has_no_names() {
            return vec![WILDCARD.to_owned()];
        }
        self.names.iter().flatten().cloned().collect()
    }

    fn first_left(&self) -> Vec<String> {
        let leaves = self.on_demand && self.has_no_names();
        leaves.then(|| WILDCARD.to_owned()).into_iter().collect()
    }

    /// Separates resources that can be handed on from those that cannot be resources at all.
    fn sort_out(&self, wire: Vec<WireResource>) -> (Vec<Resource>, Vec<Rejection>) {
        let mut resources = Vec::with_capacity(wire.len());
        let mut rejections = Vec::new();
        let mut names = HashSet::new();
        let mut added = 0;
        for resource in wire {
            let known = self.held.contains_key(&resource.name);
            let outcome = if !known && self.held.len() + added >= MAX_RESOURCES {
                Err(format!("more than {MAX_RESOURCES} resources"))
            } else if !names.insert(resource.name.clone()) {
                Err("listed twice in one response".to_owned())
            } else {
                body(
                    self.type_url,
                    &resource.name,
                    &resource.version,
                    resource.resource,
                )
            };
            match outcome {
                Ok(body) => {
                    added += usize::from(!known);
                    resources.push(Resource {
                        name: resource.name,
                        version: resource.version,
                        body,
                    });
                }
                Err(reason) => rejections.push(Rejection {
                    name: shorten(resource.name),
                    reason,
                }),
            }
        }
        (resources, rejections)
    }

    fn settle(
        &mut self,
        removed: &[String],
        offered: Vec<(String, String)>,
        rejections: &[Rejection],
    ) {
        let rejected: HashSet<&str> = rejections
            .iter()
            .map(|rejection| rejection.name.as_str())
            .collect();
        for name in removed {
            self.held.remove(name);
        }
        for (name, version) in offered {
            if !rejected.contains(name.as_str()) {
                self.held.insert(name, version);
            }
        }
        self.answered = true;
    }
}

/// The content of a resource, if it is one of the type.
fn body(
    type_url: &str,
    name: &str,
    version: &str,
    content: Option<prost_types::Any>,
) -> Result<Vec<u8>, String> {
    if name.is_empty() {
        return Err("resource has no name".to_owned());
    }
    if name.len() > MAX_NAME || version.len() > MAX_NAME {
        return Err(format!("name or version is longer than {MAX_NAME} bytes"));
    }
    let content = content.ok_or("resource has no content")?;
    if content.type_url != type_url {
        let got = shorten(content.type_url);
        return Err(format!("content is of type `{got}`"));
    }
    Ok(content.value)
}

/// `name: reason; name: reason`, as Istio's control plane logs it; none means ACK.
fn error_detail(rejections: &[Rejection]) -> Option<Status> {
    if rejections.is_empty() {
        return None;
    }
    let mut message = String::new();
    let mut told = 0;
    for Rejection { name, reason } in rejections {
        if message.len() >= MAX_NACK_MESSAGE {
            break;
        }
        if told > 0 {
            message.push_str("; ");
        }
        message.push_str(name);
        message.push_str(": ");
        message.push_str(reason);
        told += 1;
    }
    message.truncate(message.floor_char_boundary(MAX_NACK_MESSAGE));
    if told < rejections.len() {
        message.push_str(&format!("; and {} more", rejections.len() - told));
    }
    Some(Status {
        code: INVALID_ARGUMENT,
        message,
        details: Vec::new(),
    })
}

fn shorten(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_NAME));
    text
}

#[cfg(test)]
mod tests;
