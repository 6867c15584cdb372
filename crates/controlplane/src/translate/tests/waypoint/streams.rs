//! Where connections go that are not HTTP, and requests that a filter nobody knows would check.

use envoy_types::pb::envoy::{
    config::listener::v3::filter::ConfigType,
    extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier},
};

use super::*;

/// The clusters of the service's port 99, by weight.
fn targets(yaml: &str) -> String {
    let (_, config) = config(yaml);
    let listeners = decoded::<Listener>(&config.listeners.resources);
    let mut chains = listeners.iter().flat_map(|one| &one.filter_chains);
    let chain = chains.find(|chain| chain.name.starts_with("inbound-vip|99|tcp"));
    let Some(ConfigType::TypedConfig(last)) = &chain.unwrap().filters.last().unwrap().config_type
    else {
        panic!("no configuration")
    };
    let proxy = TcpProxy::decode(last.value.as_slice()).unwrap();
    match proxy.cluster_specifier.unwrap() {
        ClusterSpecifier::Cluster(name) => name,
        ClusterSpecifier::WeightedClusters(all) => {
            let shown = all.clusters.iter();
            let shown = shown.map(|one| format!("{} {}", one.weight, one.name));
            shown.collect::<Vec<_>>().join(", ")
        }
    }
}

fn virtual_service(body: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: server, namespace: shop}}
spec: {{hosts: [server], {body}}}
"
    )
}

const OWN: &str = "inbound-vip|99|tcp|server.shop.svc.cluster.local";
const OTHER: &str = "outbound|80||other.shop.svc.cluster.local";
/// To another service.
const TO: &str = "route: [{destination: {host: other, port: {number: 80}}}]";

#[test]
fn virtual_services_choose_for_connections_by_name_and_port() {
    let tcp = format!("tcp: [{{match: [{{port: 99}}], {TO}}}]");
    for (body, expected) in [
        (tcp.clone(), OTHER),
        (format!("tcp: [{{{TO}}}]"), OTHER),
        (format!("tcp: [{{match: [{{port: 98}}], {TO}}}]"), OWN),
        (
            format!("tcp: [{{match: [{{gateways: [other]}}], {TO}}}]"),
            OWN,
        ),
        (
            format!("tcp: [{{match: [{{gateways: [mesh]}}], {TO}}}]"),
            OTHER,
        ),
        (
            format!("tcp: [{{match: [{{sourceLabels: {{a: b}}}}], {TO}}}]"),
            OWN,
        ),
        (
            format!("tls: [{{match: [{{sniHosts: [server.shop.svc.cluster.local]}}], {TO}}}]"),
            OTHER,
        ),
        (
            format!("tls: [{{match: [{{sniHosts: [a.example]}}], {TO}}}]"),
            OWN,
        ),
        // Those by name are asked first, wherever they stand.
        (
            format!(
                "{tcp}, tls: [{{match: [{{sniHosts: [server.shop.svc.cluster.local]}}], \
                 route: [{{destination: {{host: server, port: {{number: 99}}}}}}]}}]"
            ),
            OWN,
        ),
    ] {
        assert_eq!(targets(&virtual_service(&body)), expected, "{body}");
    }
}

#[test]
fn routes_of_the_gateway_api_choose_for_connections() {
    let route = |kind: &str, hosts: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{name: {}, namespace: shop}}
spec:
  parentRefs: [{{group: '', kind: Service, name: server, port: 99}}]
  {hosts}rules:
  - backendRefs: [{{name: other, port: 80, weight: 3}}, {{name: server, port: 99, weight: 1}}]
",
            kind.to_ascii_lowercase()
        )
    };
    let shared = format!("3 {OTHER}, 1 {OWN}");
    for (kind, hosts, expected) in [
        ("TCPRoute", "", shared.as_str()),
        (
            "TLSRoute",
            "hostnames: [server.shop.svc.cluster.local]\n  ",
            &shared,
        ),
        ("TLSRoute", "hostnames: [a.example]\n  ", OWN),
    ] {
        assert_eq!(targets(&route(kind, hosts)), expected, "{kind} {hosts}");
    }
}

#[test]
fn requests_that_an_unknown_filter_would_check_are_refused() {
    let (_, config) = config(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: server, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: server, port: 80}]
  rules:
  - matches: [{path: {type: Exact, value: /a}}]
    filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP}}]
    backendRefs: [{name: server, port: 80}]
  - matches: [{path: {type: Exact, value: /b}}]
    filters: [{type: ExtensionRef, extensionRef: {group: a, kind: b, name: c}}]
    backendRefs: [{name: server, port: 80}]
  - matches: [{path: {type: Exact, value: /c}}]
    backendRefs:
    - name: server
      port: 80
      filters: [{type: ExtensionRef, extensionRef: {group: a, kind: b, name: c}}]
",
    );
    let shown = routes(&config);
    for expected in [
        "  /a -> answer 500\n",
        "  /b -> answer 500\n",
        "  /c -> UnknownService\n",
    ] {
        assert!(shown.contains(expected), "{shown}");
    }
}

#[test]
fn retries_in_other_localities_are_asked_for() {
    for (retries, expected) in [
        ("{attempts: 2}", None),
        ("{attempts: 2, retryRemoteLocalities: false}", None),
        (
            "{attempts: 2, retryRemoteLocalities: true}",
            Some("envoy.retry_priorities.previous_priorities"),
        ),
    ] {
        let to = "route: [{destination: {host: server}}]";
        let (_, config) = config(&virtual_service(&format!(
            "http: [{{retries: {retries}, {to}}}]"
        )));
        let tables = decoded::<RouteConfiguration>(&config.routes.resources);
        let route = &tables[0].virtual_hosts[0].routes[0];
        let Some(Action::Route(action)) = &route.action else {
            panic!("{route:?}")
        };
        let priority = action
            .retry_policy
            .as_ref()
            .unwrap()
            .retry_priority
            .as_ref();
        assert_eq!(priority.map(|one| one.name.as_str()), expected, "{retries}");
    }
}

#[test]
fn routes_that_say_nothing_of_retries_do_as_the_mesh_says() {
    let to = "route: [{destination: {host: server}}]";
    let silent = virtual_service(&format!("http: [{{{to}}}]"));
    let own = virtual_service(&format!("http: [{{retries: {{attempts: 7}}, {to}}}]"));
    let mesh = |policy: &str| {
        let text = format!("defaultHttpRetryPolicy: {policy}");
        format!("---\n{}", security::mesh_config("istio-system", &text))
    };
    let (three, none) = (mesh("{attempts: 3, retryOn: 5xx}"), mesh("{attempts: 0}"));
    for (yaml, expected) in [
        (silent.clone(), Some(2)),
        (format!("{silent}{three}"), Some(3)),
        (format!("{own}{three}"), Some(7)),
        (format!("{silent}{none}"), None),
        (three, Some(3)),
    ] {
        let (_, config) = config(&yaml);
        let tables = decoded::<RouteConfiguration>(&config.routes.resources);
        let route = &tables[0].virtual_hosts[0].routes[0];
        let Some(Action::Route(action)) = &route.action else {
            panic!("{route:?}")
        };
        let policy = action.retry_policy.as_ref();
        let attempts = policy.map(|policy| policy.num_retries.unwrap().value);
        assert_eq!(attempts, expected, "{yaml}");
    }
}
