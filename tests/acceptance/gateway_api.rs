//! The Gateway API's conformance tests for meshes.

use anyhow::{Result, ensure};
use leyline_tests::eventually::eventually;

use crate::{
    case::get,
    world::{SOON, World},
};

/// An HTTPRoute of the service `echo` with these rules.
pub(crate) fn route(rules: &str) -> String {
    with_parent("{group: '', kind: Service, name: echo}", rules)
}

fn with_parent(parent: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: row, namespace: apps}}
spec:
  parentRefs: [{parent}]
  rules:
{rules}"
    )
}

fn grpc_route(rules: &str) -> String {
    let route = with_parent("{group: '', kind: Service, name: echo, port: 7070}", rules);
    route.replace("HTTPRoute", "GRPCRoute")
}

pub(crate) async fn mesh_basic(world: &World) -> Result<()> {
    world
        .expect(&[get("echo:80", "/").status(200).through_waypoint()])
        .await
}

/// A route that names a port has no say on the others.
pub(crate) async fn mesh_ports(world: &World) -> Result<()> {
    let port = "{group: '', kind: Service, name: echo-v1, port: 80}";
    let rules = "
  - filters:
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Header-Set, value: v1}]}}
    backendRefs: [{name: echo-v1, port: 80}]
";
    world
        .applied(
            &with_parent(port, rules),
            &[
                get("echo-v1:80", "/").answered("x-header-set", "v1"),
                get("echo-v1:8080", "/")
                    .status(200)
                    .not_answered("x-header-set"),
                get("echo-v2:80", "/")
                    .status(200)
                    .not_answered("x-header-set"),
            ],
        )
        .await?;
    let named = "{group: '', kind: Service, name: echo-v1, sectionName: http-alt}";
    world
        .applied(
            &with_parent(named, rules),
            &[
                get("echo-v1:8080", "/").answered("x-header-set", "v1"),
                get("echo-v1:80", "/")
                    .status(200)
                    .not_answered("x-header-set"),
            ],
        )
        .await?;
    let all = "{group: '', kind: Service, name: echo-v1}";
    world
        .applied(
            &with_parent(all, rules),
            &[
                get("echo-v1:80", "/").answered("x-header-set", "v1"),
                get("echo-v1:8080", "/").answered("x-header-set", "v1"),
            ],
        )
        .await
}

pub(crate) async fn mesh_traffic_split(world: &World) -> Result<()> {
    let rules = "
  - matches: [{path: {type: Exact, value: /v1}}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {type: Exact, value: /v2}}]
    backendRefs: [{name: echo-v2, port: 80}]
";
    world
        .applied(
            &route(rules),
            &[
                get("echo:80", "/v1").version("v1"),
                get("echo:80", "/v2").version("v2"),
                // A rule is there, and none matches.
                get("echo:80", "/").status(404),
            ],
        )
        .await
}

/// A route holds for the service, whatever the Host says, and not for its pods.
pub(crate) async fn mesh_frontend(world: &World) -> Result<()> {
    let rules = "
  - filters:
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Header-Set, value: set}]}}
    backendRefs: [{name: echo-v2, port: 80}]
";
    let parent = "{group: '', kind: Service, name: echo-v2}";
    world
        .applied(
            &with_parent(parent, rules),
            &[
                get("echo-v2:80", "/").answered("x-header-set", "set"),
                get("echo-v2:80", "/")
                    .with("host", "echo-v2")
                    .answered("x-header-set", "set"),
                get("apps/echo-v2:8080", "/")
                    .status(200)
                    .not_answered("x-header-set"),
            ],
        )
        .await
}

/// The service by the name that the node proxy resolves, and called by each form of it.
pub(crate) async fn mesh_frontend_hostname(world: &World) -> Result<()> {
    let rules = "
  - filters:
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Header-Set, value: set}]}}
    backendRefs: [{name: echo-v2, port: 80}]
";
    let parent = "{group: '', kind: Service, name: echo-v2}";
    world.apply(&with_parent(parent, rules))?;
    let address = world.resolve("echo-v2.apps.svc.cluster.local").await?;
    let target: &'static str = format!("{address}:80").leak();
    let hosts = ["echo-v2", "echo-v2.apps", "echo-v2.apps.svc.cluster.local"];
    let cases = hosts.map(|host| {
        let case = get(target, "/").with("host", host);
        case.version("v2").answered("x-header-set", "set")
    });
    world.expect(&cases).await
}

