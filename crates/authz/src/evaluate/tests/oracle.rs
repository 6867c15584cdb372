//! The decision a second time, written from the specification in the plainest way: no shared helper, no early exit.

use std::net::IpAddr;

use super::super::{ConnectionFacts, PolicySet};
use crate::policy::{Action, Match, Policy, StringMatch};

/// Whether the connection is allowed.
pub(super) fn allows(set: &PolicySet, facts: &ConnectionFacts) -> bool {
    let mut malformed = false;
    let mut denied = false;
    let mut allow_policies = false;
    let mut allowed = false;
    for policy in &set.policies {
        if policy.dry_run {
            continue;
        }
        for rule in &policy.rules {
            for clause in &rule.clauses {
                for one in &clause.matches {
                    malformed |= !one.malformed.is_empty();
                }
            }
        }
        let matched = policy_matches(policy, facts);
        match policy.action {
            Action::Deny => denied |= matched,
            Action::Allow => {
                allow_policies = true;
                allowed |= matched;
            }
        }
    }
    set.missing.is_empty() && !malformed && !denied && (allowed || !allow_policies)
}

fn policy_matches(policy: &Policy, facts: &ConnectionFacts) -> bool {
    let mut any_rule = false;
    for rule in &policy.rules {
        let mut all_clauses = true;
        for clause in &rule.clauses {
            let mut any_match = false;
            for one in &clause.matches {
                any_match |= match_holds(one, facts);
            }
            all_clauses &= any_match || clause.matches.is_empty();
        }
        any_rule |= all_clauses;
    }
    any_rule
}

fn match_holds(one: &Match, facts: &ConnectionFacts) -> bool {
    let id = facts.source_identity.as_ref().map(ToString::to_string);
    // spiffe: / "" / trust domain / ns / namespace / sa / service account
    let parts: Vec<&str> = id.as_deref().unwrap_or("").split('/').collect();
    let namespace = parts.get(4).copied().unwrap_or("");
    let account = parts.get(6).copied();
    let principal = id.as_deref().and_then(|id| id.strip_prefix("spiffe://"));

    let mut set_fields = 0;
    let mut holds = true;
    let mut field = |values: Vec<bool>, negated: bool| {
        if !values.is_empty() {
            set_fields += 1;
            holds &= values.contains(&true) != negated;
        }
    };
    let text = |m: &StringMatch, text: &str| match m {
        StringMatch::Exact(x) => x.as_str() == text,
        StringMatch::Prefix(x) => text.get(..x.as_str().len()) == Some(x.as_str()),
        StringMatch::Suffix(x) => text.strip_suffix(x.as_str()).is_some(),
        StringMatch::Presence => text.chars().count() > 0,
    };
    for (values, negated) in [(&one.namespaces, false), (&one.not_namespaces, true)] {
        field(values.iter().map(|m| text(m, namespace)).collect(), negated);
    }
    for (values, negated) in [
        (&one.service_accounts, false),
        (&one.not_service_accounts, true),
    ] {
        let fits = values.iter().map(|want| {
            namespace == want.namespace.as_str() && account == Some(want.service_account.as_str())
        });
        field(fits.collect(), negated);
    }
    for (values, negated) in [(&one.principals, false), (&one.not_principals, true)] {
        let fits = values
            .iter()
            .map(|m| principal.is_some() && text(m, principal.unwrap_or("")));
        field(fits.collect(), negated);
    }
    for (values, negated, ip) in [
        (&one.source_ips, false, facts.source_ip),
        (&one.not_source_ips, true, facts.source_ip),
        (&one.destination_ips, false, facts.destination.ip()),
        (&one.not_destination_ips, true, facts.destination.ip()),
    ] {
        let fits = values
            .iter()
            .map(|net| same_prefix(net.addr(), net.prefix_len(), ip));
        field(fits.collect(), negated);
    }
    for (values, negated) in [
        (&one.destination_ports, false),
        (&one.not_destination_ports, true),
    ] {
        let fits = values.iter().map(|port| facts.destination.port() == *port);
        field(fits.collect(), negated);
    }
    set_fields > 0 && holds
}

/// Compares the first bits of both addresses, of one family.
fn same_prefix(net: IpAddr, length: u8, ip: IpAddr) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => format!("{:032b}", u32::from(ip)),
        IpAddr::V6(ip) => format!("{:0128b}", u128::from(ip)),
    };
    let (net, ip) = (bits(net), bits(ip));
    let length = usize::from(length);
    net.len() == ip.len() && net.get(..length) == ip.get(..length)
}
