use leyline_proto::{CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, google::rpc};
use leyline_types::NamespacedName;

use super::*;
use crate::translate::{Resource, Translation, WaypointPod, waypoint::WaypointConfig};

fn resources(of: &[(&str, &str)]) -> Resources {
    let one = |(name, version): &(&str, &str)| {
        let resource = Resource {
            version: (*version).to_owned(),
            body: bytes::Bytes::new(),
        };
        ((*name).to_owned(), resource)
    };
    of.iter().map(one).collect()
}

fn published(generation: u64, addresses: &[(&str, &str)], policies: &[(&str, &str)]) -> Published {
    Published {
        generation,
        translation: Translation {
            addresses: Arc::new(resources(addresses)),
            authorizations: Arc::new(resources(policies)),
            ..Translation::default()
        },
        ..Published::default()
    }
}

fn subscribe(session: &mut Session, type_url: &str, known: &[(&str, &str)]) {
    let request = DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        initial_resource_versions: known
            .iter()
            .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
            .collect(),
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(session.receive(request), Ok(Received::Subscribed));
}

fn answer(
    session: &mut Session,
    response: &DeltaDiscoveryResponse,
    error: Option<&str>,
) -> Received {
    let request = DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        error_detail: error.map(|message| rpc::Status {
            message: message.to_owned(),
            ..rpc::Status::default()
        }),
        ..DeltaDiscoveryRequest::default()
    };
    session.receive(request).unwrap()
}

/// Sends and acknowledges all there is; each response as `type: changed -removed`.
fn settle(session: &mut Session, published: &Published) -> Vec<String> {
    let mut seen = Vec::new();
    while let Some(response) = session.next_response(published) {
        seen.push(describe(&response));
        assert_eq!(answer(session, &response, None), Received::Ack);
    }
    seen
}

fn describe(response: &DeltaDiscoveryResponse) -> String {
    let changed = response
        .resources
        .iter()
        .map(|r| format!(" {}@{}", r.name, r.version));
    let removed = response
        .removed_resources
        .iter()
        .map(|name| format!(" -{name}"));
    let all: String = changed.chain(removed).collect();
    format!("{}:{all}", super::super::short(&response.type_url))
}

fn both() -> Session {
    let mut session = Session::default();
    subscribe(&mut session, ADDRESS_TYPE, &[]);
    subscribe(&mut session, AUTHORIZATION_TYPE, &[]);
    session
}

#[test]
fn a_new_proxy_gets_everything_policies_first_then_only_changes() {
    let mut session = both();
    let first = published(1, &[("w", "1"), ("v", "1")], &[("p", "1")]);
    assert_eq!(
        settle(&mut session, &first),
        ["authorization: p@1", "address: v@1 w@1"]
    );
    assert!(settle(&mut session, &first).is_empty());
    assert_eq!(session.addresses_generation(), Some(1));
    let second = published(2, &[("w", "2"), ("v", "1")], &[("p", "1")]);
    assert_eq!(settle(&mut session, &second), ["address: w@2"]);
    assert_eq!(session.addresses_generation(), Some(2));
}

#[test]
fn an_empty_mesh_is_told_as_such() {
    assert_eq!(
        settle(&mut both(), &published(1, &[], &[])),
        ["authorization:", "address:"]
    );
}

#[test]
fn a_proxy_that_comes_back_gets_what_differs_and_what_is_gone() {
    let mut session = Session::default();
    subscribe(
        &mut session,
        ADDRESS_TYPE,
        &[("w", "1"), ("old", "1"), ("v", "1")],
    );
    let now = published(7, &[("w", "1"), ("v", "2"), ("new", "1")], &[]);
    assert_eq!(settle(&mut session, &now), ["address: new@1 v@2 -old"]);
}

#[test]
fn policies_come_before_and_go_after_the_workloads_that_name_them() {
    let mut session = both();
    settle(&mut session, &published(1, &[("w", "1")], &[("old", "1")]));
    let next = published(2, &[("w", "2")], &[("new", "1")]);
    assert_eq!(
        settle(&mut session, &next),
        [
            "authorization: new@1",
            "address: w@2",
            "authorization: -old"
        ]
    );
}

#[test]
fn a_slow_proxy_gets_the_latest_state_next_and_never_two_responses_of_a_type() {
    let mut session = both();
    settle(&mut session, &published(1, &[("w", "1")], &[]));
    let slow = session
        .next_response(&published(2, &[("w", "2")], &[]))
        .unwrap();
    for generation in 3..100 {
        let version = generation.to_string();
        assert!(
            session
                .next_response(&published(generation, &[("w", &version)], &[]))
                .is_none()
        );
    }
    assert_eq!(session.addresses_generation(), Some(1));
    answer(&mut session, &slow, None);
    assert_eq!(session.addresses_generation(), Some(2));
    assert_eq!(
        settle(&mut session, &published(100, &[("w", "100")], &[])),
        ["address: w@100"]
    );
}

#[test]
fn a_rejection_is_kept_and_its_resources_come_again_only_once_they_change() {
    let mut session = both();
    settle(&mut session, &published(1, &[], &[]));
    let current = published(2, &[("w", "bad")], &[]);
    let response = session.next_response(&current).unwrap();
    let nack = answer(&mut session, &response, Some("w: no"));
    assert_eq!(
        nack,
        Received::Nack {
            type_url: ADDRESS_TYPE,
            reason: "w: no".to_owned()
        }
    );
    assert!(settle(&mut session, &current).is_empty());
    assert_eq!(session.addresses_generation(), Some(2));
    let status = &session.status()["address"];
    assert_eq!(
        (status.nacks, &status.rejections[..]),
        (1, &["w: no".to_owned()][..])
    );
    assert_eq!(
        settle(&mut session, &published(3, &[("w", "good")], &[])),
        ["address: w@good"]
    );
}

