//! RequestAuthentication at a waypoint, with tokens that `PyJWT` made.

use std::{collections::BTreeMap, fs, net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use leyline_tests::{
    eventually::eventually,
    fabric::CONTROL_PLANE,
    mesh::Mesh,
    process::{Process, Program},
};
use serde_json::Value;

use crate::{
    support::SOON,
    waypoint::{CANARY, mesh_with_waypoint},
    waypoint_policy::with_policy,
};

/// Keys, and tokens by name.
const VECTORS: &str = include_str!("../../waypoint/src/http/filters/jwt/tests/vectors.json");
/// Of the server of keys, beside the control plane.
const KEYS_PORT: u16 = 18_080;

/// Only who is alice or of group b may ask, and alice is sent to the second version.
const POLICY: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: canary, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: \"\", name: canary}]
  rules:
  - from: [{source: {requestPrincipals: [https://issuer.example/alice]}}]
    when:
    - {key: \"request.auth.claims[groups]\", values: [b]}
    - {key: \"request.auth.claims[address][city]\", values: [Oslo]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: canary, namespace: shop}
spec:
  hosts: [canary]
  http:
  - match:
    - headers: {\"@request.auth.claims.scope\": {exact: write}}
    route:
    - destination: {host: canary, subset: v2}
  - route:
    - destination: {host: canary, subset: v1}
";

pub(crate) fn vectors() -> Value {
    serde_json::from_str(VECTORS).unwrap()
}

pub(crate) fn token(name: &str) -> String {
    vectors()["tokens"][name].as_str().unwrap().to_owned()
}

fn authentication(rest: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: canary, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, group: \"\", name: canary}}]
  jwtRules:
  - issuer: https://issuer.example
    outputClaimToHeaders: [{{header: x-subject, claim: sub}}]
    {rest}
"
    )
}

/// One call; its answer as text.
pub(crate) async fn call(mesh: &Mesh, target: SocketAddr, token: Option<&str>) -> Result<String> {
    let client = mesh.cluster().client("shop/client")?;
    let mut connection = client.connect(target, SOON).await?;
    let header = token.map(|token| format!("authorization: Bearer {token}\r\n"));
    let request = format!(
        "GET /page?x=1 HTTP/1.1\r\nhost: canary\r\nx-subject: forged\r\n{}connection: close\r\n\r\n",
        header.unwrap_or_default()
    );
    connection.write(request.as_bytes()).await?;
    Ok(String::from_utf8(connection.read_to_end().await?)?)
}

/// TestL7JWT and jwtClaimRoute: tokens are verified, and their claims decide.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l7_jwt() {
    let inline = authentication(&format!("jwks: '{}'", vectors()["jwks"]));
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY, POLICY, &inline])).await;
    eventually("a good token is let through", SOON, || async {
        let reply = call(&mesh, vip, Some(&token("RS256"))).await?;
        ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        Ok(())
    })
    .await
    .unwrap();
    for algorithm in ["PS512", "ES256", "ES384", "ES512", "EdDSA"] {
        let reply = call(&mesh, vip, Some(&token(algorithm))).await.unwrap();
        assert!(reply.starts_with("HTTP/1.1 200"), "{algorithm}: {reply}");
        // The claim chooses the route, and the token stays here.
        assert!(reply.contains(r#""version": "v2""#), "{reply}");
        assert!(reply.contains("alice"), "{reply}");
        assert!(!reply.contains("forged"), "{reply}");
        assert!(!reply.contains("Bearer"), "{reply}");
    }
    let reply = call(&mesh, vip, None).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 403"), "{reply}");
    assert!(reply.ends_with("RBAC: access denied"), "{reply}");
    for (name, body) in [
        ("RS256 signed by a stranger", "Jwt verification fails"),
        ("none", "Jwt header [alg] is not supported"),
        (
            "HS256 keyed with the public key",
            "Jwks doesn't have key to match kid or alg from Jwt",
        ),
    ] {
        let reply = call(&mesh, vip, Some(&token(name))).await.unwrap();
        assert!(reply.starts_with("HTTP/1.1 401"), "{name}: {reply}");
        assert!(reply.ends_with(body), "{name}: {reply}");
        let challenge =
            "www-authenticate: Bearer realm=\"http://canary/page\", error=\"invalid_token\"";
        assert!(reply.contains(challenge), "{reply}");
    }

    // Without the policy, who has no token is served, and by the other route.
    with_policy(&mesh, &[&inline, routes_only()]);
    eventually("no token is needed", SOON, || async {
        let reply = call(&mesh, vip, None).await?;
        ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        ensure!(reply.contains(r#""version": "v1""#), "{reply}");
        Ok(())
    })
    .await
    .unwrap();
    let audience = authentication(&format!(
        "jwks: '{}'\n    audiences: [elsewhere]",
        vectors()["jwks"]
    ));
    with_policy(&mesh, &[&audience]);
    eventually("the token is for somebody else", SOON, || async {
        let reply = call(&mesh, vip, Some(&token("RS256"))).await?;
        ensure!(reply.starts_with("HTTP/1.1 403"), "{reply}");
        ensure!(
            reply.ends_with("Audiences in Jwt are not allowed"),
            "{reply}"
        );
        Ok(())
    })
    .await
    .unwrap();
    mesh.stop().await.unwrap();
}

/// The second document of the policy's text.
fn routes_only() -> &'static str {
    POLICY.split("---\n").nth(1).unwrap()
}

/// Serves the keys as a file, in Python, beside the control plane.
async fn serve_keys(mesh: &Mesh) -> Process {
    let directory = mesh.cluster().run().dir().join("issuer");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("keys.json"), vectors()["jwks"].to_string()).unwrap();
    let address = CONTROL_PLANE[0].to_string();
    let port = KEYS_PORT.to_string();
    let args = ["-u", "-m", "http.server", "--bind", &address, "--directory"];
    let args = args.iter().map(Into::into);
    let program = Program {
        name: "issuer".to_owned(),
        path: "/usr/bin/python3".into(),
        args: args.chain([directory.into(), port.into()]).collect(),
        env: BTreeMap::new(),
        namespace: mesh.cluster().fabric().infra().clone(),
    };
    let mut process = Process::start(mesh.cluster().run(), &program).unwrap();
    process.wait_for_line("Serving HTTP", SOON).await.unwrap();
    process
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_fetched_by_the_control_plane_and_none_means_no() {
    let remote = authentication(&format!(
        "jwksUri: http://{}:{KEYS_PORT}/keys.json",
        CONTROL_PLANE[0]
    ));
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY, &remote])).await;
    eventually("a token without known keys is refused", SOON, || async {
        let reply = call(&mesh, vip, Some(&token("RS256"))).await?;
        ensure!(reply.starts_with("HTTP/1.1 401"), "{reply}");
        ensure!(
            reply.contains("doesn't have any valid public key"),
            "{reply}"
        );
        Ok(())
    })
    .await
    .unwrap();
    let reply = call(&mesh, vip, None).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    let log = mesh.controlplane().log().unwrap().lines().unwrap();
    let told = |line: &String| line.contains("no keys could be fetched yet");
    assert!(log.iter().any(told), "{log:?}");

    let mut issuer = serve_keys(&mesh).await;
    // It has tried some times and waits up to a minute for the next one.
    eventually("the keys are there", Duration::from_secs(75), || async {
        let reply = call(&mesh, vip, Some(&token("RS256"))).await?;
        ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        Ok(())
    })
    .await
    .unwrap();
    // The keys that are known stay when their issuer is gone.
    issuer.kill().await.unwrap();
    let reply = call(&mesh, vip, Some(&token("ES256"))).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    mesh.stop().await.unwrap();
}
