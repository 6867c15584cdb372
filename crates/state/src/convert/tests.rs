use leyline_authz::Policy;
use leyline_proto::istio::security;
use proptest::prelude::*;

use super::*;
use crate::{
    Workload,
    testing::{
        deny_all, gateway, hbone, in_service, pod, port_list, service as wire_service,
        trust_domain_aliases,
    },
};

fn text(error: &dyn std::error::Error) -> String {
    error.to_string()
}

#[test]
fn a_bad_workload_says_what_is_wrong() {
    let check = |edit: &dyn Fn(&mut proto::Workload), expected: &str| {
        let mut wire = in_service(hbone("a", &["10.0.0.1"]), "web", &[(80, 8080)]);
        edit(&mut wire);
        let got = workload(wire).map_or_else(|error| text(&error), |_| "fine".to_owned());
        assert_eq!(got, expected);
    };
    let at = |rest: &str| format!("`c//Pod/ns/a`: {rest}");
    check(&|_| {}, "fine");
    check(&|w| w.uid.clear(), "``: uid: is missing");
    check(&|w| w.namespace.clear(), &at("namespace: is missing"));
    check(
        &|w| w.addresses.push(vec![1, 2, 3]),
        &at("addresses[1]: has 3 bytes, an address has 4 or 16"),
    );
    check(
        &|w| w.tunnel_protocol = 2,
        &at("tunnel_protocol: LEGACY_ISTIO_MTLS is not supported"),
    );
    check(
        &|w| w.tunnel_protocol = 9,
        &at("tunnel_protocol: unknown value 9"),
    );
    check(&|w| w.status = 9, &at("status: unknown value 9"));
    check(
        &|w| w.network_mode = 9,
        &at("network_mode: unknown value 9"),
    );
    check(
        &|w| w.authorization_policies = vec!["ns/ok".into(), "bad".into()],
        &at("authorization_policies[1]: `bad` is not of the form namespace/name"),
    );
    check(
        &|w| {
            w.services.insert("bad".into(), proto::PortList::default());
        },
        &at("services: `bad` is not of the form namespace/hostname"),
    );
    check(
        &|w| {
            let ports = port_list(&[(70000, 80)]);
            w.services.insert("ns/x".into(), proto::PortList { ports });
        },
        &at("services[ns/x].ports[0]: 70000 is not a port"),
    );
    check(
        &|w| w.waypoint = Some(proto::GatewayAddress::default()),
        &at("waypoint.destination: is missing"),
    );
    check(
        &|w| {
            w.network_gateway = Some(proto::GatewayAddress {
                hbone_mtls_port: 65536,
                ..gateway("gw.ns")
            });
        },
        &at("network_gateway.hbone_mtls_port: 65536 is not a port"),
    );
    let mut bad_account = hbone("a", &[]);
    bad_account.service_account = "a b".into();
    let error = text(&workload(bad_account).unwrap_err());
    assert!(error.starts_with(&at("service_account: ")), "{error}");
    let mut bad_domain = hbone("a", &[]);
    bad_domain.trust_domain = "a/b".into();
    let error = text(&workload(bad_domain).unwrap_err());
    assert!(error.starts_with(&at("trust_domain: ")), "{error}");
    let mut bad_alias = hbone("a", &[]);
    bad_alias.extensions = vec![trust_domain_aliases(&["a/b"])];
    let error = text(&workload(bad_alias).unwrap_err());
    let field = at("extensions[leyline.io/trust-domain-aliases]: ");
    assert!(error.starts_with(&field), "{error}");
    let mut no_list = hbone("a", &[]);
    no_list.extensions = vec![proto::Extension {
        config: None,
        ..trust_domain_aliases(&[])
    }];
    let error = text(&workload(no_list).unwrap_err());
    assert_eq!(error, field + "is not a list of trust domains");
}

#[test]
fn a_workload_may_be_of_the_aliases_of_its_trust_domain() {
    let wire = proto::Workload {
        extensions: vec![trust_domain_aliases(&["old.example", "cluster.local"])],
        ..hbone("a", &["10.0.0.1"])
    };
    let workload: Workload = workload(wire).unwrap();
    let expected: Vec<String> = workload
        .expected_identities()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        expected,
        [
            "spiffe://cluster.local/ns/ns/sa/a",
            "spiffe://old.example/ns/ns/sa/a"
        ]
    );
    let shown = serde_json::to_value(&workload).unwrap();
    let aliases = serde_json::json!(["old.example", "cluster.local"]);
    assert_eq!(shown["trustDomainAliases"], aliases);
}

