//! TLS from a waypoint to the application: what clusters say of it, which secrets are told, and what is found wrong.

use envoy_types::pb::envoy::{
    config::core::v3::{data_source::Specifier, transport_socket::ConfigType},
    extensions::transport_sockets::{
        internal_upstream::v3::InternalUpstreamTransport,
        tls::v3::{Secret, UpstreamTlsContext, common_tls_context::ValidationContextType, secret},
    },
    r#type::matcher::v3::string_matcher::MatchPattern,
};

use super::*;

const ROOTS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: roots, namespace: shop}
data:
  ca.crt: |
    -----BEGIN CERTIFICATE-----
    cm9vdA==
    -----END CERTIFICATE-----
---
";
const SECRET: &str = "
apiVersion: v1
kind: Secret
metadata: {name: payment, namespace: shop}
type: kubernetes.io/tls
stringData:
  tls.crt: |
    -----BEGIN CERTIFICATE-----
    Y2hhaW4=
    -----END CERTIFICATE-----
  tls.key: |
    -----BEGIN PRIVATE KEY-----
    a2V5
    -----END PRIVATE KEY-----
  ca.crt: |
    -----BEGIN CERTIFICATE-----
    cm9vdA==
    -----END CERTIFICATE-----
  ca.crl: |
    -----BEGIN X509 CRL-----
    bGlzdA==
    -----END X509 CRL-----
---
apiVersion: v1
kind: Secret
metadata: {name: unused, namespace: shop}
data: {cacert: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCmNtOXZkQT09Ci0tLS0tRU5EIENFUlRJRklDQVRFLS0tLS0K}
---
";

fn policy(name: &str, target: &str, roots: &str) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {{name: {name}, namespace: shop}}
spec:
  targetRefs: [{{group: '', kind: Service, name: {target}}}]
  validation: {{hostname: {name}.example, {roots}}}
---
"
    )
}

const OF_MAP: &str = "caCertificateRefs: [{group: '', kind: ConfigMap, name: roots}]";
const OF_SYSTEM: &str = "wellKnownCACertificates: System";

fn rule(tls: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: server, namespace: shop}}
spec: {{host: server, trafficPolicy: {{{tls}}}}}
---
"
    )
}

/// The TLS of a cluster, if any.
fn show_tls(cluster: &Cluster) -> Option<String> {
    let Some(ConfigType::TypedConfig(outer)) = &cluster.transport_socket.as_ref()?.config_type
    else {
        return None;
    };
    let inner = InternalUpstreamTransport::decode(outer.value.as_slice()).unwrap();
    let inner = inner.transport_socket.unwrap();
    if inner.name != "envoy.transport_sockets.tls" {
        return None;
    }
    let Some(ConfigType::TypedConfig(tls)) = inner.config_type else {
        panic!("no configuration")
    };
    let tls = UpstreamTlsContext::decode(tls.value.as_slice()).unwrap();
    let common = tls.common_tls_context.unwrap();
    let mut text = format!("sni {}", tls.sni);
    for certificate in &common.tls_certificate_sds_secret_configs {
        write!(text, ", as {}", certificate.name).unwrap();
    }
    if let Some(ValidationContextType::CombinedValidationContext(combined)) =
        common.validation_context_type
    {
        let roots = combined.validation_context_sds_secret_config.unwrap();
        write!(text, ", by {}", roots.name).unwrap();
        let context = combined.default_validation_context.unwrap();
        for name in &context.match_typed_subject_alt_names {
            let Some(MatchPattern::Exact(name)) = &name.matcher.as_ref().unwrap().match_pattern
            else {
                panic!("{name:?}")
            };
            write!(text, ", or {name}").unwrap();
        }
        if let Some(Specifier::Filename(lists)) = context.crl.and_then(|crl| crl.specifier) {
            write!(text, ", not of {lists}").unwrap();
        }
    }
    Some(text)
}

fn show_secret(secret: &Secret) -> String {
    let holds = match secret.r#type.as_ref().unwrap() {
        secret::Type::TlsCertificate(_) => "certificate",
        secret::Type::ValidationContext(context) if context.crl.is_some() => "roots and lists",
        secret::Type::ValidationContext(_) => "roots",
        other => panic!("{other:?}"),
    };
    format!("{}: {holds}", secret.name)
}

