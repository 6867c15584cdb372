//! What is refused, and where it says that the mistake is. Good objects of every L7 kind are beside them.

use crate::objects::{
    decode::{Parsed, decode_document},
    document::split,
};

fn parse(api_version: &str, kind: &str, spec: &str) -> Parsed {
    let indented = spec.replace('\n', "\n  ");
    let text = format!(
        "apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: a, namespace: shop}}\nspec:\n  {indented}\n"
    );
    let documents = split(&text);
    decode_document(documents.first().unwrap())
}

fn problems(api_version: &str, kind: &str, spec: &str) -> Vec<String> {
    let parsed = parse(api_version, kind, spec);
    let told = parsed.problems.iter().map(|problem| {
        let field = problem.field.as_ref().map(ToString::to_string);
        format!("{}: {}", field.unwrap_or_default(), problem.reason)
    });
    told.collect()
}

const ISTIO: &str = "networking.istio.io/v1";
const GATEWAY: &str = "gateway.networking.k8s.io/v1";

#[test]
fn objects_as_users_write_them_are_taken() {
    for (api_version, kind, spec) in [
        (
            ISTIO,
            "VirtualService",
            r#"
hosts: [reviews]
http:
- name: canary
  match:
  - headers: {x-user: {exact: jason}, "@request.auth.claims.group": {exact: dev}}
    uri: {prefix: /v2}
    withoutHeaders: {x-skip: {}}
    queryParams: {q: {regex: "a+"}}
  route: [{destination: {host: reviews, subset: v2, port: {number: 80}}}]
  fault: {delay: {percentage: {value: 0.1}, fixedDelay: 5s}, abort: {httpStatus: 503, percentage: {value: 1}}}
  retries: {attempts: 3, perTryTimeout: 2s, retryOn: "5xx,connect-failure,409"}
  mirrors: [{destination: {host: shadow}, percentage: {value: 50}}]
  corsPolicy: {allowOrigins: [{exact: "https://a.example"}], allowMethods: [GET], maxAge: 24h}
  headers: {request: {set: {":authority": b}, remove: [x-a]}}
- match: [{uri: {regex: "/old/(.*)"}}]
  rewrite: {uriRegexRewrite: {match: "^/old/(.*)", rewrite: '/new/\1'}}
  route:
  - {destination: {host: reviews, subset: v1}, weight: 90}
  - {destination: {host: reviews, subset: v2}, weight: 10}
- redirect: {uri: /, redirectCode: 307}"#,
        ),
        (
            ISTIO,
            "DestinationRule",
            "
host: reviews.shop.svc.cluster.local
trafficPolicy:
  loadBalancer: {consistentHash: {httpCookie: {name: user, ttl: 0s}}}
  connectionPool: {tcp: {maxConnections: 100, connectTimeout: 30ms}, http: {http2MaxRequests: 1000}}
  outlierDetection: {consecutive5xxErrors: 7, interval: 5m, baseEjectionTime: 15m}
  portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: ROUND_ROBIN}}]
subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]",
        ),
        (
            GATEWAY,
            "HTTPRoute",
            "
parentRefs: [{group: '', kind: Service, name: reviews, port: 80}]
rules:
- matches: [{path: {type: PathPrefix, value: /v2}, headers: [{name: x-user, value: jason}]}]
  filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}]}}]
  backendRefs: [{name: reviews-v1, port: 80, weight: 90}, {name: reviews-v2, port: 80, weight: 10}]
  timeouts: {request: 10s, backendRequest: 2s}
  retry: {codes: [503], attempts: 2, backoff: 100ms}",
        ),
        (
            GATEWAY,
            "GRPCRoute",
            "
parentRefs: [{group: '', kind: Service, name: echo}]
rules:
- matches: [{method: {service: echo.Echo, method: Say}}]
  backendRefs: [{name: echo, port: 9000}]",
        ),
        (
            "gateway.networking.k8s.io/v1alpha2",
            "TCPRoute",
            "
parentRefs: [{group: '', kind: Service, name: db}]
rules: [{backendRefs: [{name: db, port: 5432}]}]",
        ),
        (
            "gateway.networking.k8s.io/v1beta1",
            "ReferenceGrant",
            "
from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: web}]
to: [{group: '', kind: Service}]",
        ),
        (
            "security.istio.io/v1",
            "RequestAuthentication",
            r#"
targetRefs: [{kind: Service, group: "", name: server}]
jwtRules: [{issuer: https://a.example, jwks: '{"keys": []}', fromHeaders: [{name: x-token, prefix: "Bearer "}]}]"#,
        ),
        (
            "telemetry.istio.io/v1",
            "Telemetry",
            "
targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}]
accessLogging: [{disabled: true}]
metrics: [{overrides: [{match: {metric: REQUEST_COUNT}, tagOverrides: {x: {operation: REMOVE}}}]}]
tracing: [{randomSamplingPercentage: 12.5, customTags: {env: {literal: {value: prod}}}}]",
        ),
        (
            "leyline.io/v1alpha1",
            "RateLimit",
            "
targetRefs: [{kind: Service, group: '', name: server}]
limits: [{requests: 100, unit: Minute, burst: 20, key: [{clientIdentity: {}}, {header: x-user}]}]",
        ),
    ] {
        assert_eq!(problems(api_version, kind, spec), [""; 0], "{kind}");
        let parsed = parse(api_version, kind, spec);
        assert_eq!(parsed.objects.len(), 1, "{kind}");
    }
}

#[test]
fn mistakes_are_told_with_their_field() {
    for (api_version, kind, spec, told) in [
        (
            ISTIO,
            "VirtualService",
            "hosts: [a]\nhttp: [{match: [{uri: {regex: \"a(\"}}], route: [{destination: {host: a}}]}]",
            "spec.http[0].match[0].uri.regex: `a(` is not a regular expression: unclosed group",
        ),
        (
            ISTIO,
            "VirtualService",
            "hosts: [a]\nhttp: [{route: [{destination: {host: a}}], redirect: {uri: /}}]",
            "spec.http[0]: needs one of route, redirect, directResponse and delegate",
        ),
        (
            ISTIO,
            "VirtualService",
            "hosts: [a]\nhttp: [{timeout: soon, route: [{destination: {host: a}}]}]",
            "spec.http[0].timeout: `soon` is not a duration, such as 5s, 1h30m or 100ms",
        ),
        (
            ISTIO,
            "VirtualService",
            "hosts: [a]\nhttp: [{retries: {attempts: 1, retryOn: 5xy}, route: [{destination: {host: a}}]}]",
            "spec.http[0].retries.retryOn: `5xy` is none of 5xx,",
        ),
        (
            ISTIO,
            "VirtualService",
            "hosts: [a]\nhttp: [{rout: []}]",
            "spec.http[0].rout: unknown field",
        ),
        (
            ISTIO,
            "VirtualService",
            "hosts: [a]\nhttp: [{fault: {abort: {percentage: {value: 101}, httpStatus: 500}}, route: [{destination: {host: a}}]}]",
            "spec.http[0].fault.abort.percentage.value: 101 is not between 0 and 100",
        ),
        (
            ISTIO,
            "DestinationRule",
            "host: a\nsubsets: [{name: v1}, {name: v1}]",
            "spec.subsets: there are two subsets `v1`",
        ),
        (
            ISTIO,
            "DestinationRule",
            "host: a\ntrafficPolicy: {loadBalancer: {simple: FASTEST}}",
            "spec.trafficPolicy.loadBalancer.simple: `FASTEST` is none of UNSPECIFIED,",
        ),
        (
            GATEWAY,
            "HTTPRoute",
            "parentRefs: [{name: a}]\nrules: [{backendRefs: [{name: b}]}]",
            "spec.rules[0].backendRefs[0].port: is needed for a Service",
        ),
        (
            GATEWAY,
            "HTTPRoute",
            "parentRefs: [{name: a}]\nrules: [{filters: [{type: URLRewrite, requestMirror: {backendRef: {name: b}}}]}]",
            "spec.rules[0].filters[0]: type is URLRewrite and RequestMirror is set",
        ),
        (
            "security.istio.io/v1",
            "RequestAuthentication",
            "jwtRules: [{issuer: a, jwksUri: nowhere}]",
            "spec.jwtRules[0].jwksUri: `nowhere` is not an http or https address",
        ),
        (
            "telemetry.istio.io/v1",
            "Telemetry",
            "metrics: [{overrides: [{match: {metric: REQUESTS}}]}]",
            "spec.metrics[0].overrides[0].match.metric: `REQUESTS` is none of ALL_METRICS,",
        ),
        (
            GATEWAY,
            "BackendTLSPolicy",
            "targetRefs: [{kind: Service, group: '', name: a}]\nvalidation: {hostname: a}",
            "spec.validation.caCertificateRefs: needs one, or wellKnownCACertificates in its place",
        ),
        (
            GATEWAY,
            "BackendTLSPolicy",
            "targetRefs: [{kind: Service, group: '', name: a}]\nvalidation: {wellKnownCACertificates: All}",
            "spec.validation.hostname: is needed",
        ),
        (
            GATEWAY,
            "BackendTLSPolicy",
            "validation: {hostname: a, wellKnownCACertificates: All}",
            "spec.targetRefs: needs at least one target",
        ),
        (
            GATEWAY,
            "BackendTLSPolicy",
            "targetRefs: [{kind: Service, group: '', name: a}]\nvalidation: {hostname: a, wellKnownCACertificates: All}",
            "spec.validation.wellKnownCACertificates: `All` is none of System",
        ),
        (
            GATEWAY,
            "BackendTLSPolicy",
            "targetRefs: [{kind: Service, group: '', name: a}]\nvalidation: {hostname: a, wellKnownCACertificates: System, \
             subjectAltNames: [{type: URI, hostname: a}]}",
            "spec.validation.subjectAltNames[0]: needs hostname or uri, as its type says",
        ),
        (
            "leyline.io/v1alpha1",
            "RateLimit",
            "targetRefs: [{kind: Service, group: '', name: a}]\nlimits: [{requests: 1, unit: Fortnight}]",
            "spec.limits[0].unit: `Fortnight` is none of Second, Minute, Hour, Day",
        ),
    ] {
        let all = problems(api_version, kind, spec);
        let found = all.iter().any(|one| one.starts_with(told));
        assert!(found, "{kind}: {told} is not in {all:?}");
        assert!(parse(api_version, kind, spec).objects.is_empty(), "{kind}");
    }
}

