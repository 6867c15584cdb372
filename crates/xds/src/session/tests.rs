//! Transcripts of the session: each test tells what the server said and sees what the client says.

use std::{collections::BTreeMap, fmt::Write};

use expect_test::{Expect, expect};
use prost_types::Any;

use super::*;

mod model;

const APPLE: &str = "type.test/Apple";
const PEAR: &str = "type.test/Pear";

fn session() -> Session {
    let node = NodeInfo {
        id: "ztunnel~me".to_owned(),
        ..NodeInfo::default()
    };
    Session::new(node, &[APPLE, PEAR])
}

fn resource(type_url: &str, name: &str, version: &str) -> WireResource {
    WireResource {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(Any {
            type_url: type_url.to_owned(),
            value: name.as_bytes().to_vec(),
        }),
        ..WireResource::default()
    }
}

fn apples(nonce: &str, resources: &[(&str, &str)], removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: APPLE.to_owned(),
        nonce: nonce.to_owned(),
        resources: resources
            .iter()
            .map(|(name, version)| resource(APPLE, name, version))
            .collect(),
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn pears(nonce: &str) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: PEAR.to_owned(),
        nonce: nonce.to_owned(),
        ..DeltaDiscoveryResponse::default()
    }
}

/// A request in one line.
fn line(request: &DeltaDiscoveryRequest) -> String {
    let DeltaDiscoveryRequest {
        node,
        type_url,
        resource_names_subscribe,
        resource_names_unsubscribe,
        initial_resource_versions,
        response_nonce,
        error_detail,
    } = request;
    assert!(resource_names_subscribe.is_empty() && resource_names_unsubscribe.is_empty());
    let mut out = type_url.replace("type.test/", "");
    if let Some(node) = node {
        write!(out, " node={}", node.id).unwrap();
    }
    if !response_nonce.is_empty() {
        write!(out, " nonce={response_nonce}").unwrap();
    }
    let held: BTreeMap<_, _> = initial_resource_versions.iter().collect();
    if !held.is_empty() {
        write!(out, " held={held:?}").unwrap();
    }
    if let Some(status) = error_detail {
        write!(out, " nack={} `{}`", status.code, status.message).unwrap();
    }
    out
}

/// The first requests of a new stream.
#[track_caller]
fn check_open(session: &mut Session, expected: Expect) {
    let lines: Vec<String> = session.open_stream().iter().map(line).collect();
    expected.assert_eq(&lines.join("\n"));
}

/// What the application is given and what the server is told, when the application rejects these names.
#[track_caller]
fn check(
    session: &mut Session,
    response: DeltaDiscoveryResponse,
    reject: &[&str],
    expected: Expect,
) {
    let mut out = String::new();
    match session.receive(response) {
        Received::NotSubscribed { type_url } => write!(out, "ignored {type_url}").unwrap(),
        Received::Apply(update, pending) => {
            for Resource {
                name,
                version,
                body,
            } in &update.resources
            {
                assert_eq!(body, name.as_bytes());
                writeln!(out, "apply {name}@{version}").unwrap();
            }
            for name in &update.removed {
                writeln!(out, "remove {name}").unwrap();
            }
            let rejected = reject.iter().map(|name| Rejection {
                name: name.to_string(),
                reason: "sour".to_owned(),
            });
            let answer = session.answer(pending, rejected.collect());
            let answer = answer.request.as_ref().map(line);
            out.push_str(answer.as_deref().unwrap_or("no answer"));
        }
    }
    expected.assert_eq(&out);
}

