//! Rate limits that a service counts for all replicas of a waypoint, in a real Redis.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use leyline_tests::{
    eventually::eventually,
    mesh::Mesh,
    metrics::Metrics,
    rate_limit::{Installed, RateLimitService},
};
use tokio::time::{Duration, Instant};

use crate::{
    support::SOON,
    waypoint::{CANARY, mesh_with_waypoint},
    waypoint_limits::ask,
};

/// As a user of Istio scales a waypoint.
const TWO_REPLICAS: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: two-replicas, namespace: shop}
data:
  deployment: |
    spec: {replicas: 2}
";

/// The pod of the rate limit service.
const SERVICE: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: ratelimit, namespace: shop, labels: {app: ratelimit}}
spec:
  nodeName: node-b
  serviceAccountName: ratelimit
  containers: [{name: app, image: leyline-echo, args: [--http=8080]}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: ratelimit, namespace: shop}
---
apiVersion: v1
kind: Service
metadata: {name: ratelimit, namespace: shop}
spec:
  clusterIP: 10.96.0.91
  clusterIPs: [10.96.0.91]
  selector: {app: ratelimit}
  ports: [{name: grpc, port: 8081}]
";

/// Of each user, an hour.
const ALLOWED: usize = 20;
const ASKED: usize = 50;
/// Calls at once.
const PARALLEL: usize = 10;
/// Far more than an answer takes, however busy the machine is.
const PATIENT: &str = "8s";

fn limit(rest: &str) -> String {
    format!(
        "apiVersion: leyline.io/v1alpha1
kind: RateLimit
metadata: {{name: per-user, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, group: '', name: canary}}]
  limits:
  - {{requests: {ALLOWED}, unit: Hour, key: [{{header: x-user}}]}}
  global: {{host: ratelimit.shop.svc.cluster.local, port: 8081, domain: shop, {rest}}}
"
    )
}

/// As in Istio's task for global rate limits, with a waypoint's service in place of a gateway.
const ENVOY_FILTERS: &str = "\
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: filter-ratelimit, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: canary}]
  configPatches:
  - applyTo: HTTP_FILTER
    match:
      context: SIDECAR_INBOUND
      listener:
        filterChain:
          filter:
            name: envoy.filters.network.http_connection_manager
            subFilter: {name: envoy.filters.http.router}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.ratelimit
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit
          domain: productpage-ratelimit
          failure_mode_deny: true
          timeout: 8s
          rate_limit_service:
            grpc_service:
              envoy_grpc:
                cluster_name: outbound|8081||ratelimit.shop.svc.cluster.local
                authority: ratelimit.shop.svc.cluster.local
            transport_api_version: V3
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: filter-ratelimit-svc, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: canary}]
  configPatches:
  - applyTo: VIRTUAL_HOST
    match:
      context: SIDECAR_INBOUND
    patch:
      operation: MERGE
      value:
        rate_limits:
        - actions:
          - request_headers: {header_name: ':path', descriptor_key: PATH}
";

/// The mesh with two replicas, the limit in force and the service started.
async fn with_service(documents: &[&str], limit: &str) -> (Mesh, SocketAddr, RateLimitService) {
    let class = "gatewayClassName: istio-waypoint\n";
    let scaled = format!(
        "{class}  infrastructure:\n    parametersRef: {{group: '', kind: ConfigMap, name: two-replicas}}\n"
    );
    let canary = CANARY.replace(class, &scaled);
    let documents = [&[canary.as_str(), TWO_REPLICAS, SERVICE], documents].concat();
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&documents)).await;
    let installed = Installed::new(mesh.peers_dir()).await.unwrap();
    assert!(installed.has_redis, "redis-server is not installed");
    let service = start(&mesh, &installed, limit).await.unwrap();
    (mesh, vip, service)
}

async fn start(mesh: &Mesh, installed: &Installed, limit: &str) -> Result<RateLimitService> {
    let cluster = mesh.cluster();
    let namespace = cluster.pod("shop/ratelimit")?.namespace();
    installed.start(cluster.run(), namespace, limit).await
}

