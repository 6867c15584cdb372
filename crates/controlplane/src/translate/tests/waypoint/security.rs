//! Settings of the mesh and policies in the chains of a waypoint.

use envoy_types::pb::envoy::{
    config::listener::v3::filter::ConfigType as NetworkConfig,
    config::rbac::v3::{Rbac as Rules, rbac::Action as RbacAction},
    extensions::filters::{
        http::{jwt_authn::v3::JwtAuthentication, rbac::v3::Rbac},
        network::http_connection_manager::v3::{
            HttpConnectionManager, http_filter::ConfigType as HttpConfig,
        },
    },
};
use prost::Name;

use super::*;

/// The connection manager of the service's HTTP port.
fn manager(config: &WaypointConfig) -> HttpConnectionManager {
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

fn mesh_config(namespace: &str, mesh: &str) -> String {
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
            "jwt origins-0 one no keys, origins-1 two keys",
            "rbac rules DENY [ns[shop]-policy[c]-rule[0]]",
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
        "AuthorizationPolicy shop/c spec.action",
        "RequestAuthentication shop/tokens spec.jwtRules[1]",
    ] {
        assert!(told.iter().any(|one| one == expected), "{told:?}");
    }
}
