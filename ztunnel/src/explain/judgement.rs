//! What the policies at the other end say of the connection, and the verdict.

use std::net::{IpAddr, SocketAddr};

use leyline_authz::{Action, ConnectionFacts, PolicyMatch, PolicyOpinion, PolicySet};
use leyline_state::{OutboundRoute, Snapshot, Workload};
use leyline_types::HboneAuthority;

use super::{PoliciesShown, PolicyShown, Verdict, short};

/// The mesh's workload at the end of a route, where policies judge.
pub(super) struct Reached<'a> {
    pub(super) workload: &'a Workload,
    /// What the policies there see as the destination; none where the far gateway chooses it.
    destination: Option<SocketAddr>,
    pub(super) mutual_tls: bool,
}

impl<'a> Reached<'a> {
    pub(super) fn of(route: &'a OutboundRoute) -> Option<Self> {
        match route {
            OutboundRoute::Hbone(route) => Some(Self {
                workload: &route.workload,
                destination: match &route.authority {
                    HboneAuthority::Address(addr) => Some(*addr),
                    HboneAuthority::Host { .. } => None,
                },
                mutual_tls: true,
            }),
            OutboundRoute::DoubleHbone(route) => Some(Self {
                workload: &route.workload,
                destination: None,
                mutual_tls: true,
            }),
            OutboundRoute::Tcp {
                target, workload, ..
            } => Some(Self {
                workload,
                destination: Some(*target),
                mutual_tls: false,
            }),
            OutboundRoute::Passthrough { .. } | OutboundRoute::Refused(_) => None,
        }
    }
}

pub(super) fn judge(
    snapshot: &Snapshot,
    source: &Workload,
    reached: &Reached<'_>,
) -> (PoliciesShown, Verdict) {
    let workload = reached.workload;
    let set = snapshot.policies_for(workload);
    let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
    let destination = reached.destination.unwrap_or(unknown);
    let same_family = |ip: &&IpAddr| ip.is_ipv4() == destination.is_ipv4();
    let own = source.addresses.iter();
    let source_ip = own.clone().find(same_family).or_else(|| own.clone().next());
    let facts = ConnectionFacts {
        source_identity: reached.mutual_tls.then(|| source.identity.clone()),
        source_ip: source_ip.copied().unwrap_or_else(|| unknown.ip()),
        destination,
    };
    let list = list(&set, &facts);
    let enforced = list.iter().any(|policy| !policy.dry_run);
    let verdict = match leyline_authz::evaluate(&set, &facts) {
        Ok(_) if !enforced => Verdict::allowed("no policy judges connections to it"),
        Ok(_) => match allowing(&list) {
            Some(policy) => Verdict::allowed(format!("allowed by {policy}")),
            None => {
                Verdict::allowed("no policy denies it, and there is none that allows only some")
            }
        },
        Err(denial) => Verdict {
            allowed: false,
            reason: denial.to_string(),
        },
    };
    let identity = match &facts.source_identity {
        Some(identity) => identity.to_string(),
        None => "no identity (plaintext)".to_owned(),
    };
    let shown = PoliciesShown {
        workload: short(workload),
        seen: format!("{identity} from {} to {destination}", facts.source_ip),
        list,
        missing: set.missing.iter().map(ToString::to_string).collect(),
    };
    (shown, verdict)
}

fn list(set: &PolicySet, facts: &ConnectionFacts) -> Vec<PolicyShown> {
    let shown = |opinion: PolicyOpinion| {
        let (matches, text) = match opinion.says {
            PolicyMatch::Matches => (true, "matches".to_owned()),
            PolicyMatch::DoesNotMatch => (false, "does not match".to_owned()),
            PolicyMatch::Malformed(why) => (true, format!("cannot be read, so it denies: {why}")),
        };
        PolicyShown {
            name: opinion.policy.key.to_string(),
            scope: opinion.policy.scope,
            action: opinion.policy.action,
            dry_run: opinion.policy.dry_run,
            matches,
            text,
        }
    };
    let opinions = leyline_authz::opinions(set, facts);
    opinions.into_iter().map(shown).collect()
}

fn allowing(list: &[PolicyShown]) -> Option<&str> {
    let mut allows = list
        .iter()
        .filter(|policy| policy.action == Action::Allow && !policy.dry_run && policy.matches);
    allows.next().map(|policy| policy.name.as_str())
}

impl Verdict {
    fn allowed(reason: impl Into<String>) -> Self {
        Self {
            allowed: true,
            reason: reason.into(),
        }
    }
}

pub(super) fn without_policies(route: &OutboundRoute) -> Verdict {
    match route {
        OutboundRoute::Refused(refusal) => Verdict {
            allowed: false,
            reason: refusal.to_string(),
        },
        OutboundRoute::Hbone(_)
        | OutboundRoute::DoubleHbone(_)
        | OutboundRoute::Tcp { .. }
        | OutboundRoute::Passthrough { .. } => {
            Verdict::allowed("it leaves the mesh, where no policy of the mesh judges")
        }
    }
}
