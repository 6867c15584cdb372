//! The rules of a policy as far as a proxy that sees no HTTP can enforce them.
//!
//! What it cannot see never makes a policy weaker: an ALLOW rule that needs it allows nothing; a DENY rule is enforced
//! without it and so denies more than was asked. An alternative of a DENY rule of which nothing is left denies
//! regardless of it (Istio lets such a rule do nothing). Either is reported.

use leyline_proto::istio::security::{
    Address, Group, Match, Rules, ServiceAccountMatch, StringMatch, string_match::MatchType,
};

use super::services::address_bytes;
use crate::objects::{Condition, Operation, Rule, Source, parse_block};

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Allow,
    Deny,
}

#[derive(Default)]
pub(super) struct Conversion {
    pub(super) groups: Vec<Group>,
    /// Field and what about it.
    pub(super) findings: Vec<(String, String)>,
}

/// One alternative of `from` or `to`, or one condition.
struct Part {
    wire: Match,
    field: String,
    /// Fields of it that cannot be enforced.
    unseen: Vec<String>,
}

impl Part {
    fn is_empty(&self) -> bool {
        self.wire == Match::default()
    }
}

/// Converts all rules of a policy in `namespace`.
pub(super) fn convert(rules: &[Rule], effect: Effect, namespace: &str) -> Conversion {
    let mut conversion = Conversion::default();
    for (index, rule) in rules.iter().enumerate() {
        let field = format!("spec.rules[{index}]");
        let clauses = clauses(rule, &field, namespace);
        let group = match effect {
            Effect::Allow => allow(&clauses, &field, &mut conversion.findings),
            Effect::Deny => Some(deny(&clauses, &mut conversion.findings)),
        };
        conversion.groups.extend(group);
    }
    conversion
}

/// All of a rule's clauses, each a list of alternatives.
fn clauses(rule: &Rule, field: &str, namespace: &str) -> Vec<Vec<Part>> {
    let mut clauses = Vec::new();
    let sources = rule
        .from
        .iter()
        .flatten()
        .enumerate()
        .filter_map(|(index, from)| {
            let source = from.source.as_ref()?;
            Some(of_source(
                source,
                format!("{field}.from[{index}].source"),
                namespace,
            ))
        });
    let operations = rule
        .to
        .iter()
        .flatten()
        .enumerate()
        .filter_map(|(index, to)| {
            let operation = to.operation.as_ref()?;
            Some(of_operation(
                operation,
                format!("{field}.to[{index}].operation"),
            ))
        });
    clauses.push(sources.collect());
    clauses.push(operations.collect());
    for (index, condition) in rule.when.iter().flatten().enumerate() {
        clauses.push(vec![of_condition(
            condition,
            format!("{field}.when[{index}]"),
            namespace,
        )]);
    }
    clauses.retain(|parts: &Vec<Part>| !parts.is_empty());
    clauses
}

fn allow(
    clauses: &[Vec<Part>],
    field: &str,
    findings: &mut Vec<(String, String)>,
) -> Option<Group> {
    let unseen: Vec<&str> = clauses
        .iter()
        .flatten()
        .flat_map(|part| &part.unseen)
        .map(String::as_str)
        .collect();
    if unseen.is_empty() {
        return Some(group(clauses));
    }
    let reason = format!(
        "the rule needs {}, which only a waypoint can check; the rule is left out, so that it allows nothing",
        unseen.join(", ")
    );
    findings.push((field.to_owned(), reason));
    None
}

fn deny(clauses: &[Vec<Part>], findings: &mut Vec<(String, String)>) -> Group {
    for part in clauses
        .iter()
        .flatten()
        .filter(|part| !part.unseen.is_empty())
    {
        let unseen = part.unseen.join(", ");
        let reason = if part.is_empty() {
            format!(
                "only a waypoint can check {unseen}; without it nothing of this condition is left, so that the rule \
                 denies regardless of it"
            )
        } else {
            format!(
                "only a waypoint can check {unseen}; without it the rule denies more than it says"
            )
        };
        findings.push((part.field.clone(), reason));
    }
    // A clause with an alternative that is always true is true. As an empty match it would never be.
    let kept: Vec<&Vec<Part>> = clauses
        .iter()
        .filter(|parts| !parts.iter().any(Part::is_empty))
        .collect();
    group(kept)
}

fn group<'a>(clauses: impl IntoIterator<Item = &'a Vec<Part>>) -> Group {
    let rules = clauses.into_iter().map(|parts| Rules {
        matches: parts.iter().map(|part| part.wire.clone()).collect(),
    });
    Group {
        rules: rules.collect(),
    }
}

