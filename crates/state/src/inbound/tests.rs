use leyline_proto::istio::workload as wire;

use super::*;
use crate::testing::{
    gateway, hbone, in_service, pod, port_list, service, store, vip, workload_of,
};

#[test]
fn resolves_what_is_for_this_workload_only() {
    let web = wire::Service {
        ports: port_list(&[(80, 8080), (81, 0), (82, 0), (83, 15006)]),
        ..service("Web", &["10.1.0.1"])
    };
    let hidden = wire::Service {
        namespace: "other".into(),
        hostname: "hidden.other".into(),
        visibility: wire::Visibility::NamespaceOnly.into(),
        ..service("hidden", &["10.1.0.2"])
    };
    let server = in_service(
        hbone("server", &["10.0.0.2", "fd00::2"]),
        "Web",
        &[(81, 9090)],
    );
    let store = store([server.into(), web.into(), hidden.into()]);
    let snapshot = store.snapshot();
    let check = |local_ip: &str, authority: &str, expected: &str| {
        let found = snapshot.resolve_inbound(
            workload_of(&snapshot, "server"),
            local_ip.parse().unwrap(),
            &authority.parse().unwrap(),
        );
        let got = match found {
            Ok(target) => match target.service {
                Some(service) => format!("{} of {}", target.addr, service.name),
                None => target.addr.to_string(),
            },
            Err(refusal) => refusal.to_string(),
        };
        assert_eq!(got, expected, "{authority}");
    };
    check("10.0.0.2", "10.0.0.2:80", "10.0.0.2:80");
    check("::ffff:10.0.0.2", "10.0.0.2:80", "10.0.0.2:80");
    check("10.0.0.2", "[::ffff:10.0.0.2]:80", "10.0.0.2:80");
    check("fd00::2", "[fd00::2]:80", "[fd00::2]:80");
    check(
        "10.0.0.2",
        "[fd00::2]:80",
        "ip mismatch: fd00::2 != 10.0.0.2",
    );
    check(
        "10.0.0.2",
        "10.0.0.3:80",
        "ip mismatch: 10.0.0.3 != 10.0.0.2",
    );
    check(
        "10.0.0.2",
        "127.0.0.1:80",
        "ip mismatch: 127.0.0.1 != 10.0.0.2",
    );
    for port in [15001, 15006, 15008] {
        let expected = format!("attempted recursive call to ourselves: port {port}");
        check("10.0.0.2", &format!("10.0.0.2:{port}"), &expected);
    }
    check("10.0.0.2", "web.ns:80", "10.0.0.2:8080 of Web");
    check("10.0.0.2", "web.ns:81", "10.0.0.2:9090 of Web");
    check("10.0.0.2", "WEB.ns:80", "10.0.0.2:8080 of Web");
    let no_port = "service ns/Web.ns has no target for port 82 on this workload";
    check("10.0.0.2", "web.ns:82", no_port);
    check(
        "10.0.0.2",
        "web.ns:83",
        "attempted recursive call to ourselves: port 15006",
    );
    check("10.0.0.2", "nobody.ns:80", "unknown host nobody.ns");
    check("10.0.0.2", "hidden.other:80", "unknown host hidden.other");
}

/// What a stream becomes, or why not.
fn resolve(snapshot: &Snapshot, local: &str, local_ip: &str, authority: &str) -> String {
    let found = snapshot.resolve_inbound(
        workload_of(snapshot, local),
        local_ip.parse().unwrap(),
        &authority.parse().unwrap(),
    );
    match found {
        Err(refusal) => refusal.to_string(),
        Ok(target) => {
            let service = target
                .service
                .map(|service| format!(" of {}", service.name));
            let delivery = match target.delivery {
                Delivery::Direct => String::new(),
                Delivery::Tunnel => " in a tunnel".to_owned(),
                Delivery::ProxyHeader(asked) => format!(" told {asked}"),
            };
            format!("{}{}{delivery}", target.addr, service.unwrap_or_default())
        }
    }
}

/// A captured waypoint `wp` and what goes through it.
fn behind_waypoint(tunnel: Option<wire::ApplicationTunnel>) -> crate::Store {
    let waypoint = wire::Workload {
        application_tunnel: tunnel,
        ..in_service(hbone("wp", &["10.0.0.50", "fd00::50"]), "wp", &[])
    };
    let guarded = |name: &str, vips: &[&str]| wire::Service {
        waypoint: Some(gateway("wp.ns")),
        ..service(name, vips)
    };
    let canary = wire::Service {
        weighted_waypoints: vec![wire::WeightedGatewayAddress {
            destination: Some(gateway("wp.ns")),
            weight: 1,
        }],
        ..service("canary", &["10.1.0.3"])
    };
    let pod = wire::Workload {
        waypoint: Some(gateway("wp.ns")),
        ..hbone("pod", &["10.0.0.3"])
    };
    store([
        waypoint.into(),
        service("wp", &["10.1.0.99"]).into(),
        guarded("web", &["10.1.0.1", "fd01::1"]).into(),
        guarded("block", &["10.7.0.0/16"]).into(),
        guarded("headless", &[]).into(),
        canary.into(),
        pod.into(),
        service("other", &["10.1.0.2"]).into(),
    ])
}

