//! AuthorizationPolicies of action CUSTOM at a waypoint: external authorizers in Python, with Envoy's protos of PyPI.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use leyline_tests::{
    certificates::Authority, eventually::eventually, mesh::Mesh, peers, process::Process,
};

use crate::{
    support::{SOON, python_in, root},
    waypoint::{CANARY, mesh_with_waypoint},
    waypoint_limits::ask,
    waypoint_policy::with_policy,
};

/// The authorizers are a pod of another namespace of the mesh.
const POD: &str = "office/worker";
const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: authz, namespace: office}
spec:
  clusterIP: 10.96.0.77
  selector: {app: worker}
  ports: [{name: grpc, port: 7070}, {name: http, port: 7071}, {name: grpc-tls, port: 7072}]
";

const POLICY: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: canary, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: \"\", name: canary}]
  action: CUSTOM
  provider: {name: authorizer}
  rules:
  - to: [{operation: {paths: [/asked*, /denied, /bare, /slow]}}]
";

fn provider(rest: &str) -> String {
    format!(
        "apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data:
  mesh: |
    accessLogFile: /dev/stdout
    extensionProviders:
    - name: authorizer
      {rest}
"
    )
}

fn by_grpc(rest: &str) -> String {
    provider(&format!(
        "envoyExtAuthzGrpc: {{service: authz.office.svc.cluster.local, port: 7070, timeout: 1s, {rest}}}"
    ))
}

/// With a certificate of the mesh's own authority for TLS.
async fn start(mesh: &Mesh, tcp: &str) -> Process {
    let environment = root().join("target/venv-xds");
    let python = peers::grpc_python(&environment).await.unwrap();
    let run = mesh.cluster().run();
    let authority = Authority::of_mesh(&run.state_dir()).unwrap();
    let credential = authority.issue_to_host(&run.secrets_dir(), "authorizer", "authz.example");
    let credential = credential.unwrap();
    let files = [credential.certificate, credential.key].map(|file| file.display().to_string());
    let [certificate, key] = files.each_ref().map(String::as_str);
    let script = "tests/peers/authz_server.py";
    let args = [script, "7070", "7071", tcp, certificate, key];
    python_in(mesh, POD, &python, &args).await
}

/// The authorizer is asked over TLS, as another name than its own where `name` is none that it proves.
fn over_tls(mesh: &Mesh, name: &str) -> String {
    let root = mesh.cluster().run().state_dir().join("root-cert.pem");
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: authz, namespace: shop}}
spec:
  host: authz.office.svc.cluster.local
  trafficPolicy:
    portLevelSettings:
    - {{port: {{number: 7072}}, tls: {{mode: SIMPLE, caCertificates: {}, sni: {name}}}}}
",
        root.display()
    )
}

async fn status(mesh: &Mesh, target: SocketAddr, path: &str) -> Result<u16> {
    let reply = ask(mesh, target, path, "").await?;
    let status = reply.split(' ').nth(1).unwrap_or_default();
    Ok(status.parse()?)
}

async fn tcp_works(mesh: &Mesh, vip: SocketAddr) -> Result<()> {
    let target = SocketAddr::new(vip.ip(), 9000);
    let client = mesh.cluster().client("shop/client")?;
    client.connect(target, SOON).await?.echo(b"hello").await
}

