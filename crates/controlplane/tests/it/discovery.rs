//! Delta ADS over TLS, fed by files.

use std::{fs, time::Duration};

use leyline_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, envoy::service::discovery::v3::DeltaDiscoveryRequest,
};
use tokio::time::Instant;
use tonic::Code;

use crate::harness::{Fixture, Subscriber, WITHIN, names};

pub(crate) const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: a, serviceAccountName: web, containers: [{name: web}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
status: {phase: Running, podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {nodeName: b, serviceAccountName: client, containers: [{name: client}]}
status: {phase: Running, podIPs: [{ip: 10.0.0.2}], conditions: [{type: Ready, status: 'True'}]}
";

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.9.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
";

pub(crate) fn policy(port: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: \
         {{selector: {{matchLabels: {{app: web}}}}, rules: [{{to: [{{operation: {{ports: ['{port}']}}}}]}}]}}\n"
    )
}

#[tokio::test]
async fn an_edit_reaches_a_proxy_within_a_second_as_the_one_changed_resource() {
    let fixture = Fixture::start(&[
        ("pods.yaml", PODS),
        ("service.yaml", SERVICE),
        ("p.yaml", &policy("80")),
    ])
    .await;
    let mut subscriber = fixture.subscriber("a").await;
    let first = subscriber.synchronise().await;
    let all: Vec<String> = first.iter().flat_map(names).collect();
    assert_eq!(all.len(), 4, "{all:?}");

    let start = Instant::now();
    fixture.write("p.yaml", &policy("81"));
    let response = subscriber.next().await;
    assert!(start.elapsed() < WITHIN, "{:?}", start.elapsed());
    assert_eq!(
        (response.type_url.as_str(), names(&response)),
        (AUTHORIZATION_TYPE, vec!["shop/p".to_owned()])
    );
    subscriber.ack(&response).await;

    // Written in place this time; a service edit changes the service and the workloads behind it.
    let config = fixture.directory.path().join("config");
    fs::write(
        config.join("service.yaml"),
        SERVICE.replace("port: 80,", "port: 81,"),
    )
    .unwrap();
    let response = subscriber.next().await;
    assert_eq!(
        names(&response),
        [
            "Kubernetes//Pod/shop/web",
            "shop/web.shop.svc.cluster.local"
        ]
    );
    subscriber.ack(&response).await;

    // Deleting the policy: the workload stops naming it first.
    let start = Instant::now();
    fs::remove_file(config.join("p.yaml")).unwrap();
    let response = subscriber.next().await;
    assert_eq!(names(&response), ["Kubernetes//Pod/shop/web"]);
    subscriber.ack(&response).await;
    let response = subscriber.next().await;
    assert_eq!(names(&response), ["-shop/p"]);
    assert!(start.elapsed() < WITHIN, "{:?}", start.elapsed());
    subscriber.ack(&response).await;
    let status = fixture
        .status_until(|s| s["proxies"][0]["types"]["authorization"]["waiting"] == false)
        .await;
    assert_eq!(
        status["proxies"][0]["types"]["authorization"]["resources"], 0,
        "{status:#}"
    );
}

#[tokio::test]
async fn a_broken_edit_changes_nothing_and_is_on_the_status_page() {
    let fixture = Fixture::start(&[("all.yaml", &[PODS, SERVICE].join("---"))]).await;
    let mut subscriber = fixture.subscriber("a").await;
    subscriber.synchronise().await;
    fixture.write(
        "all.yaml",
        &[PODS, &SERVICE.replace("port: 80,", "port: 70000,")].join("---"),
    );
    let status = fixture
        .status_until(|s| s["issues"].as_array().is_some_and(|i| !i.is_empty()))
        .await;
    let issue = &status["issues"][0];
    assert_eq!(issue["document"], 4);
    assert_eq!(issue["field"], "spec.ports[0].port");
    assert!(issue["line"].is_u64() && issue["file"].as_str().unwrap().ends_with("all.yaml"));
    assert!(subscriber.is_quiet(Duration::from_millis(100)).await);
    fixture.write("all.yaml", &[PODS, SERVICE].join("---"));
    fixture
        .status_until(|s| s["issues"].as_array().is_some_and(Vec::is_empty))
        .await;
    assert!(subscriber.is_quiet(Duration::from_millis(100)).await);
}

#[tokio::test]
async fn a_proxy_that_comes_back_after_a_restart_gets_only_what_changed_meanwhile() {
    let mut fixture = Fixture::start(&[("pods.yaml", PODS), ("service.yaml", SERVICE)]).await;
    let mut subscriber = fixture.subscriber("a").await;
    let first = subscriber.synchronise().await;
    let of_type = |wanted: &str| -> Vec<(String, String)> {
        let responses = first.iter().filter(|response| response.type_url == wanted);
        responses
            .flat_map(|r| &r.resources)
            .map(|r| (r.name.clone(), r.version.clone()))
            .collect()
    };
    let known = of_type(ADDRESS_TYPE);
    assert_eq!(known.len(), 3);

    fixture.stop().await;
    fixture.write("pods.yaml", &PODS.replace("10.0.0.2", "10.0.0.3"));
    fs::remove_file(fixture.directory.path().join("config/service.yaml")).unwrap();
    fixture.restart().await;
    let mut subscriber = fixture.subscriber("a").await;
    subscriber.subscribe(ADDRESS_TYPE, &known).await;
    let mut changed = names(&subscriber.next().await);
    changed.sort();
    assert_eq!(
        changed,
        [
            "-shop/web.shop.svc.cluster.local",
            "Kubernetes//Pod/shop/client",
            "Kubernetes//Pod/shop/web"
        ]
    );
}

#[tokio::test]
async fn a_rejection_is_shown_with_its_reason() {
    let fixture = Fixture::start(&[("pods.yaml", PODS)]).await;
    let mut subscriber = fixture.subscriber("a").await;
    subscriber.subscribe(ADDRESS_TYPE, &[]).await;
    let response = subscriber.next().await;
    subscriber
        .answer(&response, Some("Kubernetes//Pod/shop/web: no"))
        .await;
    let status = fixture
        .status_until(|s| s["proxies"][0]["types"]["address"]["nacks"] == 1)
        .await;
    assert_eq!(
        status["proxies"][0]["types"]["address"]["rejections"][0],
        "Kubernetes//Pod/shop/web: no"
    );
    assert_eq!(status["proxies"][0]["account"], "istio-system/ztunnel");
}

#[tokio::test]
async fn strangers_are_refused_with_a_reason() {
    let fixture = Fixture::start(&[]).await;
    let other = Fixture::start(&[]).await;
    for (token, reason) in [
        (None, "no authorization header"),
        (Some("x.y.z".to_owned()), "malformed"),
        (Some(other.node_token("a")), "signature"),
    ] {
        let status = Subscriber::connect(fixture.service(token))
            .await
            .err()
            .unwrap();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().contains(reason), "{}", status.message());
    }
}