#[test]
fn a_waypoint_is_asked_for_what_goes_through_it() {
    let snapshot = behind_waypoint(None).snapshot();
    let check = |authority: &str, expected: &str| {
        let got = resolve(&snapshot, "wp", "10.0.0.50", authority);
        assert_eq!(got, expected, "{authority}");
    };
    check("10.0.0.50:80", "10.0.0.50:80");
    check("10.1.0.1:80", "10.0.0.50:80 of web");
    check("[fd01::1]:80", "10.0.0.50:80 of web");
    check("10.7.8.9:80", "10.0.0.50:80 of block");
    check("10.1.0.3:80", "10.0.0.50:80 of canary");
    check("10.0.0.3:80", "10.0.0.50:80");
    check("10.1.0.2:80", "ip mismatch: 10.1.0.2 != 10.0.0.50");
    check("10.0.0.9:80", "ip mismatch: 10.0.0.9 != 10.0.0.50");
    let other = resolve(&snapshot, "pod", "10.0.0.3", "10.1.0.1:80");
    assert_eq!(other, "ip mismatch: 10.1.0.1 != 10.0.0.3");
}

#[test]
fn an_application_tunnel_takes_every_address() {
    use wire::application_tunnel::Protocol::{None, Proxy};
    let check =
        |protocol: wire::application_tunnel::Protocol, port: u32, authority, expected: &str| {
            let tunnel = wire::ApplicationTunnel {
                protocol: protocol.into(),
                port,
            };
            let snapshot = behind_waypoint(Some(tunnel)).snapshot();
            let got = resolve(&snapshot, "wp", "10.0.0.50", authority);
            assert_eq!(got, expected, "{protocol:?} {port} {authority}");
        };
    let web = "10.0.0.50:15088 of web told 10.1.0.1:80";
    check(Proxy, 15088, "10.1.0.1:80", web);
    // IPv4 first.
    check(Proxy, 15088, "web.ns:80", web);
    check(
        Proxy,
        0,
        "10.1.0.1:81",
        "10.0.0.50:81 of web told 10.1.0.1:81",
    );
    check(
        Proxy,
        15088,
        "10.9.9.9:81",
        "10.0.0.50:15088 told 10.9.9.9:81",
    );
    // No port of the service, but the application's own.
    check(
        Proxy,
        15088,
        "web.ns:9999",
        "10.0.0.50:15088 of web told 10.1.0.1:9999",
    );
    check(
        Proxy,
        15088,
        "headless.ns:80",
        "service ns/headless.ns has no address to tell the application",
    );
    check(
        None,
        15088,
        "10.1.0.1:80",
        "10.0.0.50:15088 of web in a tunnel",
    );
    check(
        None,
        0,
        "headless.ns:80",
        "10.0.0.50:8080 of headless in a tunnel",
    );
    check(
        None,
        15008,
        "10.1.0.1:80",
        "attempted recursive call to ourselves: port 15008",
    );
}

#[test]
fn the_gateway_of_our_network_is_known_by_address_and_identity() {
    let at = |address: &str| wire::GatewayAddress {
        hbone_mtls_port: 15008,
        destination: Some(wire::gateway_address::Destination::Address(vip(address))),
    };
    let check = |gateway: Option<wire::GatewayAddress>, ip: &str, expected: bool| {
        let local = wire::Workload {
            network_gateway: gateway,
            ..hbone("local", &["10.0.0.2"])
        };
        let balancer = wire::Workload {
            service_account: "ew".into(),
            ..hbone("balancer", &["192.0.2.1"])
        };
        let snapshot = store([
            local.into(),
            balancer.into(),
            in_service(pod("ew", &["10.0.0.60"]), "ew", &[]).into(),
            service("ew", &[]).into(),
            pod("other", &["10.0.0.61"]).into(),
        ])
        .snapshot();
        let local = workload_of(&snapshot, "local");
        let got = snapshot.is_from_network_gateway(local, ip.parse().unwrap());
        assert_eq!(got, expected, "{ip}");
    };
    check(None, "192.0.2.1", false);
    check(Some(at("192.0.2.1")), "192.0.2.1", true);
    // A pod behind that address.
    check(Some(at("192.0.2.1")), "10.0.0.60", true);
    check(Some(at("192.0.2.1")), "10.0.0.61", false);
    check(Some(at("192.0.2.1")), "10.0.0.99", false);
    check(Some(gateway("ew.ns")), "10.0.0.60", true);
    check(Some(gateway("ew.ns")), "10.0.0.61", false);
}
