use leyline_proto::istio::workload as wire;

use super::*;
use crate::testing::{hbone, in_service, port_list, service, store, workload_of};

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

#[test]
fn an_application_tunnel_is_refused_rather_than_ignored() {
    let tunnelled = wire::Workload {
        application_tunnel: Some(wire::ApplicationTunnel::default()),
        ..hbone("server", &["10.0.0.2"])
    };
    let snapshot = store([tunnelled.into()]).snapshot();
    let refusal = snapshot
        .resolve_inbound(
            workload_of(&snapshot, "server"),
            "10.0.0.2".parse().unwrap(),
            &"10.0.0.2:80".parse().unwrap(),
        )
        .unwrap_err();
    assert_eq!(refusal, InboundRefusal::ApplicationTunnel);
}
