//! Waypoints and other networks.

use std::collections::BTreeMap;

use leyline_types::Network;
use wire::gateway_address::Destination;

use super::*;
use crate::{Change, Snapshot};

fn at(network: &str, address: &str) -> wire::GatewayAddress {
    wire::GatewayAddress {
        hbone_mtls_port: 15008,
        destination: Some(Destination::Address(wire::NetworkAddress {
            network: network.into(),
            address: bytes(address),
            length: None,
        })),
    }
}

fn guarded(name: &str, vip: &str, waypoint: wire::GatewayAddress) -> Change {
    wire::Service {
        waypoint: Some(waypoint),
        ..service(name, &[vip])
    }
    .into()
}

fn far(workload: wire::Workload) -> wire::Workload {
    wire::Workload {
        network: "far".into(),
        network_gateway: Some(at("far", "192.0.2.1")),
        ..workload
    }
}

fn gateway_of_far() -> wire::Workload {
    wire::Workload {
        network: "far".into(),
        ..hbone("eastwest", &["192.0.2.1"])
    }
}

/// A waypoint `wp` with two pods that are not captured, and everything that goes through it.
fn mesh() -> Vec<Change> {
    let waypoint_service = wire::Service {
        ports: port_list(&[(15008, 15008), (15021, 15021)]),
        subject_alt_names: vec!["spiffe://cluster.local/ns/ns/sa/old-name".into()],
        ..service("wp", &["10.1.0.99"])
    };
    let workload = |name: &str, ip: &str, waypoint: wire::GatewayAddress| wire::Workload {
        waypoint: Some(waypoint),
        ..hbone(name, &[ip])
    };
    vec![
        hbone("client", &["10.0.0.1"]).into(),
        waypoint_service.into(),
        in_service(pod("wp", &["10.0.0.50"]), "wp", &[]).into(),
        in_service(hbone("server", &["10.0.0.2"]), "web", &[]).into(),
        guarded("web", "10.1.0.1", gateway("wp.ns")),
        guarded("by-pod", "10.1.0.2", at("", "10.0.0.50")),
        guarded("by-vip", "10.1.0.3", at("", "10.1.0.99")),
        guarded("unknown", "10.1.0.4", at("", "10.0.0.77")),
        guarded("nobody", "10.1.0.5", gateway("empty.ns")),
        service("empty", &[]).into(),
        workload("pod", "10.0.0.3", gateway("wp.ns")).into(),
        workload("lost", "10.0.0.4", gateway("missing.ns")).into(),
    ]
}

fn route(snapshot: &Snapshot, source: &str, dst: &str) -> String {
    let source = workload_of(snapshot, source);
    let dst = OrigDst::new(dst.parse().unwrap());
    let route = snapshot.route_outbound(source, dst, &mut rng());
    match &route {
        OutboundRoute::Refused(why) => why.to_string(),
        other => line(other),
    }
}

#[test]
fn goes_through_the_waypoint_of_what_was_asked_for() {
    let snapshot = store(mesh()).snapshot();
    let check = |source: &str, dst: &str, expected: &str| {
        assert_eq!(route(&snapshot, source, dst), expected, "{source} {dst}");
    };
    // Any port: only the waypoint knows its routes.
    check(
        "client",
        "10.1.0.1:80",
        "hbone 10.0.0.50:15008 for 10.1.0.1:80 as old-name+wp of web",
    );
    check(
        "client",
        "10.1.0.1:81",
        "hbone 10.0.0.50:15008 for 10.1.0.1:81 as old-name+wp of web",
    );
    check(
        "client",
        "10.1.0.2:80",
        "hbone 10.0.0.50:15008 for 10.1.0.2:80 as wp of by-pod",
    );
    check(
        "client",
        "10.1.0.3:80",
        "hbone 10.0.0.50:15008 for 10.1.0.3:80 as old-name+wp of by-vip",
    );
    check(
        "client",
        "10.0.0.3:22",
        "hbone 10.0.0.50:15008 for 10.0.0.3:22 as old-name+wp",
    );
    // Never around it.
    check(
        "client",
        "10.1.0.4:80",
        "unknown waypoint: /10.0.0.77 (for 10.1.0.4:80)",
    );
    check(
        "client",
        "10.0.0.4:80",
        "unknown waypoint: ns/missing.ns (for 10.0.0.4:80)",
    );
    check(
        "client",
        "10.1.0.5:80",
        "no healthy upstream: waypoint ns/empty.ns (for 10.1.0.5:80)",
    );
    // Nor twice through it.
    check(
        "wp",
        "10.1.0.1:80",
        "hbone 10.0.0.2:15008 for 10.0.0.2:8080 as server of web",
    );
    check(
        "wp",
        "10.1.0.2:80",
        "no healthy upstream: 10.1.0.2:80 (service ns/by-pod.ns)",
    );
    check(
        "wp",
        "10.1.0.3:80",
        "no healthy upstream: 10.1.0.3:80 (service ns/by-vip.ns)",
    );
    check(
        "wp",
        "10.0.0.3:22",
        "hbone 10.0.0.3:15008 for 10.0.0.3:22 as pod",
    );
}