#[test]
fn a_bad_service_says_what_is_wrong() {
    let check = |edit: &dyn Fn(&mut proto::Service), expected: &str| {
        let mut wire = wire_service("web", &["10.1.0.1"]);
        edit(&mut wire);
        let got = service(wire).map_or_else(|error| text(&error), |_| "fine".to_owned());
        assert_eq!(got, expected);
    };
    fn lb(edit: impl Fn(&mut proto::LoadBalancing)) -> Option<proto::LoadBalancing> {
        let mut lb = proto::LoadBalancing::default();
        edit(&mut lb);
        Some(lb)
    }
    let at = |rest: &str| format!("`ns/web.ns`: {rest}");
    check(&|_| {}, "fine");
    check(&|s| s.hostname.clear(), "`ns/`: hostname: is missing");
    check(
        &|s| s.addresses[0].address.clear(),
        &at("addresses[0]: has 0 bytes, an address has 4 or 16"),
    );
    check(
        &|s| s.addresses[0].length = Some(33),
        &at("addresses[0]: prefix length 33 is longer than the address"),
    );
    check(
        &|s| s.ports = port_list(&[(0, 80)]),
        &at("ports[0].service_port: 0 is not a port"),
    );
    check(
        &|s| s.ports = port_list(&[(80, 0), (81, 65536)]),
        &at("ports[1].target_port: 65536 is not a port"),
    );
    check(&|s| s.ip_families = 7, &at("ip_families: unknown value 7"));
    check(
        &|s| s.load_balancing = lb(|lb| lb.mode = 9),
        &at("load_balancing.mode: unknown value 9"),
    );
    check(
        &|s| s.load_balancing = lb(|lb| lb.health_policy = 9),
        &at("load_balancing.health_policy: unknown value 9"),
    );
    check(
        &|s| s.load_balancing = lb(|lb| lb.routing_preference = vec![1, 0]),
        &at("load_balancing.routing_preference[1]: unknown value 0"),
    );
    check(
        &|s| s.weighted_waypoints = vec![proto::WeightedGatewayAddress::default()],
        &at("weighted_waypoints[0].destination: is missing"),
    );
}

#[test]
fn empty_fields_have_their_documented_meaning() {
    let wire = proto::Workload {
        uid: "u".into(),
        namespace: "ns".into(),
        ..proto::Workload::default()
    };
    let workload = workload(wire).unwrap();
    assert_eq!(
        workload.identity.to_string(),
        "spiffe://cluster.local/ns/ns/sa/default"
    );
    assert_eq!(workload.cluster_id, "Kubernetes");
    assert_eq!(workload.capacity, 1);
    let zero = proto::Workload {
        capacity: Some(0),
        ..pod("a", &["::ffff:10.0.0.1"])
    };
    let zero = super::workload(zero).unwrap();
    assert_eq!(zero.capacity, 0);
    assert_eq!(zero.addresses[0].to_string(), "10.0.0.1");
}

#[test]
fn a_policy_is_rejected_when_nobody_knows_whom_it_is_for() {
    let check = |edit: &dyn Fn(&mut security::Authorization), expected: &str| {
        let mut wire = deny_all("ns/p", security::Scope::Namespace);
        edit(&mut wire);
        let got = policy(wire).map_or_else(|error| text(&error), |_| "fine".to_owned());
        assert_eq!(got, expected);
    };
    check(&|_| {}, "fine");
    check(&|p| p.scope = 9, "`ns/p`: scope: unknown value 9");
    check(&|p| p.action = 2, "`ns/p`: action: unknown value 2");
    check(
        &|p| p.name.clear(),
        "`ns/`: name: `ns/` is not of the form namespace/name",
    );
}

