//! `istio.security.Authorization`.
//!
//! What says whom a policy is for must be understood, or the policy is rejected. A condition that is not understood is
//! kept as malformed instead: dropping it would widen an ALLOW or empty a DENY, and rejecting the policy would leave its
//! workloads without it.

use ipnet::IpNet;
use leyline_authz::{Action, Clause, Match, Policy, Rule, Scope, ServiceAccountMatch, StringMatch};
use leyline_proto::istio::security as proto;

use super::{
    error::{ConvertError, FieldError, Problem},
    field,
};

/// Converts a policy.
///
/// # Errors
/// Names the policy, the field and the reason.
pub fn policy(wire: proto::Authorization) -> Result<Policy, ConvertError> {
    let key = format!("{}/{}", wire.namespace, wire.name);
    convert(&key, wire).map_err(|error| error.of(&key))
}

fn convert(key: &str, wire: proto::Authorization) -> Result<Policy, FieldError> {
    Ok(Policy {
        key: key
            .parse()
            .map_err(|error| FieldError::new("name", Problem::Name(error)))?,
        scope: match field::known("scope", wire.scope)? {
            proto::Scope::Global => Scope::Global,
            proto::Scope::Namespace => Scope::Namespace,
            proto::Scope::WorkloadSelector => Scope::WorkloadSelector,
        },
        action: match field::known("action", wire.action)? {
            proto::Action::Allow => Action::Allow,
            proto::Action::Deny => Action::Deny,
        },
        rules: wire.groups.into_iter().map(rule).collect(),
        dry_run: wire.dry_run,
    })
}

fn rule(wire: proto::Group) -> Rule {
    let clause = |wire: proto::Rules| Clause {
        matches: wire.matches.into_iter().map(one_match).collect(),
    };
    Rule {
        clauses: wire.rules.into_iter().map(clause).collect(),
    }
}

fn one_match(wire: proto::Match) -> Match {
    let mut bad = Vec::new();
    let mut parsed = Match {
        namespaces: texts("namespaces", wire.namespaces, &mut bad),
        not_namespaces: texts("not_namespaces", wire.not_namespaces, &mut bad),
        service_accounts: accounts("service_accounts", wire.service_accounts, &mut bad),
        not_service_accounts: accounts("not_service_accounts", wire.not_service_accounts, &mut bad),
        principals: texts("principals", wire.principals, &mut bad),
        not_principals: texts("not_principals", wire.not_principals, &mut bad),
        source_ips: blocks("source_ips", &wire.source_ips, &mut bad),
        not_source_ips: blocks("not_source_ips", &wire.not_source_ips, &mut bad),
        destination_ips: blocks("destination_ips", &wire.destination_ips, &mut bad),
        not_destination_ips: blocks("not_destination_ips", &wire.not_destination_ips, &mut bad),
        destination_ports: ports("destination_ports", wire.destination_ports, &mut bad),
        not_destination_ports: ports(
            "not_destination_ports",
            wire.not_destination_ports,
            &mut bad,
        ),
        malformed: Vec::new(),
    };
    parsed.malformed = bad;
    parsed
}

/// Keeps what parses and notes what does not.
fn collect<W, T>(
    name: &str,
    wire: impl IntoIterator<Item = W>,
    malformed: &mut Vec<String>,
    parse: impl Fn(W) -> Result<T, Problem>,
) -> Vec<T> {
    let mut parsed = Vec::new();
    for (at, value) in wire.into_iter().enumerate() {
        match parse(value) {
            Ok(value) => parsed.push(value),
            Err(problem) => malformed.push(format!("{name}[{at}]: {problem}")),
        }
    }
    parsed
}

fn texts(
    name: &str,
    wire: Vec<proto::StringMatch>,
    malformed: &mut Vec<String>,
) -> Vec<StringMatch> {
    use proto::string_match::MatchType;
    collect(name, wire, malformed, |one| match one.match_type {
        Some(MatchType::Exact(text)) => Ok(StringMatch::Exact(text.into())),
        Some(MatchType::Prefix(text)) => Ok(StringMatch::Prefix(text.into())),
        Some(MatchType::Suffix(text)) => Ok(StringMatch::Suffix(text.into())),
        Some(MatchType::Presence(())) => Ok(StringMatch::Presence),
        None => Err(Problem::Missing),
    })
}

fn accounts(
    name: &str,
    wire: Vec<proto::ServiceAccountMatch>,
    malformed: &mut Vec<String>,
) -> Vec<ServiceAccountMatch> {
    collect(name, wire, malformed, |one| {
        if one.namespace.is_empty() || one.service_account.is_empty() {
            return Err(Problem::Missing);
        }
        Ok(ServiceAccountMatch {
            namespace: one.namespace.into(),
            service_account: one.service_account.into(),
        })
    })
}

fn blocks(name: &str, wire: &[proto::Address], malformed: &mut Vec<String>) -> Vec<IpNet> {
    collect(name, wire, malformed, |one| {
        field::block(&one.address, one.length)
    })
}

fn ports(name: &str, wire: Vec<u32>, malformed: &mut Vec<String>) -> Vec<u16> {
    collect(name, wire, malformed, field::port)
}
