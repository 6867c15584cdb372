//! Trust domain aliases: what node proxies and waypoints are told of policies and peers.

use envoy_types::pb::envoy::{
    config::{core::v3::transport_socket::ConfigType, listener::v3::Listener},
    extensions::transport_sockets::tls::v3::{
        DownstreamTlsContext, common_tls_context::ValidationContextType,
    },
};

use super::*;

const ALIASES: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    trustDomainAliases: [old.example, older.example]
---";

fn of_shop(targets: &str, rules: &str) -> String {
    policy(
        "p",
        "shop",
        &format!("{{{targets} action: DENY, rules: {rules}}}"),
    )
}

#[test]
fn node_proxies_are_told_of_aliases_and_of_principals_in_all_of_them() {
    let rules = "[{from: [{source: {principals: [old.example/ns/a/sa/b], notPrincipals: ['*/sa/c', third.example/ns/a/sa/b]}}], \
                 when: [{key: source.principal, notValues: [cluster.local/ns/a/sa/*]}]}]";
    check(
        &(ALIASES.to_owned() + &pod("web", "{ip: 10.0.0.1}", "") + &of_shop("", rules)),
        &[],
        expect![[r#"
            workload Kubernetes//Pod/shop/web 10.0.0.1 shop/web on "a" sa "web-sa" None Healthy
              trust domain "" or old.example, older.example
              named web canonical web latest
            policy shop/p Deny Namespace
              if principal cluster.local/ns/a/sa/b|old.example/ns/a/sa/b|older.example/ns/a/sa/b & not principal .../sa/c|third.example/ns/a/sa/b; and not principal cluster.local/ns/a/sa/...|old.example/ns/a/sa/...|older.example/ns/a/sa/...
        "#]],
    );
}

#[test]
fn waypoints_are_told_of_the_prefixes_of_all_trust_domains() {
    let yaml = format!("{ALIASES}\n{}---\n", waypoint::MESH)
        + &of_shop(
            "targetRefs: [{kind: Service, group: '', name: server}],",
            "[{from: [{source: {principals: [older.example/ns/a/sa/b]}}]}]",
        );
    let translation = translated(&yaml, &[]);
    let config = translation.waypoints.values().next().unwrap();
    let listeners: Vec<Listener> = config
        .listeners
        .resources
        .values()
        .map(|resource| Listener::decode(resource.body.clone()).unwrap())
        .collect();
    let entry = listeners.iter().find(|one| one.name == "connect_terminate");
    let socket = entry.unwrap().filter_chains[0].transport_socket.as_ref();
    let Some(ConfigType::TypedConfig(tls)) = &socket.unwrap().config_type else {
        panic!("no configuration");
    };
    let context = DownstreamTlsContext::decode(tls.value.as_slice()).unwrap();
    let common = context.common_tls_context.unwrap();
    let Some(ValidationContextType::CombinedValidationContext(validation)) =
        common.validation_context_type
    else {
        panic!("no validation");
    };
    let names = validation.default_validation_context.unwrap();
    let names = names.match_typed_subject_alt_names.into_iter();
    let prefixes: Vec<String> = names.map(|name| format!("{:?}", name.matcher)).collect();
    for (prefix, domain) in prefixes
        .iter()
        .zip(["cluster.local", "old.example", "older.example"])
    {
        assert!(
            prefix.contains(&format!("Prefix(\"spiffe://{domain}/\")")),
            "{prefixes:?}"
        );
    }
    assert_eq!(prefixes.len(), 3);
    // The rule's principals are in the chains of the service.
    let chains = listeners.iter().find(|one| one.name == "main_internal");
    let chains = String::from_utf8_lossy(&chains.unwrap().encode_to_vec()).into_owned();
    for domain in ["cluster.local", "old.example", "older.example"] {
        assert!(
            chains.contains(&format!("spiffe://{domain}/ns/a/sa/b")),
            "{domain}"
        );
    }
}
