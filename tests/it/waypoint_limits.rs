//! Rate limits of a waypoint: a RateLimit of ours, and the EnvoyFilter that Istio users write.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use leyline_tests::{eventually::eventually, mesh::Mesh};

use crate::{
    support::SOON,
    waypoint::{CANARY, mesh_with_waypoint},
};

/// Three requests an hour for each value of a header; the path `/free` has no limit of its own.
const BY_HEADER: &str = "\
apiVersion: leyline.io/v1alpha1
kind: RateLimit
metadata: {name: per-user, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: canary}]
  limits:
  - {requests: 2, burst: 1, unit: Hour, key: [{header: x-user}]}
";

/// As in Istio's task for local rate limits, with the address of a waypoint's service.
const ENVOY_FILTER: &str = "\
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: filter-local-ratelimit, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: canary}]
  configPatches:
  - applyTo: HTTP_FILTER
    match:
      context: SIDECAR_INBOUND
      listener:
        filterChain:
          filter: {name: envoy.filters.network.http_connection_manager}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.local_ratelimit
        typed_config:
          '@type': type.googleapis.com/udpa.type.v1.TypedStruct
          type_url: type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
          value:
            stat_prefix: http_local_rate_limiter
            token_bucket: {max_tokens: 4, tokens_per_fill: 4, fill_interval: 3600s}
            filter_enabled:
              runtime_key: local_rate_limit_enabled
              default_value: {numerator: 100, denominator: HUNDRED}
            filter_enforced:
              runtime_key: local_rate_limit_enforced
              default_value: {numerator: 100, denominator: HUNDRED}
            response_headers_to_add:
            - append: false
              header: {key: x-local-rate-limit, value: 'true'}
";

/// One call with these header lines; the whole reply, headers in lower case as they came.
pub(crate) async fn ask(
    mesh: &Mesh,
    target: SocketAddr,
    path: &str,
    headers: &str,
) -> Result<String> {
    let mut connection = mesh
        .cluster()
        .client("shop/client")?
        .connect(target, SOON)
        .await?;
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: canary\r\n{headers}connection: close\r\n\r\n");
    connection.write(request.as_bytes()).await?;
    Ok(String::from_utf8(connection.read_to_end().await?)?)
}

/// How many of so many calls get through; the others get 429.
async fn passed(mesh: &Mesh, target: SocketAddr, headers: &str, of: usize) -> Result<usize> {
    let mut passed = 0;
    for _ in 0..of {
        let reply = ask(mesh, target, "/", headers).await?;
        if reply.starts_with("HTTP/1.1 200") {
            passed += 1;
        } else {
            ensure!(reply.starts_with("HTTP/1.1 429"), "{reply}");
        }
    }
    Ok(passed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_limit_of_a_service_counts_each_value_of_its_key() {
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY, BY_HEADER])).await;
    eventually("the call is answered", SOON, || async {
        let reply = ask(&mesh, vip, "/", "").await?;
        ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        Ok(())
    })
    .await
    .unwrap();
    let user = |name: &str| format!("x-user: {name}\r\n");
    let first = ask(&mesh, vip, "/", &user("ann")).await.unwrap();
    assert!(first.contains("x-ratelimit-limit: 3"), "{first}");
    assert!(first.contains("x-ratelimit-remaining: 2"), "{first}");
    assert_eq!(passed(&mesh, vip, &user("ann"), 5).await.unwrap(), 2);
    assert_eq!(passed(&mesh, vip, &user("bob"), 5).await.unwrap(), 3);
    assert_eq!(passed(&mesh, vip, "", 5).await.unwrap(), 5);
    let refused = ask(&mesh, vip, "/", &user("ann")).await.unwrap();
    assert!(refused.contains("retry-after: "), "{refused}");
    assert!(refused.contains("x-ratelimit-remaining: 0"), "{refused}");
    assert!(refused.ends_with("local_rate_limited"), "{refused}");

    // Another object does not give back what was used up.
    let text = [
        CANARY,
        BY_HEADER,
        &ENVOY_FILTER.replace("max_tokens: 4", "max_tokens: 9"),
    ];
    let config = mesh.cluster().config();
    config.write("canary.yaml", &text.join("---\n")).unwrap();
    eventually("the EnvoyFilter is in force", SOON, || async {
        let passed = passed(&mesh, vip, "", 12).await?;
        ensure!(passed < 12, "{passed} of 12 passed");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(passed(&mesh, vip, &user("ann"), 3).await.unwrap(), 0);
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_envoy_filter_of_istios_users_limits_a_service_behind_a_waypoint() {
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY, ENVOY_FILTER])).await;
    let (reply, _) = eventually("the limit is used up", SOON, || async {
        let reply = ask(&mesh, vip, "/", "").await?;
        ensure!(reply.starts_with("HTTP/1.1 429"), "{reply}");
        Ok(reply)
    })
    .await
    .unwrap();
    assert!(reply.contains("x-local-rate-limit: true"), "{reply}");
    assert_eq!(passed(&mesh, vip, "", 10).await.unwrap(), 0);
    let unsupported = mesh.waypoint("shop/waypoint").unwrap();
    let unsupported = unsupported.admin("/unsupported").await.unwrap();
    assert_eq!(unsupported, serde_json::json!({}));
    mesh.stop().await.unwrap();
}
