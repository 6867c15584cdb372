//! Settings of the mesh and policies in the chains of a waypoint.

use envoy_types::pb::envoy::{
    config::listener::v3::filter::ConfigType as NetworkConfig,
    config::rbac::v3::{Rbac as Rules, rbac::Action as RbacAction},
    extensions::filters::{
        http::{
            ext_authz::v3::{ExtAuthz, ext_authz::Services},
            jwt_authn::v3::JwtAuthentication,
            rbac::v3::Rbac,
        },
        network::{
            ext_authz::v3::ExtAuthz as TcpExtAuthz,
            http_connection_manager::v3::{
                HttpConnectionManager, http_filter::ConfigType as HttpConfig,
            },
            rbac::v3::Rbac as TcpRbac,
        },
    },
};
use envoy_types::pb::google::protobuf::Any;
use prost::Name;

use super::*;

/// The connection manager of the service's HTTP port.
pub(super) fn manager(config: &WaypointConfig) -> HttpConnectionManager {
    let listeners: Vec<Listener> = decoded(&config.listeners.resources);
    let chains = listeners
        .iter()
        .flat_map(|listener| &listener.filter_chains);
    let mut chains = chains.filter(|chain| chain.name.starts_with("inbound-vip|80|http|"));
    let filter = chains.next().unwrap().filters.last().unwrap();
    let Some(NetworkConfig::TypedConfig(any)) = &filter.config_type else {
        panic!("no configuration");
    };
    HttpConnectionManager::decode(any.value.as_slice()).unwrap()
}

pub(super) fn mesh_config(namespace: &str, mesh: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: {namespace}}}\ndata:\n  mesh: |\n    {mesh}\n"
    )
}

#[test]
fn paths_are_normalised_as_the_mesh_says() {
    let check = |yaml: &str, expected: (bool, bool, i32)| {
        let (_, config) = config(yaml);
        let manager = manager(&config);
        let found = (
            manager.normalize_path.unwrap().value,
            manager.merge_slashes,
            manager.path_with_escaped_slashes_action,
        );
        assert_eq!(found, expected, "{yaml}");
    };
    let of = |how: &str| {
        let mesh = format!("pathNormalization: {{normalization: {how}}}");
        mesh_config("istio-system", &mesh)
    };
    check("", (true, false, 1));
    check(&of("NONE"), (false, false, 1));
    check(&of("BASE"), (true, false, 1));
    check(&of("MERGE_SLASHES"), (true, true, 1));
    check(&of("DECODE_AND_MERGE_SLASHES"), (true, true, 4));
    check(
        &mesh_config("shop", "pathNormalization: {normalization: NONE}"),
        (true, false, 1),
    );
}

#[test]
fn what_the_mesh_config_cannot_do_is_told() {
    let reasons = |yaml: &str| {
        let (translation, _) = config(yaml);
        let advice = translation.advice.into_iter();
        let of_map = advice.filter(|one| one.object.name == "istio");
        of_map.map(|one| one.reason).collect::<Vec<_>>()
    };
    assert_eq!(
        reasons(&mesh_config("istio-system", "enablePrometheusMerge: true")),
        ["enablePrometheusMerge is not acted on"]
    );
    assert_eq!(
        reasons(&mesh_config(
            "istio-system",
            "extensionProviders: [{name: x, zipkin: {service: s}}]"
        )),
        [
            "extensionProviders[0].zipkin is not acted on",
            "provider x is of a kind that is not supported"
        ]
    );
    for kind in [
        "envoyExtAuthzHttp: {service: s, port: 1}",
        "envoyExtAuthzGrpc: {service: s, port: 1}",
        "envoyFileAccessLog: {path: /dev/stdout}",
        "envoyHttpAls: {service: s, port: 1}",
        "envoyTcpAls: {service: s, port: 1}",
        "envoyOtelAls: {service: s, port: 1}",
        "opentelemetry: {service: s, port: 1}",
        "prometheus: {}",
    ] {
        let mesh = format!("extensionProviders: [{{name: x, {kind}}}]");
        let said = reasons(&mesh_config("istio-system", &mesh));
        assert!(said.is_empty(), "{kind}: {said:?}");
    }
    assert_eq!(
        reasons(&mesh_config("shop", "{}")),
        ["has no effect outside of the root namespace istio-system"]
    );
}

