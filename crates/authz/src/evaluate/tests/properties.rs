//! Properties over random policies and connections. Values come from small pools, so that matches are common.

use std::sync::Arc;

use leyline_types::Str;
use proptest::{
    collection::vec,
    prelude::{BoxedStrategy, Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof},
    proptest,
    sample::select,
};

use super::{super::*, exact, key, oracle};
use crate::policy::{Scope, StringMatch};

fn text() -> impl Strategy<Value = Str> {
    select(vec![
        "",
        "a",
        "b",
        "td/ns/a/sa/b",
        "td/ns/",
        "/sa/a",
        "other/ns/b/sa/b",
    ])
    .prop_map(Str::from)
}

fn mostly_empty<T: Clone + std::fmt::Debug + 'static>(
    one: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<Vec<T>> {
    prop_oneof![
        3 => Just(Vec::new()),
        1 => vec(one, 1..3),
    ]
    .boxed()
}

fn patterns() -> BoxedStrategy<Vec<StringMatch>> {
    mostly_empty(prop_oneof![
        text().prop_map(StringMatch::Exact),
        text().prop_map(StringMatch::Prefix),
        text().prop_map(StringMatch::Suffix),
        Just(StringMatch::Presence),
    ])
}

fn ranges() -> BoxedStrategy<Vec<IpNet>> {
    let one = select(vec![
        "10.0.0.1/32",
        "10.0.0.0/31",
        "10.0.0.0/8",
        "0.0.0.0/0",
        "fd00::1/128",
        "::/0",
    ]);
    mostly_empty(one.prop_map(|net| net.parse().unwrap()))
}

fn accounts() -> BoxedStrategy<Vec<ServiceAccountMatch>> {
    let name = || select(vec!["a", "b"]);
    mostly_empty(
        (name(), name()).prop_map(|(namespace, name)| ServiceAccountMatch {
            namespace: namespace.into(),
            service_account: name.into(),
        }),
    )
}

fn ports() -> BoxedStrategy<Vec<u16>> {
    mostly_empty(select(vec![80_u16, 81]))
}

fn one_match() -> impl Strategy<Value = Match> {
    let malformed = prop_oneof![
        60 => Just(vec![]),
        1 => Just(vec!["bad".to_owned()]),
    ];
    (
        (patterns(), patterns(), accounts(), accounts()),
        (patterns(), patterns(), ranges(), ranges()),
        (ranges(), ranges(), ports(), ports()),
        malformed,
    )
        .prop_map(|(a, b, c, malformed)| Match {
            namespaces: a.0,
            not_namespaces: a.1,
            service_accounts: a.2,
            not_service_accounts: a.3,
            principals: b.0,
            not_principals: b.1,
            source_ips: b.2,
            not_source_ips: b.3,
            destination_ips: c.0,
            not_destination_ips: c.1,
            destination_ports: c.2,
            not_destination_ports: c.3,
            malformed,
        })
}

fn rule() -> impl Strategy<Value = Rule> {
    vec(
        vec(one_match(), 0..3).prop_map(|matches| Clause { matches }),
        0..3,
    )
    .prop_map(|clauses| Rule { clauses })
}

fn policy() -> impl Strategy<Value = Arc<Policy>> {
    let action = select(vec![Action::Allow, Action::Deny]);
    (action, vec(rule(), 0..3), any::<u8>()).prop_map(|(action, rules, number)| {
        Arc::new(Policy {
            key: key(&format!("ns/p{number}")),
            scope: Scope::Global,
            action,
            rules,
            dry_run: number < 30,
        })
    })
}

fn policy_set() -> impl Strategy<Value = PolicySet> {
    let missing = prop_oneof![
        20 => Just(vec![]),
        1 => Just(vec![key("ns/missing")]),
    ];
    (vec(policy(), 0..4), missing).prop_map(|(policies, missing)| PolicySet { policies, missing })
}