#[test]
fn what_a_secret_holds_is_looked_at_and_never_told() {
    const CERTIFICATE: &str = "\"-----BEGIN CERTIFICATE-----\\nYQ==\\n-----END CERTIFICATE-----\"";
    let cases = [
        (format!("stringData: {{ca.crt: {CERTIFICATE}}}"), vec![]),
        (
            "stringData: {username: hidden}".to_owned(),
            vec![
                "metadata.name: a Secret with none of tls.crt, ca.crt, cert, cacert has no effect",
            ],
        ),
        (
            "stringData: {ca.crt: hidden}".to_owned(),
            vec!["data[ca.crt]: holds no certificate in PEM"],
        ),
        (
            "type: kubernetes.io/tls\nstringData: {ca.crt: hidden}".to_owned(),
            vec![
                "data[tls.crt]: is needed in one of type kubernetes.io/tls",
                "data[tls.key]: is needed in one of type kubernetes.io/tls",
                "data[ca.crt]: holds no certificate in PEM",
            ],
        ),
        (
            format!("stringData: {{cert: {CERTIFICATE}, key: hidden}}"),
            vec!["data.key: holds no private key in PEM"],
        ),
        (
            format!("stringData: {{cert: {CERTIFICATE}}}"),
            vec!["data.key: cert and key need each other"],
        ),
        (
            "data: {ca.crt: [hidden]}".to_owned(),
            vec!["data[ca.crt]: is not what a Secret has there"],
        ),
        (
            "data: {ca.crt: h*dden}".to_owned(),
            vec!["data[ca.crt]: Invalid symbol 42, offset 1."],
        ),
    ];
    for (body, expected) in cases {
        let text = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: a, namespace: shop}}\n{body}\n"
        );
        let parsed = decode_document(split(&text).first().unwrap());
        let told = parsed.problems.iter().map(|problem| {
            let field = problem.field.as_ref().map(ToString::to_string);
            format!("{}: {}", field.unwrap_or_default(), problem.reason)
        });
        assert_eq!(told.collect::<Vec<_>>(), expected, "{body}");
    }
}
