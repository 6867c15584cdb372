//! What a Service says of where its clients' connections go, as node proxies are told (facts LB-6).

use leyline_proto::istio::workload::{
    Address, LoadBalancing, address,
    load_balancing::{HealthPolicy, Mode, Scope},
};

use super::*;

/// Of a service with these annotations and fields, in a namespace with these annotations.
fn told(namespace: &str, annotations: &str, fields: &str) -> Option<LoadBalancing> {
    let yaml = format!(
        "
apiVersion: v1
kind: Namespace
metadata: {{name: shop, annotations: {{{namespace}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop, annotations: {{{annotations}}}}}
spec: {{clusterIP: 10.9.0.1, selector: {{app: web}}, ports: [{{port: 80}}]{fields}}}
"
    );
    let translation = translated(&yaml, &[]);
    let body = &translation.addresses["shop/web.shop.svc.cluster.local"].body;
    match Address::decode(body.clone()).unwrap().r#type.unwrap() {
        address::Type::Service(service) => service.load_balancing,
        address::Type::Workload(_) => None,
    }
}

#[test]
fn services_say_how_near_their_endpoints_must_be_and_how_well() {
    use Scope::{Network, Node, Region, Subzone, Zone};
    let check = |(namespace, annotations, fields): (&str, &str, &str), scopes: &[Scope], mode| {
        let told = told(namespace, annotations, fields).unwrap();
        let expected: Vec<i32> = scopes.iter().map(|scope| i32::from(*scope)).collect();
        assert_eq!(told.routing_preference, expected, "{annotations}{fields}");
        assert_eq!(told.mode, i32::from(mode), "{annotations}{fields}");
        assert_eq!(told.health_policy, i32::from(HealthPolicy::OnlyHealthy));
    };
    let zone = &[Network, Region, Zone][..];
    let node = &[Network, Region, Zone, Subzone, Node][..];
    let annotation = "networking.istio.io/traffic-distribution";
    let close = format!("{annotation}: PreferClose");
    let same_node = format!("{annotation}: PreferSameNode");
    let field = ", trafficDistribution: PreferSameZone";
    let local = ", internalTrafficPolicy: Local";
    check(("", "", field), zone, Mode::Failover);
    check(("", &close, ""), zone, Mode::Failover);
    check(("", &same_node, ""), node, Mode::Failover);
    check((&same_node, "", ""), node, Mode::Failover);
    // The nearer word counts: the field, the service's annotation, the namespace's.
    check((&same_node, &close, ""), zone, Mode::Failover);
    check(("", &same_node, field), zone, Mode::Failover);
    check(("", &close, local), &[Node], Mode::Strict);

    assert_eq!(told("", "", ", internalTrafficPolicy: Cluster"), None);
    let unready = told("", "", ", publishNotReadyAddresses: true").unwrap();
    assert_eq!(unready.health_policy, i32::from(HealthPolicy::AllowAll));
    assert_eq!(unready.mode, i32::from(Mode::UnspecifiedMode));
}