/// Replies to so many calls, some of them at once.
async fn ask_often(
    mesh: &Mesh,
    vip: SocketAddr,
    headers: &str,
    times: usize,
) -> Result<Vec<String>> {
    let workers = (0..PARALLEL).map(|worker| async move {
        let mut replies = Vec::new();
        for _ in (worker..times).step_by(PARALLEL) {
            replies.push(ask(mesh, vip, "/", headers).await?);
        }
        anyhow::Ok(replies)
    });
    let replies = futures::future::try_join_all(workers).await?;
    Ok(replies.into_iter().flatten().collect())
}

fn status(replies: &[String], code: u16) -> Vec<&String> {
    let line = format!("HTTP/1.1 {code} ");
    let found = replies.iter().filter(|reply| reply.starts_with(&line));
    found.collect()
}

/// How often a replica asked the service, by the result.
async fn asked(mesh: &Mesh, replica: &str, result: &str) -> Result<f64> {
    let pod = mesh.cluster().pod(replica)?;
    let page = pod.client();
    let page = page.get(pod.v4(15020), "/stats/prometheus", SOON).await?;
    let metrics = Metrics::parse(std::str::from_utf8(&page.body)?)?;
    let name = "leyline_waypoint_global_rate_limit_total";
    Ok(metrics.sum(name, &[("result", result)]))
}

