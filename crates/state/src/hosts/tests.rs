use std::sync::Arc;

use leyline_proto::istio::workload as wire;
use leyline_types::Network;

use super::*;
use crate::{
    Change,
    testing::{self, in_service, pod},
};

const DOMAIN: &str = "cluster.local";

fn service(namespace: &str, host: &str, vips: &[(&str, &str)]) -> wire::Service {
    wire::Service {
        name: host.split('.').next().unwrap().into(),
        namespace: namespace.into(),
        hostname: host.into(),
        addresses: vips
            .iter()
            .map(|(network, ip)| wire::NetworkAddress {
                network: (*network).into(),
                address: testing::bytes(ip),
                length: None,
            })
            .collect(),
        ..wire::Service::default()
    }
}

fn snapshot(
    workloads: impl IntoIterator<Item = wire::Workload>,
    services: impl IntoIterator<Item = wire::Service>,
) -> Arc<Snapshot> {
    let services: Vec<Change> = services.into_iter().map(Into::into).collect();
    let workloads = workloads.into_iter().map(Into::into);
    testing::store(workloads.chain(services)).snapshot()
}

fn find(snapshot: &Snapshot, name: &str, namespace: &str) -> Option<String> {
    let namespace = Str::from(namespace);
    let view = HostView {
        namespace: &namespace,
        cluster_domain: DOMAIN,
        preferred_namespace: Some("liked"),
    };
    let known = snapshot.known_host(name, view)?;
    let addresses = known.addresses.iter().map(ToString::to_string);
    let hostnames = known.hostnames.iter().map(ToString::to_string);
    let addresses: Vec<String> = addresses.chain(hostnames).collect();
    Some(format!(
        "{} {}",
        known.service.namespace,
        addresses.join(" ")
    ))
}

fn check(snapshot: &Snapshot, namespace: &str, cases: &[(&str, Option<&str>)]) {
    for (name, expected) in cases {
        assert_eq!(
            find(snapshot, name, namespace).as_deref(),
            *expected,
            "{name}"
        );
    }
}

#[test]
fn services_stand_for_their_addresses_in_the_own_network() {
    let mut limited = service(
        "ns",
        "limited.example.com",
        &[("", "10.0.0.3"), ("", "fd00::3")],
    );
    limited.ip_families = wire::IpFamilies::Ipv4Only.into();
    let snapshot = snapshot(
        [],
        [
            service(
                "ns",
                "a.ns.svc.cluster.local",
                &[("", "10.0.0.1"), ("far", "10.0.0.2")],
            ),
            service("ns", "Far.example.com", &[("far", "10.0.0.2")]),
            service("ns", "none.example.com", &[]),
            limited,
        ],
    );
    check(
        &snapshot,
        "ns",
        &[
            ("a.ns.svc.cluster.local", Some("ns 10.0.0.1")),
            ("far.example.com", Some("ns ")),
            ("none.example.com", None),
            ("limited.example.com", Some("ns 10.0.0.3")),
            ("b.ns.svc.cluster.local", None),
            ("", None),
        ],
    );
}

#[test]
fn wildcards_are_tried_last_the_longest_first() {
    let snapshot = snapshot(
        [],
        [
            service("ns", "*.example.com", &[("", "10.0.0.1")]),
            service("ns", "*.deep.example.com", &[("", "10.0.0.2")]),
            service("ns", "x.deep.example.com", &[("", "10.0.0.3")]),
        ],
    );
    check(
        &snapshot,
        "ns",
        &[
            ("x.deep.example.com", Some("ns 10.0.0.3")),
            ("y.deep.example.com", Some("ns 10.0.0.2")),
            ("deep.example.com", Some("ns 10.0.0.1")),
            ("a.b.example.com", Some("ns 10.0.0.1")),
            ("example.com", None),
            ("com", None),
        ],
    );
}

#[test]
fn of_several_services_the_nearest_counts() {
    let mut private = service("private", "x.example.com", &[("", "10.0.0.4")]);
    private.visibility = wire::Visibility::NamespaceOnly.into();
    let mut canonical = service("canon", "y.example.com", &[("", "10.0.0.5")]);
    canonical.canonical = true;
    let snapshot = snapshot(
        [],
        [
            service("a", "x.example.com", &[("", "10.0.0.1")]),
            service("liked", "x.example.com", &[("", "10.0.0.2")]),
            private,
            service("a", "y.example.com", &[("", "10.0.0.6")]),
            service("liked", "y.example.com", &[("", "10.0.0.7")]),
            canonical,
        ],
    );
    let x = "x.example.com";
    check(&snapshot, "a", &[(x, Some("a 10.0.0.1"))]);
    check(&snapshot, "other", &[(x, Some("liked 10.0.0.2"))]);
    check(&snapshot, "private", &[(x, Some("private 10.0.0.4"))]);
    check(
        &snapshot,
        "other",
        &[("y.example.com", Some("canon 10.0.0.5"))],
    );
}

#[test]
fn headless_services_stand_for_their_ready_endpoints() {
    let host = "db.ns.svc.cluster.local";
    let member = |name: &str, ip: &str| {
        let mut workload = in_service(pod(name, &[ip]), "unused", &[]);
        workload.services = [(format!("ns/{host}"), wire::PortList::default())].into();
        workload
    };
    let mut ill = member("db-2", "10.1.0.3");
    ill.status = wire::WorkloadStatus::Unhealthy.into();
    let mut far = member("db-3", "10.1.0.4");
    far.network = Network::new("far").to_string();
    let named = |name: &str| {
        let mut workload = member(name, "10.1.0.9");
        workload.addresses.clear();
        workload.hostname = format!("{name}.example.com");
        workload
    };
    let mut enrolled = named("db-5");
    enrolled.tunnel_protocol = wire::TunnelProtocol::Hbone.into();
    let snapshot = snapshot(
        [
            member("db-0", "10.1.0.1"),
            member("db-1", "10.1.0.2"),
            ill,
            far,
            named("db-4"),
            enrolled,
        ],
        [service("ns", host, &[])],
    );
    check(
        &snapshot,
        "other",
        &[
            (host, Some("ns 10.1.0.1 10.1.0.2 db-4.example.com")),
            ("db-1.db.ns.svc.cluster.local", Some("ns 10.1.0.2")),
            ("db-2.db.ns.svc.cluster.local", None),
            ("db-4.db.ns.svc.cluster.local", Some("ns db-4.example.com")),
            // Its address would be called in plaintext.
            ("db-5.db.ns.svc.cluster.local", None),
            ("db-9.db.ns.svc.cluster.local", None),
        ],
    );
}
