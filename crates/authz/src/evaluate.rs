//! The decision: may this connection reach this workload? Called by the proxies for each new connection, and again for
//! live ones when policies or workloads change.
//!
//! Order, each step with a final answer: a named policy is missing, a policy is malformed, a DENY matches, there is no
//! ALLOW, an ALLOW matches, nothing matched. Dry-run policies take no part; [`dry_run`] tells what they would have done.

mod opinions;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use leyline_types::{Identity, NamespacedName};

pub use opinions::{PolicyMatch, PolicyOpinion, opinions};

use crate::policy::{Action, Clause, Match, Policy, Rule, ServiceAccountMatch};

/// The policies of one workload, as of one snapshot.
#[derive(Clone, Debug, Default)]
pub struct PolicySet {
    /// Global ones, those of the namespace, and those that the workload names.
    pub policies: Vec<Arc<Policy>>,
    /// Policies that the workload names and nobody has sent; while there is one, nothing is allowed.
    pub missing: Vec<NamespacedName>,
}

/// What is known of a connection when it is decided on.
#[derive(Clone, Debug)]
pub struct ConnectionFacts {
    /// The peer's verified identity; none over plaintext.
    pub source_identity: Option<Identity>,
    /// Address of the TCP peer, not a forwarded one.
    pub source_ip: IpAddr,
    /// What the connection is for: the application's address and port, not the tunnel's.
    pub destination: SocketAddr,
}

/// Proof that a connection or a request was allowed; only [`evaluate`] and [`crate::evaluate_request`] make one, and the
/// forward step takes it.
///
/// ```compile_fail
/// let forged = leyline_authz::Permit(());
/// ```
#[derive(Debug)]
pub struct Permit(());

impl Permit {
    /// For the evaluations of this crate.
    pub(crate) fn new() -> Self {
        Self(())
    }
}

/// Why a connection is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// A policy that the workload names is not known, so nobody can say what it forbids.
    #[error("policy {0} is named by the workload and not known (yet)")]
    MissingPolicy(NamespacedName),
    /// A policy has a condition that could not be parsed, so nobody can say what it forbids.
    #[error("policy {policy} has a malformed condition: {reason}")]
    MalformedPolicy {
        /// The policy.
        policy: NamespacedName,
        /// Field and reason of its first malformed condition.
        reason: String,
    },
    /// A DENY policy matches.
    #[error("explicitly denied by: {0}")]
    Denied(NamespacedName),
    /// There are ALLOW policies and none matches.
    #[error("allow policies exist, but none allowed")]
    NotAllowed,
}

/// What a dry-run policy would have done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DryRun {
    /// This DENY policy would have refused the connection.
    Denied(NamespacedName),
    /// This ALLOW policy would have allowed it.
    Allowed(NamespacedName),
    /// There are dry-run ALLOW policies and none would have allowed it.
    NotAllowed,
    /// This policy has a condition that could not be parsed.
    Malformed {
        /// The policy.
        policy: NamespacedName,
        /// Field and reason of its first malformed condition.
        reason: String,
    },
}

impl DryRun {
    /// The log message of Istio for this outcome.
    pub fn message(&self) -> &'static str {
        match self {
            Self::Denied(_) => "dry-run: deny policy match",
            Self::Allowed(_) => "dry-run: allow policy match",
            Self::NotAllowed => "dry-run: no allow policies match",
            Self::Malformed { .. } => "dry-run: malformed policy",
        }
    }

    /// The policy, where it is one.
    pub fn policy(&self) -> Option<&NamespacedName> {
        match self {
            Self::Denied(policy) | Self::Allowed(policy) | Self::Malformed { policy, .. } => {
                Some(policy)
            }
            Self::NotAllowed => None,
        }
    }
}

/// Decides on a connection.
///
/// # Errors
/// The reason of a refusal; its text goes to the access log.
pub fn evaluate(set: &PolicySet, facts: &ConnectionFacts) -> Result<Permit, Denial> {
    if let Some(name) = set.missing.first() {
        return Err(Denial::MissingPolicy(name.clone()));
    }
    let enforced = || set.policies.iter().filter(|policy| !policy.dry_run);
    if enforced().next().is_none() {
        return Ok(Permit(()));
    }
    for policy in enforced() {
        if let Some(reason) = policy.malformed() {
            return Err(Denial::MalformedPolicy {
                policy: policy.key.clone(),
                reason: reason.to_owned(),
            });
        }
    }

    let connection = Connection::new(facts);
    let mut denies = enforced().filter(|policy| policy.action == Action::Deny);
    if let Some(policy) = denies.find(|policy| connection.fits_policy(policy)) {
        return Err(Denial::Denied(policy.key.clone()));
    }
    let mut allows = enforced()
        .filter(|policy| policy.action == Action::Allow)
        .peekable();
    if allows.peek().is_none() || allows.any(|policy| connection.fits_policy(policy)) {
        Ok(Permit(()))
    } else {
        Err(Denial::NotAllowed)
    }
}

