//! Rows of `tests/integration/ambient` about who may do what.

use anyhow::Result;

use crate::{
    case::{Case, get},
    world::World,
};

/// Plaintext of who is not in the mesh.
fn plain(to: &'static str) -> Case {
    get(to, "/").from("outside/stranger")
}

/// HTTP on the port that speaks TCP alone tells enough: it is answered with what was sent, or not at all.
async fn expect_plaintext(world: &World, http: bool, tcp: bool) -> Result<()> {
    let case = match http {
        true => plain("apps/echo-v1:8080").status(200),
        false => plain("apps/echo-v1:8080").refused(),
    };
    world
        .expect(&[case, get("apps/echo-v1:8080", "/").status(200)])
        .await?;
    leyline_tests::eventually::eventually("TCP is served or not", crate::world::SOON, || async {
        let served = world
            .echoes("outside/stranger", "apps/echo-v1:9000")
            .await
            .is_ok();
        anyhow::ensure!(served == tcp, "served: {served}");
        world.echoes("apps/client", "apps/echo-v1:9000").await
    })
    .await
    .map(|_| ())
}

pub(crate) async fn peer_authentication(world: &World) -> Result<()> {
    let app = |rest: &str| {
        let spec = format!("{{selector: {{matchLabels: {{app: echo}}}}, {rest}}}");
        peer_authentication_of("apps", &spec)
    };
    let all =
        |mode: &str| peer_authentication_of("istio-system", &format!("{{mtls: {{mode: {mode}}}}}"));
    let tables = [
        (app("mtls: {mode: PERMISSIVE}"), (true, true)),
        (app("mtls: {mode: STRICT}"), (false, false)),
        (
            app("mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}}"),
            (true, false),
        ),
        (
            all("STRICT") + "---\n" + &app("portLevelMtls: {9000: {mode: PERMISSIVE}}"),
            (false, true),
        ),
        (
            all("PERMISSIVE") + "---\n" + &app("portLevelMtls: {9000: {mode: STRICT}}"),
            (true, false),
        ),
    ];
    for (text, (http, tcp)) in tables {
        world.apply(&text)?;
        expect_plaintext(world, http, tcp).await?;
    }
    Ok(())
}

fn peer_authentication_of(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: row, namespace: {namespace}}}
spec: {spec}
"
    )
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: row, namespace: apps}}
spec:
{spec}"
    )
}

/// Plaintext is refused where mutual TLS is demanded.
pub(crate) async fn mtls(world: &World) -> Result<()> {
    let text = peer_authentication_of("apps", "{mtls: {mode: STRICT}}");
    world
        .applied(
            &text,
            &[
                plain("apps/echo-v1:8080").refused(),
                get("apps/echo-v1:8080", "/").status(200),
                get("echo:80", "/").status(200),
            ],
        )
        .await
}

pub(crate) async fn authorization_l4(world: &World) -> Result<()> {
    let selected = |rules: &str| {
        policy(&format!(
            "  selector: {{matchLabels: {{app: echo}}}}\n  rules: [{rules}]\n"
        ))
    };
    let from_client = get("captured:80", "/");
    let from_echo = || get("captured:80", "/").from("apps/addressed");
    world
        .applied(
            &selected("{from: [{source: {principals: [cluster.local/ns/apps/sa/client]}}]}"),
            &[
                from_client.clone().status(200),
                from_echo().refused(),
                plain("apps/echo-v1:8080").refused(),
            ],
        )
        .await?;
    world
        .applied(
            &selected("{from: [{source: {namespaces: [apps]}}]}"),
            &[
                from_client.clone().status(200),
                from_echo().status(200),
                plain("apps/echo-v1:8080").refused(),
            ],
        )
        .await?;
    world
        .applied(
            &selected("{to: [{operation: {ports: ['9000']}}]}"),
            &[from_client.refused(), plain("apps/echo-v1:8080").refused()],
        )
        .await?;
    world.echoes("apps/client", "captured:9000").await
}

pub(crate) async fn authorization_service_attached(world: &World) -> Result<()> {
    let attached = |rules: &str| {
        policy(&format!(
            "  targetRefs: [{{kind: Service, group: '', name: echo}}]\n  rules: [{rules}]\n"
        ))
    };
    let call = || get("echo:80", "/");
    world
        .applied(
            &attached("{from: [{source: {principals: [cluster.local/ns/apps/sa/client]}}]}"),
            &[
                call().status(200),
                call().from("apps/addressed").status(403),
                // It is the policy of one service.
                get("echo-v1:80", "/").from("apps/addressed").status(200),
            ],
        )
        .await?;
    world
        .applied(
            &attached("{when: [{key: 'request.headers[x-allowed]', values: ['yes']}]}"),
            &[
                call().with("x-allowed", "yes").status(200),
                call().with("x-allowed", "no").status(403),
                call().status(403),
            ],
        )
        .await
}