/// The TLS of each port, the secrets, and what is found.
fn check(yaml: &str, expected: Expect) {
    let (translation, config) = config(yaml);
    let mut text = String::new();
    for cluster in decoded::<Cluster>(&config.clusters.resources) {
        if let Some(tls) = show_tls(&cluster) {
            let name = cluster.name.replace("|server.shop.svc.cluster.local", "");
            writeln!(text, "{name}: {tls}").unwrap();
        }
    }
    for secret in decoded::<Secret>(&config.secrets.resources) {
        writeln!(text, "{}", show_secret(&secret)).unwrap();
    }
    for found in &translation.findings {
        let Advice {
            object,
            field,
            reason,
        } = &found.advice;
        let condition = (found.condition, found.reason);
        writeln!(text, "{object} {field}: {condition:?} {reason}").unwrap();
    }
    expected.assert_eq(&text);
}

#[test]
fn a_policy_originates_tls_for_a_service_or_one_of_its_ports() {
    check(
        &(ROOTS.to_owned() + &policy("a", "server", OF_MAP)),
        expect![[r#"
            inbound-vip|80|http: sni a.example, by configmap://shop/roots-cacert
            inbound-vip|90|http: sni a.example, by configmap://shop/roots-cacert
            inbound-vip|90|tcp: sni a.example, by configmap://shop/roots-cacert
            inbound-vip|99|tcp: sni a.example, by configmap://shop/roots-cacert
            configmap://shop/roots-cacert: roots
        "#]],
    );
    let of_port = policy("b", "server, sectionName: db", OF_SYSTEM);
    check(
        &(ROOTS.to_owned() + &policy("a", "server", OF_MAP) + &of_port),
        expect![[r#"
            inbound-vip|80|http: sni a.example, by configmap://shop/roots-cacert
            inbound-vip|90|http: sni b.example, by file-root:system
            inbound-vip|90|tcp: sni b.example, by file-root:system
            inbound-vip|99|tcp: sni a.example, by configmap://shop/roots-cacert
            configmap://shop/roots-cacert: roots
        "#]],
    );
    let names = "wellKnownCACertificates: System, subjectAltNames: [{type: Hostname, hostname: a.b}, {type: URI, uri: 'spiffe://td/a'}]";
    check(
        &policy("a", "server, sectionName: db", names),
        expect![[r#"
            inbound-vip|90|http: sni a.example, by file-root:system, or a.b, or a.b, or spiffe://td/a
            inbound-vip|90|tcp: sni a.example, by file-root:system, or a.b, or a.b, or spiffe://td/a
        "#]],
    );
}

#[test]
fn a_policy_that_cannot_be_followed_leaves_no_plain_text() {
    check(
        &policy("a", "server", OF_MAP),
        expect![[r#"
        inbound-vip|80|http: sni a.example, by configmap://shop/roots-cacert
        inbound-vip|90|http: sni a.example, by configmap://shop/roots-cacert
        inbound-vip|90|tcp: sni a.example, by configmap://shop/roots-cacert
        inbound-vip|99|tcp: sni a.example, by configmap://shop/roots-cacert
        BackendTLSPolicy shop/a spec.validation.caCertificateRefs[0]: ("Accepted", "NoValidCACertificate") there is no ConfigMap shop/roots with ca.crt: requests are refused
        BackendTLSPolicy shop/a spec.validation.caCertificateRefs[0]: ("ResolvedRefs", "InvalidCACertificateRef") there is no ConfigMap shop/roots with ca.crt
    "#]],
    );
    let secret = "caCertificateRefs: [{group: '', kind: Secret, name: roots}]";
    check(
        &policy("a", "server", secret),
        expect![[r#"
        inbound-vip|80|http: sni a.example, by secret://shop/roots-cacert
        inbound-vip|90|http: sni a.example, by secret://shop/roots-cacert
        inbound-vip|90|tcp: sni a.example, by secret://shop/roots-cacert
        inbound-vip|99|tcp: sni a.example, by secret://shop/roots-cacert
        BackendTLSPolicy shop/a spec.validation.caCertificateRefs[0]: ("Accepted", "NoValidCACertificate") Secret is no kind of roots; ConfigMap is: requests are refused
        BackendTLSPolicy shop/a spec.validation.caCertificateRefs[0]: ("ResolvedRefs", "InvalidKind") Secret is no kind of roots; ConfigMap is
    "#]],
    );
}

#[test]
fn what_stands_in_the_way_of_a_policy_is_told() {
    let all = policy("a", "server", OF_SYSTEM)
        + &policy("b", "server", OF_SYSTEM)
        + &policy("c", "gone", OF_SYSTEM)
        + &policy("d", "other", OF_SYSTEM)
        + &policy("e", "server, sectionName: gone", OF_SYSTEM);
    check(
        &all,
        expect![[r#"
        inbound-vip|80|http: sni a.example, by file-root:system
        inbound-vip|90|http: sni a.example, by file-root:system
        inbound-vip|90|tcp: sni a.example, by file-root:system
        inbound-vip|99|tcp: sni a.example, by file-root:system
        BackendTLSPolicy shop/b spec.targetRefs[0]: ("Accepted", "Conflicted") BackendTLSPolicy shop/a is about Service shop/server and counts
        BackendTLSPolicy shop/c spec.targetRefs[0]: ("Accepted", "TargetNotFound") there is no Service shop/gone: it has no effect there
        BackendTLSPolicy shop/e spec.targetRefs[0].sectionName: ("Accepted", "TargetNotFound") Service shop/server has no port `gone`: it has no effect there
        BackendTLSPolicy shop/d spec.targetRefs[0]: ("ResolvedWaypoints", "MissingUseWaypointLabel") Service shop/other has no waypoint (label istio.io/use-waypoint): nobody speaks TLS to it
    "#]],
    );
    let older = policy("b", "server", OF_SYSTEM).replace(
        "namespace: shop",
        "namespace: shop, creationTimestamp: 2020-01-01T00:00:00Z",
    );
    check(
        &(policy("a", "server", OF_SYSTEM) + &older),
        expect![[r#"
        inbound-vip|80|http: sni b.example, by file-root:system
        inbound-vip|90|http: sni b.example, by file-root:system
        inbound-vip|90|tcp: sni b.example, by file-root:system
        inbound-vip|99|tcp: sni b.example, by file-root:system
        BackendTLSPolicy shop/a spec.targetRefs[0]: ("Accepted", "Conflicted") BackendTLSPolicy shop/b is about Service shop/server and counts
    "#]],
    );
}

#[test]
fn a_destination_rule_with_tls_counts_before_a_policy() {
    let policy = policy("a", "server", OF_SYSTEM);
    check(
        &(policy.clone() + &rule("tls: {mode: SIMPLE, sni: rule.example}")),
        expect![[r#"
            inbound-vip|80|http: sni rule.example, by file-root:system
            inbound-vip|90|http: sni rule.example, by file-root:system
            inbound-vip|90|tcp: sni rule.example, by file-root:system
            inbound-vip|99|tcp: sni rule.example, by file-root:system
            BackendTLSPolicy shop/a spec.targetRefs[0]: ("Accepted", "Conflicted") DestinationRule shop/server says how TLS is spoken there and counts
        "#]],
    );
    // Not said, or of the mesh's own TLS.
    for other in [
        "loadBalancer: {simple: RANDOM}",
        "tls: {mode: ISTIO_MUTUAL}",
    ] {
        check(
            &(policy.clone() + &rule(other)),
            expect![[r#"
            inbound-vip|80|http: sni a.example, by file-root:system
            inbound-vip|90|http: sni a.example, by file-root:system
            inbound-vip|90|tcp: sni a.example, by file-root:system
            inbound-vip|99|tcp: sni a.example, by file-root:system
        "#]],
        );
    }
}

/// As istiod has it: the policy becomes a rule, and of two rules for one host the older's traffic policy counts alone.
#[test]
fn of_a_destination_rule_and_a_policy_whose_ages_are_known_the_older_counts_alone() {
    let of = |year: u16, text: &str| {
        let created = format!("namespace: shop, creationTimestamp: {year}-01-01T00:00:00Z");
        text.replace("namespace: shop", &created)
    };
    let (backend, other) = (
        policy("a", "server", OF_SYSTEM),
        rule("loadBalancer: {simple: RANDOM}"),
    );
    check(
        &(of(2021, &backend) + &of(2020, &other)),
        expect![[r#"
            BackendTLSPolicy shop/a spec.targetRefs[0]: ("Accepted", "Conflicted") DestinationRule shop/server is older: its traffic policy counts there alone
        "#]],
    );
    let tls = rule("tls: {mode: SIMPLE, sni: rule.example}");
    check(
        &(of(2020, &backend) + &of(2021, &tls)),
        expect![[r#"
            inbound-vip|80|http: sni a.example, by file-root:system
            inbound-vip|90|http: sni a.example, by file-root:system
            inbound-vip|90|tcp: sni a.example, by file-root:system
            inbound-vip|99|tcp: sni a.example, by file-root:system
        "#]],
    );
    // One without a traffic policy has only subsets to say.
    let subsets = other.replace(", trafficPolicy: {loadBalancer: {simple: RANDOM}}", "");
    check(
        &(of(2021, &backend) + &of(2020, &subsets)),
        expect![[r#"
            inbound-vip|80|http: sni a.example, by file-root:system
            inbound-vip|90|http: sni a.example, by file-root:system
            inbound-vip|90|tcp: sni a.example, by file-root:system
            inbound-vip|99|tcp: sni a.example, by file-root:system
        "#]],
    );
}

#[test]
fn rules_name_secrets_of_the_waypoints_namespace() {
    check(
        &(SECRET.to_owned()
            + &rule("tls: {mode: MUTUAL, credentialName: payment, subjectAltNames: [a]}")),
        expect![[r#"
            inbound-vip|80|http: sni server.shop.svc.cluster.local, as kubernetes://payment, by kubernetes://payment-cacert, or a, or a
            inbound-vip|90|http: sni server.shop.svc.cluster.local, as kubernetes://payment, by kubernetes://payment-cacert, or a, or a
            inbound-vip|90|tcp: sni server.shop.svc.cluster.local, as kubernetes://payment, by kubernetes://payment-cacert, or a, or a
            inbound-vip|99|tcp: sni server.shop.svc.cluster.local, as kubernetes://payment, by kubernetes://payment-cacert, or a, or a
            kubernetes://payment: certificate
            kubernetes://payment-cacert: roots and lists
        "#]],
    );
    check(
        &(SECRET.to_owned() + &rule("tls: {mode: SIMPLE, credentialName: payment, caCrl: /lists}")),
        expect![[r#"
            inbound-vip|80|http: sni server.shop.svc.cluster.local, by kubernetes://payment-cacert, not of /lists
            inbound-vip|90|http: sni server.shop.svc.cluster.local, by kubernetes://payment-cacert, not of /lists
            inbound-vip|90|tcp: sni server.shop.svc.cluster.local, by kubernetes://payment-cacert, not of /lists
            inbound-vip|99|tcp: sni server.shop.svc.cluster.local, by kubernetes://payment-cacert, not of /lists
            kubernetes://payment-cacert: roots and lists
        "#]],
    );
    let elsewhere = SECRET.replace("namespace: shop", "namespace: bank");
    check(
        &(elsewhere + &rule("tls: {mode: MUTUAL, credentialName: payment}")),
        expect![[r#"
            inbound-vip|80|http: sni server.shop.svc.cluster.local, as kubernetes://payment, by kubernetes://payment-cacert
            inbound-vip|90|http: sni server.shop.svc.cluster.local, as kubernetes://payment, by kubernetes://payment-cacert
            inbound-vip|90|tcp: sni server.shop.svc.cluster.local, as kubernetes://payment, by kubernetes://payment-cacert
            inbound-vip|99|tcp: sni server.shop.svc.cluster.local, as kubernetes://payment, by kubernetes://payment-cacert
            DestinationRule shop/server spec.trafficPolicy.tls.credentialName: ("ResolvedRefs", "ReferencedResourceNotFound") there is no Secret shop/payment with a certificate and its key, for the waypoint shop/wp: requests are refused
        "#]],
    );
    check(
        &(SECRET.to_owned() + &rule("tls: {mode: MUTUAL, credentialName: unused}")),
        expect![[r#"
            inbound-vip|80|http: sni server.shop.svc.cluster.local, as kubernetes://unused, by kubernetes://unused-cacert
            inbound-vip|90|http: sni server.shop.svc.cluster.local, as kubernetes://unused, by kubernetes://unused-cacert
            inbound-vip|90|tcp: sni server.shop.svc.cluster.local, as kubernetes://unused, by kubernetes://unused-cacert
            inbound-vip|99|tcp: sni server.shop.svc.cluster.local, as kubernetes://unused, by kubernetes://unused-cacert
            kubernetes://unused-cacert: roots
            DestinationRule shop/server spec.trafficPolicy.tls.credentialName: ("ResolvedRefs", "ReferencedResourceNotFound") there is no Secret shop/unused with a certificate and its key, for the waypoint shop/wp: requests are refused
        "#]],
    );
    check(
        &(SECRET.to_owned()
            + &rule("tls: {mode: SIMPLE, credentialName: gone, insecureSkipVerify: true}")),
        expect![[r#"
            inbound-vip|80|http: sni server.shop.svc.cluster.local
            inbound-vip|90|http: sni server.shop.svc.cluster.local
            inbound-vip|90|tcp: sni server.shop.svc.cluster.local
            inbound-vip|99|tcp: sni server.shop.svc.cluster.local
        "#]],
    );
}

#[test]
fn secrets_are_not_shown() {
    let (translation, config) =
        config(&(SECRET.to_owned() + &rule("tls: {mode: MUTUAL, credentialName: payment}")));
    assert_eq!(config.secrets.resources.len(), 2);
    let shown = format!(
        "{:?} {:?} {:?}",
        config.secrets,
        objects(SECRET),
        translation.findings
    );
    assert!(
        !shown.contains("a2V5") && !shown.contains("PRIVATE KEY"),
        "{shown}"
    );
}