#[test]
fn waypoints_are_balanced_sampled_and_reached_at_their_own_port() {
    let mapped = wire::Service {
        ports: port_list(&[(15008, 25008)]),
        ..service("mapped", &[])
    };
    let captured = in_service(hbone("captured", &["10.0.0.61"]), "mapped", &[]);
    let canary = |weights: [u32; 2]| wire::Service {
        waypoint: Some(gateway("wp.ns")),
        weighted_waypoints: [("wp.ns", weights[0]), ("next.ns", weights[1])]
            .map(|(name, weight)| wire::WeightedGatewayAddress {
                destination: Some(gateway(name)),
                weight,
            })
            .into(),
        ..service("canary", &["10.1.0.7"])
    };
    let picks = |weights: [u32; 2]| {
        let mut changes = mesh();
        changes.extend([
            in_service(pod("wp-2", &["10.0.0.51"]), "wp", &[]).into(),
            service("next", &[]).into(),
            in_service(pod("next", &["10.0.0.60"]), "next", &[]).into(),
            canary(weights).into(),
            mapped.clone().into(),
            captured.clone().into(),
            in_service(pod("plain", &["10.0.0.62"]), "mapped", &[]).into(),
            guarded("ports", "10.1.0.8", gateway("mapped.ns")),
        ]);
        let snapshot = store(changes).snapshot();
        let client = workload_of(&snapshot, "client");
        let mut rng = rng();
        let mut count = |dst: &str| {
            let dst = OrigDst::new(dst.parse().unwrap());
            let mut tunnels = BTreeMap::new();
            for _ in 0..1000 {
                match snapshot.route_outbound(client, dst, &mut rng) {
                    OutboundRoute::Hbone(route) => {
                        *tunnels.entry(route.tunnel.to_string()).or_insert(0_u32) += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
            tunnels
        };
        (count("10.1.0.7:80"), count("10.1.0.8:80"))
    };
    let (canary, ports) = picks([3, 1]);
    let share = |name: &str| canary.get(name).copied().unwrap_or(0);
    assert!((200..300).contains(&share("10.0.0.60:15008")), "{canary:?}");
    assert!((300..450).contains(&share("10.0.0.50:15008")), "{canary:?}");
    assert!((300..450).contains(&share("10.0.0.51:15008")), "{canary:?}");
    // A node proxy stands before the captured one.
    let ports: Vec<&str> = ports.keys().map(String::as_str).collect();
    assert_eq!(ports, ["10.0.0.61:15008", "10.0.0.62:25008"]);
    let (all_zero, _) = picks([0, 0]);
    assert_eq!(all_zero.len(), 2, "{all_zero:?}");
    assert!(!all_zero.contains_key("10.0.0.60:15008"));
}

#[test]
fn other_networks_are_entered_by_their_gateway() {
    let check = |mut changes: Vec<Change>, dst: &str, expected: &str| {
        changes.extend([
            hbone("client", &["10.0.0.1"]).into(),
            service("web", &["10.1.0.1"]).into(),
        ]);
        let snapshot = store(changes).snapshot();
        assert_eq!(route(&snapshot, "client", dst), expected);
    };
    let web = || far(in_service(hbone("web", &["10.0.0.9"]), "web", &[]));
    let refused = "no valid routing destination for workload: 10.1.0.1:80 is in another network";
    let double = "double 192.0.2.1:15008 as eastwest for web.ns:80 as web of web";
    // The same address in both networks is two workloads.
    let twin = hbone("twin", &["10.0.0.9"]);
    check(
        vec![web().into(), gateway_of_far().into(), twin.into()],
        "10.1.0.1:80",
        double,
    );
    check(vec![web().into()], "10.1.0.1:80", refused);
    let plain = wire::Workload {
        tunnel_protocol: wire::TunnelProtocol::None.into(),
        ..web()
    };
    check(
        vec![plain.into(), gateway_of_far().into()],
        "10.1.0.1:80",
        refused,
    );

    // One for all, as istiod sends it: only the service's names are expected.
    let sum = wire::Workload {
        uid: "far/SplitHorizonWorkload/istio-system/ew/192.0.2.1/ns/web.ns".into(),
        ..far(in_service(hbone("web", &[]), "web", &[]))
    };
    check(
        vec![sum.clone().into(), gateway_of_far().into()],
        "10.1.0.1:80",
        refused,
    );
    let named = wire::Service {
        subject_alt_names: vec!["spiffe://cluster.local/ns/ns/sa/server".into()],
        ..service("named", &["10.1.0.2"])
    };
    let sum = wire::Workload {
        services: in_service(pod("x", &[]), "named", &[]).services,
        ..sum
    };
    check(
        vec![sum.into(), gateway_of_far().into(), named.into()],
        "10.1.0.2:80",
        "double 192.0.2.1:15008 as eastwest for named.ns:80 as server of named",
    );

    // A gateway that is a service of the other network.
    let by_name = wire::Workload {
        network_gateway: Some(gateway("ew.ns")),
        ..web()
    };
    let instance = wire::Workload {
        network: "far".into(),
        ..in_service(pod("ew", &["192.0.2.2"]), "ew", &[])
    };
    check(
        vec![by_name.into(), instance.into(), service("ew", &[]).into()],
        "10.1.0.1:80",
        "double 192.0.2.2:15008 as ew for web.ns:80 as web of web",
    );
}

#[test]
fn a_waypoint_may_be_in_another_network() {
    let waypoint = far(in_service(pod("wp", &["10.0.0.50"]), "wp", &[]));
    let pod = wire::Workload {
        waypoint: Some(gateway("wp.ns")),
        ..hbone("pod", &["10.0.0.3"])
    };
    let snapshot = store([
        hbone("client", &["10.0.0.1"]).into(),
        waypoint.into(),
        service("wp", &[]).into(),
        gateway_of_far().into(),
        pod.into(),
        guarded("web", "10.1.0.1", gateway("wp.ns")),
    ])
    .snapshot();
    assert_eq!(
        route(&snapshot, "client", "10.1.0.1:80"),
        "double 192.0.2.1:15008 as eastwest for web.ns:80 as wp of web"
    );
    assert_eq!(
        route(&snapshot, "client", "10.0.0.3:80"),
        "no valid routing destination for workload: 10.0.0.3:80 is in another network"
    );
}

#[test]
fn a_proxy_of_the_other_network_sees_it_the_other_way_round() {
    let store = crate::Store::new(crate::LocalNode {
        network: Network::new("far"),
        node: Some("a".into()),
    });
    let web = far(in_service(hbone("web", &["10.0.0.9"]), "web", &[]));
    let vip = wire::NetworkAddress {
        network: "far".into(),
        ..vip("10.1.0.1")
    };
    store.apply([
        far(hbone("client", &["10.0.0.8"])).into(),
        web.into(),
        gateway_of_far().into(),
        wire::Service {
            addresses: vec![vip],
            ..service("web", &[])
        }
        .into(),
    ]);
    assert_eq!(
        route(&store.snapshot(), "client", "10.1.0.1:80"),
        "hbone 10.0.0.9:15008 for 10.0.0.9:8080 as web of web"
    );
}
