//! TestTraffic: what `common.RunAllTrafficTests` asks of VirtualServices and DestinationRules. Left out are its cases of
//! gateways and those that Istio skips in ambient mode (serverfirst, loop, tls-origination, instanceip, externalname, host,
//! envoyfilter, dns).

use anyhow::{Result, ensure};
use leyline_tests::eventually::eventually;

use crate::{
    case::{Case, get},
    world::{SOON, World},
};

/// A VirtualService of the service `echo`.
fn rules(http: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: row, namespace: apps}}
spec:
  hosts: [echo]
  http:
{http}"
    )
}

const TO_V1: &str = "    route: [{destination: {host: echo, subset: v1}}]\n";

fn rule(head: &str) -> String {
    rules(&format!("  - {head}\n{TO_V1}"))
}

pub(crate) fn any() -> Case {
    get("echo:80", "/")
}

pub(crate) async fn added_header(world: &World) -> Result<()> {
    let case = any().sent("istio-custom-header", "user-defined-value");
    world
        .applied(
            &rule("headers: {request: {add: {istio-custom-header: user-defined-value}}}"),
            &[case],
        )
        .await
}

pub(crate) async fn set_header(world: &World) -> Result<()> {
    let case = any()
        .with("x-custom", "some-value")
        .sent("x-custom", "new-value");
    world
        .applied(
            &rule("headers: {request: {set: {x-custom: new-value}}}"),
            &[case],
        )
        .await
}

pub(crate) async fn set_authority_header(world: &World) -> Result<()> {
    let head = "headers: {request: {set: {':authority': my-custom-authority}}}";
    world
        .applied(&rule(head), &[any().sent("host", "my-custom-authority")])
        .await
}

pub(crate) async fn set_host_header_in_destination(world: &World) -> Result<()> {
    let rule = "
  - route:
    - destination: {host: echo, subset: v1}
      headers: {request: {set: {Host: my-custom-authority}}}
";
    world
        .applied(&rules(rule), &[any().sent("host", "my-custom-authority")])
        .await
}

pub(crate) async fn set_host_header_in_route_and_destination(world: &World) -> Result<()> {
    let rule = "
  - headers: {request: {set: {Host: dest-authority}}}
    route:
    - destination: {host: echo, subset: v1}
      headers: {request: {set: {':authority': actual-authority}}}
";
    world
        .applied(&rules(rule), &[any().sent("host", "actual-authority")])
        .await
}

pub(crate) async fn redirect(world: &World) -> Result<()> {
    let ways = [
        ("/plain", "{uri: /new/path}"),
        ("/code", "{uri: /new/path, redirectCode: 308}"),
        ("/port", "{uri: /new/path, port: 8080}"),
        ("/scheme", "{scheme: https, authority: example.org}"),
        ("/prefix", "{prefixRewrite: /new}"),
        (
            "/derived",
            "{scheme: https, derivePort: FROM_PROTOCOL_DEFAULT}",
        ),
        (
            "/requested",
            "{uri: /new/path, derivePort: FROM_REQUEST_PORT}",
        ),
    ];
    let text = ways.iter().map(|(path, way)| {
        format!("  - match: [{{uri: {{prefix: {path}}}}}]\n    redirect: {way}\n")
    });
    let case = |path| get("echo:80", path).with("host", "echo");
    world
        .applied(
            &rules(&text.collect::<String>()),
            &[
                case("/plain")
                    .status(301)
                    .answered("location", "http://echo/new/path"),
                case("/code")
                    .status(308)
                    .answered("location", "http://echo/new/path"),
                case("/port").answered("location", "http://echo:8080/new/path"),
                case("/scheme/x").answered("location", "https://example.org/scheme/x"),
                case("/prefix/x?a=b").answered("location", "http://echo/new/x?a=b"),
                case("/derived").answered("location", "https://echo/derived"),
                get("echo:80", "/requested")
                    .with("host", "echo:80")
                    .status(301),
            ],
        )
        .await
}