/// The checks of the HTTP port, short.
fn checks(config: &WaypointConfig) -> Vec<String> {
    let rules = |name: &str, rules: Option<Rules>| {
        let rules = rules?;
        let mut ids: Vec<String> = rules.policies.into_keys().collect();
        ids.sort();
        let action = RbacAction::try_from(rules.action).unwrap();
        Some(format!(
            " {name} {} [{}]",
            action.as_str_name(),
            ids.join(" ")
        ))
    };
    let filters = manager(config).http_filters.into_iter();
    let filters = filters.filter_map(|filter| match filter.config_type {
        Some(HttpConfig::TypedConfig(any)) if any.type_url == Rbac::type_url() => {
            let rbac = Rbac::decode(any.value.as_slice()).unwrap();
            let parts = [
                rules("rules", rbac.rules),
                rules("shadow", rbac.shadow_rules),
            ];
            Some(format!(
                "rbac{}",
                parts.into_iter().flatten().collect::<String>()
            ))
        }
        Some(HttpConfig::TypedConfig(any)) if any.type_url == JwtAuthentication::type_url() => {
            let jwt = JwtAuthentication::decode(any.value.as_slice()).unwrap();
            let mut issuers: Vec<String> = jwt
                .providers
                .into_iter()
                .map(|(name, provider)| {
                    let keys = format!("{:?}", provider.jwks_source_specifier);
                    let keys = if keys.contains("k1") {
                        "keys"
                    } else {
                        "no keys"
                    };
                    format!("{name} {} {keys}", provider.issuer)
                })
                .collect();
            issuers.sort();
            Some(format!("jwt {}", issuers.join(", ")))
        }
        _ => None,
    });
    filters.collect()
}

