//! TLS and PROXY headers of a waypoint towards an application that wants them, inside of the mesh's own encryption.

use std::{ffi::OsString, path::Path};

use anyhow::{Context, Result, ensure};
use leyline_tests::{
    certificates::Authority,
    cluster::Family,
    eventually::eventually,
    mesh::Mesh,
    process::{Process, Program},
};
use serde_json::Value;

use crate::{
    support::{SOON, root},
    waypoint::{CANARY, mesh_with_waypoint},
    waypoint_session::Session,
};

const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/origin";
const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/waypoint-of-the-user";

/// A service whose application speaks TLS, and the rule for it.
fn documents(policy: &str) -> String {
    let rule = format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: secure, namespace: shop}}
spec:
  host: secure
  trafficPolicy:
{policy}"
    );
    with_service(&[&rule])
}

/// The service beside other documents.
fn with_service(others: &[&str]) -> String {
    let service = format!(
        "{CANARY}---
apiVersion: v1
kind: Service
metadata:
  name: secure
  namespace: shop
  labels: {{istio.io/use-waypoint: waypoint}}
spec:
  clusterIP: 10.96.0.91
  clusterIPs: [10.96.0.91]
  selector: {{app: server, version: v1}}
  ports:
  - {{name: http, port: 80, targetPort: 8443}}
"
    );
    let all = [&[service.as_str()][..], others].concat();
    all.join("---\n")
}

/// A ConfigMap or Secret with files as its values.
fn holder(kind: &str, name: &str, values: &[(&str, &Path)]) -> String {
    let field = if kind == "Secret" {
        "stringData"
    } else {
        "data"
    };
    let mut text = format!(
        "apiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\n{field}:\n"
    );
    for (key, file) in values {
        text += &format!("  {key}: |\n");
        for line in std::fs::read_to_string(file).unwrap().lines() {
            text += &format!("    {line}\n");
        }
    }
    text
}

/// BackendTLSPolicy with the roots of a ConfigMap, for one port.
const POLICY: &str = r#"apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: secure, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: secure, sectionName: http}]
  validation:
    hostname: origin.example
    caCertificateRefs: [{group: "", kind: ConfigMap, name: roots}]
    subjectAltNames: [{type: URI, uri: "spiffe://cluster.local/ns/shop/sa/origin"}]
"#;

fn tls(mode: &str, files: &Path, san: &str) -> String {
    let (dir, root) = (files.display(), files.join("root.crt"));
    let root = root.display();
    format!(
        "    tls: {{mode: {mode}, clientCertificate: {dir}/client.crt, privateKey: {dir}/client.key, caCertificates: {root}, sni: origin.example, subjectAltNames: [\"{san}\"]}}\n"
    )
}

/// Python's server in the pod of v1.
fn start_server(mesh: &Mesh, files: &Path) -> Process {
    let run = mesh.cluster().run();
    let authority = Authority::of_mesh(&run.state_dir()).unwrap();
    let server = authority.issue(files, "server", SERVER).unwrap();
    authority.issue(files, "client", CLIENT).unwrap();
    let trusted = files.join("root.crt");
    std::fs::copy(run.state_dir().join("root-cert.pem"), &trusted).unwrap();
    let script = root().join("tests/peers/tls_server.py");
    let command: [OsString; 6] = [
        "python3".into(),
        script.into(),
        "8443".into(),
        server.certificate.into(),
        server.key.into(),
        trusted.into(),
    ];
    let namespace = mesh.cluster().pod("shop/server-v1").unwrap().namespace();
    let program = Program::of_machine("tls-server", command, namespace);
    Process::start(run, &program).unwrap()
}

/// What the application says that it saw.
async fn seen(mesh: &Mesh) -> Result<Value> {
    let vip = mesh.cluster().vip("shop/secure", Family::V4, 80)?;
    let mut session = Session::open(mesh, vip).await?;
    let answer = session.get("/", &[]).await?;
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    ensure!(answer.status == 200, "{}: {body}", answer.status);
    serde_json::from_str(&body).context(body)
}