#[tokio::test]
async fn subscriptions_to_policies_by_name_are_refused_clearly() {
    let fixture = Fixture::start(&[]).await;
    let mut subscriber = fixture.subscriber("a").await;
    let request = DeltaDiscoveryRequest {
        type_url: AUTHORIZATION_TYPE.to_owned(),
        resource_names_subscribe: vec!["shop/p".to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    subscriber.send(request).await;
    let status = subscriber.error().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("by name"));
}

#[tokio::test]
async fn a_directory_that_vanishes_for_a_while_changes_nothing() {
    let fixture = Fixture::start(&[("pods.yaml", PODS)]).await;
    let mut subscriber = fixture.subscriber("a").await;
    subscriber.synchronise().await;
    let (config, away) = (
        fixture.directory.path().join("config"),
        fixture.directory.path().join("away"),
    );
    fs::rename(&config, &away).unwrap();
    assert!(subscriber.is_quiet(Duration::from_millis(700)).await);
    fs::rename(&away, &config).unwrap();
    assert!(subscriber.is_quiet(Duration::from_millis(700)).await);
    fixture.write("pods.yaml", &PODS.replace("10.0.0.2", "10.0.0.9"));
    assert_eq!(
        names(&subscriber.next().await),
        ["Kubernetes//Pod/shop/client"]
    );
}

#[tokio::test]
async fn a_policy_whose_document_is_broken_at_a_restart_is_still_enforced() {
    let mut fixture = Fixture::start(&[("pods.yaml", PODS), ("p.yaml", &policy("80"))]).await;
    fixture.stop().await;
    fixture.write("p.yaml", &policy("80").replace("ports", "prots"));
    fixture.restart().await;
    let status = fixture.status().await;
    assert_eq!(status["resources"]["authorization"], 1, "{status:#}");
    // Without the unknown field nothing is left of the operation.
    assert!(!status["issues"].as_array().unwrap().is_empty());
    // Deleted is deleted, also while nobody looks.
    fixture.stop().await;
    fs::remove_file(fixture.directory.path().join("config/p.yaml")).unwrap();
    fixture.restart().await;
    assert_eq!(fixture.status().await["resources"]["authorization"], 0);
}