async fn tcp_is_refused(mesh: &Mesh, vip: SocketAddr) -> Result<()> {
    let works = tcp_works(mesh, vip).await;
    ensure!(works.is_err(), "the connection was served");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authorizer_decides_by_grpc() {
    let body = "includeRequestBodyInCheck: {maxRequestBytes: 5, allowPartialMessage: true}";
    let documents = [CANARY, SERVICE, POLICY, &by_grpc(body)];
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&documents)).await;
    let mut authorizer = start(&mesh, "allow").await;
    eventually("the authorizer is asked", SOON, || async {
        let headers = "x-user: forged\r\nx-secret: 1\r\n";
        let reply = ask(&mesh, vip, "/asked?q=1", headers).await?;
        ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        ensure!(reply.contains("x-authorizer: yes\r\n"), "{reply}");
        Ok(())
    })
    .await
    .unwrap();

    // What it saw, and what it did to the request.
    let reply = ask(
        &mesh,
        vip,
        "/asked?q=1",
        "x-user: forged\r\nx-secret: 1\r\n",
    )
    .await;
    let reply = reply.unwrap().replace('\\', "");
    for seen in [
        r#""principal": "spiffe://cluster.local/ns/shop/sa/client""#,
        r#""method": "GET", "path": "/asked?q=1", "host": "canary""#,
        r#""user": "forged", "pseudo": "/asked?q=1", "partial": "false""#,
        r#""alice""#,
    ] {
        assert!(reply.contains(seen), "{seen}: {reply}");
    }
    assert!(!reply.contains("x-secret"), "{reply}");
    let body = "0123456789";
    let headers = format!("content-length: {}\r\n", body.len());
    let request =
        format!("POST /asked HTTP/1.1\r\nhost: canary\r\n{headers}connection: close\r\n\r\n{body}");
    let client = mesh.cluster().client("shop/client").unwrap();
    let mut connection = client.connect(vip, SOON).await.unwrap();
    connection.write(request.as_bytes()).await.unwrap();
    let reply = String::from_utf8(connection.read_to_end().await.unwrap()).unwrap();
    let reply = reply.replace('\\', "");
    let seen = r#""partial": "true", "body": "01234""#;
    assert!(reply.contains(seen), "{reply}");
    assert!(reply.contains(r#""body_bytes": 10"#), "{reply}");

    // Who is not asked about goes on; who is refused is told why.
    let reply = ask(&mesh, vip, "/free", "").await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    assert!(!reply.contains("x-seen"), "{reply}");
    let reply = ask(&mesh, vip, "/denied", "").await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 401"), "{reply}");
    assert!(reply.contains("x-reason: nobody knows you\r\n"), "{reply}");
    assert!(reply.ends_with("who are you?"), "{reply}");
    assert_eq!(status(&mesh, vip, "/bare").await.unwrap(), 403);
    // Its answer comes later than the provider's deadline.
    assert_eq!(status(&mesh, vip, "/slow").await.unwrap(), 403);
    let told = eventually("the access log tells of it", SOON, || async {
        let log = mesh.waypoint("shop/waypoint")?.log()?.lines()?;
        for line in ["401 UAEX ext_authz_denied", "403 UAEX ext_authz_error"] {
            ensure!(log.iter().any(|one| one.contains(line)), "no {line}");
        }
        Ok(())
    });
    told.await.unwrap();
    tcp_works(&mesh, vip).await.unwrap();

    authorizer.kill().await.unwrap();
    assert_eq!(status(&mesh, vip, "/asked").await.unwrap(), 403);
    assert_eq!(status(&mesh, vip, "/free").await.unwrap(), 200);
    tcp_is_refused(&mesh, vip).await.unwrap();
    let mut authorizer = start(&mesh, "deny").await;
    eventually("it is asked again", SOON, || async {
        ensure!(status(&mesh, vip, "/asked").await? == 200, "refused");
        Ok(())
    })
    .await
    .unwrap();
    tcp_is_refused(&mesh, vip).await.unwrap();
    let by_tls = by_grpc("").replace("port: 7070", "port: 7072");
    for (name, expected) in [("other.example", 403), ("authz.example", 200)] {
        let rule = over_tls(&mesh, name);
        with_policy(&mesh, &[SERVICE, POLICY, &by_tls, &rule]);
        eventually(format!("{name} is asked over TLS"), SOON, || async {
            let status = status(&mesh, vip, "/asked").await?;
            ensure!(status == expected, "{status}");
            Ok(())
        })
        .await
        .unwrap();
    }
    authorizer.kill().await.unwrap();
    with_policy(&mesh, &[SERVICE, POLICY, &by_grpc("failOpen: true")]);
    eventually("it fails open", SOON, || async {
        ensure!(status(&mesh, vip, "/asked").await? == 200, "refused");
        tcp_works(&mesh, vip).await
    })
    .await
    .unwrap();
    let unsupported = mesh.waypoint("shop/waypoint").unwrap();
    let unsupported = unsupported.admin("/unsupported").await.unwrap();
    assert_eq!(unsupported, serde_json::json!({}));
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authorizer_decides_by_http_and_an_unknown_one_refuses() {
    let by_http = provider(
        "envoyExtAuthzHttp:
        service: office/authz.office.svc.cluster.local
        port: 7071
        timeout: 1s
        pathPrefix: /check
        statusOnError: \"503\"
        includeRequestHeadersInCheck: [X-User]
        includeAdditionalHeadersInCheck: {x-asked-by: mesh}
        headersToUpstreamOnAllow: [x-seen]
        headersToDownstreamOnDeny: [x-rea*]
        headersToDownstreamOnAllow: [x-authorizer]",
    );
    let documents = [CANARY, SERVICE, POLICY, &by_http];
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&documents)).await;
    let mut authorizer = start(&mesh, "allow").await;
    let headers = "x-user: alice\r\nx-other: 1\r\nauthorization: Basic eA==\r\n";
    eventually("the authorizer is asked", SOON, || async {
        let reply = ask(&mesh, vip, "/asked?q=1", headers).await?;
        ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        let (head, body) = reply.split_once("\r\n\r\n").unwrap_or_default();
        ensure!(head.contains("x-authorizer: yes"), "{reply}");
        ensure!(!head.contains("x-hidden"), "{reply}");
        let body = body.replace('\\', "");
        let seen = body.split("{\"path\": \"/check").nth(1).unwrap_or_default();
        let seen = seen.split("}}").next().unwrap_or_default();
        for told in [
            "/asked?q=1",
            "\"host\": \"canary\"",
            "\"x-user\": \"alice\"",
            "\"x-asked-by\": \"mesh\"",
            "\"authorization\": \"Basic eA==\"",
        ] {
            ensure!(seen.contains(told), "{told}: {seen}");
        }
        ensure!(!seen.contains("x-other"), "{seen}");
        Ok(())
    })
    .await
    .unwrap();
    let reply = ask(&mesh, vip, "/denied", "").await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 401"), "{reply}");
    assert!(reply.contains("x-reason: nobody knows you\r\n"), "{reply}");
    assert!(!reply.contains("x-hidden"), "{reply}");
    assert!(reply.ends_with("who are you?"), "{reply}");
    assert_eq!(status(&mesh, vip, "/slow").await.unwrap(), 503);
    assert_eq!(status(&mesh, vip, "/free").await.unwrap(), 200);
    // It cannot be asked about connections.
    tcp_is_refused(&mesh, vip).await.unwrap();
    authorizer.kill().await.unwrap();
    assert_eq!(status(&mesh, vip, "/asked").await.unwrap(), 503);

    with_policy(&mesh, &[SERVICE, POLICY, &provider("prometheus: {}")]);
    eventually("nobody can be asked", SOON, || async {
        let reply = ask(&mesh, vip, "/asked", "").await?;
        ensure!(reply.starts_with("HTTP/1.1 403"), "{reply}");
        ensure!(reply.ends_with("RBAC: access denied"), "{reply}");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(status(&mesh, vip, "/free").await.unwrap(), 200);
    let log = mesh.controlplane().log().unwrap().lines().unwrap();
    let told = |line: &String| line.contains("provider authorizer is no external authorizer");
    assert!(log.iter().any(told), "{log:?}");
    mesh.stop().await.unwrap();
}