#[test]
fn first_requests_are_wildcards_and_the_first_has_the_node() {
    check_open(
        &mut session(),
        expect![[r#"
            Apple node=ztunnel~me
            Pear"#]],
    );
}

#[test]
fn accepted_response_is_acknowledged_with_its_nonce() {
    let mut session = session();
    session.open_stream();
    check(
        &mut session,
        apples("n1", &[("a", "1"), ("b", "1")], &[]),
        &[],
        expect![[r#"
            apply a@1
            apply b@1
            Apple nonce=n1"#]],
    );
}

#[test]
fn new_stream_tells_what_is_held_with_versions() {
    let mut session = session();
    session.open_stream();
    check(
        &mut session,
        apples("n1", &[("a", "1"), ("b", "1"), ("c", "1")], &[]),
        &[],
        expect![[r#"
            apply a@1
            apply b@1
            apply c@1
            Apple nonce=n1"#]],
    );
    check(
        &mut session,
        apples("n2", &[("a", "2")], &["b", "never-known"]),
        &[],
        expect![[r#"
            apply a@2
            remove b
            remove never-known
            Apple nonce=n2"#]],
    );
    check_open(
        &mut session,
        expect![[r#"
            Apple node=ztunnel~me held={"a": "2", "c": "1"}
            Pear"#]],
    );
    // The new stream's first response leaves out what is unchanged; that is no removal.
    check(
        &mut session,
        apples("m1", &[("d", "1")], &["c"]),
        &[],
        expect![[r#"
            apply d@1
            remove c
            Apple nonce=m1"#]],
    );
    check_open(
        &mut session,
        expect![[r#"
            Apple node=ztunnel~me held={"a": "2", "d": "1"}
            Pear"#]],
    );
}

#[test]
fn rejected_resources_are_named_and_not_claimed() {
    let mut session = session();
    session.open_stream();
    check(
        &mut session,
        apples("n1", &[("a", "1"), ("b", "1"), ("c", "1")], &[]),
        &["a", "c"],
        expect![[r#"
            apply a@1
            apply b@1
            apply c@1
            Apple nonce=n1 nack=3 `a: sour; c: sour`"#]],
    );
    check_open(
        &mut session,
        expect![[r#"
            Apple node=ztunnel~me held={"b": "1"}
            Pear"#]],
    );
}

#[test]
fn rejected_change_leaves_the_version_that_is_in_use() {
    let mut session = session();
    session.open_stream();
    check(
        &mut session,
        apples("n1", &[("a", "1")], &[]),
        &[],
        expect![[r#"
            apply a@1
            Apple nonce=n1"#]],
    );
    check(
        &mut session,
        apples("n2", &[("a", "2")], &[]),
        &["a"],
        expect![[r#"
            apply a@2
            Apple nonce=n2 nack=3 `a: sour`"#]],
    );
    check_open(
        &mut session,
        expect![[r#"
            Apple node=ztunnel~me held={"a": "1"}
            Pear"#]],
    );
}

#[test]
fn what_cannot_be_a_resource_is_rejected_alone() {
    let mut session = session();
    session.open_stream();
    let mut response = apples("n1", &[("good", "1"), ("", "1"), ("empty", "1")], &[]);
    response.resources[2].resource = None;
    response.resources.push(resource(PEAR, "foreign", "1"));
    response.resources.push(resource(APPLE, "good", "2"));
    response
        .resources
        .push(resource(APPLE, &"x".repeat(2000), "1"));
    let long = "x".repeat(1024);
    let Received::Apply(update, pending) = session.receive(response) else {
        panic!("ignored")
    };
    assert_eq!(update.resources.len(), 1);
    let answer = session.answer(pending, Vec::new());
    assert_eq!(
        line(&answer.request.unwrap()),
        format!(
            "Apple nonce=n1 nack=3 `: resource has no name; empty: resource has no content; \
             foreign: content is of type `type.test/Pear`; good: listed twice in one response; \
             {long}: name or version is longer than 1024 bytes`"
        )
    );
    assert_eq!(answer.rejections.len(), 5);
}

#[test]
fn removal_and_new_version_in_one_response_leave_the_new_version() {
    let mut session = session();
    session.open_stream();
    check(
        &mut session,
        apples("n1", &[("a", "2")], &["a"]),
        &[],
        expect![[r#"
            apply a@2
            remove a
            Apple nonce=n1"#]],
    );
    check_open(
        &mut session,
        expect![[r#"
            Apple node=ztunnel~me held={"a": "2"}
            Pear"#]],
    );
}

#[test]
fn type_that_was_not_asked_for_gets_no_answer() {
    let mut session = session();
    session.open_stream();
    let mut response = apples("n1", &[("a", "1")], &[]);
    response.type_url = "type.test/Plum".to_owned();
    check(
        &mut session,
        response,
        &[],
        expect!["ignored type.test/Plum"],
    );
    check_open(
        &mut session,
        expect![[r#"
            Apple node=ztunnel~me
            Pear"#]],
    );
}

#[test]
fn nonce_of_an_older_stream_is_not_sent_but_what_came_is_kept() {
    let mut session = session();
    session.open_stream();
    let Received::Apply(_, pending) = session.receive(apples("n1", &[("a", "1")], &[])) else {
        panic!("ignored")
    };
    session.open_stream();
    assert!(session.answer(pending, Vec::new()).request.is_none());
    check_open(
        &mut session,
        expect![[r#"
            Apple node=ztunnel~me held={"a": "1"}
            Pear"#]],
    );
}

#[test]
fn response_without_nonce_is_applied_and_not_answered() {
    let mut session = session();
    session.open_stream();
    check(
        &mut session,
        apples("", &[("a", "1")], &[]),
        &[],
        expect![[r#"
            apply a@1
            no answer"#]],
    );
}

#[test]
fn synced_when_every_type_was_answered_even_by_nack_and_across_streams() {
    let mut session = session();
    session.open_stream();
    assert!(!session.is_synced());
    check(
        &mut session,
        apples("n1", &[("a", "1")], &[]),
        &["a"],
        expect![[r#"
            apply a@1
            Apple nonce=n1 nack=3 `a: sour`"#]],
    );
    assert!(!session.is_synced());
    session.open_stream();
    assert!(!session.is_synced());
    check(&mut session, pears("n1"), &[], expect!["Pear nonce=n1"]);
    assert!(session.is_synced());
    session.open_stream();
    assert!(session.is_synced());
}

#[test]
fn long_nack_is_cut_and_says_how_much_is_left() {
    let rejections: Vec<Rejection> = (0..10_000)
        .map(|i| Rejection {
            name: format!("ns/policy-{i}"),
            reason: "ü".repeat(50),
        })
        .collect();
    let message = error_detail(&rejections).unwrap().message;
    assert!(message.len() < MAX_NACK_MESSAGE + 30, "{}", message.len());
    assert!(message.ends_with(" more"), "{message}");
}

#[test]
fn of_a_resource_listed_twice_the_one_that_was_applied_is_held() {
    let mut session = session();
    session.open_stream();
    check(
        &mut session,
        apples("n1", &[("a", "1"), ("a", "2")], &[]),
        &[],
        expect![[r#"
            apply a@1
            Apple nonce=n1 nack=3 `a: listed twice in one response`"#]],
    );
    check_open(
        &mut session,
        expect![[r#"
            Apple node=ztunnel~me held={"a": "1"}
            Pear"#]],
    );
}

#[test]
fn what_is_optional_is_asked_for_and_not_waited_for() {
    let mut session = session();
    session.set_optional(APPLE);
    let first = session.open_stream().into_iter().map(|it| it.type_url);
    assert_eq!(first.collect::<Vec<_>>(), [APPLE, PEAR]);
    check(&mut session, pears("n1"), &[], expect!["Pear nonce=n1"]);
    assert!(session.is_synced());
}

#[test]
fn what_is_wanted_by_name_is_asked_for_by_name_and_no_more() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let changes = |request: Option<DeltaDiscoveryRequest>| {
        let request = request?;
        assert_eq!(
            (request.type_url.as_str(), request.response_nonce.as_str()),
            (APPLE, "")
        );
        Some((
            request.resource_names_subscribe,
            request.resource_names_unsubscribe,
        ))
    };
    let mut session = session();
    assert_eq!(changes(session.want(APPLE, names(&[]))), None);
    // An empty list would be the wildcard.
    let first: Vec<String> = session
        .open_stream()
        .into_iter()
        .map(|it| it.type_url)
        .collect();
    assert_eq!(first, [PEAR]);
    check(&mut session, pears("n1"), &[], expect!["Pear nonce=n1"]);
    assert!(session.is_synced());

    let asked = changes(session.want(APPLE, names(&["a", "b"])));
    assert_eq!(asked, Some((vec!["a".to_owned(), "b".to_owned()], vec![])));
    assert!(!session.is_synced());
    let both = apples("n2", &[("a", "1"), ("b", "1")], &[]);
    check(
        &mut session,
        both,
        &[],
        expect![[r#"
            apply a@1
            apply b@1
            Apple nonce=n2"#]],
    );
    assert!(session.is_synced());
    assert_eq!(changes(session.want(APPLE, names(&["a", "b"]))), None);
    let asked = changes(session.want(APPLE, names(&["b", "c"])));
    assert_eq!(asked, Some((vec!["c".to_owned()], vec!["a".to_owned()])));

    // On the next stream: all names, and only what of them is held.
    let again = session.open_stream();
    assert_eq!(again[0].resource_names_subscribe, ["b", "c"]);
    assert_eq!(
        again[0]
            .initial_resource_versions
            .keys()
            .collect::<Vec<_>>(),
        ["b"]
    );
}

#[test]
fn names_that_come_one_by_one_leave_the_type_in_step() {
    let mut session = session();
    session.set_on_demand(APPLE);
    let first = &session.open_stream()[0];
    assert_eq!(first.resource_names_subscribe, ["*"]);
    assert_eq!(first.resource_names_unsubscribe, ["*"]);
    for response in [apples("1", &[("near", "1")], &[]), pears("2")] {
        assert!(!session.is_synced());
        let Received::Apply(_, pending) = session.receive(response) else {
            panic!("not asked for");
        };
        let _answer = session.answer(pending, Vec::new());
    }
    assert!(session.is_synced());
    let asked = session.want(APPLE, BTreeSet::from(["far".to_owned()]));
    assert_eq!(asked.unwrap().resource_names_subscribe, ["far"]);
    assert!(session.is_synced(), "silence about one name is no trouble");
    let again = &session.open_stream()[0];
    assert_eq!(again.resource_names_subscribe, ["far"]);
    assert!(again.resource_names_unsubscribe.is_empty());
    // What came unasked is held too.
    assert!(again.initial_resource_versions.contains_key("near"));
}

#[test]
fn aliases_are_handed_on() {
    let mut session = session();
    session.open_stream();
    let mut response = apples("1", &[("red", "1")], &[]);
    response.resources[0].aliases = vec!["net/10.0.0.1".to_owned()];
    let Received::Apply(update, _) = session.receive(response) else {
        panic!("not asked for");
    };
    assert_eq!(update.aliases, ["net/10.0.0.1"]);
}