#[test]
fn answers_to_other_responses_are_ignored() {
    let mut session = both();
    let first = published(1, &[("w", "1")], &[]);
    let mut response = session.next_response(&first).unwrap();
    response.nonce = "other".to_owned();
    assert_eq!(answer(&mut session, &response, None), Received::Stale);
    assert!(session.waits_for_ack());
}

#[test]
fn what_is_not_served_is_said() {
    let mut session = Session::default();
    let request = |type_url: &str, name: &str| DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names_subscribe: vec![name.to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(
        session.receive(request("x", "*")),
        Ok(Received::UnknownType("x".to_owned()))
    );
    assert!(
        session
            .receive(request(AUTHORIZATION_TYPE, "ns/host"))
            .is_err()
    );
    assert_eq!(
        session.receive(request(ADDRESS_TYPE, "*")),
        Ok(Received::Subscribed)
    );
}

fn unsubscribe(session: &mut Session, type_url: &str, name: &str) -> Received {
    let request = DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names_unsubscribe: vec![name.to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    session.receive(request).unwrap()
}

#[test]
fn who_unsubscribes_gets_nothing_more_until_it_says_so() {
    let mut session = both();
    let first = published(1, &[("w", "1")], &[]);
    settle(&mut session, &first);
    let last = session
        .next_response(&published(2, &[("w", "2")], &[]))
        .unwrap();
    assert_eq!(
        unsubscribe(&mut session, ADDRESS_TYPE, "*"),
        Received::Unsubscribed
    );
    // The acknowledgement that crossed it is no new subscription.
    assert_eq!(answer(&mut session, &last, None), Received::Stale);
    assert!(settle(&mut session, &published(3, &[("w", "3")], &[])).is_empty());
    assert_eq!(session.addresses_generation(), None);
    let request = DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.to_owned(),
        resource_names_subscribe: vec!["*".to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(session.receive(request), Ok(Received::Subscribed));
    let now = published(3, &[("w", "3")], &[]);
    assert_eq!(settle(&mut session, &now), ["address: w@3"]);
    // Leaving what was never asked for by name changes nothing.
    assert_eq!(
        unsubscribe(&mut session, ADDRESS_TYPE, "w"),
        Received::Stale
    );
    let next = published(4, &[("w", "4")], &[]);
    assert_eq!(settle(&mut session, &next), ["address: w@4"]);
}

#[test]
fn known_changes_say_the_same_as_looking_for_them() {
    let mut session = both();
    let first = published(1, &[("a", "1"), ("b", "1"), ("c", "1")], &[]);
    settle(&mut session, &first);
    let mut second = published(2, &[("a", "1"), ("b", "2"), ("d", "1")], &[]);
    second.address_changes = Some(Changes {
        from: Arc::clone(&first.translation.addresses),
        changed: vec!["b".to_owned(), "d".to_owned()],
        removed: vec!["c".to_owned()],
    });
    let mut other = both();
    settle(
        &mut other,
        &published(1, &[("a", "1"), ("b", "1"), ("c", "1")], &[]),
    );
    assert_eq!(settle(&mut session, &second), ["address: b@2 d@1 -c"]);
    assert_eq!(settle(&mut other, &second), ["address: b@2 d@1 -c"]);
    assert_eq!(session.status()["address"], other.status()["address"]);
}

#[test]
fn what_a_proxy_complains_about_is_bounded() {
    let mut session = both();
    let response = session
        .next_response(&published(1, &[("w", "1")], &[]))
        .unwrap();
    let Received::Nack { reason, .. } =
        answer(&mut session, &response, Some(&"\u{fc}".repeat(1 << 20)))
    else {
        panic!("a rejection")
    };
    assert!(reason.len() <= MAX_REASON_BYTES);
}

/// Envoy answers for clusters once it has their endpoints, and for nothing else before.
#[test]
fn endpoints_follow_clusters_without_waiting_for_the_answer() {
    let name = |name: &str| NamespacedName {
        namespace: "shop".into(),
        name: name.into(),
    };
    let mut config = WaypointConfig::default();
    config.clusters.resources = Arc::new(resources(&[("c", "1")]));
    config.endpoints.resources = Arc::new(resources(&[("c", "1")]));
    config.listeners.resources = Arc::new(resources(&[("l", "1")]));
    let pod = WaypointPod {
        gateway: name("waypoint"),
        service_account: "waypoint".to_owned(),
    };
    let published = Published {
        generation: 1,
        translation: Translation {
            waypoints: [(name("waypoint"), Arc::new(config))].into(),
            waypoint_pods: [(name("pod"), pod)].into(),
            ..Translation::default()
        },
        ..Published::default()
    };
    let mut session = Session::default();
    session.identify(Pod {
        name: name("pod"),
        service_account: "waypoint".to_owned(),
    });
    for kind in [CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE] {
        subscribe(&mut session, kind, &[]);
    }
    let next = |session: &mut Session| {
        let response = session.next_response(&published)?;
        Some((describe(&response), response))
    };
    let (told, clusters) = next(&mut session).unwrap();
    assert_eq!(told, "cluster: c@1");
    let (told, endpoints) = next(&mut session).unwrap();
    assert_eq!(told, "endpoint: c@1");
    assert!(next(&mut session).is_none());
    answer(&mut session, &endpoints, None);
    assert!(next(&mut session).is_none());
    answer(&mut session, &clusters, None);
    let (told, _) = next(&mut session).unwrap();
    assert_eq!(told, "listener: l@1");
}