/// Tells what the dry-run policies of the set would have done; empty when there are none or none has an effect.
pub fn dry_run(set: &PolicySet, facts: &ConnectionFacts) -> Vec<DryRun> {
    let connection = Connection::new(facts);
    let mut outcomes = Vec::new();
    let mut allow_policies = 0_usize;
    let mut allowed = 0_usize;
    for policy in set.policies.iter().filter(|policy| policy.dry_run) {
        let key = || policy.key.clone();
        if let Some(reason) = policy.malformed() {
            outcomes.push(DryRun::Malformed {
                policy: key(),
                reason: reason.to_owned(),
            });
            continue;
        }
        let fits = connection.fits_policy(policy);
        match policy.action {
            Action::Deny if fits => outcomes.push(DryRun::Denied(key())),
            Action::Deny => {}
            Action::Allow => {
                allow_policies += 1;
                if fits {
                    allowed += 1;
                    outcomes.push(DryRun::Allowed(key()));
                }
            }
        }
    }
    if allow_policies > 0 && allowed == 0 {
        outcomes.push(DryRun::NotAllowed);
    }
    outcomes
}

/// The facts in the forms that matches compare, computed once per decision.
struct Connection<'a> {
    identity: Option<&'a Identity>,
    principal: Option<String>,
    namespace: &'a str,
    source_ip: IpAddr,
    destination_ip: IpAddr,
    destination_port: u16,
}

impl<'a> Connection<'a> {
    fn new(facts: &'a ConnectionFacts) -> Self {
        let identity = facts.source_identity.as_ref();
        Self {
            identity,
            principal: identity.map(Identity::principal),
            namespace: identity.map_or("", |id| id.namespace().as_str()),
            // A dual-stack socket reports IPv4 peers as mapped addresses, which no IPv4 range would contain.
            source_ip: facts.source_ip.to_canonical(),
            destination_ip: facts.destination.ip().to_canonical(),
            destination_port: facts.destination.port(),
        }
    }

    fn fits_policy(&self, policy: &Policy) -> bool {
        policy.rules.iter().any(|rule| self.fits_rule(rule))
    }

    fn fits_rule(&self, rule: &Rule) -> bool {
        rule.clauses.iter().all(|clause| self.fits_clause(clause))
    }

    fn fits_clause(&self, clause: &Clause) -> bool {
        clause.matches.is_empty() || clause.matches.iter().any(|one| self.fits_match(one))
    }

    /// Destructured whole, so that a new field cannot be forgotten here.
    fn fits_match(&self, one: &Match) -> bool {
        if *one == Match::default() {
            return false;
        }
        let Match {
            namespaces,
            not_namespaces,
            service_accounts,
            not_service_accounts,
            principals,
            not_principals,
            source_ips,
            not_source_ips,
            destination_ips,
            not_destination_ips,
            destination_ports,
            not_destination_ports,
            // Callers have refused malformed policies before.
            malformed: _,
        } = one;
        let account = |want: &ServiceAccountMatch| self.is_service_account(want);
        let source = |net: &IpNet| net.contains(&self.source_ip);
        let destination = |net: &IpNet| net.contains(&self.destination_ip);
        let port = |port: &u16| *port == self.destination_port;

        holds(namespaces, not_namespaces, |m| m.matches(self.namespace))
            && holds(service_accounts, not_service_accounts, account)
            && holds(principals, not_principals, |m| {
                self.principal.as_deref().is_some_and(|id| m.matches(id))
            })
            && holds(source_ips, not_source_ips, source)
            && holds(destination_ips, not_destination_ips, destination)
            && holds(destination_ports, not_destination_ports, port)
    }

    fn is_service_account(&self, want: &ServiceAccountMatch) -> bool {
        self.identity.is_some_and(|id| {
            *id.namespace() == want.namespace && *id.service_account() == want.service_account
        })
    }
}

/// Whether one of the wanted values fits, or none is wanted, and none of the unwanted does.
fn holds<T>(wanted: &[T], unwanted: &[T], fits: impl Fn(&T) -> bool) -> bool {
    (wanted.is_empty() || wanted.iter().any(&fits)) && !unwanted.iter().any(&fits)
}

#[cfg(test)]
mod tests;