/// TestDestinationRule: TLS and PROXY headers are originated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn destination_rule() {
    let (mesh, _vip) = Box::pin(mesh_with_waypoint(&[CANARY])).await;
    let files = mesh.cluster().run().secrets_dir();
    let mut server = start_server(&mesh, &files);
    let apply = |policy: &str| {
        mesh.cluster()
            .config()
            .write("canary.yaml", &documents(policy))
            .unwrap();
    };
    let client = mesh.cluster().pod("shop/client").unwrap().addresses().v4;

    apply(&tls("MUTUAL", &files, SERVER));
    eventually("the application sees TLS of the user's", SOON, || async {
        let seen = seen(&mesh).await?;
        ensure!(seen["sni"] == "origin.example", "{seen}");
        ensure!(seen["client"][0] == CLIENT, "{seen}");
        ensure!(
            seen["alpn"] == "http/1.1" && seen["proxy"].is_null(),
            "{seen}"
        );
        Ok(())
    })
    .await
    .unwrap();

    apply(&tls(
        "SIMPLE",
        &files,
        "spiffe://cluster.local/ns/shop/sa/somebody",
    ));
    eventually("nothing is sent to a stranger", SOON, || async {
        let refused = seen(&mesh).await;
        let error = refused.err().context("the stranger has answered")?;
        ensure!(error.to_string().starts_with("503"), "{error:#}");
        Ok(())
    })
    .await
    .unwrap();

    for (version, expected) in [
        ("V1", format!("PROXY TCP4 {client} ")),
        ("V2", format!("v2 0x11 {client}")),
    ] {
        let proxy = format!("    proxyProtocol: {{version: {version}}}\n");
        apply(&(tls("SIMPLE", &files, SERVER) + &proxy));
        eventually(
            "the application is told of the client first",
            SOON,
            || async {
                let seen = seen(&mesh).await?;
                let header = seen["proxy"].as_str().unwrap_or_default();
                ensure!(header.starts_with(&expected), "{seen}");
                ensure!(seen["client"] == Value::Array(Vec::new()), "{seen}");
                Ok(())
            },
        )
        .await
        .unwrap();
    }
    server.kill().await.unwrap();
    mesh.stop().await.unwrap();
}

/// Roots and certificates come from ConfigMaps and Secrets, and nothing is sent while they are not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roots_and_certificates_come_from_the_control_plane() {
    let (mesh, _vip) = Box::pin(mesh_with_waypoint(&[CANARY])).await;
    let files = mesh.cluster().run().secrets_dir();
    let mut server = start_server(&mesh, &files);
    let apply = |documents: &[&str]| {
        let text = with_service(documents);
        mesh.cluster().config().write("canary.yaml", &text).unwrap();
    };
    let is_refused = || async {
        let error = seen(&mesh).await.err().context("it was answered")?;
        ensure!(error.to_string().starts_with("503"), "{error:#}");
        Ok(())
    };
    let is_called = |client: &'static [&'static str]| {
        let mesh = &mesh;
        move || async move {
            let seen = seen(mesh).await?;
            ensure!(seen["sni"] == "origin.example", "{seen}");
            ensure!(seen["client"] == serde_json::json!(client), "{seen}");
            Ok(())
        }
    };

    let file = |name: &str| files.join(name);
    let root = file("root.crt");
    apply(&[POLICY]);
    let what = "the policy has no roots";
    eventually(what, SOON, is_refused).await.unwrap();
    let roots = holder("ConfigMap", "roots", &[("ca.crt", &root)]);
    apply(&[POLICY, &roots]);
    let what = "the policy has its roots";
    eventually(what, SOON, is_called(&[])).await.unwrap();
    let strangers = holder("ConfigMap", "roots", &[("ca.crt", &file("client.crt"))]);
    apply(&[POLICY, &strangers]);
    let what = "the roots are of others";
    eventually(what, SOON, is_refused).await.unwrap();

    let rule = format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: secure, namespace: shop}}
spec: {{host: secure, trafficPolicy: {{tls: {{mode: MUTUAL, credentialName: payment, sni: origin.example, subjectAltNames: [\"{SERVER}\"]}}}}}}
"
    );
    let (chain, key) = (file("client.crt"), file("client.key"));
    let secret = holder(
        "Secret",
        "payment",
        &[("tls.crt", &chain), ("tls.key", &key), ("ca.crt", &root)],
    );
    // The rule goes before the policy, whose roots are of no use still.
    apply(&[POLICY, &strangers, &rule, &secret]);
    let what = "the rule has its secret";
    eventually(what, SOON, is_called(&[CLIENT])).await.unwrap();
    apply(&[&rule]);
    let what = "the secret is gone";
    eventually(what, SOON, is_refused).await.unwrap();

    server.kill().await.unwrap();
    mesh.stop().await.unwrap();
}