fn of_source(source: &Source, field: String, namespace: &str) -> Part {
    let mut unseen = unseen(&[
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
    ]);
    let wire = Match {
        principals: strings(&source.principals),
        not_principals: strings(&source.not_principals),
        namespaces: strings(&source.namespaces),
        not_namespaces: strings(&source.not_namespaces),
        service_accounts: accounts(&source.service_accounts, namespace),
        not_service_accounts: accounts(&source.not_service_accounts, namespace),
        source_ips: blocks(&source.ip_blocks, &mut unseen),
        not_source_ips: blocks(&source.not_ip_blocks, &mut unseen),
        ..Match::default()
    };
    Part {
        wire,
        field,
        unseen,
    }
}

fn of_operation(operation: &Operation, field: String) -> Part {
    let mut unseen = unseen(&[
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ]);
    let wire = Match {
        destination_ports: ports(&operation.ports, &mut unseen),
        not_destination_ports: ports(&operation.not_ports, &mut unseen),
        ..Match::default()
    };
    Part {
        wire,
        field,
        unseen,
    }
}

fn of_condition(condition: &Condition, field: String, namespace: &str) -> Part {
    let (values, not_values) = (&condition.values, &condition.not_values);
    let mut unseen = Vec::new();
    let mut wire = Match::default();
    match condition.key.as_str() {
        "source.ip" => {
            wire.source_ips = blocks(values, &mut unseen);
            wire.not_source_ips = blocks(not_values, &mut unseen);
        }
        "source.namespace" => {
            wire.namespaces = strings(values);
            wire.not_namespaces = strings(not_values);
        }
        "source.principal" => {
            wire.principals = strings(values);
            wire.not_principals = strings(not_values);
        }
        "source.serviceAccount" => {
            wire.service_accounts = accounts(values, namespace);
            wire.not_service_accounts = accounts(not_values, namespace);
        }
        "destination.ip" => {
            wire.destination_ips = blocks(values, &mut unseen);
            wire.not_destination_ips = blocks(not_values, &mut unseen);
        }
        "destination.port" => {
            wire.destination_ports = ports(values, &mut unseen);
            wire.not_destination_ports = ports(not_values, &mut unseen);
        }
        other => unseen.push(other.to_owned()),
    }
    Part {
        wire,
        field,
        unseen,
    }
}

fn unseen(lists: &[(&str, &Vec<String>)]) -> Vec<String> {
    let used = lists.iter().filter(|(_, values)| !values.is_empty());
    used.map(|(name, _)| (*name).to_owned()).collect()
}

/// `*` any, `*x` suffix, `x*` prefix.
fn strings(values: &[String]) -> Vec<StringMatch> {
    let one = |value: &String| {
        let kind = if value == "*" {
            MatchType::Presence(())
        } else if let Some(suffix) = value.strip_prefix('*') {
            MatchType::Suffix(suffix.to_owned())
        } else if let Some(prefix) = value.strip_suffix('*') {
            MatchType::Prefix(prefix.to_owned())
        } else {
            MatchType::Exact(value.clone())
        };
        StringMatch {
            match_type: Some(kind),
        }
    };
    values.iter().map(one).collect()
}

fn accounts(values: &[String], namespace: &str) -> Vec<ServiceAccountMatch> {
    let one = |value: &String| {
        let (namespace, account) = value.split_once('/').unwrap_or((namespace, value));
        ServiceAccountMatch {
            namespace: namespace.to_owned(),
            service_account: account.to_owned(),
        }
    };
    values.iter().map(one).collect()
}

/// Values were checked when the object was read; one that still does not parse counts as not enforceable.
fn blocks(values: &[String], unseen: &mut Vec<String>) -> Vec<Address> {
    let one = |value: &String| match parse_block(value) {
        Ok(block) => Some(Address {
            address: address_bytes(block.network()),
            length: u32::from(block.prefix_len()),
        }),
        Err(reason) => {
            unseen.push(reason);
            None
        }
    };
    values.iter().filter_map(one).collect()
}

fn ports(values: &[String], unseen: &mut Vec<String>) -> Vec<u32> {
    let one = |value: &String| match value.parse::<u16>() {
        Ok(port) => Some(u32::from(port)),
        Err(error) => {
            unseen.push(format!("port {value} ({error})"));
            None
        }
    };
    values.iter().filter_map(one).collect()
}
