mod gateways;

use leyline_proto::istio::workload as wire;

use super::*;
use crate::testing::{
    bytes, gateway, hbone, in_service, pod, port_list, rng, service, store, vip, workload_of,
};

/// A decision in one line.
fn line(route: &OutboundRoute) -> String {
    let of = |service: &Option<Arc<Service>>| {
        service
            .as_ref()
            .map_or_else(String::new, |service| format!(" of {}", service.name))
    };
    match route {
        OutboundRoute::Hbone(route) => {
            let accounts = route
                .expected
                .iter()
                .map(|id| id.service_account().as_str());
            let accounts: Vec<_> = accounts.collect();
            format!(
                "hbone {} for {} as {}{}",
                route.tunnel,
                route.authority,
                accounts.join("+"),
                of(&route.service)
            )
        }
        OutboundRoute::DoubleHbone(route) => {
            let names = |all: &[Identity]| -> String {
                let names = all.iter().map(|id| id.service_account().as_str());
                names.collect::<Vec<_>>().join("+")
            };
            format!(
                "double {} as {} for {} as {} of {}",
                route.gateway.tunnel,
                names(&route.gateway.expected),
                route.authority,
                names(&route.expected),
                route.service.name
            )
        }
        OutboundRoute::Tcp {
            target,
            workload,
            service,
        } => {
            format!("tcp {target} to {}{}", workload.name.name, of(service))
        }
        OutboundRoute::Passthrough { target, service } => {
            format!("passthrough {target}{}", of(service))
        }
        OutboundRoute::Refused(why) => format!("refused {}", why.reason()),
    }
}

fn mesh() -> Vec<crate::Change> {
    let remote = wire::Workload {
        network: "far".into(),
        ..hbone("remote", &["10.9.0.1"])
    };
    let dns = wire::Workload {
        hostname: "db.example".into(),
        ..pod("dns", &[])
    };
    let host_network = wire::Workload {
        network_mode: wire::NetworkMode::HostNetwork.into(),
        ..pod("agent", &["192.168.0.1"])
    };
    let behind_waypoint = wire::Workload {
        waypoint: Some(gateway("waypoint.ns")),
        ..hbone("guarded", &["10.0.0.7"])
    };
    let not_ready = wire::Workload {
        status: wire::WorkloadStatus::Unhealthy.into(),
        ..hbone("starting", &["10.0.0.8"])
    };
    let pending = |pod| wire::Workload {
        extensions: vec![wire::Extension {
            name: leyline_types::ENROLMENT_PENDING.into(),
            config: None,
        }],
        ..pod
    };
    vec![
        in_service(pending(pod("coming", &["10.0.0.9"])), "coming", &[]).into(),
        in_service(pending(pod("other", &["10.0.0.11"])), "partly", &[]).into(),
        in_service(hbone("there", &["10.0.0.12"]), "partly", &[]).into(),
        service("coming", &["10.1.0.11"]).into(),
        service("partly", &["10.1.0.12"]).into(),
        hbone("client", &["10.0.0.1", "fd00::1"]).into(),
        in_service(hbone("server", &["10.0.0.2", "fd00::2"]), "web", &[]).into(),
        in_service(pod("legacy", &["10.0.0.3"]), "old", &[]).into(),
        in_service(remote, "far", &[]).into(),
        in_service(dns, "dns", &[]).into(),
        in_service(host_network, "agent", &[]).into(),
        in_service(behind_waypoint, "guarded", &[]).into(),
        in_service(not_ready, "starting", &[]).into(),
        service("web", &["10.1.0.1", "fd01::1"]).into(),
        service("old", &["10.1.0.2"]).into(),
        service("far", &["10.1.0.3"]).into(),
        service("dns", &["10.1.0.4"]).into(),
        service("agent", &["10.1.0.5"]).into(),
        service("guarded", &["10.1.0.6"]).into(),
        service("starting", &["10.1.0.7"]).into(),
        service("empty", &["10.1.0.8"]).into(),
        wire::Service {
            waypoint: Some(gateway("waypoint.ns")),
            ..service("l7", &["10.1.0.9"])
        }
        .into(),
        wire::Service {
            weighted_waypoints: vec![wire::WeightedGatewayAddress {
                destination: Some(gateway("waypoint.ns")),
                weight: 0,
            }],
            ..service("canary", &["10.1.0.10"])
        }
        .into(),
        wire::Service {
            load_balancing: Some(wire::LoadBalancing {
                mode: wire::load_balancing::Mode::Passthrough.into(),
                ..wire::LoadBalancing::default()
            }),
            ..service("external", &["10.0.0.0/16", "1.2.3.4"])
        }
        .into(),
    ]
}

