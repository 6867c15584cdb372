//! Fields that are not acted on are told, each with its place; those that are acted on are not.

use super::*;

const MESH: &str = "
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
spec: {clusterIP: 10.96.0.20, ports: [{name: http, port: 80}, {name: tls, port: 443}, {name: tcp, port: 9000}]}
";

/// Kinds with their version and a body to which a case adds.
const NETWORKING: &str = "networking.istio.io/v1";
const SECURITY: &str = "security.istio.io/v1";
const GATEWAY: &str = "gateway.networking.k8s.io/v1";
const OURS: &str = "leyline.io/v1alpha1";

/// One object of the mesh with this body; the fields that are told of.
fn told(version: &str, kind: &str, metadata: &str, spec: &str) -> Vec<String> {
    let yaml = format!(
        "{MESH}---
apiVersion: {version}
kind: {kind}
metadata: {{name: one, namespace: shop{metadata}}}
spec: {{{spec}}}
"
    );
    let advice = translated(&yaml, &[]).advice;
    let of_object = |one: &&Advice| one.object.name == "one";
    let fields = advice.iter().filter(of_object).map(|one| one.field.clone());
    fields.collect()
}

#[track_caller]
fn check_spec((version, kind): (&str, &str), around: &str, cases: &[(&str, &str)]) {
    for (fields, expected) in cases {
        let spec = around.replace("...", fields);
        let told = told(version, kind, "", &spec).join(" ");
        assert_eq!(told, *expected, "{kind} {spec}");
    }
}

#[test]
fn of_virtual_services() {
    let kind = (NETWORKING, "VirtualService");
    check_spec(
        kind,
        "hosts: [server], exportTo: ['.'], gateways: [mesh, other], http: [{..., route: [{destination: {host: server}}]}]",
        &[
            (
                "match: [{uri: {exact: /}, statPrefix: x}]",
                "spec.http[0].match[0].statPrefix",
            ),
            (
                "match: [{sourceLabels: {a: b}}]",
                "spec.http[0].match[0].sourceLabels",
            ),
            (
                "match: [{sourceNamespace: a}]",
                "spec.http[0].match[0].sourceNamespace",
            ),
            (
                "match: [{uri: {regex: /a}, scheme: {exact: https}, method: {exact: GET}, authority: {exact: a}, \
                 headers: {cookie: {regex: a}}, withoutHeaders: {a: {}}, queryParams: {a: {exact: b}}, port: 80, \
                 gateways: [mesh], ignoreUriCase: false}]",
                "",
            ),
            ("mirror: {host: server}, mirrorPercentage: {value: 3}", ""),
            ("mirrors: [{destination: {host: server}}]", ""),
            (
                "corsPolicy: {allowOrigin: [a], unmatchedPreflights: FORWARD}",
                "",
            ),
            (
                "retries: {attempts: 2, perTryTimeout: 1s, retryOn: reset, retryIgnorePreviousHosts: false, backoff: 1s}",
                "",
            ),
            (
                "fault: {delay: {percent: 3, fixedDelay: 1s}, abort: {grpcStatus: UNAVAILABLE, percentage: {value: 1}}}",
                "",
            ),
            (
                "rewrite: {uriRegexRewrite: {match: a, rewrite: b}}, timeout: 1s",
                "",
            ),
            (
                "headers: {request: {set: {a: b}}, response: {remove: [a]}}",
                "",
            ),
        ],
    );
    check_spec(
        kind,
        "hosts: [server], tcp: [{match: [{...}], route: [{destination: {host: server}}]}]",
        &[
            ("port: 9000, gateways: [mesh]", ""),
            ("sourceLabels: {a: b}", "spec.tcp[0].match[0].sourceLabels"),
            ("sourceNamespace: a", "spec.tcp[0].match[0].sourceNamespace"),
            (
                "sourceSubnet: 10.0.0.0/8",
                "spec.tcp[0].match[0].sourceSubnet",
            ),
            (
                "destinationSubnets: [10.0.0.0/8]",
                "spec.tcp[0].match[0].destinationSubnets",
            ),
        ],
    );
    check_spec(
        kind,
        "hosts: [server], tls: [{match: [{port: 443, ...}], route: [{destination: {host: server}}]}]",
        &[
            ("sniHosts: [server.shop.svc.cluster.local]", ""),
            (
                "sniHosts: [other.example]",
                "spec.tls[0].match[0].sniHosts[0]",
            ),
        ],
    );
}

