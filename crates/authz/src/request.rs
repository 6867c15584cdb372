//! Policies over HTTP requests, as a waypoint enforces them: conditions on the request's head, the peer and the claims
//! of a verified token, combined by and, or and not. The waypoint compiles them from its configuration.
//!
//! A request passes a list of rules in order: each DENY that matches and each ALLOW that matches nothing ends it. Only
//! [`evaluate_request`] makes the [`Permit`] that forwarding a request takes.

mod connection;
mod head;

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use leyline_types::Str;
use serde_json::Value;

pub use connection::{ConnectionRules, NotOfConnections, TunnelFacts, evaluate_connection};
pub use head::{HeaderMatch, HeaderName, PatternError, RequestHead, TextMatch};

use crate::evaluate::Permit;

/// What is known of a request when it is decided on.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    /// Method, path, headers.
    pub head: RequestHead<'a>,
    /// The peer's SPIFFE ID, from its certificate.
    pub peer: Option<&'a str>,
    /// Address of the TCP peer: the client's pod.
    pub source_ip: IpAddr,
    /// The client as forwarded headers of trusted proxies tell it; the same as `source_ip` without any.
    pub remote_ip: IpAddr,
    /// Address and port that the client called: those of the service.
    pub destination: Option<SocketAddr>,
    /// Port that the client called.
    pub destination_port: u16,
    /// What filters found out, such as the claims of a token, by the name of the filter.
    pub metadata: &'a serde_json::Map<String, Value>,
}

/// One condition, or a combination of them.
#[derive(Clone, Debug)]
pub enum Condition {
    /// Always.
    Any,
    /// All hold.
    And(Vec<Self>),
    /// One holds.
    Or(Vec<Self>),
    /// It does not hold.
    Not(Box<Self>),
    /// On a header or a pseudo header.
    Header(HeaderMatch),
    /// On the path without its query.
    Path(TextMatch),
    /// On the peer's SPIFFE ID; without one it does not hold.
    Peer(TextMatch),
    /// On the address of the TCP peer.
    SourceIp(IpNet),
    /// On the address of the client.
    RemoteIp(IpNet),
    /// On the address that was called.
    DestinationIp(IpNet),
    /// On the port that was called, first and last included.
    DestinationPort(u16, u16),
    /// On what a filter found out.
    Metadata(MetadataMatch),
}

/// A condition on what a filter found out, such as a claim of a token. Routes use it, too.
#[derive(Clone, Debug)]
pub struct MetadataMatch {
    /// Name of the filter, then keys from the outside in.
    pub path: Vec<String>,
    /// On the value.
    pub value: ValueMatch,
}

/// A condition on a value of metadata.
#[derive(Clone, Debug)]
pub enum ValueMatch {
    /// It is there.
    Present,
    /// A text.
    Text(TextMatch),
    /// Yes or no.
    Bool(bool),
    /// A list with such an item.
    AnyOf(Box<Self>),
    /// One of these.
    Or(Vec<Self>),
}

/// What a match of a policy means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleAction {
    /// Only what matches passes.
    Allow,
    /// What matches does not pass.
    Deny,
    /// What matches is noted.
    Log,
}

impl RuleAction {
    /// For labels of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Log => "log",
        }
    }
}

/// One policy of a list: it matches when both sides do.
#[derive(Clone, Debug)]
pub struct RequestPolicy {
    /// For logs.
    pub id: Str,
    /// What is asked for.
    pub permission: Condition,
    /// Who asks.
    pub principal: Condition,
}

/// One list of policies with the same action.
#[derive(Clone, Debug)]
pub struct RequestRules {
    /// What a match means.
    pub action: RuleAction,
    /// In the order of their ids.
    pub policies: Vec<RequestPolicy>,
}

/// Why a request does not pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestDenial {
    /// This DENY policy matches.
    #[error("rbac_access_denied_matched_policy[{0}]")]
    Denied(Str),
    /// No ALLOW policy matches.
    #[error("rbac_access_denied_matched_policy[none]")]
    NotAllowed,
}

/// Decides on a request. Without any rules it passes: a waypoint without policies allows.
///
/// # Errors
/// The reason of a refusal; its text goes to the access log.
pub fn evaluate_request<'a>(
    rules: impl IntoIterator<Item = &'a RequestRules>,
    facts: &RequestFacts<'_>,
) -> Result<Permit, RequestDenial> {
    for list in rules {
        match (list.action, list.matching(facts)) {
            (RuleAction::Deny, Some(policy)) => {
                return Err(RequestDenial::Denied(policy.id.clone()));
            }
            (RuleAction::Allow, None) => return Err(RequestDenial::NotAllowed),
            (RuleAction::Allow | RuleAction::Log, Some(_))
            | (RuleAction::Deny | RuleAction::Log, None) => {}
        }
    }
    Ok(Permit::new())
}

impl RequestRules {
    /// The first policy that matches.
    pub fn matching(&self, facts: &RequestFacts<'_>) -> Option<&RequestPolicy> {
        self.policies
            .iter()
            .find(|policy| policy.permission.holds(facts) && policy.principal.holds(facts))
    }
}

impl Condition {
    fn holds(&self, facts: &RequestFacts<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::And(all) => all.iter().all(|one| one.holds(facts)),
            Self::Or(any) => any.iter().any(|one| one.holds(facts)),
            Self::Not(other) => !other.holds(facts),
            Self::Header(header) => header.matches(&facts.head),
            Self::Path(text) => text.matches(facts.head.path_only()),
            Self::Peer(text) => facts.peer.is_some_and(|peer| text.matches(peer)),
            Self::SourceIp(block) => block.contains(&facts.source_ip),
            Self::RemoteIp(block) => block.contains(&facts.remote_ip),
            Self::DestinationIp(block) => {
                let destination = facts.destination;
                destination.is_some_and(|address| block.contains(&address.ip()))
            }
            Self::DestinationPort(first, last) => {
                (*first..=*last).contains(&facts.destination_port)
            }
            Self::Metadata(matched) => matched.holds(facts.metadata),
        }
    }
}

impl MetadataMatch {
    /// Whether it holds on what filters found out, by the name of the filter. What is not there fits nothing.
    pub fn holds(&self, metadata: &serde_json::Map<String, Value>) -> bool {
        let Some((filter, keys)) = self.path.split_first() else {
            return false;
        };
        let found = keys.iter().try_fold(metadata.get(filter), |at, key| {
            Some(at?.as_object().and_then(|fields| fields.get(key)))
        });
        found
            .flatten()
            .is_some_and(|found| self.value.matches(found))
    }
}

impl ValueMatch {
    fn matches(&self, found: &Value) -> bool {
        match self {
            Self::Present => !found.is_null(),
            Self::Text(text) => found.as_str().is_some_and(|found| text.matches(found)),
            Self::Bool(wanted) => found.as_bool() == Some(*wanted),
            Self::AnyOf(item) => {
                let items = found.as_array();
                items.is_some_and(|items| items.iter().any(|found| item.matches(found)))
            }
            Self::Or(any) => any.iter().any(|one| one.matches(found)),
        }
    }
}

#[cfg(test)]
mod tests;