pub(crate) async fn authorization_gateway(world: &World) -> Result<()> {
    let text = policy(
        "  targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}]
  rules: [{from: [{source: {principals: [cluster.local/ns/apps/sa/client]}}]}]\n",
    );
    world
        .applied(
            &text,
            &[
                get("echo:80", "/").status(200),
                get("echo-v1:80", "/").status(200),
                get("echo:80", "/").from("apps/addressed").status(403),
                get("echo-v1:80", "/").from("apps/addressed").status(403),
                // Who does not go through it is not asked.
                get("captured:80", "/").from("apps/addressed").status(200),
            ],
        )
        .await
}

/// Nothing by default at all waypoints of the class, and pods that admit nobody but the waypoint.
pub(crate) async fn authorization_waypoint_default_deny(world: &World) -> Result<()> {
    let nothing = policy(
        "  targetRefs: [{kind: GatewayClass, group: gateway.networking.k8s.io, name: istio-waypoint}]\n",
    )
    .replace("namespace: apps", "namespace: istio-system");
    world
        .applied(
            &nothing,
            &[
                get("echo:80", "/").status(403),
                get("apps/addressed:8080", "/").status(403),
                get("captured:80", "/").status(200),
            ],
        )
        .await?;
    let waypoint_alone = policy(
        "  selector: {matchLabels: {app: echo}}
  rules: [{from: [{source: {principals: [cluster.local/ns/apps/sa/waypoint]}}]}]\n",
    );
    world
        .applied(
            &waypoint_alone,
            &[
                get("echo:80", "/").status(200),
                get("captured:80", "/").refused(),
            ],
        )
        .await
}

fn at(path: &'static str) -> Case {
    get("echo:80", path)
}

/// Action, rule and what becomes of requests.
type Table = Vec<(&'static str, &'static str, Vec<Case>)>;

fn by_operation() -> Table {
    vec![
        (
            "ALLOW",
            "{to: [{operation: {methods: [GET]}}]}",
            vec![at("/").status(200), at("/").method("POST").status(403)],
        ),
        (
            "ALLOW",
            "{to: [{operation: {paths: [/allowed, /prefix/*, '*/suffix']}}]}",
            vec![
                at("/allowed").status(200),
                at("/allowed/").status(403),
                at("/prefix/a").status(200),
                at("/a/suffix").status(200),
                at("/denied").status(403),
                // Normalised before it is looked at.
                at("/denied/../allowed").status(200),
                at("/prefix/../denied").status(403),
            ],
        ),
        (
            "ALLOW",
            "{to: [{operation: {hosts: [echo.example, '*.echo.example']}}]}",
            vec![
                at("/").with("host", "echo.example").status(200),
                at("/").with("host", "a.echo.example").status(200),
                at("/").with("host", "other.example").status(403),
            ],
        ),
        (
            "ALLOW",
            "{to: [{operation: {paths: ['/{*}/path/{**}']}}]}",
            vec![at("/a/path/b/c").status(200), at("/a/b/path/c").status(403)],
        ),
    ]
}

fn by_others() -> Table {
    vec![
        (
            "DENY",
            "{when: [{key: 'request.headers[x-bad]', values: ['bad*']}]}",
            vec![
                at("/").status(200),
                at("/").with("x-bad", "badly").status(403),
                at("/").with("x-bad", "good").status(200),
            ],
        ),
        (
            "DENY",
            "{to: [{operation: {notMethods: [GET], notPaths: [/open]}}]}",
            vec![
                at("/").status(200),
                at("/").method("PUT").status(403),
                at("/open").method("PUT").status(200),
            ],
        ),
        (
            "ALLOW",
            "{from: [{source: {notPrincipals: [cluster.local/ns/apps/sa/addressed]}}]}",
            vec![
                at("/").status(200),
                at("/").from("apps/addressed").status(403),
            ],
        ),
    ]
}

pub(crate) async fn authorization_l7(world: &World) -> Result<()> {
    let of = |action: &str, rule: &str| {
        policy(&format!(
            "  targetRefs: [{{kind: Service, group: '', name: echo}}]\n  action: {action}\n  rules: [{rule}]\n"
        ))
    };
    for (action, rule, cases) in by_operation().into_iter().chain(by_others()) {
        world.applied(&of(action, rule), &cases).await?;
    }
    // What is denied is denied, whatever is allowed.
    let both = of("ALLOW", "{to: [{operation: {methods: [GET]}}]}")
        + "---\n"
        + &of("DENY", "{to: [{operation: {paths: [/secret]}}]}").replace("name: row", "name: row2");
    world
        .applied(
            &both,
            &[
                at("/").status(200),
                at("/secret").status(403),
                at("/").method("POST").status(403),
            ],
        )
        .await
}
