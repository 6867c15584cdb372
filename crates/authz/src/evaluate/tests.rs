//! Tests of the decision: tables through `check`, then properties against a second, naive implementation.

use std::{net::SocketAddr, sync::Arc};

use leyline_types::NamespacedName;

use super::*;
use crate::policy::{Scope, StringMatch};

mod oracle;
mod properties;

fn key(text: &str) -> NamespacedName {
    text.parse().unwrap()
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Policy {
    Policy {
        key: key(name),
        scope: Scope::Namespace,
        action,
        rules,
        dry_run: false,
    }
}

fn allow(rules: Vec<Rule>) -> Policy {
    policy("shop/allow", Action::Allow, rules)
}

fn deny(rules: Vec<Rule>) -> Policy {
    policy("shop/deny", Action::Deny, rules)
}

/// A rule of one clause of these alternatives.
fn rule<const N: usize>(matches: [Match; N]) -> Rule {
    Rule {
        clauses: vec![clause(matches)],
    }
}

fn clause<const N: usize>(matches: [Match; N]) -> Clause {
    Clause {
        matches: matches.into(),
    }
}

fn exact(text: &str) -> Vec<StringMatch> {
    vec![StringMatch::Exact(text.into())]
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn account(namespace: &str, service_account: &str) -> Vec<ServiceAccountMatch> {
    vec![ServiceAccountMatch {
        namespace: namespace.into(),
        service_account: service_account.into(),
    }]
}

fn ports(ports: &[u16]) -> Match {
    Match {
        destination_ports: ports.into(),
        ..Match::default()
    }
}

fn principals(principals: Vec<StringMatch>) -> Match {
    Match {
        principals,
        ..Match::default()
    }
}

fn malformed() -> Match {
    Match {
        malformed: vec!["source_ips: length 40 for 10.0.0.0".into()],
        ..ports(&[80])
    }
}

/// `shop/client` from 10.0.0.1 to 10.0.0.2:80.
fn from_client() -> ConnectionFacts {
    ConnectionFacts {
        source_identity: Some("spiffe://cluster.local/ns/shop/sa/client".parse().unwrap()),
        source_ip: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
    }
}

/// The same over plaintext.
fn without_identity() -> ConnectionFacts {
    ConnectionFacts {
        source_identity: None,
        ..from_client()
    }
}

fn to(destination: &str) -> ConnectionFacts {
    ConnectionFacts {
        destination: destination.parse().unwrap(),
        ..from_client()
    }
}

fn set<const N: usize>(policies: [Policy; N]) -> PolicySet {
    PolicySet {
        policies: policies.into_iter().map(Arc::new).collect(),
        missing: Vec::new(),
    }
}

const ALLOWED: &str = "allowed";
const NOT_ALLOWED: &str = "allow policies exist, but none allowed";
const DENIED: &str = "explicitly denied by: shop/deny";
const MISSING: &str = "policy shop/strict is named by the workload and not known (yet)";
const MALFORMED_ALLOW: &str =
    "policy shop/allow has a malformed condition: source_ips: length 40 for 10.0.0.0";
const MALFORMED_DENY: &str =
    "policy shop/deny has a malformed condition: source_ips: length 40 for 10.0.0.0";

#[track_caller]
fn check(set: &PolicySet, facts: &ConnectionFacts, expected: &str) {
    let got = match evaluate(set, facts) {
        Ok(Permit(())) => ALLOWED.to_owned(),
        Err(denial) => denial.to_string(),
    };
    assert_eq!(got, expected, "{set:#?}\n{facts:?}");
}

/// Whether one match holds, seen through an ALLOW policy, and then, that a DENY policy sees the same.
#[track_caller]
fn check_match(one: &Match, facts: &ConnectionFacts, holds: bool) {
    let allow = allow(vec![rule([one.clone()])]);
    check(
        &set([allow]),
        facts,
        if holds { ALLOWED } else { NOT_ALLOWED },
    );
    let deny = deny(vec![rule([one.clone()])]);
    check(&set([deny]), facts, if holds { DENIED } else { ALLOWED });
}

#[test]
fn no_policy_allows() {
    check(&set([]), &from_client(), ALLOWED);
    check(&set([]), &without_identity(), ALLOWED);
}

#[test]
fn deny_goes_before_allow() {
    let everything = || vec![Rule::default()];
    let nothing = || vec![rule([ports(&[1])])];
    let facts = from_client();
    check(&set([allow(everything())]), &facts, ALLOWED);
    check(&set([allow(nothing())]), &facts, NOT_ALLOWED);
    check(&set([deny(everything())]), &facts, DENIED);
    check(&set([deny(nothing())]), &facts, ALLOWED);
    check(
        &set([allow(everything()), deny(everything())]),
        &facts,
        DENIED,
    );
    check(
        &set([allow(everything()), deny(nothing())]),
        &facts,
        ALLOWED,
    );
    check(
        &set([allow(nothing()), deny(nothing())]),
        &facts,
        NOT_ALLOWED,
    );
    let other = policy("shop/other", Action::Allow, everything());
    check(&set([allow(nothing()), other]), &facts, ALLOWED);
}

#[test]
fn empty_levels_mean_what_istio_says() {
    let facts = from_client();
    // `spec: {}`: an ALLOW policy without rules matches nothing, so all is refused; such a DENY policy is no-op.
    check(&set([allow(vec![])]), &facts, NOT_ALLOWED);
    check(&set([deny(vec![])]), &facts, ALLOWED);
    // A rule without clauses matches everything.
    check(&set([allow(vec![Rule::default()])]), &facts, ALLOWED);
    check(&set([deny(vec![Rule::default()])]), &facts, DENIED);
    // A clause without matches is true, and takes nothing away from the clause next to it.
    check(&set([allow(vec![rule([])])]), &facts, ALLOWED);
    let beside = |port| Rule {
        clauses: vec![Clause::default(), clause([ports(&[port])])],
    };
    check(&set([allow(vec![beside(80)])]), &facts, ALLOWED);
    check(&set([allow(vec![beside(81)])]), &facts, NOT_ALLOWED);
    // A match without fields never matches, and takes nothing away from its alternatives.
    check_match(&Match::default(), &facts, false);
    let either = |port| rule([Match::default(), ports(&[port])]);
    check(&set([allow(vec![either(80)])]), &facts, ALLOWED);
    check(&set([allow(vec![either(81)])]), &facts, NOT_ALLOWED);
}

#[test]
fn rules_or_clauses_and_matches_or() {
    let facts = from_client();
    let (yes, no) = (|| ports(&[80]), || ports(&[81]));
    let both = |a, b| Rule {
        clauses: vec![clause([a]), clause([b])],
    };
    check(
        &set([allow(vec![rule([no()]), rule([yes()])])]),
        &facts,
        ALLOWED,
    );
    check(
        &set([allow(vec![rule([no()]), rule([no()])])]),
        &facts,
        NOT_ALLOWED,
    );
    check(&set([allow(vec![both(yes(), yes())])]), &facts, ALLOWED);
    check(&set([allow(vec![both(yes(), no())])]), &facts, NOT_ALLOWED);
    check(&set([allow(vec![rule([no(), yes()])])]), &facts, ALLOWED);
    check(&set([allow(vec![rule([no(), no()])])]), &facts, NOT_ALLOWED);
}

#[test]
fn fields_and_values_or() {
    let facts = from_client();
    check_match(&ports(&[81, 80]), &facts, true);
    check_match(&ports(&[81, 82]), &facts, false);
    let one = |port, namespace| Match {
        namespaces: exact(namespace),
        ..ports(&[port])
    };
    check_match(&one(80, "shop"), &facts, true);
    check_match(&one(80, "bank"), &facts, false);
    check_match(&one(81, "shop"), &facts, false);
    let not_one_of = |a, b| Match {
        not_destination_ports: vec![a, b],
        ..Match::default()
    };
    check_match(&not_one_of(81, 82), &facts, true);
    check_match(&not_one_of(81, 80), &facts, false);
    let wanted_and_unwanted = Match {
        not_destination_ports: vec![80],
        ..ports(&[80])
    };
    check_match(&wanted_and_unwanted, &facts, false);
}

#[test]
fn namespaces_compare_with_the_empty_text_without_identity() {
    let wanted = |m| Match {
        namespaces: vec![m],
        ..Match::default()
    };
    let unwanted = |m| Match {
        not_namespaces: vec![m],
        ..Match::default()
    };
    let (shop, bank) = (
        || StringMatch::Exact("shop".into()),
        || StringMatch::Exact("bank".into()),
    );
    check_match(&wanted(shop()), &from_client(), true);
    check_match(&wanted(bank()), &from_client(), false);
    check_match(
        &wanted(StringMatch::Prefix("sh".into())),
        &from_client(),
        true,
    );
    check_match(
        &wanted(StringMatch::Suffix("op".into())),
        &from_client(),
        true,
    );
    check_match(&wanted(StringMatch::Presence), &from_client(), true);
    check_match(&wanted(shop()), &without_identity(), false);
    check_match(&wanted(StringMatch::Presence), &without_identity(), false);
    check_match(&unwanted(shop()), &from_client(), false);
    check_match(&unwanted(bank()), &from_client(), true);
    check_match(&unwanted(shop()), &without_identity(), true);
    check_match(&unwanted(StringMatch::Presence), &without_identity(), true);
}

#[test]
fn principals_are_spiffe_ids_without_scheme() {
    let id = "cluster.local/ns/shop/sa/client";
    check_match(&principals(exact(id)), &from_client(), true);
    check_match(
        &principals(exact("spiffe://cluster.local/ns/shop/sa/client")),
        &from_client(),
        false,
    );
    check_match(
        &principals(vec![StringMatch::Prefix("cluster.local/ns/shop/".into())]),
        &from_client(),
        true,
    );
    check_match(
        &principals(vec![StringMatch::Suffix("/sa/client".into())]),
        &from_client(),
        true,
    );
    check_match(
        &principals(vec![StringMatch::Presence]),
        &from_client(),
        true,
    );
}

#[test]
fn peer_without_identity_matches_no_principal() {
    for pattern in [
        StringMatch::Presence,
        StringMatch::Exact("".into()),
        StringMatch::Prefix("".into()),
        StringMatch::Suffix("".into()),
    ] {
        check_match(&principals(vec![pattern]), &without_identity(), false);
    }
    check_match(
        &Match {
            service_accounts: account("shop", "client"),
            ..Match::default()
        },
        &without_identity(),
        false,
    );
}

#[test]
fn strict_mutual_tls_is_a_deny_of_absent_principals() {
    let strict = || {
        deny(vec![rule([Match {
            not_principals: vec![StringMatch::Presence],
            ..Match::default()
        }])])
    };
    check(&set([strict()]), &without_identity(), DENIED);
    check(&set([strict()]), &from_client(), ALLOWED);
}

#[test]
fn service_accounts_ignore_the_trust_domain() {
    let other_domain = ConnectionFacts {
        source_identity: Some("spiffe://other.domain/ns/shop/sa/client".parse().unwrap()),
        ..from_client()
    };
    let wanted = |namespace, name| Match {
        service_accounts: account(namespace, name),
        ..Match::default()
    };
    let unwanted = |namespace, name| Match {
        not_service_accounts: account(namespace, name),
        ..Match::default()
    };
    for facts in [from_client(), other_domain] {
        check_match(&wanted("shop", "client"), &facts, true);
        check_match(&wanted("shop", "server"), &facts, false);
        check_match(&wanted("bank", "client"), &facts, false);
        check_match(&unwanted("shop", "client"), &facts, false);
        check_match(&unwanted("bank", "client"), &facts, true);
    }
    check_match(&unwanted("shop", "client"), &without_identity(), true);
}

#[test]
fn addresses_match_within_their_family() {
    let source = |net: &str| Match {
        source_ips: nets(&[net]),
        ..Match::default()
    };
    check_match(&source("10.0.0.0/8"), &from_client(), true);
    check_match(&source("10.0.0.1/32"), &from_client(), true);
    check_match(&source("10.0.0.2/32"), &from_client(), false);
    check_match(&source("0.0.0.0/0"), &from_client(), true);
    check_match(&source("::/0"), &from_client(), false);
    let not_source = Match {
        not_source_ips: nets(&["192.168.0.0/16", "10.0.0.0/24"]),
        ..Match::default()
    };
    check_match(&not_source, &from_client(), false);

    let destination = |net: &str| Match {
        destination_ips: nets(&[net]),
        ..Match::default()
    };
    check_match(&destination("10.0.0.2/32"), &from_client(), true);
    check_match(&destination("10.0.0.1/32"), &from_client(), false);
    check_match(&destination("2001:db8::/32"), &to("[2001:db8::7]:80"), true);
    check_match(&destination("0.0.0.0/0"), &to("[2001:db8::7]:80"), false);
    let not_destination = Match {
        not_destination_ips: nets(&["2001:db8::/32"]),
        ..Match::default()
    };
    check_match(&not_destination, &to("[2001:db8::7]:80"), false);
    check_match(&not_destination, &from_client(), true);
}

#[test]
fn mapped_addresses_are_ipv4() {
    let mapped = ConnectionFacts {
        source_ip: "::ffff:10.0.0.1".parse().unwrap(),
        destination: "[::ffff:10.0.0.2]:80".parse::<SocketAddr>().unwrap(),
        ..from_client()
    };
    let ipv4 = Match {
        source_ips: nets(&["10.0.0.1/32"]),
        destination_ips: nets(&["10.0.0.2/32"]),
        ..Match::default()
    };
    check_match(&ipv4, &mapped, true);
}

#[test]
fn missing_policy_denies_first_of_all() {
    let missing = |policies: &[Policy]| PolicySet {
        policies: policies.iter().cloned().map(Arc::new).collect(),
        missing: vec![key("shop/strict"), key("shop/later")],
    };
    let everything = || vec![Rule::default()];
    let facts = from_client();
    check(&missing(&[]), &facts, MISSING);
    check(&missing(&[allow(everything())]), &facts, MISSING);
    check(&missing(&[deny(everything())]), &facts, MISSING);
}

#[test]
fn malformed_policy_denies_whatever_else_matches() {
    let facts = from_client();
    let broken = || vec![Rule::default(), rule([malformed()])];
    check(&set([allow(broken())]), &facts, MALFORMED_ALLOW);
    check(&set([deny(broken())]), &facts, MALFORMED_DENY);
    let other = policy("shop/other", Action::Allow, vec![Rule::default()]);
    check(
        &set([other.clone(), allow(broken())]),
        &facts,
        MALFORMED_ALLOW,
    );
    check(&set([other, deny(broken())]), &facts, MALFORMED_DENY);
}

#[test]
fn dry_run_policies_only_report() {
    let dry = |policy: Policy| Policy {
        dry_run: true,
        ..policy
    };
    let everything = || vec![Rule::default()];
    let nothing = || vec![rule([ports(&[1])])];
    let facts = from_client();
    let check_dry = |policies: Vec<Policy>, expected: &[&str]| {
        let set = PolicySet {
            policies: policies.into_iter().map(Arc::new).collect(),
            missing: Vec::new(),
        };
        check(&set, &facts, ALLOWED);
        let got: Vec<String> = dry_run(&set, &facts)
            .iter()
            .map(|outcome| match outcome.policy() {
                Some(policy) => format!("{} {policy}", outcome.message()),
                None => outcome.message().to_owned(),
            })
            .collect();
        assert_eq!(got, expected);
    };
    check_dry(vec![], &[]);
    check_dry(vec![allow(everything())], &[]);
    check_dry(vec![dry(deny(nothing()))], &[]);
    check_dry(
        vec![dry(deny(everything()))],
        &["dry-run: deny policy match shop/deny"],
    );
    check_dry(
        vec![dry(allow(everything()))],
        &["dry-run: allow policy match shop/allow"],
    );
    check_dry(
        vec![dry(allow(nothing()))],
        &["dry-run: no allow policies match"],
    );
    check_dry(
        vec![dry(allow(vec![rule([malformed()])]))],
        &["dry-run: malformed policy shop/allow"],
    );
}
