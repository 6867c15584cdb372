use leyline_proto::istio::{security::Scope as WireScope, workload as wire};

use crate::testing::{deny_all, hbone, pod, service, store, vip, workload_of};

#[test]
fn one_of_several_services_is_meant() {
    let of = |namespace: &str, canonical: bool, visibility: wire::Visibility| wire::Service {
        namespace: namespace.into(),
        hostname: "shared.example".into(),
        canonical,
        visibility: visibility.into(),
        ..service("shared", &["10.1.0.1"])
    };
    let (public, own_only) = (wire::Visibility::Public, wire::Visibility::NamespaceOnly);
    let check = |services: &[wire::Service], client: &str, expected: &str| {
        let changes = services.iter().map(|service| service.clone().into());
        let snapshot = store(changes).snapshot();
        let by_host = snapshot.service_by_host("shared.example", &client.into());
        let by_ip = snapshot.service_at("10.1.0.1".parse().unwrap(), &client.into());
        assert_eq!(by_host, by_ip.map(|known| &known.service));
        assert_eq!(
            by_host.map_or("", |service| service.namespace.as_str()),
            expected
        );
    };
    let three = [
        of("b", false, public),
        of("c", true, public),
        of("a", false, public),
    ];
    check(&three, "b", "b");
    check(&three, "x", "c");
    check(&[of("b", false, public), of("a", false, public)], "x", "a");
    let hidden = [of("a", true, own_only), of("b", false, public)];
    check(&hidden, "a", "a");
    check(&hidden, "x", "b");
    check(&hidden[..1], "x", "");
    let unknown = wire::Service {
        visibility: 99,
        ..of("a", false, public)
    };
    check(&[unknown], "x", "a");
}

#[test]
fn an_invisible_address_falls_back_to_a_visible_block() {
    let hidden = wire::Service {
        namespace: "other".into(),
        visibility: wire::Visibility::NamespaceOnly.into(),
        ..service("hidden", &["10.1.0.1"])
    };
    let block = wire::Service {
        addresses: vec![vip("10.1.0.0/16")],
        ..service("block", &[])
    };
    let snapshot = store([hidden.into(), block.into()]).snapshot();
    let found = snapshot.service_at("10.1.0.1".parse().unwrap(), &"ns".into());
    assert_eq!(found.unwrap().service.name, "block");
}

#[test]
fn of_workloads_at_one_address_the_pod_wins() {
    let entry = wire::Workload {
        uid: "c/networking.istio.io/WorkloadEntry/ns/a".into(),
        ..hbone("entry", &["10.0.0.1"])
    };
    let gone = wire::Workload {
        status: wire::WorkloadStatus::Unhealthy.into(),
        ..hbone("a-gone", &["10.0.0.1"])
    };
    let new = hbone("z-new", &["10.0.0.1"]);
    let plain = pod("plain", &["10.0.0.1"]);
    let check = |workloads: &[&wire::Workload], expected: &str| {
        let changes = workloads.iter().map(|one| (*one).clone().into());
        let snapshot = store(changes).snapshot();
        let found = snapshot.workload_by_ip("10.0.0.1".parse().unwrap());
        assert_eq!(found.map_or("", |one| one.name.name.as_str()), expected);
    };
    check(&[], "");
    check(&[&entry], "entry");
    check(&[&entry, &plain], "plain");
    check(&[&plain, &gone], "a-gone");
    check(&[&gone, &new, &plain, &entry], "z-new");
}

#[test]
fn a_source_is_who_it_proved_to_be() {
    let snapshot = store([
        hbone("old", &["10.0.0.1"]).into(),
        hbone("reused", &["10.0.0.1"]).into(),
    ])
    .snapshot();
    let check = |ip: &str, account: Option<&str>, expected: Option<&str>| {
        let identity = account.map(|account| {
            format!("spiffe://cluster.local/ns/ns/sa/{account}")
                .parse()
                .unwrap()
        });
        let found = snapshot.source_workload(ip.parse().unwrap(), identity.as_ref());
        assert_eq!(found.map(|one| one.name.name.as_str()), expected);
    };
    check("10.0.0.1", Some("reused"), Some("reused"));
    check("10.0.0.1", Some("old"), Some("old"));
    check("10.0.0.1", Some("stranger"), None);
    check("10.0.0.1", None, Some("old"));
    check("10.0.0.2", Some("old"), None);
}

#[test]
fn local_workloads_are_those_of_the_node() {
    let elsewhere = wire::Workload {
        node: "b".into(),
        ..hbone("b-pod", &["10.0.0.2"])
    };
    let store = store([hbone("a-pod", &["10.0.0.1"]).into(), elsewhere.into()]);
    let snapshot = store.snapshot();
    let (here, there) = (
        workload_of(&snapshot, "a-pod"),
        workload_of(&snapshot, "b-pod"),
    );
    assert_eq!(snapshot.local_workload(&here.name).unwrap().uid, here.uid);
    assert_eq!(snapshot.local_workload(&there.name), None);
}

#[test]
fn policies_are_those_in_scope_and_those_named() {
    let named = wire::Workload {
        authorization_policies: vec![
            "ns/selected".into(),
            "ns/whole".into(),
            "root/global".into(),
            "ns/not-yet".into(),
        ],
        ..hbone("named", &["10.0.0.1"])
    };
    let elsewhere = wire::Workload {
        namespace: "other".into(),
        ..hbone("elsewhere", &["10.0.0.2"])
    };
    let snapshot = store([
        named.into(),
        elsewhere.into(),
        hbone("plain", &["10.0.0.3"]).into(),
        deny_all("root/global", WireScope::Global).into(),
        deny_all("ns/whole", WireScope::Namespace).into(),
        deny_all("ns/selected", WireScope::WorkloadSelector).into(),
        deny_all("ns/unused", WireScope::WorkloadSelector).into(),
    ])
    .snapshot();
    let check = |workload: &str, expected: &[&str], missing: &[&str]| {
        let set = snapshot.policies_for(workload_of(&snapshot, workload));
        let got: Vec<_> = set.policies.iter().map(|one| one.key.to_string()).collect();
        assert_eq!(got, expected, "{workload}");
        let got: Vec<_> = set.missing.iter().map(ToString::to_string).collect();
        assert_eq!(got, missing, "{workload}");
    };
    check(
        "named",
        &["root/global", "ns/whole", "ns/selected"],
        &["ns/not-yet"],
    );
    check("plain", &["root/global", "ns/whole"], &[]);
    check("elsewhere", &["root/global"], &[]);
}