fn facts() -> impl Strategy<Value = ConnectionFacts> {
    let identity = select(vec![
        None,
        Some("spiffe://td/ns/a/sa/b"),
        Some("spiffe://td/ns/b/sa/a"),
        Some("spiffe://other/ns/b/sa/b"),
    ]);
    let ip = || select(vec!["10.0.0.1", "10.0.0.2", "192.168.0.1", "fd00::1"]);
    (identity, ip(), ip(), select(vec![80_u16, 81])).prop_map(|(identity, source, to, port)| {
        ConnectionFacts {
            source_identity: identity.map(|id| id.parse().unwrap()),
            source_ip: source.parse().unwrap(),
            destination: SocketAddr::new(to.parse().unwrap(), port),
        }
    })
}

/// A rule that matches no connection.
fn unmatched() -> Rule {
    Rule {
        clauses: vec![Clause {
            matches: vec![Match {
                namespaces: exact("no such namespace"),
                ..Match::default()
            }],
        }],
    }
}

fn with(set: &PolicySet, action: Action, rules: Vec<Rule>) -> PolicySet {
    let mut set = set.clone();
    set.policies.push(Arc::new(Policy {
        key: key("ns/added"),
        scope: Scope::Global,
        action,
        rules,
        dry_run: false,
    }));
    set
}

proptest! {
    #[test]
    fn agrees_with_the_naive_implementation(set in policy_set(), facts in facts()) {
        prop_assert_eq!(evaluate(&set, &facts).is_ok(), oracle::allows(&set, &facts));
        // Must not panic either.
        let outcomes = dry_run(&set, &facts);
        prop_assert!(outcomes.len() <= set.policies.len() + 1);
    }

    #[test]
    fn decision_does_not_depend_on_the_order_of_policies(set in policy_set(), facts in facts()) {
        let mut reversed = set.clone();
        reversed.policies.reverse();
        prop_assert_eq!(evaluate(&set, &facts).is_ok(), evaluate(&reversed, &facts).is_ok());
    }

    #[test]
    fn unmatched_deny_changes_nothing(set in policy_set(), facts in facts()) {
        let more = with(&set, Action::Deny, vec![unmatched()]);
        prop_assert_eq!(evaluate(&set, &facts).err(), evaluate(&more, &facts).err());
    }

    #[test]
    fn unmatched_allow_never_opens(set in policy_set(), facts in facts()) {
        let before = evaluate(&set, &facts).is_ok();
        let after = evaluate(&with(&set, Action::Allow, vec![unmatched()]), &facts).is_ok();
        let had_allow = set.policies.iter().any(|p| !p.dry_run && p.action == Action::Allow);
        prop_assert_eq!(after, before && had_allow);
    }

    #[test]
    fn unmatched_rule_in_an_existing_policy_changes_nothing(set in policy_set(), facts in facts()) {
        let mut more = set.clone();
        for policy in &mut more.policies {
            Arc::make_mut(policy).rules.push(unmatched());
        }
        prop_assert_eq!(evaluate(&set, &facts).err(), evaluate(&more, &facts).err());
    }

    #[test]
    fn matching_deny_always_refuses(set in policy_set(), facts in facts()) {
        let closed = with(&set, Action::Deny, vec![Rule::default()]);
        prop_assert!(evaluate(&closed, &facts).is_err());
    }

    #[test]
    fn taking_a_deny_away_never_closes(set in policy_set(), facts in facts()) {
        let mut fewer = set.clone();
        fewer.policies.retain(|p| p.action != Action::Deny);
        prop_assert!(evaluate(&set, &facts).is_err() || evaluate(&fewer, &facts).is_ok());
    }

    #[test]
    fn missing_policy_always_refuses(set in policy_set(), facts in facts()) {
        let mut missing = set;
        missing.missing.push(key("ns/other"));
        prop_assert!(evaluate(&missing, &facts).is_err());
    }
}