pub(crate) async fn mesh_http_route_simple_same_namespace(world: &World) -> Result<()> {
    let rules = "  - backendRefs: [{name: echo-v1, port: 80}]\n";
    world
        .applied(&route(rules), &vec![get("echo:80", "/").version("v1"); 4])
        .await
}

pub(crate) async fn mesh_http_route_matching(world: &World) -> Result<()> {
    let rules = "
  - matches: [{path: {type: PathPrefix, value: /}}, {headers: [{name: version, value: one}]}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /v2}}, {headers: [{name: version, value: two}]}]
    backendRefs: [{name: echo-v2, port: 80}]
";
    world
        .applied(
            &route(rules),
            &[
                get("echo:80", "/").version("v1"),
                get("echo:80", "/example").version("v1"),
                get("echo:80", "/").with("version", "one").version("v1"),
                get("echo:80", "/v2").version("v2"),
                get("echo:80", "/v2/").version("v2"),
                get("echo:80", "/v2/example").version("v2"),
                get("echo:80", "/").with("version", "two").version("v2"),
                // A prefix ends where a segment ends.
                get("echo:80", "/v2example").version("v1"),
                get("echo:80", "/foo/v2/example").version("v1"),
            ],
        )
        .await
}

pub(crate) async fn mesh_http_route_query_param_matching(world: &World) -> Result<()> {
    let rules = "
  - matches: [{queryParams: [{name: animal, value: whale}]}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{queryParams: [{name: animal, value: dolphin}]}]
    backendRefs: [{name: echo-v2, port: 80}]
  - matches: [{queryParams: [{name: animal, value: dolphin}, {name: color, value: blue}]}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /path}, queryParams: [{name: animal, type: RegularExpression, value: '[wd].*'}]}]
    backendRefs: [{name: echo-v2, port: 80}]
";
    world
        .applied(
            &route(rules),
            &[
                get("echo:80", "/?animal=whale").version("v1"),
                get("echo:80", "/?animal=dolphin").version("v2"),
                get("echo:80", "/?animal=dolphin&color=yellow").version("v2"),
                get("echo:80", "/?color=blue&animal=dolphin").version("v1"),
                // The longer path comes before the number of parameters.
                get("echo:80", "/path?animal=whale").version("v2"),
                get("echo:80", "/?animal=Whale").status(404),
                get("echo:80", "/").status(404),
            ],
        )
        .await
}

pub(crate) async fn mesh_http_route_named_rule(world: &World) -> Result<()> {
    let rules = "
  - name: named-rule
    matches: [{path: {type: PathPrefix, value: /named}}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /unnamed}}]
    backendRefs: [{name: echo-v2, port: 80}]
";
    world
        .applied(
            &route(rules),
            &[
                get("echo:80", "/named").version("v1"),
                get("echo:80", "/unnamed").version("v2"),
            ],
        )
        .await
}

pub(crate) async fn mesh_http_route_weight(world: &World) -> Result<()> {
    let rules = "
  - filters:
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Row, value: weight}]}}
    backendRefs: [{name: echo-v1, port: 80, weight: 70}, {name: echo-v2, port: 80, weight: 30}]
";
    let case = get("echo:80", "/");
    world
        .applied(&route(rules), &[case.answered("x-row", "weight")])
        .await?;
    let shares = world.shares("echo:80", 500).await?;
    let first = shares.get("v1").copied().unwrap_or_default();
    // The bounds of the conformance test are 5 %; three deviations of 500 draws are 6 %.
    ensure!((320..=380).contains(&first), "{shares:?}");
    Ok(())
}

/// What both rows of modifiers ask for.
fn modifiers(rule: impl Fn(&str) -> String) -> String {
    let set = "{set: [{name: X-Header-Set, value: set-overwrites-values}]}";
    let add = "{add: [{name: X-Header-Add, value: add-appends-values}]}";
    let remove = "{remove: [X-Header-Remove]}";
    let all = "{set: [{name: X-Header-Set-1, value: one}, {name: X-Header-Set-2, value: two}], add: [{name: X-Header-Add-1, value: three}], remove: [X-Header-Remove-1, X-Header-Remove-2]}";
    [
        ("/set", set),
        ("/add", add),
        ("/remove", remove),
        ("/multiple", all),
    ]
    .map(|(path, modifier)| {
        format!(
            "  - matches: [{{path: {{type: PathPrefix, value: {path}}}}}]\n{}",
            rule(modifier)
        )
    })
    .concat()
}