#[test]
fn decides_by_destination() {
    let store = store(mesh());
    let snapshot = store.snapshot();
    let client = workload_of(&snapshot, "client");
    let check = |dst: &str, expected: &str| {
        let dst = OrigDst::new(dst.parse().unwrap());
        let route = snapshot.route_outbound(client, dst, &mut rng());
        assert_eq!(line(&route), expected, "{dst}");
    };

    // Services.
    check(
        "10.1.0.1:80",
        "hbone 10.0.0.2:15008 for 10.0.0.2:8080 as server of web",
    );
    check(
        "[fd01::1]:80",
        "hbone [fd00::2]:15008 for [fd00::2]:8080 as server of web",
    );
    check("10.1.0.2:80", "tcp 10.0.0.3:8080 to legacy of old");
    check("10.1.0.5:80", "tcp 192.168.0.1:8080 to agent of agent");
    check("10.1.0.1:81", "refused unknown_port");
    check("10.1.0.3:80", "refused other_network");
    check("10.1.0.4:80", "refused hostname_only");
    check("10.1.0.7:80", "refused no_healthy_upstream");
    check("10.1.0.8:80", "refused no_healthy_upstream");
    check("10.0.0.9:8080", "refused enrolment_pending");
    check("10.1.0.11:80", "refused enrolment_pending");
    check(
        "10.1.0.12:80",
        "hbone 10.0.0.12:15008 for 10.0.0.12:8080 as there of partly",
    );
    check("10.1.0.9:80", "refused unknown_waypoint");
    check("10.1.0.10:80", "refused unknown_waypoint");
    // A service without waypoint leads past the waypoint of its workloads.
    check(
        "10.1.0.6:80",
        "hbone 10.0.0.7:15008 for 10.0.0.7:8080 as guarded of guarded",
    );

    // Workloads. An enrolled one is never reached in plaintext, even where a service says "to the original destination".
    check(
        "10.0.0.2:9999",
        "hbone 10.0.0.2:15008 for 10.0.0.2:9999 as server of external",
    );
    check(
        "10.0.0.8:80",
        "hbone 10.0.0.8:15008 for 10.0.0.8:80 as starting of external",
    );
    check("10.0.0.7:80", "refused unknown_waypoint");
    check(
        "[fd00::2]:1",
        "hbone [fd00::2]:15008 for [fd00::2]:1 as server",
    );
    check("10.0.0.3:22", "tcp 10.0.0.3:22 to legacy of external");
    check("10.0.99.9:22", "passthrough 10.0.99.9:22 of external");
    check("1.2.3.4:443", "passthrough 1.2.3.4:443 of external");

    // Nobody we know; the address of a node tells no workload, and another network's address is not ours.
    check("8.8.8.8:53", "passthrough 8.8.8.8:53");
    check("192.168.0.1:22", "passthrough 192.168.0.1:22");
    check("10.9.0.1:80", "passthrough 10.9.0.1:80");
    check("[::ffff:8.8.8.8]:53", "passthrough 8.8.8.8:53");

    // Ourselves.
    for dst in [
        "127.0.0.1:15001",
        "[::1]:15006",
        "0.0.0.0:15008",
        "10.0.0.1:15001",
        "[fd00::1]:15008",
    ] {
        check(dst, "refused self_call");
    }
    check("127.0.0.1:80", "passthrough 127.0.0.1:80");
    check(
        "10.0.0.2:15008",
        "hbone 10.0.0.2:15008 for 10.0.0.2:15008 as server of external",
    );
}