pub(crate) async fn header_matches(world: &World) -> Result<()> {
    // Names and values that look odd in a matcher.
    let rule = "
  - match: [{headers: {x-a.b_c: {exact: 'a:b (c) [d]'}}}]
    route: [{destination: {host: echo, subset: v2}}]
  - match: [{headers: {x-prefix: {prefix: 'pre '}}}]
    route: [{destination: {host: echo, subset: v2}}]
  - match: [{headers: {x-regex: {regex: '^(a|b)+\\d{2}$'}}}]
    route: [{destination: {host: echo, subset: v2}}]
  - match: [{headers: {x-present: {}}}]
    route: [{destination: {host: echo, subset: v2}}]
  - route: [{destination: {host: echo, subset: v1}}]
";
    world
        .applied(
            &rules(rule),
            &[
                any().with("x-a.b_c", "a:b (c) [d]").version("v2"),
                any().with("x-a.b_c", "a:b (c) [e]").version("v1"),
                any().with("x-prefix", "pre fix").version("v2"),
                any().with("x-regex", "abba12").version("v2"),
                // The whole value.
                any().with("x-regex", "abba123").version("v1"),
                any().with("x-present", "").version("v2"),
                any().version("v1"),
            ],
        )
        .await
}

pub(crate) async fn pseudo_header_matches(world: &World) -> Result<()> {
    let rule = "
  - match: [{headers: {':method': {exact: DELETE}}}]
    route: [{destination: {host: echo, subset: v2}}]
  - match: [{method: {exact: PUT}, scheme: {exact: http}}]
    route: [{destination: {host: echo, subset: v2}}]
  - match: [{authority: {exact: other.example}}]
    route: [{destination: {host: echo, subset: v2}}]
  - match: [{uri: {exact: /UPPER}, ignoreUriCase: true}]
    route: [{destination: {host: echo, subset: v2}}]
  - route: [{destination: {host: echo, subset: v1}}]
";
    world
        .applied(
            &rules(rule),
            &[
                any().method("DELETE").version("v2"),
                any().method("PUT").version("v2"),
                any().with("host", "other.example").version("v2"),
                get("echo:80", "/upper").version("v2"),
                any().version("v1"),
            ],
        )
        .await
}

pub(crate) async fn rewrite_uri(world: &World) -> Result<()> {
    let rule = format!(
        "
  - match: [{{uri: {{prefix: /foo}}}}]
    rewrite: {{uri: /new/path}}
{TO_V1}
  - match: [{{uri: {{prefix: /regex}}}}]
    rewrite: {{uriRegexRewrite: {{match: '^/regex/([^/]+)/(.*)$', rewrite: '/\\2/\\1'}}}}
{TO_V1}"
    );
    world
        .applied(
            &rules(&rule),
            &[
                get("echo:80", "/foo?key=value#hash").path("/new/path?key=value"),
                get("echo:80", "/foo/bar").path("/new/path/bar"),
                get("echo:80", "/regex/a/b/c?d=e").path("/b/c/a?d=e"),
            ],
        )
        .await
}

pub(crate) async fn rewrite_authority(world: &World) -> Result<()> {
    let head = "rewrite: {authority: new-authority}";
    world
        .applied(&rule(head), &[any().sent("host", "new-authority")])
        .await
}

pub(crate) async fn rewrite_uri_and_authority(world: &World) -> Result<()> {
    let head =
        "match: [{uri: {prefix: /foo}}]\n    rewrite: {authority: new-authority, uri: /new/path}";
    let case = get("echo:80", "/foo")
        .sent("host", "new-authority")
        .path("/new/path");
    world.applied(&rule(head), &[case]).await
}

pub(crate) async fn cors(world: &World) -> Result<()> {
    let head = "corsPolicy:
      allowOrigins: [{exact: cors.com}]
      allowMethods: [POST, GET]
      allowCredentials: false
      allowHeaders: [X-Custom-Header]
      exposeHeaders: [X-Exposed]
      maxAge: 24h";
    let preflight = any()
        .method("OPTIONS")
        .with("access-control-request-method", "DELETE");
    let origin = "access-control-allow-origin";
    world
        .applied(
            &rule(head),
            &[
                preflight
                    .clone()
                    .with("origin", "cors.com")
                    .status(200)
                    .answered(origin, "cors.com")
                    .answered("access-control-allow-methods", "POST,GET")
                    .answered("access-control-allow-headers", "X-Custom-Header")
                    .answered("access-control-max-age", "86400"),
                any()
                    .with("origin", "cors.com")
                    .status(200)
                    .answered(origin, "cors.com")
                    .answered("access-control-expose-headers", "X-Exposed"),
                // No match: the application answers, and nothing is added.
                any()
                    .with("origin", "not-cors.com")
                    .version("v1")
                    .not_answered(origin),
            ],
        )
        .await
}

