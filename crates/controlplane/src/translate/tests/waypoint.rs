//! From the user's objects to a waypoint's configuration, shown short.

mod access_logs;
mod direct;
mod discovery;
mod protocols;
mod security;
mod streams;
mod tls;
mod tracing;

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::{
    cluster::v3::Cluster,
    core::v3::address::Address as Kind,
    endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier},
    listener::v3::Listener,
    route::v3::{
        Route, RouteConfiguration, route::Action, route_action::ClusterSpecifier,
        route_match::PathSpecifier,
    },
};
use leyline_types::NamespacedName;

use super::*;
use crate::translate::waypoint::WaypointConfig;

/// A waypoint `wp` that the service `server` is behind, with two versions of it.
pub(super) const MESH: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec:
  clusterIP: 10.96.0.20
  selector: {app: server}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: db, port: 90, targetPort: 9090}, {name: tcp-x, port: 99}]
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: shop}
spec:
  clusterIP: 10.96.0.30
  selector: {app: other}
  ports: [{name: http, port: 80}]
---
apiVersion: v1
kind: Pod
metadata: {name: v1, namespace: shop, labels: {app: server, version: v1}}
spec: {nodeName: a, containers: [{name: c, image: i}]}
status: {phase: Running, podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: \"True\"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: v2, namespace: shop, labels: {app: server, version: v2}}
spec: {nodeName: a, containers: [{name: c, image: i}]}
status: {phase: Running, podIPs: [{ip: 10.0.0.2}], conditions: [{type: Ready, status: \"True\"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: wp-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: wp}}
spec: {nodeName: a, serviceAccountName: wp, containers: [{name: c, image: i}]}
status: {phase: Running, podIPs: [{ip: 10.0.0.9}], conditions: [{type: Ready, status: \"True\"}]}
";

fn name(text: &str) -> NamespacedName {
    NamespacedName {
        namespace: "shop".into(),
        name: text.into(),
    }
}

fn config(yaml: &str) -> (Translation, WaypointConfig) {
    let translation = translated(&format!("{MESH}---\n{yaml}"), &["Kubernetes//Pod/shop/v1"]);
    let config = WaypointConfig::clone(&translation.waypoints[&name("wp")]);
    (translation, config)
}

fn decoded<M: Message + Default>(resources: &Resources) -> Vec<M> {
    let bodies = resources.values();
    bodies
        .map(|resource| M::decode(resource.body.clone()).unwrap())
        .collect()
}

fn show_route(route: &Route) -> String {
    let matched = route.r#match.as_ref().unwrap();
    let path = match matched.path_specifier.as_ref().unwrap() {
        PathSpecifier::Prefix(prefix) => format!("{prefix}*"),
        PathSpecifier::Path(path) => path.clone(),
        PathSpecifier::PathSeparatedPrefix(prefix) => format!("{prefix}/**"),
        PathSpecifier::SafeRegex(regex) => format!("~{}", regex.regex),
        other => format!("{other:?}"),
    };
    let headers: String = matched
        .headers
        .iter()
        .map(|header| {
            format!(
                " {}{}",
                if header.invert_match { "!" } else { "" },
                header.name
            )
        })
        .collect();
    let action = match route.action.as_ref().unwrap() {
        Action::Route(action) => match action.cluster_specifier.as_ref().unwrap() {
            ClusterSpecifier::Cluster(name) => name.clone(),
            ClusterSpecifier::WeightedClusters(all) => all
                .clusters
                .iter()
                .map(|one| format!("{} {}", one.weight.unwrap().value, one.name))
                .collect::<Vec<_>>()
                .join(", "),
            other => format!("{other:?}"),
        },
        Action::Redirect(redirect) => format!("redirect {}", redirect.host_redirect),
        Action::DirectResponse(answer) => format!("answer {}", answer.status),
        other => format!("{other:?}"),
    };
    let mut filters: Vec<&str> = route
        .typed_per_filter_config
        .keys()
        .map(String::as_str)
        .collect();
    filters.sort_unstable();
    format!("  {path}{headers} -> {action} {}", filters.join(" "))
}

fn routes(config: &WaypointConfig) -> String {
    let mut text = String::new();
    for table in decoded::<RouteConfiguration>(&config.routes.resources) {
        writeln!(text, "{}", table.name).unwrap();
        for route in table.virtual_hosts.iter().flat_map(|host| &host.routes) {
            writeln!(text, "{}", show_route(route).trim_end()).unwrap();
        }
    }
    text
}

fn endpoints(config: &WaypointConfig) -> String {
    let mut text = String::new();
    for assignment in decoded::<ClusterLoadAssignment>(&config.endpoints.resources) {
        let all = assignment
            .endpoints
            .iter()
            .flat_map(|place| &place.lb_endpoints);
        let shown: Vec<String> = all
            .map(
                |endpoint| match endpoint.host_identifier.as_ref().unwrap() {
                    HostIdentifier::Endpoint(endpoint) => {
                        match endpoint.address.as_ref().unwrap().address.as_ref().unwrap() {
                            Kind::EnvoyInternalAddress(tunnel) => {
                                format!("tunnel {}", tunnel.endpoint_id)
                            }
                            Kind::SocketAddress(plain) => format!("plain {}", plain.address),
                            other => format!("{other:?}"),
                        }
                    }
                    other => format!("{other:?}"),
                },
            )
            .collect();
        writeln!(text, "{}: {}", assignment.cluster_name, shown.join(", ")).unwrap();
    }
    text
}

#[test]
fn a_service_alone_has_a_default_route_and_its_endpoints() {
    let (translation, config) = config("");
    expect![[r#"
        inbound-vip|80|http|server.shop.svc.cluster.local
          /* -> inbound-vip|80|http|server.shop.svc.cluster.local
        inbound-vip|90|http|server.shop.svc.cluster.local
          /* -> inbound-vip|90|http|server.shop.svc.cluster.local
    "#]]
    .assert_eq(&routes(&config));
    expect![[r#"
        inbound-vip|80|http|server.shop.svc.cluster.local: tunnel 10.0.0.1:8080, plain 10.0.0.2
        inbound-vip|90|http|server.shop.svc.cluster.local: tunnel 10.0.0.1:9090, plain 10.0.0.2
        inbound-vip|90|tcp|server.shop.svc.cluster.local: tunnel 10.0.0.1:9090, plain 10.0.0.2
        inbound-vip|99|tcp|server.shop.svc.cluster.local: tunnel 10.0.0.1:99, plain 10.0.0.2
    "#]]
    .assert_eq(&endpoints(&config));
    let listeners = decoded::<Listener>(&config.listeners.resources);
    let names: Vec<&str> = listeners
        .iter()
        .map(|listener| listener.name.as_str())
        .collect();
    assert_eq!(
        names,
        ["connect_originate", "connect_terminate", "main_internal"]
    );
    assert_eq!(
        translation.waypoint_pods.get(&name("wp-1")),
        Some(&WaypointPod {
            gateway: name("wp"),
            service_account: "wp".to_owned()
        })
    );
}

#[test]
fn virtual_services_become_routes_and_subsets_clusters() {
    let (_, config) = config(
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: server, namespace: shop}
spec:
  hosts: [server]
  http:
  - match: [{headers: {x-user: {exact: jason}}, port: 80}]
    route: [{destination: {host: server, subset: v2}}]
  - match: [{uri: {prefix: /old}}]
    fault: {delay: {fixedDelay: 1s, percentage: {value: 10}}}
    route:
    - {destination: {host: server, subset: v1}, weight: 90}
    - {destination: {host: other}, weight: 9}
    - {destination: {host: gone}, weight: 1}
  - match: [{sourceLabels: {a: b}}]
    directResponse: {status: 418}
  - redirect: {authority: elsewhere}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: server, namespace: shop}
spec:
  host: server
  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
",
    );
    expect![[r#"
        inbound-vip|80|http|server.shop.svc.cluster.local
          /* x-user -> inbound-vip|80|http/v2|server.shop.svc.cluster.local
          /old* -> 90 inbound-vip|80|http/v1|server.shop.svc.cluster.local, 9 outbound|80||other.shop.svc.cluster.local, 1 UnknownService envoy.filters.http.fault
          /* -> redirect elsewhere
        inbound-vip|90|http|server.shop.svc.cluster.local
          /old* -> 90 inbound-vip|90|http/v1|server.shop.svc.cluster.local, 9 outbound|80||other.shop.svc.cluster.local, 1 UnknownService envoy.filters.http.fault
          /* -> redirect elsewhere
    "#]]
    .assert_eq(&routes(&config));
    let subset = "inbound-vip|80|http/v2|server.shop.svc.cluster.local: plain 10.0.0.2\n";
    assert!(
        endpoints(&config).contains(subset),
        "{}",
        endpoints(&config)
    );
    let clusters = decoded::<Cluster>(&config.clusters.resources);
    let policy = |name: &str| {
        clusters
            .iter()
            .find(|one| one.name == name)
            .map(|one| one.lb_policy)
    };
    assert_eq!(
        policy("inbound-vip|80|http|server.shop.svc.cluster.local"),
        Some(0)
    );
    assert_eq!(policy("outbound|80||other.shop.svc.cluster.local"), Some(1));
}

#[test]
fn routes_of_the_gateway_api_are_put_in_order() {
    let (_, config) = config(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: server, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: server, port: 80}]
  rules:
  - backendRefs: [{name: server, port: 80}]
  - matches: [{path: {value: /v2}}, {path: {type: Exact, value: /v2}}, {path: {value: /v2/deep}, method: GET}]
    backendRefs: [{name: other, port: 80, weight: 1}, {name: server, port: 80, weight: 3}]
  - matches: [{path: {value: /other}}]
    backendRefs: [{name: elsewhere, namespace: web, port: 80}]
",
    );
    expect![[r#"
        inbound-vip|80|http|server.shop.svc.cluster.local
          /v2 -> 1 outbound|80||other.shop.svc.cluster.local, 3 inbound-vip|80|http|server.shop.svc.cluster.local
          /v2/deep/** :method -> 1 outbound|80||other.shop.svc.cluster.local, 3 inbound-vip|80|http|server.shop.svc.cluster.local
          /other/** -> UnknownService
          /v2/** -> 1 outbound|80||other.shop.svc.cluster.local, 3 inbound-vip|80|http|server.shop.svc.cluster.local
          /* -> inbound-vip|80|http|server.shop.svc.cluster.local
        inbound-vip|90|http|server.shop.svc.cluster.local
          /* -> inbound-vip|90|http|server.shop.svc.cluster.local
    "#]]
    .assert_eq(&routes(&config));
}

/// The version of each resource by its type and name.
fn versions(config: &WaypointConfig) -> BTreeMap<(&'static str, String), String> {
    let all = [
        ("listener", &config.listeners.resources),
        ("cluster", &config.clusters.resources),
        ("endpoints", &config.endpoints.resources),
        ("routes", &config.routes.resources),
    ];
    let all = all.into_iter().flat_map(|(kind, resources)| {
        let resources = resources.iter();
        resources.map(move |(name, resource)| ((kind, name.clone()), resource.version.clone()))
    });
    all.collect()
}

#[test]
fn a_change_of_a_route_changes_one_resource() {
    let virtual_service = |of: &str| {
        format!(
            "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: server, namespace: shop}}
spec:
  hosts: [server]
  http: [{{match: [{{port: 80, uri: {{prefix: {of}}}}}], route: [{{destination: {{host: server}}}}]}}]
"
        )
    };
    let http_route = |of: &str| {
        format!(
            "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: server, namespace: shop}}
spec:
  parentRefs: [{{group: '', kind: Service, name: server, port: 80}}]
  rules:
  - matches: [{{path: {{type: PathPrefix, value: {of}}}}}]
    backendRefs: [{{name: server, port: 80}}]
"
        )
    };
    let kinds: [&dyn Fn(&str) -> String; 2] = [&virtual_service, &http_route];
    for written in kinds {
        let [(_, before), (_, after)] = ["/a", "/b"].map(|of| config(&written(of)));
        let (before, after) = (versions(&before), versions(&after));
        assert!(before.len() > 4, "{before:?}");
        let differs = |(name, version): &(_, _)| after.get(*name) != Some(*version);
        let changed: Vec<_> = before
            .iter()
            .filter(differs)
            .map(|(name, _)| name)
            .collect();
        assert_eq!(changed.len(), 1, "{changed:?}");
        assert_eq!(changed[0].0, "routes");
        assert_eq!(before.len(), after.len());
    }
}

/// After a restart nothing is known of what proxies have been told but its versions.
#[test]
fn another_process_gives_the_same_versions() {
    let filters = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: server, namespace: shop}
spec:
  hosts: [server]
  http:
  - fault: {abort: {percentage: {value: 10}, httpStatus: 503}}
    corsPolicy: {allowOrigins: [{exact: 'https://shop.example'}], allowMethods: [GET]}
    route:
    - {destination: {host: server, subset: v1}, weight: 50}
    - {destination: {host: server, subset: v2}, weight: 50}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: server, namespace: shop}
spec:
  host: server
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
";
    let versions = || versions(&config(filters).1);
    let first = versions();
    // Maps come out in another order each time that they are made, here as there.
    for _ in 0..20 {
        assert_eq!(versions(), first);
    }
}

#[test]
fn what_stays_the_same_keeps_its_version() {
    let objects = objects(&format!(
        "{MESH}---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: a, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, group: '', name: server}}]
  rules:
  - {{to: [{{operation: {{methods: [GET]}}}}]}}
  - {{from: [{{source: {{namespaces: [web]}}}}]}}
  - {{when: [{{key: 'request.headers[x]', values: [yes-please]}}]}}
"
    ));
    let settings = MeshSettings::default();
    let first = translate(
        &objects,
        &Captured::new(),
        &settings,
        &KeySets::new(),
        &WaypointConfigs::new(),
    );
    for _ in 0..8 {
        let again = translate(
            &objects,
            &Captured::new(),
            &settings,
            &KeySets::new(),
            &first.waypoints,
        );
        let (one, other) = (&first.waypoints[&name("wp")], &again.waypoints[&name("wp")]);
        assert!(Arc::ptr_eq(
            &one.listeners.resources,
            &other.listeners.resources
        ));
        assert!(Arc::ptr_eq(
            &one.clusters.resources,
            &other.clusters.resources
        ));
        assert!(Arc::ptr_eq(
            &one.endpoints.resources,
            &other.endpoints.resources
        ));
        assert!(Arc::ptr_eq(&one.routes.resources, &other.routes.resources));
    }
}

/// The names of the HTTP filters of each chain.
fn filters(config: &WaypointConfig) -> String {
    use envoy_types::pb::envoy::{
        config::listener::v3::filter::ConfigType,
        extensions::filters::network::http_connection_manager::v3::HttpConnectionManager,
    };
    let mut text = String::new();
    for listener in decoded::<Listener>(&config.listeners.resources) {
        for chain in listener
            .filter_chains
            .iter()
            .filter(|it| it.name.contains("|http|"))
        {
            let Some(ConfigType::TypedConfig(any)) = &chain.filters.last().unwrap().config_type
            else {
                panic!("{}", chain.name);
            };
            let manager = HttpConnectionManager::decode(any.value.as_slice()).unwrap();
            let names = manager.http_filters.iter().map(|it| it.name.as_str());
            let names: Vec<&str> = names
                .map(|name| name.trim_start_matches("envoy.filters.http."))
                .collect();
            writeln!(text, "{} {}", chain.name, names.join(" ")).unwrap();
        }
    }
    text
}

fn advice(translation: &Translation) -> String {
    let mut text = String::new();
    for Advice {
        object,
        field,
        reason,
    } in &translation.advice
    {
        writeln!(text, "{object} {field}: {reason}").unwrap();
    }
    text
}

#[test]
fn rate_limits_become_filters_before_the_router() {
    let (translation, config) = config(
        "
apiVersion: leyline.io/v1alpha1
kind: RateLimit
metadata: {name: per-client, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: server}]
  limits:
  - {requests: 100, unit: Minute, burst: 20, key: [{clientIdentity: {}}]}
  - {requests: 1000, unit: Second}
---
apiVersion: leyline.io/v1alpha1
kind: RateLimit
metadata: {name: nobody, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: other}, {kind: Gateway, group: gateway.networking.k8s.io, name: gone}]
  limits: [{requests: 1, unit: Day}]
",
    );
    expect_test::expect![[r#"
        inbound-vip|80|http|server.shop.svc.cluster.local leyline.io/RateLimit/shop/per-client/0 leyline.io/RateLimit/shop/per-client/1 grpc_stats fault cors router
        inbound-vip|90|http|server.shop.svc.cluster.local leyline.io/RateLimit/shop/per-client/0 leyline.io/RateLimit/shop/per-client/1 grpc_stats fault cors router
    "#]]
    .assert_eq(&filters(&config));
    expect_test::expect![[r#"
        RateLimit shop/nobody spec.targetRefs[0]: there is no waypoint for Service other: its requests are not limited
        RateLimit shop/nobody spec.targetRefs[1]: there is no waypoint for Gateway gone: its requests are not limited
    "#]]
    .assert_eq(&advice(&translation));
}

#[test]
fn envoy_filters_add_rate_limits_and_nothing_else() {
    let (translation, config) = config(
        "
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: limit, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: server}]
  configPatches:
  - applyTo: HTTP_FILTER
    match:
      context: SIDECAR_INBOUND
      listener: {portNumber: 80, filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.local_ratelimit
        typed_config:
          '@type': type.googleapis.com/udpa.type.v1.TypedStruct
          type_url: type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
          value: {stat_prefix: http_local_rate_limiter}
  - applyTo: HTTP_ROUTE
    match: {routeConfiguration: {vhost: {name: 'inbound|http|80', route: {action: ANY}}}}
    patch:
      operation: MERGE
      value:
        route: {rate_limits: [{actions: [{remote_address: {}}]}]}
        typed_per_filter_config:
          envoy.filters.http.local_ratelimit:
            '@type': type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
            stat_prefix: of_route
            token_bucket: {max_tokens: 4, fill_interval: 60s}
  - applyTo: HTTP_FILTER
    patch:
      operation: INSERT_BEFORE
      value:
        name: lua
        typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}
  - applyTo: CLUSTER
    patch: {operation: MERGE, value: {connect_timeout: 1s}}
  - applyTo: VIRTUAL_HOST
    patch: {operation: MERGE, value: {rate_limits: [{actions: [{no_such: {}}]}]}}
---
apiVersion: networking.istio.io/v1
kind: EnvoyFilter
metadata: {name: everywhere, namespace: shop}
spec: {configPatches: []}
",
    );
    expect_test::expect![[r#"
        inbound-vip|80|http|server.shop.svc.cluster.local local_ratelimit grpc_stats fault cors router
        inbound-vip|90|http|server.shop.svc.cluster.local grpc_stats fault cors router
    "#]]
    .assert_eq(&filters(&config));
    expect_test::expect![[r#"
        inbound-vip|80|http|server.shop.svc.cluster.local
          /* -> inbound-vip|80|http|server.shop.svc.cluster.local envoy.filters.http.local_ratelimit
        inbound-vip|90|http|server.shop.svc.cluster.local
          /* -> inbound-vip|90|http|server.shop.svc.cluster.local
    "#]]
    .assert_eq(&routes(&config));
    expect_test::expect![[r#"
        EnvoyFilter shop/everywhere spec: has no effect: waypoints are chosen by targetRefs, or by a selector of the one label gateway.networking.k8s.io/gateway-name
        EnvoyFilter shop/limit spec.configPatches[2].patch.value.typed_config: this patch has no effect: type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua is not supported; rate limits are
        EnvoyFilter shop/limit spec.configPatches[3].applyTo: this patch has no effect: CLUSTER is not supported
        EnvoyFilter shop/limit spec.configPatches[4].patch.value.rate_limits: this patch has no effect: [0].actions[0].no_such: unknown field `no_such`, expected one of `source_cluster`, `destination_cluster`, `remote_address`, `request_headers`, `query_parameters`, `generic_key`, `header_value_match`, `query_parameter_value_match`, `masked_remote_address`
    "#]]
    .assert_eq(&advice(&translation));
}

#[test]
fn endpoints_of_service_entries_are_found_as_they_say() {
    use envoy_types::pb::envoy::config::cluster::v3::cluster::{
        ClusterDiscoveryType, DiscoveryType, LbConfig, LbPolicy,
    };
    let names = |cluster: &Cluster| {
        let all = cluster
            .load_assignment
            .iter()
            .flat_map(|all| &all.endpoints);
        let hosts = all.flat_map(|place| &place.lb_endpoints);
        let hosts = hosts.filter_map(|one| match one.host_identifier.as_ref()? {
            HostIdentifier::Endpoint(host) => match host.address.as_ref()?.address.as_ref()? {
                Kind::SocketAddress(socket) => Some(socket.address.clone()),
                _ => None,
            },
            HostIdentifier::EndpointName(_) => None,
        });
        Vec::from_iter(hosts)
    };
    for (resolution, kind, expected) in [
        ("STATIC", DiscoveryType::Eds, vec![]),
        ("DNS", DiscoveryType::StrictDns, vec!["api.example"]),
        (
            "DNS_ROUND_ROBIN",
            DiscoveryType::LogicalDns,
            vec!["api.example"],
        ),
        ("NONE", DiscoveryType::OriginalDst, vec![]),
    ] {
        let (_, config) = config(&format!(
            "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: api, namespace: shop, labels: {{istio.io/use-waypoint: wp}}}}
spec:
  hosts: [api.example]
  addresses: [10.97.0.9]
  resolution: {resolution}
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8080}}]
"
        ));
        let clusters = decoded::<Cluster>(&config.clusters.resources);
        let found = clusters
            .iter()
            .find(|one| one.name.ends_with("|api.example"));
        let found = found.unwrap();
        let expected_kind = Some(ClusterDiscoveryType::Type(kind.into()));
        assert_eq!(found.cluster_discovery_type, expected_kind, "{resolution}");
        assert_eq!(names(found), expected, "{resolution}");
        let told = decoded::<ClusterLoadAssignment>(&config.endpoints.resources);
        let told = told.iter().any(|one| one.cluster_name == found.name);
        assert_eq!(told, kind == DiscoveryType::Eds, "{resolution}");
        if kind == DiscoveryType::OriginalDst {
            assert_eq!(found.lb_policy, i32::from(LbPolicy::ClusterProvided));
            let Some(LbConfig::OriginalDstLbConfig(config)) = &found.lb_config else {
                panic!("{:?}", found.lb_config);
            };
            assert_eq!(config.upstream_port_override.unwrap().value, 8080);
        }
    }
}

/// What the chain of the first port says of access logs and metrics.
fn telemetry(config: &WaypointConfig) -> String {
    use envoy_types::pb::envoy::{
        config::{
            accesslog::v3::access_log::ConfigType as LogConfig, listener::v3::filter::ConfigType,
        },
        extensions::{
            access_loggers::file::v3::FileAccessLog,
            filters::network::http_connection_manager::v3::{
                HttpConnectionManager, http_filter::ConfigType as HttpConfig,
            },
        },
    };
    let mut text = String::new();
    let all = decoded::<Listener>(&config.listeners.resources);
    let mut chains = all.iter().flat_map(|listener| &listener.filter_chains);
    let chain = chains.find(|it| it.name.contains("80|http|")).unwrap();
    let Some(ConfigType::TypedConfig(any)) = &chain.filters.last().unwrap().config_type else {
        panic!("{}", chain.name);
    };
    let manager = HttpConnectionManager::decode(any.value.as_slice()).unwrap();
    for log in &manager.access_log {
        let Some(LogConfig::TypedConfig(any)) = &log.config_type else {
            panic!("{log:?}");
        };
        let file = FileAccessLog::decode(any.value.as_slice()).unwrap();
        let format = format!("{:?}", file.access_log_format);
        let filter = log.filter.is_some();
        let form = if format.contains("JsonFormat") {
            "JSON"
        } else {
            "text"
        };
        let custom = format.contains("custom");
        writeln!(text, "{} {form} filter={filter} custom={custom}", file.path).unwrap();
    }
    for filter in manager
        .http_filters
        .iter()
        .filter(|it| it.name == "istio.stats")
    {
        let Some(HttpConfig::TypedConfig(any)) = &filter.config_type else {
            panic!("{filter:?}");
        };
        let bytes = String::from_utf8_lossy(&any.value);
        let words: Vec<&str> = bytes
            .split(|c: char| !(c.is_ascii_alphanumeric() || "._'[]-".contains(c)))
            .filter(|word| word.len() > 3)
            .collect();
        writeln!(text, "stats {}", words.join(" ")).unwrap();
    }
    text
}

#[test]
fn telemetry_chooses_logs_and_changes_metrics() {
    const MESH_CONFIG: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    accessLogFile: /dev/stdout
    accessLogEncoding: JSON
    extensionProviders:
    - name: lines
      envoyFileAccessLog: {path: /dev/stdout, logFormat: {text: 'custom %RESPONSE_CODE%'}}
";
    let check = |objects: &str, expected: Expect| {
        let (_, config) = config(&format!("{MESH_CONFIG}---\n{objects}"));
        expected.assert_eq(&telemetry(&config));
    };
    check(
        "",
        expect_test::expect![[r#"
            /dev/stdout JSON filter=false custom=false
        "#]],
    );
    let far = "
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: far, namespace: istio-system}
spec: {accessLogging: [{disabled: true}]}
";
    check(far, expect_test::expect![""]);
    let near = "
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: near, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: server}]
  accessLogging:
  - {match: {mode: CLIENT}, disabled: true}
  - {providers: [{name: lines}, {name: nowhere}], filter: {expression: 'response.code >= 400'}}
  metrics:
  - overrides:
    - match: {metric: REQUEST_COUNT}
      tagOverrides:
        custom_dimension: {value: \"'test'\"}
        source_principal: {operation: REMOVE}
    - {match: {metric: REQUEST_SIZE, mode: SERVER}, disabled: true}
";
    check(
        &format!("{far}---\n{near}"),
        expect_test::expect![[r#"
            /dev/stdout text filter=true custom=true
            stats type.googleapis.com stats.PluginConfig disable_host_header_fallback metrics dimensions custom_dimension 'test' name requests_total tags_to_remove source_principal drop name request_bytes reporter SERVER_GATEWAY
        "#]],
    );
    let (translation, _) = config(&format!("{MESH_CONFIG}---\n{near}"));
    expect_test::expect![[r#"
        Telemetry shop/near spec.accessLogging[1].providers[1]: nowhere is no access log: nothing is logged there
    "#]]
    .assert_eq(&advice(&translation));
}

#[test]
fn a_global_rate_limit_asks_a_service_that_has_a_cluster() {
    let object = |host: &str| {
        format!(
            "
apiVersion: leyline.io/v1alpha1
kind: RateLimit
metadata: {{name: shared, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, group: '', name: server}}]
  global: {{host: {host}, port: 80, domain: shop}}
  limits:
  - {{requests: 100, unit: Minute, key: [{{header: x-user}}]}}
"
        )
    };
    let (translation, known) = config(&object("other.shop.svc.cluster.local"));
    assert!(filters(&known).contains(" leyline.io/RateLimit/shop/shared "));
    let cluster = "outbound|80||other.shop.svc.cluster.local";
    assert!(known.clusters.resources.contains_key(cluster));
    assert_eq!(advice(&translation), "");
    let (translation, _) = config(&object("gone.shop.svc.cluster.local"));
    assert_eq!(
        advice(&translation),
        "RateLimit shop/shared spec.global: there is no service gone.shop.svc.cluster.local:80\n"
    );
}
