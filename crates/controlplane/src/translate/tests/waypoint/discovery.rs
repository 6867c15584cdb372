//! How the endpoints of clusters are found, where that is not by their addresses.

use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, DnsLookupFamily, LbPolicy,
};
use leyline_proto::istio::workload::{Address, address};

use super::*;

/// Each cluster of `*.example`: how endpoints are found, and which are told.
fn check(yaml: &str, expected: Expect) {
    let (translation, config) = config(yaml);
    let mut text = String::new();
    for cluster in decoded::<Cluster>(&config.clusters.resources) {
        if !cluster.name.ends_with(".example") {
            continue;
        }
        let kind = match cluster.cluster_discovery_type.as_ref().unwrap() {
            ClusterDiscoveryType::Type(kind) => {
                DiscoveryType::try_from(*kind).unwrap().as_str_name()
            }
            ClusterDiscoveryType::ClusterType(custom) => &custom.name,
        };
        let policy = LbPolicy::try_from(cluster.lb_policy).unwrap();
        write!(text, "{}: {kind} {}", cluster.name, policy.as_str_name()).unwrap();
        if cluster.load_assignment.is_some() {
            let family = DnsLookupFamily::try_from(cluster.dns_lookup_family).unwrap();
            write!(text, " {}", family.as_str_name()).unwrap();
        }
        writeln!(text).unwrap();
    }
    let assignments = config.endpoints.resources.keys();
    for name in assignments.filter(|name| name.ends_with(".example")) {
        writeln!(text, "endpoints of {name}").unwrap();
    }
    text.push_str(&advice(&translation));
    expected.assert_eq(&text);
}

fn entry(annotations: &str, rest: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: out, namespace: shop, labels: {{istio.io/use-waypoint: wp}}, annotations: {{{annotations}}}}}
spec:
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  {rest}
---
"
    )
}

const PASSTHROUGH: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: out, namespace: shop}
spec: {host: out.example, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}
";

#[test]
fn passthrough_leaves_the_choice_to_the_client_whatever_endpoints_there_are() {
    for resolution in [
        "resolution: STATIC, endpoints: [{address: 192.0.2.1}]",
        "resolution: DNS, endpoints: [{address: a.example}]",
    ] {
        let rest = format!(
            "hosts: [out.example]\n  addresses: [192.0.2.0/24]\n  {}",
            resolution.replace(", e", "\n  e")
        );
        check(
            &(entry("", &rest) + PASSTHROUGH),
            expect![[r#"
                inbound-vip|80|http|out.example: ORIGINAL_DST CLUSTER_PROVIDED
            "#]],
        );
    }
}

#[test]
fn addresses_of_a_name_are_raced_where_the_annotation_asks_for_it() {
    let annotation = "istio.io/connect-strategy: RACE_FIRST_TCP_CONNECT";
    let named = "hosts: [out.example]\n  resolution: DNS";
    check(
        &entry("", named),
        expect![[r#"
            inbound-vip|80|http|out.example: STRICT_DNS LEAST_REQUEST V4_PREFERRED
        "#]],
    );
    check(
        &entry(annotation, named),
        expect![[r#"
            inbound-vip|80|http|out.example: LOGICAL_DNS LEAST_REQUEST ALL
        "#]],
    );
    // Envoy takes several names in one cluster only where each address is an endpoint.
    let several = format!("{named}\n  endpoints: [{{address: a.example}}, {{address: b.example}}]");
    check(
        &entry(annotation, &several),
        expect![[r#"
            inbound-vip|80|http|out.example: STRICT_DNS LEAST_REQUEST ALL
        "#]],
    );
    check(
        &entry("istio.io/connect-strategy: SLOWEST", named),
        expect![[r#"
            inbound-vip|80|http|out.example: STRICT_DNS LEAST_REQUEST V4_PREFERRED
            ServiceEntry shop/out metadata.annotations.istio.io/connect-strategy: has no effect: must be DEFAULT or RACE_FIRST_TCP_CONNECT
        "#]],
    );
}

#[test]
fn hosts_that_requests_name_are_found_by_envoys_dynamic_forward_proxy() {
    let ports = "ports: [{number: 80, name: http, protocol: HTTP}]";
    let more = "ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}, {number: 443, name: tls, protocol: TLS}, {number: 25, name: smtp, protocol: TCP}]";
    let text =
        entry("", "hosts: ['*.out.example']\n  resolution: DYNAMIC_DNS").replace(ports, more);
    check(
        &text,
        expect![[r#"
            inbound-vip|443|tcp|*.out.example: envoy.clusters.dynamic_forward_proxy CLUSTER_PROVIDED
            inbound-vip|80|http|*.out.example: envoy.clusters.dynamic_forward_proxy CLUSTER_PROVIDED
            ServiceEntry shop/out spec.ports[2].protocol: only HTTP, gRPC and TLS say which host they are for: the port is not served
        "#]],
    );
    let (translation, config) = config(&text);
    let tables = decoded::<RouteConfiguration>(&config.routes.resources);
    let table = tables
        .iter()
        .find(|table| table.name.ends_with("out.example"));
    let table = table.unwrap();
    assert_eq!(table.virtual_hosts[0].domains, ["*.out.example"]);
    assert!(table.ignore_port_in_host_matching);
    let shown = filters(&config);
    assert!(
        shown.contains("|*.out.example grpc_stats fault cors dynamic_forward_proxy "),
        "{shown}"
    );
    let address = &translation.addresses["shop/*.out.example"].body;
    let Some(address::Type::Service(service)) = Address::decode(address.clone()).unwrap().r#type
    else {
        panic!("no service")
    };
    assert_eq!(service.addresses.len(), 2, "one of each family");
    assert!(service.waypoint.is_some());
}

#[test]
fn what_keeps_dynamic_hosts_from_being_served_is_told() {
    let text = entry("", "hosts: ['*.out.example']\n  resolution: DYNAMIC_DNS");
    check(
        &text.replace("istio.io/use-waypoint: wp", ""),
        expect![[r#"
            ServiceEntry shop/out spec.resolution: only a waypoint (label istio.io/use-waypoint) finds these hosts: nobody serves them
        "#]],
    );
    check(
        &text.replace("DYNAMIC_DNS", "DYNAMIC_DNS\n  location: MESH_INTERNAL"),
        expect![[r#"
            ServiceEntry shop/out spec.location: waypoints serve resolution DYNAMIC_DNS for MESH_EXTERNAL alone: nobody serves it
        "#]],
    );
}
