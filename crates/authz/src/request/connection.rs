//! The same rules over a TCP connection, where there is no request. Rules that ask for one are refused when they are
//! compiled: `not` around a condition that can never hold would let everybody pass.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, Method};
use serde_json::Map;

use super::{
    Condition, RequestDenial, RequestFacts, RequestHead, RequestRules, RuleAction, evaluate_request,
};
use crate::evaluate::Permit;

/// Rules that look at nothing but the connection.
#[derive(Clone, Debug)]
pub struct ConnectionRules(RequestRules);

/// A rule asks for what a TCP connection does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policy {policy} looks at {what}, which a TCP connection does not have")]
pub struct NotOfConnections {
    policy: String,
    what: &'static str,
}

/// What is known of a tunnelled connection.
#[derive(Clone, Copy, Debug)]
pub struct TunnelFacts<'a> {
    /// The peer's SPIFFE ID, from its certificate.
    pub peer: Option<&'a str>,
    /// Address of the TCP peer: the client's pod.
    pub source_ip: IpAddr,
    /// Address and port that the client called: those of the service.
    pub destination: Option<SocketAddr>,
    /// Port that the client called.
    pub destination_port: u16,
}

impl ConnectionRules {
    /// Takes rules that can be decided on a connection.
    ///
    /// # Errors
    /// The first policy that cannot.
    pub fn new(rules: RequestRules) -> Result<Self, NotOfConnections> {
        for policy in &rules.policies {
            let asked = policy.permission.of_requests();
            if let Some(what) = asked.or_else(|| policy.principal.of_requests()) {
                return Err(NotOfConnections {
                    policy: policy.id.to_string(),
                    what,
                });
            }
        }
        Ok(Self(rules))
    }

    /// What a match means.
    pub fn action(&self) -> RuleAction {
        self.0.action
    }

    /// The first policy that matches, by its id.
    pub fn matching(&self, facts: &TunnelFacts<'_>) -> Option<&str> {
        as_request(facts, |facts| {
            self.0.matching(facts).map(|policy| policy.id.as_str())
        })
    }
}

impl Condition {
    /// What of a request it looks at, if anything.
    fn of_requests(&self) -> Option<&'static str> {
        match self {
            Self::Header(_) => Some("a header"),
            Self::Path(_) => Some("the path"),
            Self::Metadata(_) => Some("what filters found out"),
            Self::And(all) | Self::Or(all) => all.iter().find_map(Self::of_requests),
            Self::Not(other) => other.of_requests(),
            Self::Any
            | Self::Peer(_)
            | Self::SourceIp(_)
            | Self::RemoteIp(_)
            | Self::DestinationIp(_)
            | Self::DestinationPort(..) => None,
        }
    }
}

/// Decides on a connection. Without any rules it passes.
///
/// # Errors
/// The reason of a refusal; its text goes to the access log.
pub fn evaluate_connection<'a>(
    rules: impl IntoIterator<Item = &'a ConnectionRules>,
    facts: &TunnelFacts<'_>,
) -> Result<Permit, RequestDenial> {
    let rules = rules.into_iter().map(|rules| &rules.0);
    as_request(facts, |facts| evaluate_request(rules, facts))
}

/// The connection as a request about which nothing is known.
fn as_request<T>(facts: &TunnelFacts<'_>, look: impl FnOnce(&RequestFacts<'_>) -> T) -> T {
    let (headers, metadata) = (HeaderMap::new(), Map::new());
    // Nothing of the head is looked at: see `ConnectionRules::new`.
    let head = RequestHead {
        method: &Method::CONNECT,
        scheme: "",
        authority: "",
        path: "",
        headers: &headers,
    };
    look(&RequestFacts {
        head,
        peer: facts.peer,
        source_ip: facts.source_ip,
        remote_ip: facts.source_ip,
        destination: facts.destination,
        destination_port: facts.destination_port,
        metadata: &metadata,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HeaderMatch, HeaderName, RequestPolicy, TextMatch};

    fn rules(action: RuleAction, permission: Condition, principal: Condition) -> RequestRules {
        RequestRules {
            action,
            policies: vec![RequestPolicy {
                id: "ns[shop]-policy[p]-rule[0]".into(),
                permission,
                principal,
            }],
        }
    }

    fn peer(id: &str) -> Condition {
        Condition::Peer(TextMatch::Exact(id.to_owned()))
    }

    const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

    fn facts() -> TunnelFacts<'static> {
        TunnelFacts {
            peer: Some(CLIENT),
            source_ip: [10, 1, 0, 2].into(),
            destination: Some(([10, 96, 0, 9], 9000).into()),
            destination_port: 9000,
        }
    }

    #[test]
    fn connections_are_decided_by_peer_address_and_port() {
        let check = |action, permission, principal, passes: bool| {
            let rules = ConnectionRules::new(rules(action, permission, principal)).unwrap();
            let permit = evaluate_connection([&rules], &facts());
            assert_eq!(permit.is_ok(), passes, "{rules:?}");
        };
        let port = |port| Condition::DestinationPort(port, port);
        let net = |text: &str| Condition::SourceIp(text.parse().unwrap());
        use RuleAction::{Allow, Deny, Log};
        check(Allow, Condition::Any, peer(CLIENT), true);
        check(Allow, Condition::Any, peer("spiffe://other"), false);
        check(Allow, port(9001), peer(CLIENT), false);
        check(Deny, port(9000), net("10.1.0.0/16"), false);
        check(Deny, port(9000), net("10.2.0.0/16"), true);
        check(Log, Condition::Any, Condition::Any, true);
        let remote = Condition::RemoteIp("10.1.0.2/32".parse().unwrap());
        check(Deny, Condition::Any, remote, false);
        assert!(evaluate_connection([], &facts()).is_ok());
    }

    #[test]
    fn rules_over_requests_are_refused_however_deep() {
        let header = Condition::Header(HeaderMatch {
            name: HeaderName::Method,
            value: Some(TextMatch::Exact("GET".to_owned())),
            invert: false,
            missing_is_empty: false,
        });
        let deep = Condition::And(vec![
            Condition::Any,
            Condition::Not(Box::new(Condition::Or(vec![header.clone()]))),
        ]);
        let path = Condition::Path(TextMatch::Exact("/".to_owned()));
        let claim = Condition::Metadata(crate::MetadataMatch {
            path: vec!["jwt".to_owned()],
            value: crate::ValueMatch::Present,
        });
        for condition in [header, deep, path, claim] {
            for (permission, principal) in [
                (condition.clone(), Condition::Any),
                (Condition::Any, condition.clone()),
            ] {
                let rules = rules(RuleAction::Deny, permission, principal);
                assert!(ConnectionRules::new(rules).is_err(), "{condition:?}");
            }
        }
    }
}