async fn modified(world: &World, rules: &str) -> Result<()> {
    world
        .applied(
            &route(rules),
            &[
                get("echo:80", "/set")
                    .with("some-other-header", "val")
                    .sent("some-other-header", "val")
                    .sent("x-header-set", "set-overwrites-values"),
                get("echo:80", "/set")
                    .with("x-header-set", "original")
                    .sent("x-header-set", "set-overwrites-values"),
                get("echo:80", "/add").sent("x-header-add", "add-appends-values"),
                get("echo:80", "/remove")
                    .with("x-header-remove", "val")
                    .not_sent("x-header-remove"),
                get("echo:80", "/multiple")
                    .with("x-header-set-2", "original")
                    .with("x-header-remove-1", "val")
                    .with("x-header-remove-2", "val")
                    .with("another-header", "val")
                    .sent("x-header-set-1", "one")
                    .sent("x-header-set-2", "two")
                    .sent("x-header-add-1", "three")
                    .sent("another-header", "val")
                    .not_sent("x-header-remove-1")
                    .not_sent("x-header-remove-2"),
            ],
        )
        .await
}

pub(crate) async fn mesh_http_route_request_header_modifier(world: &World) -> Result<()> {
    let rules = modifiers(|modifier| {
        format!(
            "    filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {modifier}}}]
    backendRefs: [{{name: echo-v1, port: 80}}]\n"
        )
    });
    modified(world, &rules).await
}

pub(crate) async fn mesh_http_route_backend_request_header_modifier(world: &World) -> Result<()> {
    let rules = modifiers(|modifier| {
        format!(
            "    backendRefs:
    - {{name: echo-v1, port: 80, filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {modifier}}}]}}\n"
        )
    });
    modified(world, &rules).await
}

const SAY: &str = "/demo.Echo/Say";

pub(crate) async fn mesh_grpc_route_weight(world: &World) -> Result<()> {
    let rules = "
  - backendRefs: [{name: echo-v1, port: 7070, weight: 70}, {name: echo-v2, port: 7070, weight: 30}]
  - matches: [{method: {service: demo.Echo, method: Headers}}]
    backendRefs: [{name: echo-v2, port: 7070}]
";
    world.apply(&grpc_route(rules))?;
    eventually("the route is there", SOON, || async {
        let answers = world.grpc("echo:7070", &["/demo.Echo/Headers"; 8]).await?;
        ensure!(
            answers
                .iter()
                .all(|answer| answer.contains("\"server\": \"v2\"")),
            "{answers:?}"
        );
        Ok(())
    })
    .await?;
    let answers = world.grpc("echo:7070", &[SAY; 500]).await?;
    let first = answers
        .iter()
        .filter(|answer| answer.ends_with(" v1"))
        .count();
    ensure!((320..=380).contains(&first), "{first} of {}", answers.len());
    Ok(())
}

pub(crate) async fn mesh_grpc_route_request_header_modifier(world: &World) -> Result<()> {
    let rules = "
  - filters:
    - type: RequestHeaderModifier
      requestHeaderModifier:
        set: [{name: X-Header-Set, value: set-overwrites-values}]
        add: [{name: X-Header-Add, value: add-appends-values}]
        remove: [X-Header-Remove]
    backendRefs: [{name: echo-v1, port: 7070}]
";
    world.apply(&grpc_route(rules))?;
    eventually("the headers are modified", SOON, || async {
        let methods = [
            "x-header-set=old",
            "x-header-remove=old",
            "/demo.Echo/Headers",
        ];
        let answers = world.grpc("echo:7070", &methods).await?.concat();
        for part in [
            "\"x-header-set\": \"set-overwrites-values\"",
            "\"x-header-add\": \"add-appends-values\"",
        ] {
            ensure!(answers.contains(part), "{answers}");
        }
        ensure!(!answers.contains("x-header-remove"), "{answers}");
        Ok(())
    })
    .await
    .map(|_| ())
}

pub(crate) async fn mesh_grpc_route_request_mirror(world: &World) -> Result<()> {
    let rules = "
  - filters:
    - {type: RequestMirror, requestMirror: {backendRef: {name: echo-v2, port: 7070}}}
    backendRefs: [{name: echo-v1, port: 7070}]
";
    world.apply(&grpc_route(rules))?;
    let log = world.servers["v2"].log().from_now()?;
    eventually("the other version is told too", SOON, || async {
        let answers = world.grpc("echo:7070", &[SAY; 2]).await?;
        ensure!(
            answers.iter().all(|answer| answer.ends_with(" v1")),
            "{answers:?}"
        );
        let lines = log.lines()?;
        ensure!(
            lines.iter().any(|line| line.contains("called Say")),
            "{lines:?}"
        );
        Ok(())
    })
    .await
    .map(|_| ())
}