#[test]
fn holds_what_may_be_in_the_mesh_until_everything_is_known() {
    let store = crate::Store::new(crate::LocalNode::default());
    store.apply(mesh());
    let check = |dst: &str, expected: &str| {
        let snapshot = store.snapshot();
        let client = workload_of(&snapshot, "client");
        let dst = OrigDst::new(dst.parse().unwrap());
        assert_eq!(
            line(&snapshot.route_outbound(client, dst, &mut rng())),
            expected
        );
    };
    check("8.8.8.8:53", "refused not_synced");
    check("1.2.3.4:443", "refused not_synced");
    check("10.1.0.2:80", "tcp 10.0.0.3:8080 to legacy of old");
    assert!(store.mark_synced());
    assert!(!store.mark_synced());
    check("8.8.8.8:53", "passthrough 8.8.8.8:53");
}

#[test]
fn endpoints_may_be_anyone_that_the_service_names() {
    let named = wire::Service {
        subject_alt_names: vec![
            "spiffe://cluster.local/ns/ns/sa/zoe".into(),
            "db.example".into(),
            "spiffe://cluster.local/ns/ns/sa/ann".into(),
            "spiffe://cluster.local/ns/ns/sa/server".into(),
        ],
        ..service("web", &["10.1.0.1"])
    };
    let server = in_service(hbone("server", &["10.0.0.2"]), "web", &[]);
    let store = store([
        hbone("client", &["10.0.0.1"]).into(),
        server.into(),
        named.into(),
    ]);
    let snapshot = store.snapshot();
    let route = snapshot.route_outbound(
        workload_of(&snapshot, "client"),
        OrigDst::new("10.1.0.1:80".parse().unwrap()),
        &mut rng(),
    );
    assert_eq!(
        line(&route),
        "hbone 10.0.0.2:15008 for 10.0.0.2:8080 as ann+server+zoe of web"
    );
}

#[test]
fn target_port_is_the_workloads_own_then_the_services() {
    let check = |service_ports: &[(u32, u32)], own: &[(u32, u32)], expected: &str| {
        let web = wire::Service {
            ports: port_list(service_ports),
            ..service("web", &["10.1.0.1"])
        };
        let server = in_service(hbone("server", &["10.0.0.2"]), "web", own);
        let store = store([
            hbone("client", &["10.0.0.1"]).into(),
            server.into(),
            web.into(),
        ]);
        let snapshot = store.snapshot();
        let dst = OrigDst::new("10.1.0.1:80".parse().unwrap());
        let route = snapshot.route_outbound(workload_of(&snapshot, "client"), dst, &mut rng());
        let got = match &route {
            OutboundRoute::Hbone(route) => route.authority.to_string(),
            OutboundRoute::Refused(why) => why.reason().to_owned(),
            other => format!("{other:?}"),
        };
        assert_eq!(got, expected, "{service_ports:?} {own:?}");
    };
    check(&[(80, 8080)], &[], "10.0.0.2:8080");
    check(&[(80, 8080)], &[(80, 9090)], "10.0.0.2:9090");
    check(&[(80, 8080)], &[(80, 0)], "10.0.0.2:8080");
    check(&[(80, 0)], &[(80, 9090)], "10.0.0.2:9090");
    check(&[(80, 0)], &[], "no_healthy_upstream");
    check(&[(81, 8080)], &[(80, 9090)], "unknown_port");
}