#[test]
fn of_destination_rules() {
    let kind = (NETWORKING, "DestinationRule");
    check_spec(
        kind,
        "host: server, ...",
        &[
            ("exportTo: ['.'], subsets: [{name: v1, labels: {a: b}}]", ""),
            (
                "workloadSelector: {matchLabels: {a: b}}",
                "spec.workloadSelector",
            ),
            (
                "subsets: [{name: v1, trafficPolicy: {tls: {mode: SIMPLE, credentialName: a}}}]",
                "",
            ),
        ],
    );
    check_spec(
        kind,
        "host: server, trafficPolicy: {...}",
        &[
            (
                "tunnel: {protocol: CONNECT, targetHost: a, targetPort: 3}",
                "spec.trafficPolicy.tunnel",
            ),
            (
                "loadBalancer: {simple: LEAST_REQUEST, warmup: {duration: 3s}}",
                "",
            ),
            (
                "loadBalancer: {consistentHash: {httpCookie: {name: a, ttl: 0s}, ringHash: {minimumRingSize: 3}}}",
                "",
            ),
            ("loadBalancer: {localityLbSetting: {enabled: false}}", ""),
            (
                "connectionPool: {tcp: {tcpKeepalive: {time: 30s}}}",
                "spec.trafficPolicy.connectionPool.tcp.tcpKeepalive",
            ),
            (
                "connectionPool: {tcp: {maxConnections: 3, connectTimeout: 1s, maxConnectionDuration: 3s, idleTimeout: 3s}}",
                "",
            ),
            (
                "connectionPool: {http: {http1MaxPendingRequests: 3, http2MaxRequests: 3, maxRequestsPerConnection: 3, \
                 maxRetries: 3, idleTimeout: 3s, useClientProtocol: true, maxConcurrentStreams: 3}}",
                "",
            ),
            ("connectionPool: {http: {h2UpgradePolicy: UPGRADE}}", ""),
            (
                "outlierDetection: {consecutiveErrors: 3}",
                "spec.trafficPolicy.outlierDetection.consecutiveErrors",
            ),
            (
                "outlierDetection: {consecutive5xxErrors: 3, minHealthPercent: 30, interval: 1s, baseEjectionTime: 1s}",
                "",
            ),
            ("tls: {mode: SIMPLE, credentialName: a}", ""),
            ("tls: {mode: SIMPLE, caCertificates: /a, caCrl: /b}", ""),
            (
                "tls: {mode: MUTUAL, clientCertificate: /a, privateKey: /b, subjectAltNames: [a], sni: a}",
                "",
            ),
            (
                "proxyProtocol: {version: V2}, retryBudget: {percent: 20}",
                "",
            ),
        ],
    );
}

#[test]
fn of_proxy_configs() {
    check_spec(
        (NETWORKING, "ProxyConfig"),
        "...",
        &[
            ("selector: {matchLabels: {a: b}}", ""),
            ("concurrency: 2", "spec.concurrency"),
            ("environmentVariables: {A: b}", "spec.environmentVariables"),
            ("image: {imageType: debug}", "spec.image"),
        ],
    );
}

#[test]
fn of_backend_tls_policies() {
    let around = "targetRefs: [{group: '', kind: Service, name: server}], ...";
    let valid = "validation: {hostname: a, wellKnownCACertificates: System}";
    let roots = |name: &str| format!("{{group: '', kind: ConfigMap, name: {name}}}");
    let two = format!(
        "validation: {{hostname: a, subjectAltNames: [{{type: URI, uri: 'spiffe://a'}}], caCertificateRefs: [{}, {}]}}",
        roots("a"),
        roots("b"),
    );
    check_spec(
        (GATEWAY, "BackendTLSPolicy"),
        around,
        &[
            (valid, ""),
            (&format!("{valid}, options: {{a: b}}"), "spec.options.a"),
            (&two, "spec.validation.caCertificateRefs[1]"),
        ],
    );
}

#[test]
fn of_routes_of_the_gateway_api() {
    let around = "parentRefs: [{group: '', kind: Service, name: server}], ...";
    let rule =
        |fields: &str| format!("rules: [{{{fields}, backendRefs: [{{name: server, port: 80}}]}}]");
    let cases = [
        (
            rule("name: x, timeouts: {request: 3s, backendRequest: 1s}"),
            "",
        ),
        (rule("retry: {codes: [503], attempts: 2}"), ""),
        (
            rule("filters: [{type: CORS, cors: {allowOrigins: ['https://a']}}]"),
            "",
        ),
        (
            rule("sessionPersistence: {type: Cookie}"),
            "spec.rules[0].sessionPersistence",
        ),
        (
            rule("filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP}}]"),
            "spec.rules[0].filters[0].type",
        ),
        (
            rule("filters: [{type: ExtensionRef, extensionRef: {group: a, kind: b, name: c}}]"),
            "spec.rules[0].filters[0].type",
        ),
        (
            format!("hostnames: [a.b], {}", rule("name: x")),
            "spec.hostnames",
        ),
        (
            format!("useDefaultGateways: All, {}", rule("name: x")),
            "spec.useDefaultGateways",
        ),
    ];
    let cases: Vec<(&str, &str)> = cases
        .iter()
        .map(|(fields, told)| (fields.as_str(), *told))
        .collect();
    check_spec((GATEWAY, "HTTPRoute"), around, &cases);
    check_spec(
        (GATEWAY, "HTTPRoute"),
        "parentRefs: [{group: '', kind: Service, name: server, sectionName: http}], rules: [{backendRefs: [{name: server, port: 80, ...}]}]",
        &[
            ("weight: 3", ""),
            (
                "filters: [{type: CORS, cors: {allowOrigins: ['https://a']}}]",
                "spec.rules[0].backendRefs[0].filters[0].type",
            ),
        ],
    );
    let stream = "rules: [{backendRefs: [{name: server, port: 443}]}, {backendRefs: [{name: server, port: 80}]}]";
    check_spec((GATEWAY, "TCPRoute"), around, &[(stream, "spec.rules[1]")]);
    check_spec(
        (GATEWAY, "TLSRoute"),
        around,
        &[
            (
                "hostnames: [server.shop.svc.cluster.local], rules: [{backendRefs: [{name: server, port: 443}]}]",
                "",
            ),
            (
                "hostnames: [a.example], rules: [{backendRefs: [{name: server, port: 443}]}]",
                "spec.hostnames[0]",
            ),
        ],
    );
    check_spec(
        (GATEWAY, "GRPCRoute"),
        around,
        &[
            (
                "rules: [{matches: [{method: {service: a, method: b}}], backendRefs: [{name: server, port: 80}]}]",
                "",
            ),
            (
                "rules: [{sessionPersistence: {type: Cookie}, backendRefs: [{name: server, port: 80}]}]",
                "spec.rules[0].sessionPersistence",
            ),
        ],
    );
}