/// A retry of what an endpoint answers hides it: the second one answers.
pub(crate) async fn retry_conditions(world: &World) -> Result<()> {
    let rule = "
  - match: [{uri: {prefix: /fail/v1/503}}]
    retries: {attempts: 3, retryOn: '503,reset'}
    route: [{destination: {host: echo}}]
  - match: [{uri: {prefix: /fail/v1/500}}]
    retries: {attempts: 3, retryOn: 5xx}
    route: [{destination: {host: echo}}]
  - match: [{uri: {prefix: /fail/v1/502}}]
    retries: {attempts: 3, retryOn: gateway-error}
    route: [{destination: {host: echo}}]
  - match: [{uri: {prefix: /fail/v1/409}}]
    retries: {attempts: 3, retryOn: retriable-4xx}
    route: [{destination: {host: echo}}]
";
    let cases = [
        "/fail/v1/503",
        "/fail/v1/500",
        "/fail/v1/502",
        "/fail/v1/409",
    ]
    .map(|path| vec![get("echo:80", path).version("v2"); 5]);
    world.applied(&rules(rule), &cases.concat()).await?;
    grpc_retry_conditions(world).await?;
    // What no condition names is not tried again, and neither is more often than said.
    let rule = "
  - match: [{uri: {prefix: /fail/v1/504}}]
    retries: {attempts: 3, retryOn: 'retriable-4xx,reset,503'}
    route: [{destination: {host: echo}}]
  - match: [{uri: {prefix: /fail/v1/500}}]
    retries: {attempts: 0}
    route: [{destination: {host: echo}}]
  - match: [{uri: {prefix: /fail/v1/502}}]
    headers: {response: {set: {x-row: only}}}
    retries: {attempts: 2, retryOn: 5xx}
    route: [{destination: {host: echo, subset: v1}}]
";
    let only = get("echo:80", "/fail/v1/502").answered("x-row", "only");
    world.applied(&rules(rule), &[only.status(502)]).await?;
    for path in ["/fail/v1/504", "/fail/v1/500"] {
        let mut failed = 0;
        for _ in 0..20 {
            let status = get("echo:80", path).ask(world).await?.status;
            failed += usize::from(status.is_server_error());
        }
        // Half of the endpoints: 20 coins fall on one side once in a million times.
        ensure!((1..20).contains(&failed), "{path}: {failed} of 20 failed");
    }
    Ok(())
}

/// What gRPC servers say of themselves, by the status in their heads.
async fn grpc_retry_conditions(world: &World) -> Result<()> {
    let statuses = [
        ("CANCELLED", "cancelled"),
        ("DEADLINE_EXCEEDED", "deadline-exceeded"),
        ("INTERNAL", "internal"),
        ("RESOURCE_EXHAUSTED", "resource-exhausted"),
        ("UNAVAILABLE", "unavailable"),
    ];
    let grpc = statuses.iter().map(|(status, condition)| {
        format!(
            "  - match: [{{uri: {{exact: /demo.Echo/Fail_v1_{status}}}}}]
    retries: {{attempts: 3, retryOn: {condition}}}
    route: [{{destination: {{host: echo}}}}]
"
        )
    });
    let other = "  - retries: {attempts: 3, retryOn: unavailable}
    route: [{destination: {host: echo}}]
";
    world.apply(&rules(&(grpc.collect::<String>() + other)))?;
    let methods = statuses.map(|(status, _)| format!("/demo.Echo/Fail_v1_{status}"));
    let methods: Vec<&str> = methods.iter().flat_map(|it| [it.as_str(); 4]).collect();
    eventually("all are answered by v2", SOON, || async {
        let answers = world.grpc("echo:7070", &methods).await?;
        ensure!(answers.iter().all(|it| it.ends_with(" v2")), "{answers:?}");
        Ok(())
    })
    .await?;
    // A status that is not named is the answer.
    let answers = world.grpc("echo:7070", &["/demo.Echo/Fail_v1_ABORTED"; 8]);
    let answers = answers.await?;
    ensure!(
        answers.iter().any(|it| it.ends_with(" ABORTED")),
        "{answers:?}"
    );
    Ok(())
}

