//! AuthorizationPolicies and PeerAuthentications as node proxies are told of them.

use super::*;

pub(super) fn policy(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: \
         {namespace}}}\nspec: {spec}\n---"
    )
}

#[test]
fn policies_by_scope_and_selector() {
    let yaml = pod("web", "{ip: 10.0.0.1}", "")
        + &policy("nothing", "shop", "{}")
        + &policy("mesh", "istio-system", "{rules: [{}]}")
        + &policy(
            "root-web",
            "istio-system",
            "{selector: {matchLabels: {app: web}}, rules: [{}]}",
        )
        + &policy(
            "web",
            "shop",
            "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{}]}",
        )
        + &policy(
            "other",
            "shop",
            "{selector: {matchLabels: {app: other}}, rules: [{}]}",
        )
        + &policy(
            "web",
            "elsewhere",
            "{selector: {matchLabels: {app: web}}, rules: [{}]}",
        )
        + &policy(
            "waypoint",
            "shop",
            "{targetRefs: [{kind: Service, group: '', name: web}], rules: [{}]}",
        )
        + &policy(
            "custom",
            "shop",
            "{action: CUSTOM, provider: {name: x}, rules: [{}]}",
        )
        + &policy("audit", "shop", "{action: AUDIT, rules: [{}]}");
    check(
        &yaml,
        &[],
        expect![[r#"
        workload Kubernetes//Pod/shop/web 10.0.0.1 shop/web on "a" sa "web-sa" None Healthy
          named web canonical web latest
          policies istio-system/root-web shop/web
        policy elsewhere/web Allow WorkloadSelector
          if anything
        policy istio-system/mesh Allow Global
          if anything
        policy istio-system/root-web Allow WorkloadSelector
          if anything
        policy shop/nothing Allow Namespace
        policy shop/other Allow WorkloadSelector
          if anything
        policy shop/web Deny WorkloadSelector
          if anything
        advice AuthorizationPolicy shop/audit spec.action: action AUDIT is not supported yet, the policy is not enforced
        advice AuthorizationPolicy shop/custom spec.action: action CUSTOM is not supported yet, the policy is not enforced
    "#]],
    );
}

#[test]
fn conditions_that_a_node_proxy_can_check() {
    let yaml = policy(
        "all",
        "shop",
        "
  rules:
  - from:
    - source: {principals: ['*', 'cluster.local/ns/a/sa/b', '*/sa/b', 'cluster.local/*'], notNamespaces: [bad]}
    - source: {namespaces: [a, b*], ipBlocks: [10.1.2.3/8, 192.0.2.1, '2001:db8::/32'], notIpBlocks: [10.1.0.0/16]}
    - source: {serviceAccounts: [web, other/web], notServiceAccounts: [bad]}
    to:
    - operation: {ports: ['80', '443']}
    - operation: {notPorts: ['22']}
    when:
    - {key: source.ip, values: [10.0.0.0/8]}
    - {key: destination.ip, notValues: [10.0.0.1]}
    - {key: destination.port, values: ['80'], notValues: ['81']}
    - {key: source.principal, notValues: ['*']}
    - {key: source.namespace, values: [a]}
    - {key: source.serviceAccount, values: [a/b]}
  - {}",
    );
    check(
        &yaml,
        &[],
        expect![[r#"
        policy shop/all Allow Namespace
          if not namespace bad & principal any|cluster.local/ns/a/sa/b|.../sa/b|cluster.local/... or namespace a|b... & source 10.0.0.0/8|192.0.2.1/32|2001:db8::/32 & not source 10.1.0.0/16 or account shop/web|other/web & not account shop/bad; and port 80|443 or not port 22; and source 10.0.0.0/8; and not destination 10.0.0.1/32; and port 80 & not port 81; and not principal any; and namespace a; and account a/b
          if anything
    "#]],
    );
}

#[test]
fn what_only_a_waypoint_can_check_never_weakens_a_policy() {
    let rules = "
  rules:
  - from: [{source: {namespaces: [a]}}]
    to: [{operation: {ports: ['80'], methods: [GET]}}]
  - to: [{operation: {paths: [/admin]}}, {operation: {ports: ['81']}}]
  - from: [{source: {requestPrincipals: ['*']}}]
    when: [{key: 'request.headers[x]', values: [z]}]
  - from: [{source: {namespaces: [b]}}]";
    let yaml = policy("allow", "shop", &format!("\n  action: ALLOW{rules}"))
        + &policy("deny", "shop", &format!("\n  action: DENY{rules}"));
    check(
        &yaml,
        &[],
        expect![[r#"
        policy shop/allow Allow Namespace
          if namespace b
        policy shop/deny Deny Namespace
          if namespace a; and port 80
          if anything
          if anything
          if namespace b
        advice AuthorizationPolicy shop/allow spec.rules[0]: the rule needs methods, which only a waypoint can check; the rule is left out, so that it allows nothing
        advice AuthorizationPolicy shop/allow spec.rules[1]: the rule needs paths, which only a waypoint can check; the rule is left out, so that it allows nothing
        advice AuthorizationPolicy shop/allow spec.rules[2]: the rule needs requestPrincipals, request.headers[x], which only a waypoint can check; the rule is left out, so that it allows nothing
        advice AuthorizationPolicy shop/deny spec.rules[0].to[0].operation: only a waypoint can check methods; without it the rule denies more than it says
        advice AuthorizationPolicy shop/deny spec.rules[1].to[0].operation: only a waypoint can check paths; without it nothing of this condition is left, so that the rule denies regardless of it
        advice AuthorizationPolicy shop/deny spec.rules[2].from[0].source: only a waypoint can check requestPrincipals; without it nothing of this condition is left, so that the rule denies regardless of it
        advice AuthorizationPolicy shop/deny spec.rules[2].when[0]: only a waypoint can check request.headers[x]; without it nothing of this condition is left, so that the rule denies regardless of it
    "#]],
    );
}

fn peer(name: &str, namespace: &str, spec: &str) -> String {
    policy(name, namespace, spec).replace("AuthorizationPolicy", "PeerAuthentication")
}

#[test]
fn peer_authentication_precedence() {
    let attached = |peers: &[String]| {
        let yaml = pod("web", "{ip: 10.0.0.1}", "") + &peers.concat();
        describe(&translated(&yaml, &[]))
            .lines()
            .find_map(|line| line.strip_prefix("  policies ").map(ToOwned::to_owned))
            .unwrap_or_default()
    };
    let strict = "istio-system/istio_converted_static_strict";
    let mesh = |mode: &str| {
        peer(
            "mesh",
            "istio-system",
            &format!("{{mtls: {{mode: {mode}}}}}"),
        )
    };
    let namespace = |mode: &str| peer("ns", "shop", &format!("{{mtls: {{mode: {mode}}}}}"));
    let workload = |name: &str, rest: &str| {
        peer(
            name,
            "shop",
            &format!("{{selector: {{matchLabels: {{app: web}}}}{rest}}}"),
        )
    };
    assert_eq!(attached(&[]), "");
    assert_eq!(attached(&[mesh("STRICT")]), strict);
    assert_eq!(attached(&[mesh("STRICT"), namespace("PERMISSIVE")]), "");
    assert_eq!(attached(&[mesh("STRICT"), namespace("UNSET")]), strict);
    assert_eq!(attached(&[mesh("PERMISSIVE"), namespace("STRICT")]), strict);
    assert_eq!(
        attached(&[
            namespace("STRICT"),
            workload("w", ", mtls: {mode: DISABLE}")
        ]),
        ""
    );
    assert_eq!(attached(&[namespace("STRICT"), workload("w", "")]), strict);
    assert_eq!(attached(&[workload("w", ", mtls: {mode: STRICT}")]), strict);
    // Of equals, or where no time is written, the strictest.
    assert_eq!(
        attached(&[
            workload("b", ", mtls: {mode: STRICT}"),
            workload("a", ", mtls: {mode: PERMISSIVE}")
        ]),
        strict
    );
    let other = |mode: &str| namespace(mode).replace("name: ns", "name: a");
    assert_eq!(attached(&[namespace("STRICT"), other("DISABLE")]), strict);
    assert_eq!(attached(&[namespace("STRICT"), other("UNSET")]), strict);
    // The older of two.
    let at = |time: &str, yaml: String| {
        let stamp = format!("creationTimestamp: '{time}', namespace");
        yaml.replace("namespace", &stamp)
    };
    assert_eq!(
        attached(&[
            at("2026-01-02T00:00:00Z", namespace("STRICT")),
            at("2026-01-01T00:00:00Z", other("PERMISSIVE"))
        ]),
        ""
    );
    // A selector in the root namespace has no effect.
    assert_eq!(
        attached(&[workload("w", ", mtls: {mode: STRICT}").replace("shop", "istio-system")]),
        ""
    );
}

#[test]
fn peer_authentication_by_port() {
    let selector = "selector: {matchLabels: {app: web}}";
    let ports =
        "portLevelMtls: {'80': {mode: STRICT}, '81': {mode: PERMISSIVE}, '82': {mode: UNSET}}";
    for (spec, expected) in [
        (
            format!("{{{selector}, mtls: {{mode: PERMISSIVE}}, {ports}}}"),
            expect![[r#"
                  policies shop/converted_peer_authentication_ports
                policy istio-system/istio_converted_static_strict Deny WorkloadSelector
                  if not principal any
                policy shop/converted_peer_authentication_ports Deny WorkloadSelector
                  if not principal any; and port 80
            "#]],
        ),
        (
            format!("{{{selector}, mtls: {{mode: STRICT}}, {ports}}}"),
            expect![[r#"
                  policies shop/converted_peer_authentication_ports
                policy istio-system/istio_converted_static_strict Deny WorkloadSelector
                  if not principal any
                policy shop/converted_peer_authentication_ports Deny WorkloadSelector
                  if not principal any; and not port 81
            "#]],
        ),
        (
            format!(
                "{{{selector}, mtls: {{mode: STRICT}}, portLevelMtls: {{'80': {{mode: STRICT}}}}}}"
            ),
            expect![[r#"
                  policies istio-system/istio_converted_static_strict
                policy istio-system/istio_converted_static_strict Deny WorkloadSelector
                  if not principal any
            "#]],
        ),
        (
            format!("{{{selector}, portLevelMtls: {{'80': {{mode: DISABLE}}}}}}"),
            expect![[r#"
                policy istio-system/istio_converted_static_strict Deny WorkloadSelector
                  if not principal any
            "#]],
        ),
    ] {
        let yaml = pod("web", "{ip: 10.0.0.1}", "") + &peer("ports", "shop", &spec);
        let text = describe(&translated(&yaml, &[]));
        let relevant: String = text
            .lines()
            .skip(2)
            .map(|line| format!("{line}\n"))
            .collect();
        expected.assert_eq(&relevant);
    }
}
