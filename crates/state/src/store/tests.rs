use std::sync::Arc;

use leyline_proto::istio::{security::Scope, workload as wire};
use leyline_types::Identity;
use proptest::{prelude::*, sample::Index};

use super::*;
use crate::{
    convert,
    testing::{deny_all, hbone, in_service, json, pod, rng, service, store, uid, vip, workload_of},
};

fn endpoints_of(snapshot: &Snapshot, service: &str) -> Vec<String> {
    let dump = json(snapshot);
    let services = dump["services"].as_array().unwrap();
    let found = services.iter().find(|one| one["name"] == service).unwrap();
    found["endpoints"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect()
}

fn keys<T: ToString>(set: impl IntoIterator<Item = T>) -> Vec<String> {
    set.into_iter().map(|one| one.to_string()).collect()
}

#[test]
fn endpoints_wait_for_their_service() {
    let store = store([in_service(hbone("server", &["10.0.0.2"]), "web", &[(80, 9090)]).into()]);
    let staged = &json(&store.snapshot())["stagedServices"];
    let expected = serde_json::json!({
        "ns/web.ns": {"c//Pod/ns/server": {"workloadUid": "c//Pod/ns/server", "port": {"80": 9090}}}
    });
    assert_eq!(*staged, expected);

    store.apply([service("web", &["10.1.0.1"]).into()]);
    assert_eq!(endpoints_of(&store.snapshot(), "web"), ["c//Pod/ns/server"]);
    assert_eq!(
        json(&store.snapshot())["stagedServices"],
        serde_json::json!({})
    );

    store.apply([convert::removed_address("ns/web.ns")]);
    assert_eq!(json(&store.snapshot())["stagedServices"], expected);
}

#[test]
fn a_change_moves_every_index() {
    let store = store([
        service("web", &["10.1.0.1"]).into(),
        service("api", &["10.1.0.2"]).into(),
        in_service(hbone("server", &["10.0.0.2"]), "web", &[]).into(),
    ]);
    let moved = wire::Workload {
        node: "b".into(),
        ..in_service(pod("server", &["10.0.0.3"]), "api", &[])
    };
    let applied = store.apply([moved.into()]);
    assert_eq!(keys(&applied.workloads), ["c//Pod/ns/server"]);
    assert_eq!(keys(&applied.services), ["ns/api.ns", "ns/web.ns"]);

    let snapshot = store.snapshot();
    assert!(endpoints_of(&snapshot, "web").is_empty());
    assert_eq!(endpoints_of(&snapshot, "api"), ["c//Pod/ns/server"]);
    assert!(
        snapshot
            .workload_by_ip("10.0.0.2".parse().unwrap())
            .is_none()
    );
    assert!(
        snapshot
            .workload_by_ip("10.0.0.3".parse().unwrap())
            .is_some()
    );

    store.apply([wire::Service {
        hostname: "web.ns".into(),
        ..service("web", &["10.1.0.9", "10.2.0.0/16"])
    }
    .into()]);
    let snapshot = store.snapshot();
    let at = |ip: &str| snapshot.service_at(ip.parse().unwrap(), &"ns".into());
    assert!(at("10.1.0.1").is_none());
    assert!(at("10.1.0.9").is_some() && at("10.2.3.4").is_some());
}

#[test]
fn an_address_passes_from_one_workload_to_the_next_in_any_order() {
    let (old, new) = (hbone("old", &["10.0.0.1"]), pod("new", &["10.0.0.1"]));
    let remove = || convert::removed_address(uid("old").as_str());
    for changes in [
        vec![remove(), new.clone().into()],
        vec![new.into(), remove()],
    ] {
        let store = store([old.clone().into()]);
        for change in changes {
            store.apply([change]);
        }
        let snapshot = store.snapshot();
        let found = snapshot
            .workload_by_ip("10.0.0.1".parse().unwrap())
            .unwrap();
        assert_eq!(found.name.name, "new");
    }
}

#[test]
fn nothing_is_left_after_removal() {
    let changes = all_resources();
    let store = store(changes.iter().cloned());
    for change in &changes {
        store.apply([removal(change)]);
    }
    let snapshot = store.snapshot();
    let empty = Store::new(LocalNode::default()).snapshot();
    assert_eq!(json(&snapshot), json(&empty));
    assert!(snapshot.names.is_empty() && snapshot.members.is_empty());
    assert!(snapshot.networks.is_empty() && snapshot.hosts.is_empty());
    assert!(snapshot.global_policies.is_empty() && snapshot.namespace_policies.is_empty());
    assert!(store.writer.lock().identities.is_empty());
}

#[test]
fn what_did_not_change_is_not_published() {
    let store = store(all_resources());
    let before = store.snapshot();
    let applied = store.apply(all_resources());
    assert_eq!(applied, Applied::default());
    let unknown = convert::removed_address("ns/nobody.ns");
    assert!(
        store
            .apply([unknown, convert::removed_address("x")])
            .is_empty()
    );
    assert!(Arc::ptr_eq(&before, &store.snapshot()));
}

#[test]
fn readers_and_writer_may_be_on_any_thread() {
    fn check<T: Send + Sync>() {}
    check::<Store>();
    check::<Snapshot>();
    check::<crate::OutboundRoute>();
}

#[test]
fn readers_keep_their_snapshot() {
    let store = store([hbone("a", &["10.0.0.1"]).into()]);
    let before = store.snapshot();
    store.apply([convert::removed_address(uid("a").as_str())]);
    assert!(before.workload_by_uid(&uid("a")).is_some());
    assert!(store.snapshot().workload_by_uid(&uid("a")).is_none());
}

#[test]
fn certificates_follow_local_enrolled_workloads() {
    let shared = |name: &str, node: &str, protocol: wire::TunnelProtocol| -> Change {
        wire::Workload {
            service_account: "shared".into(),
            node: node.into(),
            tunnel_protocol: protocol.into(),
            ..pod(name, &[])
        }
        .into()
    };
    let remove = |name: &str| convert::removed_address(uid(name).as_str());
    let identity: Identity = "spiffe://cluster.local/ns/ns/sa/shared".parse().unwrap();
    let (on, off) = (wire::TunnelProtocol::Hbone, wire::TunnelProtocol::None);
    let store = store([]);
    let check = |changes: Vec<Change>, needed: bool, released: bool| {
        let applied = store.apply(changes);
        let expected = |yes: bool| if yes { vec![identity.clone()] } else { vec![] };
        assert_eq!(applied.identities_needed, expected(needed));
        assert_eq!(applied.identities_released, expected(released));
    };
    check(
        vec![shared("a", "a", off), shared("far", "b", on)],
        false,
        false,
    );
    check(vec![shared("a", "a", on)], true, false);
    check(vec![shared("b", "a", on)], false, false);
    check(vec![remove("a")], false, false);
    check(vec![remove("b"), shared("c", "a", on)], false, false);
    check(vec![shared("c", "a", off)], false, true);
    check(vec![shared("c", "a", on), remove("c")], false, false);
}

#[test]
fn policies_move_between_scopes() {
    let store = store([hbone("a", &["10.0.0.1"]).into()]);
    let check = |change: Change, expected: usize| {
        let applied = store.apply([change]);
        assert_eq!(keys(&applied.policies), ["ns/p"]);
        let snapshot = store.snapshot();
        let set = snapshot.policies_for(workload_of(&snapshot, "a"));
        assert_eq!(set.policies.len(), expected);
    };
    check(deny_all("ns/p", Scope::Namespace).into(), 1);
    check(deny_all("ns/p", Scope::WorkloadSelector).into(), 0);
    check(deny_all("ns/p", Scope::Global).into(), 1);
    check(convert::removed_authorization("ns/p").unwrap(), 0);
}

/// The change that undoes another.
fn removal(change: &Change) -> Change {
    match change {
        Change::Workload(workload) => convert::removed_address(workload.uid.as_str()),
        Change::Service(service) => convert::removed_address(&service.key().to_string()),
        Change::Policy(policy) => Change::RemovePolicy(policy.key.clone()),
        Change::RemoveAddress(_) | Change::RemovePolicy(_) => change.clone(),
    }
}

/// Something of everything, with shared addresses, names, services and hosts.
fn all_resources() -> Vec<Change> {
    let other_namespace = wire::Service {
        namespace: "other".into(),
        hostname: "web.ns".into(),
        canonical: true,
        ..service("web", &["10.1.0.1", "10.2.0.0/16"])
    };
    let far = wire::Workload {
        network: "far".into(),
        node: "b".into(),
        ..in_service(hbone("far", &["10.0.0.2"]), "web", &[])
    };
    let block = wire::Service {
        addresses: vec![vip("10.2.0.0/16"), vip("10.2.0.0/24"), vip("fd00::/64")],
        ..service("block", &[])
    };
    vec![
        hbone("client", &["10.0.0.1", "fd00::1"]).into(),
        in_service(hbone("server", &["10.0.0.2"]), "web", &[(80, 9090)]).into(),
        in_service(
            in_service(pod("legacy", &["10.0.0.2"]), "web", &[]),
            "api",
            &[],
        )
        .into(),
        in_service(hbone("staged", &["10.0.0.4"]), "nowhere", &[]).into(),
        far.into(),
        service("web", &["10.1.0.1", "fd01::1"]).into(),
        service("api", &["10.1.0.1"]).into(),
        other_namespace.into(),
        block.into(),
        deny_all("root/g", Scope::Global).into(),
        deny_all("ns/n", Scope::Namespace).into(),
        deny_all("ns/m", Scope::Namespace).into(),
        deny_all("ns/s", Scope::WorkloadSelector).into(),
    ]
}

/// Everything that a connection could learn from a snapshot.
fn observed(snapshot: &Snapshot) -> (serde_json::Value, Vec<String>) {
    let mut seen = Vec::new();
    for source in ["client", "server", "legacy"] {
        let Some(source) = snapshot.workload_by_uid(&uid(source)) else {
            continue;
        };
        for dst in [
            "10.0.0.2:80",
            "10.1.0.1:80",
            "[fd01::1]:80",
            "10.2.0.9:80",
            "10.2.9.9:80",
        ] {
            let dst = leyline_types::OrigDst::new(dst.parse().unwrap());
            let route = snapshot.route_outbound(source, dst, &mut rng());
            seen.push(format!("{route:?}"));
        }
        seen.push(format!("{:?}", snapshot.policies_for(source)));
        seen.push(format!(
            "{:?}",
            snapshot.service_by_host("web.ns", &"ns".into())
        ));
        seen.push(format!("{:?}", snapshot.local_workload(&source.name)));
    }
    (json(snapshot), seen)
}

proptest! {
    /// Whatever comes and goes before, in whatever order and batches, the same resources make the same mesh.
    #[test]
    fn any_order_of_updates_leads_to_the_same_mesh(
        order in Just(all_resources()).prop_shuffle(),
        detour in prop::collection::vec((any::<Index>(), any::<bool>()), 0..20),
        cuts in prop::collection::vec(any::<bool>(), 40),
    ) {
        let expected = store(all_resources());
        let mut changes: Vec<Change> = detour
            .iter()
            .map(|(at, add)| {
                let change = at.get(&order);
                if *add { change.clone() } else { removal(change) }
            })
            .collect();
        changes.extend(order);

        let other = store([]);
        let mut batch = Vec::new();
        for (change, cut) in changes.into_iter().zip(cuts) {
            batch.push(change);
            if cut {
                other.apply(batch.drain(..));
            }
        }
        other.apply(batch);
        prop_assert_eq!(observed(&expected.snapshot()), observed(&other.snapshot()));
    }
}