#[test]
fn address_family_follows_the_request_and_the_service() {
    use wire::IpFamilies::{Automatic, Dual, Ipv4Only, Ipv6Only};
    let check = |families: wire::IpFamilies, ips: &[&str], dst: &str, expected: Option<&str>| {
        let web = wire::Service {
            ip_families: families.into(),
            ..service("web", &["10.1.0.1", "fd01::1", "10.0.0.0/24"])
        };
        let server = in_service(hbone("server", ips), "web", &[]);
        let store = store([
            hbone("client", &["10.0.0.1"]).into(),
            server.into(),
            web.into(),
        ]);
        let snapshot = store.snapshot();
        let dst = OrigDst::new(dst.parse().unwrap());
        let route = snapshot.route_outbound(workload_of(&snapshot, "client"), dst, &mut rng());
        let got = match &route {
            OutboundRoute::Hbone(route) => Some(route.tunnel.ip().to_string()),
            _ => None,
        };
        assert_eq!(got.as_deref(), expected, "{families:?} {ips:?} {dst}");
    };
    let both = ["10.0.0.2", "10.0.0.3", "fd00::2"];
    check(Automatic, &both, "10.1.0.1:80", Some("10.0.0.2"));
    check(Dual, &both, "[fd01::1]:80", Some("fd00::2"));
    check(Dual, &both, "10.0.0.3:80", Some("10.0.0.3"));
    check(Ipv4Only, &both, "[fd01::1]:80", Some("10.0.0.2"));
    check(Ipv6Only, &both, "10.1.0.1:80", Some("fd00::2"));
    check(Ipv6Only, &["10.0.0.2"], "10.1.0.1:80", None);
    check(Automatic, &["10.0.0.2"], "[fd01::1]:80", Some("10.0.0.2"));
}

#[test]
fn other_networks_are_never_reached_directly() {
    let far = |name: &str| wire::Workload {
        network: "far".into(),
        ..in_service(hbone(name, &["10.0.0.9"]), "web", &[])
    };
    let near = in_service(hbone("near", &["10.0.0.2"]), "web", &[]);
    let mut changes: Vec<crate::Change> = vec![
        hbone("client", &["10.0.0.1"]).into(),
        service("web", &["10.1.0.1"]).into(),
        far("far-1").into(),
        far("far-2").into(),
        near.into(),
    ];
    changes.push(
        wire::Service {
            addresses: vec![wire::NetworkAddress {
                network: "far".into(),
                address: bytes("10.1.0.2"),
                length: None,
            }],
            ..service("elsewhere", &[])
        }
        .into(),
    );
    let store = store(changes);
    let snapshot = store.snapshot();
    let client = workload_of(&snapshot, "client");
    let mut rng = rng();
    for _ in 0..100 {
        let dst = OrigDst::new("10.1.0.1:80".parse().unwrap());
        let route = snapshot.route_outbound(client, dst, &mut rng);
        assert!(
            line(&route).starts_with("hbone 10.0.0.2:15008"),
            "{}",
            line(&route)
        );
    }
    let dst = OrigDst::new("10.1.0.2:80".parse().unwrap());
    let route = snapshot.route_outbound(client, dst, &mut rng);
    assert_eq!(line(&route), "passthrough 10.1.0.2:80");
}

#[test]
fn longest_block_wins_unless_the_own_namespace_has_one() {
    let block = |namespace: &str, cidr: &str| wire::Service {
        namespace: namespace.into(),
        addresses: vec![vip(cidr)],
        ..service("block", &[])
    };
    let check = |blocks: &[(&str, &str)], expected: &str| {
        let mut changes: Vec<crate::Change> = vec![hbone("client", &["10.0.0.1"]).into()];
        changes.extend(blocks.iter().map(|(ns, cidr)| block(ns, cidr).into()));
        let snapshot = store(changes).snapshot();
        let found = snapshot.service_at("10.2.3.4".parse().unwrap(), &"ns".into());
        assert_eq!(
            found.map_or("", |known| known.service.namespace.as_str()),
            expected
        );
    };
    check(&[("a", "10.2.0.0/16"), ("b", "10.2.3.0/24")], "b");
    check(&[("ns", "10.2.0.0/16"), ("b", "10.2.3.0/24")], "ns");
    check(&[("a", "10.2.0.0/16"), ("b", "10.2.3.4/32")], "b");
    check(&[("a", "10.3.0.0/16")], "");
}