#[test]
fn of_gateways() {
    check_spec(
        (GATEWAY, "Gateway"),
        "gatewayClassName: istio-waypoint, ...",
        &[
            (
                "listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]",
                "",
            ),
            (
                "infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: a}}, listeners: [{name: mesh, port: 15008, protocol: HBONE}]",
                "",
            ),
            (
                "defaultScope: All, listeners: [{name: mesh, port: 15008, protocol: HBONE, hostname: a.b}]",
                "spec.defaultScope spec.listeners[0].hostname",
            ),
        ],
    );
}

#[test]
fn of_other_kinds() {
    check_spec(
        (SECURITY, "RequestAuthentication"),
        "..., jwtRules: [{issuer: a, jwks: '{\"keys\": []}', audiences: [a], fromCookies: [a], timeout: 3s}]",
        &[
            ("selector: {matchLabels: {a: b}}", "spec.selector"),
            ("targetRefs: [{group: '', kind: Service, name: server}]", ""),
        ],
    );
    check_spec(
        (SECURITY, "AuthorizationPolicy"),
        "targetRefs: [{group: '', kind: Service, name: server}], rules: [{to: [{operation: {methods: [GET]}}], ...}]",
        &[("when: [{key: 'request.headers[a]', values: [b]}]", "")],
    );
    check_spec(
        (OURS, "RateLimit"),
        "targetRefs: [{kind: Service, name: server}], limits: [{requests: 3, unit: Hour, burst: 3}], ...",
        &[(
            "global: {host: server.shop.svc.cluster.local, port: 80, domain: a}",
            "spec.limits[0].burst",
        )],
    );
    check_spec(
        ("v1", "Service"),
        "clusterIP: 10.96.0.33, ports: [{name: http, port: 80}], ...",
        &[
            (
                "sessionAffinity: None, trafficDistribution: PreferClose",
                "",
            ),
            ("sessionAffinity: ClientIP", ""),
        ],
    );
}

#[test]
fn of_labels_and_annotations() {
    for (metadata, expected) in [
        (", labels: {app: a}, annotations: {example.com/a: b}", ""),
        (
            ", labels: {istio.io/use-waypiont: wp}",
            "metadata.labels.istio.io/use-waypiont",
        ),
        (
            ", annotations: {networking.istio.io/exportTo: '.'}",
            "metadata.annotations.networking.istio.io/exportTo",
        ),
    ] {
        let spec = "clusterIP: 10.96.0.33, ports: [{name: http, port: 80}]";
        assert_eq!(told("v1", "Service", metadata, spec).join(" "), expected);
    }
}

#[test]
fn of_gateway_classes() {
    for (name, controller, more, expected) in [
        ("istio-waypoint", "istio.io/mesh-controller", "", ""),
        ("istio-remote", "istio.io/mesh-controller", "", ""),
        (
            "nginx",
            "nginx.org/gateway",
            ", parametersRef: {name: a}",
            "",
        ),
        ("istio-waypoint", "a.example/b", "", "spec.controllerName"),
        ("one", "istio.io/mesh-controller", "", "metadata.name"),
        (
            "istio-waypoint",
            "istio.io/mesh-controller",
            ", parametersRef: {name: a}",
            "spec.parametersRef",
        ),
    ] {
        let yaml = format!(
            "{MESH}---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {{name: {name}}}
spec: {{controllerName: {controller}{more}}}
"
        );
        let advice = translated(&yaml, &[]).advice;
        let of_class = |one: &&Advice| one.object.kind.as_str() == "GatewayClass";
        let fields = advice.iter().filter(of_class);
        let fields: Vec<&str> = fields.map(|one| one.field.as_str()).collect();
        assert_eq!(fields.join(" "), expected, "{name} {controller}");
    }
}
