//! Requests that two servers could read in two ways are refused by the waypoint (RFC 9112, 11.2), byte by byte as written
//! here; and a path is brought into one form before a policy looks at it.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use leyline_tests::{eventually::eventually, mesh::Mesh};

use crate::{
    support::SOON,
    waypoint::{CANARY, mesh_with_waypoint},
};

const NO_ADMIN: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: canary, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: \"\", name: canary}]
  action: DENY
  rules:
  - to: [{operation: {paths: [/admin, /admin/*]}}]
";

const BROWSERS: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: canary, namespace: shop}
spec:
  hosts: [canary]
  http:
  - match: [{uri: {prefix: /own}}]
    corsPolicy: {allowOrigins: [{exact: https://shop.example}]}
    directResponse: {status: 418}
  - corsPolicy:
      allowOrigins: [{exact: https://shop.example}]
      allowMethods: [GET, PUT]
      maxAge: 60s
    route: [{destination: {host: canary, subset: v1}}]
";

/// What comes back for these bytes, until the other side closes or has answered.
async fn raw(mesh: &Mesh, target: SocketAddr, request: &str) -> Result<String> {
    let client = mesh.cluster().client("shop/client")?;
    let mut connection = client.connect(target, SOON).await?;
    connection.write(request.as_bytes()).await?;
    Ok(String::from_utf8_lossy(&connection.read_to_end().await?).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_be_read_in_two_ways_is_refused() {
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY, NO_ADMIN, BROWSERS])).await;
    let get =
        |path: &str| format!("GET {path} HTTP/1.1\r\nhost: canary\r\nconnection: close\r\n\r\n");
    eventually("the policy holds", SOON, || async {
        let reply = raw(&mesh, vip, &get("/admin")).await?;
        ensure!(reply.starts_with("HTTP/1.1 403"), "{reply}");
        Ok(())
    })
    .await
    .unwrap();
    let reply = raw(&mesh, vip, &get("/page")).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    for path in [
        "/admin/x",
        "/./admin",
        "/x/../admin",
        "/%61dmin",
        "/x/%2e%2e/admin",
        "/x\\..\\admin",
    ] {
        let reply = raw(&mesh, vip, &get(path)).await.unwrap();
        assert!(reply.starts_with("HTTP/1.1 403"), "{path}: {reply}");
    }

    let hidden = "GET /hidden HTTP/1.1\r\nhost: canary\r\n\r\n";
    for headers in [
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length: 5, 6\r\n",
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\nContent-Length: 5\r\n",
        "content-length: +5\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding : chunked\r\n",
        "x-folded: a\r\n b\r\n",
        "x-bare: a\rtransfer-encoding: chunked\r\n",
        "host: other\r\n",
    ] {
        let request =
            format!("POST /page HTTP/1.1\r\nhost: canary\r\n{headers}\r\n0\r\n\r\n{hidden}");
        let reply = raw(&mesh, vip, &request).await.unwrap();
        assert!(
            reply.is_empty() || reply.starts_with("HTTP/1.1 400"),
            "{headers:?}: {reply}"
        );
        assert!(!reply.contains("/hidden"), "{headers:?}: {reply}");
    }

    // Nor does it help to come later, behind other bodies, or in parts.
    let both = "POST /hidden HTTP/1.1\r\nhost: canary\r\ncontent-length: 5\r\n\
                transfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    for body in [
        "content-length: 7\r\n\r\n0\r\n\r\nab",
        "transfer-encoding: chunked\r\n\r\n7\r\n0\r\n\r\nab\r\n0\r\n\r\n",
    ] {
        let request = format!("POST /page HTTP/1.1\r\nhost: canary\r\n{body}{both}");
        let reply = raw(&mesh, vip, &request).await.unwrap();
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        assert_eq!(reply.matches("HTTP/1.1 ").count(), 2, "{reply}");
        assert!(reply.contains("HTTP/1.1 400"), "{reply}");
        assert!(!reply.contains("/hidden"), "{reply}");
    }

    // Nor behind an offer of another protocol that is not taken, after which hyper resets.
    let offer = "GET /page HTTP/1.1\r\nhost: canary\r\nupgrade: h2c\r\nconnection: upgrade";
    let request = format!("{offer}\r\n\r\n{both}");
    let reply = raw(&mesh, vip, &request).await.unwrap_or_default();
    assert!(!reply.contains("/hidden"), "{reply}");
    // Without such company it ends in order.
    let request = format!("{offer}, close\r\n\r\n");
    let reply = raw(&mesh, vip, &request).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");

    let preflight = "OPTIONS /page HTTP/1.1\r\nhost: canary\r\norigin: https://shop.example\r\n\
                     access-control-request-method: PUT\r\nconnection: close\r\n\r\n";
    let reply = raw(&mesh, vip, preflight).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    assert!(
        reply.contains("access-control-allow-methods: GET,PUT"),
        "{reply}"
    );
    assert!(reply.contains("access-control-max-age: 60"), "{reply}");
    // Answers of the waypoint's own can be read by pages, too.
    let origin = "GET /own HTTP/1.1\r\nhost: canary\r\norigin: https://shop.example\r\n\
                  connection: close\r\n\r\n";
    let reply = raw(&mesh, vip, origin).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 418"), "{reply}");
    assert!(
        reply.contains("access-control-allow-origin: https://shop.example"),
        "{reply}"
    );
    mesh.stop().await.unwrap();
}