#[test]
fn a_condition_that_is_not_understood_is_kept_as_such() {
    let parse = |one: security::Match| -> Policy {
        let clause = security::Rules { matches: vec![one] };
        let wire = security::Authorization {
            groups: vec![security::Group {
                rules: vec![clause],
            }],
            ..deny_all("ns/p", security::Scope::Namespace)
        };
        policy(wire).unwrap()
    };
    let block = |address: &[u8], length| security::Address {
        address: address.to_vec(),
        length,
    };
    let check = |one: security::Match, expected: Option<&str>| {
        assert_eq!(parse(one).malformed(), expected);
    };
    let empty = security::Match::default;
    check(empty(), None);
    check(
        security::Match {
            source_ips: vec![block(&[10, 0, 0, 0], 8), block(&[10, 0, 0, 0], 40)],
            ..empty()
        },
        Some("source_ips[1]: prefix length 40 is longer than the address"),
    );
    check(
        security::Match {
            not_destination_ips: vec![block(&[10], 8)],
            ..empty()
        },
        Some("not_destination_ips[0]: has 1 bytes, an address has 4 or 16"),
    );
    check(
        security::Match {
            destination_ports: vec![80, 65536],
            ..empty()
        },
        Some("destination_ports[1]: 65536 is not a port"),
    );
    check(
        security::Match {
            not_principals: vec![security::StringMatch { match_type: None }],
            ..empty()
        },
        Some("not_principals[0]: is missing"),
    );
    check(
        security::Match {
            service_accounts: vec![security::ServiceAccountMatch::default()],
            ..empty()
        },
        Some("service_accounts[0]: is missing"),
    );

    let kept = parse(security::Match {
        source_ips: vec![block(&[10, 1, 2, 3], 8), block(&[9], 8)],
        ..empty()
    });
    let json = serde_json::to_value(&kept).unwrap();
    assert_eq!(
        json["rules"][0][0][0]["sourceIps"],
        serde_json::json!(["10.0.0.0/8"])
    );
}

#[test]
fn every_condition_reaches_its_own_field() {
    use security::{ServiceAccountMatch, StringMatch, string_match::MatchType};
    let exact = |text: &str| StringMatch {
        match_type: Some(MatchType::Exact(text.into())),
    };
    let account = |namespace: &str| ServiceAccountMatch {
        namespace: namespace.into(),
        service_account: "sa".into(),
    };
    let block = |first: u8| security::Address {
        address: vec![first, 0, 0, 0],
        length: 8,
    };
    let one = security::Match {
        namespaces: vec![exact("a")],
        not_namespaces: vec![exact("b")],
        service_accounts: vec![account("c")],
        not_service_accounts: vec![account("d")],
        principals: vec![StringMatch {
            match_type: Some(MatchType::Prefix("e".into())),
        }],
        not_principals: vec![StringMatch {
            match_type: Some(MatchType::Presence(())),
        }],
        source_ips: vec![block(1)],
        not_source_ips: vec![block(2)],
        destination_ips: vec![block(3)],
        not_destination_ips: vec![block(4)],
        destination_ports: vec![5],
        not_destination_ports: vec![6],
    };
    let rules = security::Rules { matches: vec![one] };
    let wire = security::Authorization {
        groups: vec![security::Group { rules: vec![rules] }],
        ..deny_all("ns/p", security::Scope::WorkloadSelector)
    };
    let expected = serde_json::json!({
        "name": "p", "namespace": "ns", "scope": "WorkloadSelector", "action": "Deny", "dryRun": false,
        "rules": [[[{
            "namespaces": [{"Exact": "a"}], "notNamespaces": [{"Exact": "b"}],
            "serviceAccounts": [{"namespace": "c", "serviceAccount": "sa"}],
            "notServiceAccounts": [{"namespace": "d", "serviceAccount": "sa"}],
            "principals": [{"Prefix": "e"}], "notPrincipals": [{"Presence": []}],
            "sourceIps": ["1.0.0.0/8"], "notSourceIps": ["2.0.0.0/8"],
            "destinationIps": ["3.0.0.0/8"], "notDestinationIps": ["4.0.0.0/8"],
            "destinationPorts": [5], "notDestinationPorts": [6],
        }]]],
    });
    assert_eq!(
        serde_json::to_value(policy(wire).unwrap()).unwrap(),
        expected
    );
}

#[test]
fn blocks_of_one_address_and_mapped_blocks() {
    let check = |bytes: &[u8], length: u32, expected: Option<&str>| {
        let got = field::block(bytes, length).ok().map(|net| net.to_string());
        assert_eq!(got.as_deref(), expected);
    };
    check(&[10, 1, 2, 3], 16, Some("10.1.0.0/16"));
    check(&[10, 1, 2, 3], 33, None);
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3];
    check(&mapped, 112, Some("10.1.0.0/16"));
    check(&mapped, 64, None);
    check(&mapped, 129, None);
    check(&mapped, u32::MAX, None);
}

