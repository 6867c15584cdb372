//! Workloads behind a waypoint, which are called by their addresses.

use super::*;

/// `wp` is for services and workloads, and the pod of v2 is behind it.
fn config_of_all() -> WaypointConfig {
    let yaml = MESH
        .replace(
            "metadata: {name: wp, namespace: shop}",
            "metadata: {name: wp, namespace: shop, labels: {istio.io/waypoint-for: all}}",
        )
        .replace(
            "labels: {app: server, version: v2}",
            "labels: {app: server, version: v2, istio.io/use-waypoint: wp}",
        );
    let policy = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: of-waypoint, namespace: shop}
spec:
  targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: wp}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: of-service, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: server}]
  action: DENY
  rules: [{}]
";
    let translation = translated(&format!("{yaml}{policy}"), &["Kubernetes//Pod/shop/v1"]);
    WaypointConfig::clone(&translation.waypoints[&name("wp")])
}

#[test]
fn workloads_have_chains_that_lead_where_the_client_wants_to_go() {
    let config = config_of_all();
    let routes = routes(&config);
    assert!(routes.contains("direct-http\n  /* -> encap\n"), "{routes}");
    let clusters = decoded::<Cluster>(&config.clusters.resources);
    let encap = clusters.iter().find(|cluster| cluster.name == "encap");
    let endpoint = &encap.unwrap().load_assignment.as_ref().unwrap().endpoints[0].lb_endpoints[0];
    assert!(format!("{endpoint:?}").contains("connect_originate"));

    let listeners = decoded::<Listener>(&config.listeners.resources);
    let main = listeners.iter().find(|one| one.name == "main_internal");
    let main = main.unwrap();
    let chain = |name: &str| {
        let mut chains = main.filter_chains.iter();
        let chain = chains.find(|chain| chain.name == name).unwrap();
        String::from_utf8_lossy(&chain.encode_to_vec()).into_owned()
    };
    for name in ["direct-http", "direct-tcp"] {
        let chain = chain(name);
        // Policies of the waypoint hold, those of services do not.
        assert!(
            chain.contains("envoy.filters.http.rbac")
                || chain.contains("envoy.filters.network.rbac")
        );
        assert!(!chain.contains("of-service"), "{chain}");
    }
    let tree =
        String::from_utf8_lossy(&main.filter_chain_matcher.as_ref().unwrap().encode_to_vec())
            .into_owned();
    assert!(
        tree.contains("10.0.0.2") && !tree.contains("10.0.0.1"),
        "{tree}"
    );
}

#[test]
fn without_such_workloads_there_is_none_of_it() {
    let (_, config) = config("");
    assert!(!routes(&config).contains("direct-http"));
    assert!(!config.clusters.resources.contains_key("encap"));
}
