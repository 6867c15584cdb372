use leyline_proto::istio::security::Authorization;
use leyline_state::convert;

use super::*;

const DOCUMENT: &str = r#"
workloads:
- uid: cluster1//v1/Pod/default/a
  name: a
  namespace: default
  serviceAccount: a
  trustDomain: cluster.local
  workloadIps: ["10.0.0.1", "fd00::1"]
  protocol: HBONE
  node: node1
  waypoint: {destination: "net/10.0.0.9", hboneMtlsPort: 15008}
  networkGateway: {destination: "istio-system/gw.example", hboneMtlsPort: 15008}
  applicationTunnel: {protocol: PROXY, port: 15088}
  locality: {region: r, zone: z}
  workloadType: deployment
  capacity: 3
  services: {"default/s.example": {80: 8080}}
- name: b
  namespace: default
  workloadIps: ["10.0.0.2"]
  services: {}
services:
- name: s
  namespace: default
  hostname: s.example
  vips: ["/10.1.0.1", "net/fd01::1"]
  cidrVips: [{network: net, cidr: 10.2.0.0/16}]
  ports: {80: 8080}
  canonical: true
  endpoints: {Kubernetes//Pod/default/b: {workloadUid: Kubernetes//Pod/default/b, port: {80: 81}}}
  loadBalancer: {routingPreferences: [Network, Zone], mode: Failover, healthPolicy: AllowAll}
  ipFamilies: Dual
  visibility: Namespace
  weightedWaypoints: [{destination: {destination: "ns/w.example", hboneMtlsPort: 15008}, weight: 2}]
policies:
- name: p
  namespace: default
  scope: Namespace
  action: Deny
  dryRun: false
  rules: [[[{notPrincipals: [!Presence []]}]], [[{namespaces: [!Exact x, !Prefix y], sourceIps: ["10.0.0.0/8"],
    serviceAccounts: [{namespace: a, serviceAccount: b}], destinationPorts: [80]}]]]
"#;

#[test]
fn the_form_of_istio_is_understood() {
    let updates = updates(DOCUMENT).unwrap();
    let [policies, addresses] = updates.as_slice() else {
        panic!("{updates:?}")
    };
    for resource in &addresses.resources {
        convert::address(&resource.name, &resource.body).unwrap();
    }
    let names: Vec<&str> = addresses.resources.iter().map(|one| &*one.name).collect();
    let (a, b) = ("cluster1//v1/Pod/default/a", "Kubernetes//Pod/default/b");
    assert_eq!(names, [a, b, "default/s.example"]);
    let endpoint = Address::decode(&*addresses.resources[1].body).unwrap();
    let Some(Type::Workload(endpoint)) = endpoint.r#type else {
        panic!("a workload")
    };
    assert_eq!(
        endpoint.services["default/s.example"].ports[0].target_port,
        81
    );

    let policy = &policies.resources[0];
    convert::authorization(&policy.name, &policy.body).unwrap();
    let policy = Authorization::decode(&*policy.body).unwrap();
    let matches = &policy.groups[1].rules[0].matches[0];
    assert_eq!(matches.namespaces.len(), 2);
    assert_eq!(matches.source_ips[0].length, 8);
}

#[test]
fn mistakes_are_told_with_their_place() {
    let check = |text: &str, part: &str| {
        let error = updates(text).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    };
    check("workload: []", "unknown field");
    check("workloads: [{workloadIps: [x]}]", "line 1");
    check(
        "services: [{namespace: n, hostname: h, vips: [10.0.0.1]}]",
        "service n/h: 10.0.0.1: write network/address",
    );
    check(
        "policies: [{name: p, namespace: n, scope: Global, action: Allow, rules: [[[{sourceIps: [10.0.0.0/33]}]]]}]",
        "policy n/p: 10.0.0.0/33",
    );
    check(
        "policies: [{name: p, namespace: n, scope: Global, action: Audit, rules: []}]",
        "unknown variant",
    );
    check(
        "workloads: [{name: w, namespace: n, waypoint: {destination: w, hboneMtlsPort: 1}}]",
        "workload Kubernetes//Pod/n/w: w: write network/address",
    );
    assert!(
        updates("")
            .unwrap()
            .iter()
            .all(|update| update.resources.is_empty())
    );
}