fn policy_of(name: &str, annotations: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: shop, annotations: {{{annotations}}}}}
spec:
  targetRefs: [{{kind: Service, group: \"\", name: server}}]
{spec}
---
"
    )
}

#[test]
fn policies_are_put_in_order_and_dry_runs_only_told() {
    let dry = "istio.io/dry-run: \"true\"";
    let (translation, config) = config(
        &[
            policy_of("a", "", "  rules: [{to: [{operation: {methods: [GET]}}]}]"),
            policy_of("b", dry, "  action: DENY\n  rules: [{}]"),
            policy_of(
                "c",
                "",
                "  action: CUSTOM\n  provider: {name: x}\n  rules: [{}]",
            ),
            policy_of("d", dry, "  rules: [{}]"),
            policy_of("e", "", "  action: AUDIT\n  rules: [{}]"),
            "apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: \"\", name: server}]
  jwtRules:
  - {issuer: two, jwks: '{\"keys\": [{\"kid\": \"k1\"}]}'}
  - {issuer: one, jwksUri: http://one.example/keys}
"
            .to_owned(),
        ]
        .concat(),
    );
    assert_eq!(
        checks(&config),
        [
            "rbac rules DENY [ns[shop]-policy[c]-rule[0]-deny-due-to-bad-CUSTOM-action]",
            "jwt origins-0 one no keys, origins-1 two keys",
            "rbac rules LOG [ns[shop]-policy[e]-rule[0]]",
            "rbac shadow DENY [ns[shop]-policy[b]-rule[0]]",
            "rbac rules ALLOW [ns[shop]-policy[a]-rule[0]] shadow ALLOW [ns[shop]-policy[d]-rule[0]]",
        ]
    );
    let advice = translation.advice.iter();
    let told: Vec<String> = advice
        .map(|one| format!("{} {}", one.object, one.field))
        .collect();
    for expected in [
        "AuthorizationPolicy shop/c spec.provider.name",
        "RequestAuthentication shop/tokens spec.jwtRules[1]",
    ] {
        assert!(told.iter().any(|one| one == expected), "{told:?}");
    }
}

/// The authorizers of the service's HTTP port and of its TCP port, short.
fn authorizers(config: &WaypointConfig) -> Vec<String> {
    let show = |name: &str, any: &Any| {
        let text = if any.type_url == ExtAuthz::type_url() {
            let authz = ExtAuthz::decode(any.value.as_slice()).unwrap();
            let asked = match authz.services.as_ref().unwrap() {
                Services::GrpcService(grpc) => format!("{:?}", grpc.target_specifier),
                Services::HttpService(http) => {
                    format!("{:?} {}", http.server_uri, http.path_prefix)
                }
            };
            format!("{asked} {:?}", authz.filter_enabled_metadata)
        } else if any.type_url == TcpExtAuthz::type_url() {
            let authz = TcpExtAuthz::decode(any.value.as_slice()).unwrap();
            format!(
                "{:?} {:?}",
                authz.grpc_service, authz.filter_enabled_metadata
            )
        } else if any.type_url == Rbac::type_url() || any.type_url == TcpRbac::type_url() {
            String::from_utf8_lossy(&any.value).into_owned()
        } else {
            return None;
        };
        Some((name.to_owned(), text))
    };
    let http = manager(config).http_filters;
    let http = http.iter().filter_map(|filter| match &filter.config_type {
        Some(HttpConfig::TypedConfig(any)) => show(&filter.name, any),
        _ => None,
    });
    let listeners: Vec<Listener> = decoded(&config.listeners.resources);
    let chains = listeners
        .iter()
        .flat_map(|listener| &listener.filter_chains);
    let chain = chains
        .into_iter()
        .find(|chain| chain.name.starts_with("inbound-vip|99|tcp|"));
    let tcp = chain.unwrap().filters.iter();
    let tcp = tcp.filter_map(|filter| match &filter.config_type {
        Some(NetworkConfig::TypedConfig(any)) => show(&filter.name, any),
        _ => None,
    });
    let all: Vec<(String, String)> = http.chain(tcp).collect();
    let words = [
        "outbound|80||other.shop.svc.cluster.local",
        "outbound_.80_._.other.shop.svc.cluster.local",
        "/check",
        "istio_ext_authz_shadow_effective_policy_id",
        "istio-ext-authz-a-ns[shop]-policy[c]-rule[0]",
        "istio-ext-authz-b-ns[shop]-policy[d]-rule[0]",
        "deny-due-to-bad-CUSTOM-action",
        "Prefix(\"istio-ext-authz-a-\")",
        "Prefix(\"istio-ext-authz-b-\")",
    ];
    all.iter()
        .map(|(name, text)| {
            let found = words.iter().filter(|word| text.contains(**word));
            let found: Vec<&str> = found.copied().collect();
            format!("{name}: {}", found.join(" "))
        })
        .collect()
}

#[test]
fn authorizers_are_asked_where_the_filter_before_them_finds_their_rule() {
    let of = |name: &str, provider: &str| {
        policy_of(
            name,
            "",
            &format!("  action: CUSTOM\n  provider: {{name: {provider}}}\n  rules: [{{}}]"),
        )
    };
    let mesh = mesh_config(
        "istio-system",
        "extensionProviders:
    - name: a
      envoyExtAuthzGrpc: {service: shop/other.shop.svc.cluster.local, port: 80}
    - name: b
      envoyExtAuthzHttp: {service: other.shop.svc.cluster.local, port: 80, pathPrefix: /check}",
    );
    let (translation, config) = config(&[of("c", "a"), of("d", "b"), mesh].concat());
    let gateway = "outbound|80||other.shop.svc.cluster.local";
    let key = "istio_ext_authz_shadow_effective_policy_id";
    let a = "istio-ext-authz-a-ns[shop]-policy[c]-rule[0]";
    let b = "istio-ext-authz-b-ns[shop]-policy[d]-rule[0]";
    let authority = "outbound_.80_._.other.shop.svc.cluster.local";
    assert_eq!(
        authorizers(&config),
        [
            format!("envoy.filters.http.rbac: {a}"),
            format!(
                "envoy.filters.http.ext_authz: {gateway} {authority} {key} Prefix(\"istio-ext-authz-a-\")"
            ),
            format!("envoy.filters.http.rbac: {b}"),
            format!(
                "envoy.filters.http.ext_authz: {gateway} /check {key} Prefix(\"istio-ext-authz-b-\")"
            ),
            format!("envoy.filters.network.rbac: {a}"),
            format!(
                "envoy.filters.network.ext_authz: {gateway} {authority} {key} Prefix(\"istio-ext-authz-a-\")"
            ),
            "envoy.filters.network.rbac: deny-due-to-bad-CUSTOM-action".to_owned(),
        ]
    );
    assert!(config.clusters.resources.contains_key(gateway));
    let advice = translation.advice.iter();
    let told: Vec<String> = advice.map(|one| one.reason.clone()).collect();
    assert!(
        told.iter()
            .any(|one| one.contains("cannot be asked about TCP")),
        "{told:?}"
    );
}