/// Waits until both replicas ask the service and get answers.
async fn both_ask(mesh: &Mesh, vip: SocketAddr) {
    eventually("both replicas ask the service", SOON, || async {
        ask_often(mesh, vip, "x-user: nobody\r\n", PARALLEL).await?;
        for replica in ["shop/waypoint", "shop/waypoint-2"] {
            let answered =
                asked(mesh, replica, "ok").await? + asked(mesh, replica, "refused").await?;
            ensure!(answered > 0.0, "{replica} has no answer yet");
        }
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_global_limit_is_one_for_all_replicas_of_a_waypoint() {
    let of_user = limit(&format!("timeout: {PATIENT}"));
    let (mesh, vip, mut service) = Box::pin(with_service(&[&of_user], "1/hour")).await;
    both_ask(&mesh, vip).await;

    for user in ["ann", "bob"] {
        let headers = format!("x-user: {user}\r\n");
        let replies = ask_often(&mesh, vip, &headers, ASKED).await.unwrap();
        let passed = status(&replies, 200);
        assert_eq!(passed.len(), ALLOWED, "{user}");
        let refused = status(&replies, 429);
        assert_eq!(refused.len(), ASKED - ALLOWED, "{user}");
        for reply in passed.iter().chain(&refused) {
            let has = |text: &str| assert!(reply.contains(text), "{text} is not in {reply}");
            has(&format!("x-ratelimit-limit: {ALLOWED}\r\n"));
            has("x-ratelimit-reset: ");
        }
        for reply in refused {
            let has = |text: &str| assert!(reply.contains(text), "{text} is not in {reply}");
            has("x-ratelimit-remaining: 0\r\n");
            has("retry-after: ");
            has("x-envoy-ratelimited: true\r\n");
        }
    }
    // Requests without the key have no limit, and nobody is asked about them.
    let replies = ask_often(&mesh, vip, "", ASKED).await.unwrap();
    assert_eq!(status(&replies, 200).len(), ASKED);

    let counted = service.counted().await.unwrap();
    let of = |user: &str| {
        counted
            .iter()
            .find(|(key, _)| key.contains(user))
            .unwrap()
            .1
    };
    assert_eq!(
        (*of("x-user=ann"), *of("x-user=bob")),
        (ASKED as u64, ASKED as u64)
    );
    for replica in ["shop/waypoint", "shop/waypoint-2"] {
        let unsupported = mesh.waypoint(replica).unwrap().admin("/unsupported").await;
        assert_eq!(unsupported.unwrap(), serde_json::json!({}));
    }
    service.kill().await.unwrap();
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_limit_service_that_does_not_answer_opens_or_closes() {
    let open = limit(&format!("timeout: {PATIENT}"));
    let (mesh, vip, mut service) = Box::pin(with_service(&[&open], "1/hour")).await;
    both_ask(&mesh, vip).await;
    let user = "x-user: cid\r\n";
    let replies = ask_often(&mesh, vip, user, ASKED).await.unwrap();
    assert_eq!(status(&replies, 429).len(), ASKED - ALLOWED);

    // It takes the question and says nothing: the deadline decides. From here on it is short.
    let put = |rest: &str| {
        let config = mesh.cluster().config();
        let old = config.read("canary.yaml").unwrap();
        let at = old.find("apiVersion: leyline.io/v1alpha1").unwrap();
        config
            .write("canary.yaml", &format!("{}{}", &old[..at], limit(rest)))
            .unwrap();
    };
    service.pause().unwrap();
    put("timeout: 300ms");
    let (took, _) = eventually("the deadline lets the request pass", SOON, || async {
        let start = Instant::now();
        let reply = ask(&mesh, vip, "/", user).await?;
        ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        Ok(start.elapsed())
    })
    .await
    .unwrap();
    assert!(took >= Duration::from_millis(300), "{took:?}");
    service.resume().unwrap();
    eventually("its answer counts again", SOON, || async {
        let reply = ask(&mesh, vip, "/", user).await?;
        ensure!(reply.starts_with("HTTP/1.1 429"), "{reply}");
        Ok(())
    })
    .await
    .unwrap();

    service.kill_service().await.unwrap();
    let replies = ask_often(&mesh, vip, user, ASKED).await.unwrap();
    assert_eq!(
        status(&replies, 200).len(),
        ASKED,
        "open where nothing is said"
    );
    put("timeout: 300ms, failClosed: true");
    eventually("closed where the object says so", SOON, || async {
        let replies = ask_often(&mesh, vip, user, PARALLEL).await?;
        let closed = status(&replies, 500).len();
        ensure!(closed == PARALLEL, "{closed} of {PARALLEL} refused");
        Ok(())
    })
    .await
    .unwrap();
    let log = mesh
        .waypoint("shop/waypoint")
        .unwrap()
        .log()
        .unwrap()
        .lines()
        .unwrap();
    let told = |line: &String| line.contains("the rate limit service did not answer");
    assert!(log.iter().any(told), "the log does not tell");
    service.kill().await.unwrap();
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_global_limit_of_istios_users_is_one_for_all_replicas() {
    let (mesh, vip, mut service) = Box::pin(with_service(&[ENVOY_FILTERS], "20/hour")).await;
    eventually("both replicas ask the service", SOON, || async {
        for replica in ["shop/waypoint", "shop/waypoint-2"] {
            ask(&mesh, vip, "/warm", "").await?;
            let answered =
                asked(&mesh, replica, "ok").await? + asked(&mesh, replica, "refused").await?;
            ensure!(answered > 0.0, "{replica} has no answer yet");
        }
        Ok(())
    })
    .await
    .unwrap();
    let replies = ask_often(&mesh, vip, "", ASKED).await.unwrap();
    assert_eq!(status(&replies, 200).len(), ALLOWED);
    let refused = status(&replies, 429);
    assert_eq!(refused.len(), ASKED - ALLOWED);
    for reply in refused {
        assert!(reply.contains("x-envoy-ratelimited: true\r\n"), "{reply}");
        // As with Envoy, they are not told where they are not asked for.
        assert!(!reply.contains("x-ratelimit-"), "{reply}");
    }
    // `failure_mode_deny`.
    service.kill_service().await.unwrap();
    let reply = ask(&mesh, vip, "/", "").await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 500"), "{reply}");
    service.kill().await.unwrap();
    mesh.stop().await.unwrap();
}