pub(crate) async fn fault_abort(world: &World) -> Result<()> {
    let head = "fault: {abort: {percentage: {value: 100}, httpStatus: 418}}";
    world.applied(&rule(head), &[any().status(418)]).await
}

pub(crate) async fn fault_abort_grpc(world: &World) -> Result<()> {
    let head = "fault: {abort: {percentage: {value: 100}, grpcStatus: UNAVAILABLE}}";
    world.apply(&rule(head))?;
    eventually("calls are aborted", SOON, || async {
        let answers = world.grpc("echo:7070", &["/demo.Echo/Say"]).await?;
        ensure!(answers == ["/demo.Echo/Say UNAVAILABLE"], "{answers:?}");
        Ok(())
    })
    .await
    .map(|_| ())
}

pub(crate) async fn catch_all_route_short_circuits_the_rest(world: &World) -> Result<()> {
    let rule = "
  - match: [{uri: {regex: .*}}]
    route: [{destination: {host: echo, subset: v1}}]
  - match: [{uri: {prefix: /foo}}]
    directResponse: {status: 418}
";
    world
        .applied(
            &rules(rule),
            &vec![get("echo:80", "/foo").status(200).version("v1"); 2],
        )
        .await
}

async fn shifting(world: &World, first: u32) -> Result<()> {
    let second = 100 - first;
    let rule = format!(
        "
  - headers: {{response: {{set: {{x-first: \"{first}\"}}}}}}
    route:
    - {{destination: {{host: echo, subset: v1}}, weight: {first}}}
    - {{destination: {{host: echo, subset: v2}}, weight: {second}}}
"
    );
    world.apply(&rules(&rule))?;
    eventually("the weights are there", SOON, || async {
        let answer = any().ask(world).await?;
        let value = answer.headers.get("x-first");
        ensure!(value.is_some_and(|value| *value == first.to_string()));
        Ok(())
    })
    .await?;
    let shares = world.shares("echo:80", 300).await?;
    let got = shares.get("v1").copied().unwrap_or_default();
    // More than three deviations of 300 draws.
    ensure!((got).abs_diff(3 * first) <= 27, "{shares:?}");
    Ok(())
}

pub(crate) async fn shifting_50(world: &World) -> Result<()> {
    shifting(world, 50).await
}

pub(crate) async fn shifting_20(world: &World) -> Result<()> {
    shifting(world, 20).await
}

pub(crate) async fn shifting_80(world: &World) -> Result<()> {
    shifting(world, 80).await
}

pub(crate) async fn shifting_100(world: &World) -> Result<()> {
    shifting(world, 100).await
}

pub(crate) async fn without_headers(world: &World) -> Result<()> {
    let rule = "
  - match: [{withoutHeaders: {x-not: {exact: a}}}]
    route: [{destination: {host: echo, subset: v1}}]
  - route: [{destination: {host: echo, subset: v2}}]
";
    world
        .applied(
            &rules(rule),
            &[
                any().version("v1"),
                any().with("x-not", "b").version("v1"),
                any().with("x-not", "a").version("v2"),
            ],
        )
        .await
}

pub(crate) async fn without_headers_regex_match_all(world: &World) -> Result<()> {
    let rule = "
  - match: [{withoutHeaders: {x-not: {regex: '.*'}}}]
    route: [{destination: {host: echo, subset: v1}}]
  - route: [{destination: {host: echo, subset: v2}}]
";
    world
        .applied(
            &rules(rule),
            &[any().version("v1"), any().with("x-not", "b").version("v2")],
        )
        .await
}

pub(crate) async fn without_headers_present(world: &World) -> Result<()> {
    let rule = "
  - match: [{withoutHeaders: {x-not: {}}}]
    route: [{destination: {host: echo, subset: v1}}]
  - route: [{destination: {host: echo, subset: v2}}]
";
    world
        .applied(
            &rules(rule),
            &[any().version("v1"), any().with("x-not", "").version("v2")],
        )
        .await
}