#[test]
fn a_resource_must_be_sent_under_its_own_name() {
    let wrap = |workload: proto::Workload| {
        let r#type = Some(proto::address::Type::Workload(workload));
        proto::Address { r#type }.encode_to_vec()
    };
    let body = wrap(pod("a", &["10.0.0.1"]));
    assert!(matches!(
        address("c//Pod/ns/a", &body),
        Ok(Change::Workload(_))
    ));
    let error = address("c//Pod/ns/b", &body).unwrap_err();
    assert_eq!(
        text(&error),
        "`c//Pod/ns/b`: name: the resource says `c//Pod/ns/a`"
    );
    let error = address("x", &proto::Address::default().encode_to_vec()).unwrap_err();
    assert_eq!(text(&error), "`x`: type: is missing");
    assert!(matches!(
        address("x", b"\xff"),
        Err(ConvertError::Decode { .. })
    ));

    let r#type = Some(proto::address::Type::Service(wire_service("web", &[])));
    let body = proto::Address { r#type }.encode_to_vec();
    assert!(matches!(
        address("ns/web.ns", &body),
        Ok(Change::Service(_))
    ));
    let body = deny_all("ns/p", security::Scope::Global).encode_to_vec();
    assert!(matches!(
        authorization("ns/p", &body),
        Ok(Change::Policy(_))
    ));
    assert!(authorization("ns/q", &body).is_err());
    assert!(removed_authorization("p").is_err());
}

#[test]
fn serializes_as_config_dump_shows_it() {
    let wire = proto::Workload {
        waypoint: Some(gateway("waypoint.ns")),
        authorization_policies: vec!["ns/p".into()],
        ..hbone("a", &["10.0.0.1"])
    };
    let workload: Workload = workload(wire).unwrap();
    let expected = serde_json::json!({
        "uid": "c//Pod/ns/a", "name": "a", "namespace": "ns", "serviceAccount": "a",
        "trustDomain": "cluster.local", "network": "", "workloadIps": ["10.0.0.1"], "hostname": "",
        "protocol": "HBONE", "networkMode": "Standard", "status": "Healthy", "node": "a",
        "clusterId": "Kubernetes", "locality": {"region": "", "zone": "", "subzone": ""},
        "workloadName": "", "workloadType": "pod", "canonicalName": "", "canonicalRevision": "",
        "nativeTunnel": false, "applicationTunnel": null,
        "waypoint": {"destination": "ns/waypoint.ns", "hboneMtlsPort": 15008},
        "networkGateway": null, "authorizationPolicies": ["ns/p"], "capacity": 1,
    });
    assert_eq!(serde_json::to_value(&workload).unwrap(), expected);

    let wire = proto::Service {
        ports: port_list(&[(80, 8080), (81, 0)]),
        load_balancing: Some(proto::LoadBalancing {
            routing_preference: vec![6, 1, 2],
            mode: 2,
            health_policy: 0,
        }),
        ip_families: 1,
        ..wire_service("web", &["10.1.0.1", "10.2.0.0/16"])
    };
    let expected = serde_json::json!({
        "name": "web", "namespace": "ns", "hostname": "web.ns", "vips": ["/10.1.0.1"],
        "cidrVips": [{"network": "", "cidr": "10.2.0.0/16"}], "ports": {"80": 8080, "81": 0},
        "subjectAltNames": [], "waypoint": null, "weightedWaypoints": [],
        "loadBalancer": {
            "mode": "Failover", "routingPreferences": ["Network", "Region", "Zone"],
            "healthPolicy": "OnlyHealthy",
        },
        "ipFamilies": "IPv4", "canonical": false, "visibility": "Public",
    });
    assert_eq!(
        serde_json::to_value(service(wire).unwrap()).unwrap(),
        expected
    );
}

fn harm(body: &mut [u8], damage: &[(prop::sample::Index, u8)]) {
    for (at, byte) in damage {
        body[at.index(body.len())] = *byte;
    }
}

proptest! {
    /// Whatever the control plane sends, it is a resource or an error.
    #[test]
    fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _address = address("x", &body);
        let _policy = authorization("x", &body);
    }

    /// Nor a valid resource with some bytes changed, which gets further than noise.
    #[test]
    fn no_damaged_resource_makes_it_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let workload = proto::Workload {
            waypoint: Some(gateway("waypoint.ns")),
            authorization_policies: vec!["ns/p".into()],
            ..in_service(hbone("a", &["10.0.0.1", "fd00::1"]), "web", &[(80, 8080)])
        };
        let service = wire_service("web", &["10.1.0.1", "10.2.0.0/16"]);
        let policy = deny_all("ns/p", security::Scope::Namespace);
        for resource in [
            proto::address::Type::Workload(workload),
            proto::address::Type::Service(service),
        ] {
            let resource = proto::Address {
                r#type: Some(resource),
            };
            let mut body = resource.encode_to_vec();
            harm(&mut body, &damage);
            let _resource = address("x", &body);
        }
        let mut body = policy.encode_to_vec();
        harm(&mut body, &damage);
        let _policy = authorization("ns/p", &body);
    }
}
