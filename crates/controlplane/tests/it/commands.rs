//! `controlplane validate` and `controlplane status`, as a user runs them.

use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::Fixture;

const SERVED: &str = "
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
spec: {clusterIP: 10.96.0.20, selector: {app: server}, ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: server, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: server}]
  rules: [{backendRefs: [{name: gone, port: 80}]}]
";

const WRONG: &str = "
apiVersion: v1
kind: Service
metadata: {name: good, namespace: shop}
spec: {clusterIP: 10.96.0.30, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: server, namespace: shop}
spec:
  hosts: [server]
  http:
  - timeout: soon
    route: [{destination: {host: server}}]
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: all, namespace: shop}
";

fn controlplane(args: &[&str]) -> (Option<i32>, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_controlplane"))
        .args(args)
        .output()
        .unwrap();
    let text = [stdout, stderr].concat();
    (status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn files_are_validated_before_they_are_applied() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    // Whatever they are called.
    let (good, wrong) = (path("good.txt", SERVED), path("wrong.yaml", WRONG));
    let (code, said) = controlplane(&["validate", &good]);
    assert_eq!((code, said.trim()), (Some(0), "0 errors, 0 warnings"));

    let (code, said) = controlplane(&["validate", &good, &wrong]);
    assert_eq!(code, Some(1), "{said}");
    let lines: Vec<&str> = said.lines().collect();
    let field = "document 2, VirtualService shop/server, spec.http[0].timeout: ";
    assert!(
        lines[0].starts_with(&format!("{wrong}:13: error: {field}")),
        "{said}"
    );
    assert!(
        lines[1].starts_with(&format!("{wrong}:17: warning: document 3, kind: Sidecar")),
        "{said}"
    );
    assert_eq!(lines[2], "1 errors, 1 warnings", "{said}");

    let whole = directory.path().to_str().unwrap();
    assert_eq!(controlplane(&["validate", whole]).0, Some(1));
    let (code, said) = controlplane(&["validate", "/does/not/exist.yaml"]);
    assert_eq!(
        (code, said.trim()),
        (Some(1), "controlplane: there is no /does/not/exist.yaml")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_shows_conditions_of_objects() {
    let fixture = Fixture::start(&[("a.yaml", SERVED), ("b.yaml", WRONG)]).await;
    let (server, _) = fixture.server.as_ref().unwrap();
    let admin = server.admin_address().unwrap().to_string();
    let ask = |more: &'static [&'static str]| {
        let admin = admin.clone();
        let asked = tokio::task::spawn_blocking(move || {
            controlplane(&[&["status", "--admin", &admin], more].concat())
        });
        async { asked.await.unwrap() }
    };
    let (code, text) = ask(&[]).await;
    assert_eq!(code, Some(0), "{text}");
    for line in [
        "    Programmed=False Pending: no waypoint of it is connected",
        "    ResolvedRefs=False BackendNotFound: spec.rules[0].backendRefs[0]: there is no host gone.shop.svc.cluster.local: its share is refused",
        "  and 2 of Kubernetes' own kinds, with nothing to say",
    ] {
        assert!(text.lines().any(|it| it == line), "{line}\n{text}");
    }
    let invalid = "    Accepted=False Invalid: spec.http[0].timeout: ";
    assert!(text.contains(invalid), "{text}");

    let (_, json) = ask(&["--json"]).await;
    let status: Value = serde_json::from_str(&json).unwrap();
    let route = &status["conditions"]["HTTPRoute shop/server"];
    assert_eq!(route[0]["type"], "Accepted");
    assert_eq!(route[0]["status"], "True");
    assert_eq!(route[1]["reason"], "BackendNotFound");

    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let (code, said) = controlplane(&["status", "--admin", &address]);
    assert_eq!(code, Some(1));
    assert!(said.contains("asking the control plane at"), "{said}");
}
