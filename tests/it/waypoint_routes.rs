//! Kinds of routes and matches beside those of `waypoint`, and the pages that show them.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use http::StatusCode;
use leyline_net::NetNs;
use leyline_tests::{
    cluster::Family, eventually::eventually, mesh::Mesh, peers::Peers, process::Process,
};

use crate::{
    support::SOON,
    waypoint::{CANARY, mesh_with_waypoint},
};

/// The versions apart, for routes of the Gateway API, and a service that speaks gRPC.
const VERSIONS: &str = "\
apiVersion: v1
kind: Service
metadata: {name: canary-v2, namespace: shop}
spec:
  clusterIP: 10.96.0.92
  clusterIPs: [10.96.0.92]
  selector: {app: server, version: v2}
  ports: [{name: http, port: 80, targetPort: http}, {name: grpc, port: 7070}]
---
apiVersion: v1
kind: Service
metadata: {name: calls, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec:
  clusterIP: 10.96.0.93
  clusterIPs: [10.96.0.93]
  selector: {app: server, version: v1}
  ports: [{name: grpc, port: 7070}]
";

const GATEWAY_API: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: calls, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: calls}]
  rules:
  - matches: [{method: {service: demo.Echo, method: Say}}]
    backendRefs: [{name: canary-v2, port: 7070}]
  - matches: [{method: {service: demo.Other}}]
    backendRefs: [{name: calls, port: 7070}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: canary, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: canary}]
  rules:
  - filters:
    - type: CORS
      cors:
        allowOrigins: ['https://*.shop.example']
        allowMethods: [GET, PUT]
        allowHeaders: [x-user]
        exposeHeaders: [x-version]
        allowCredentials: true
        maxAge: 60
    backendRefs: [{name: canary-v2, port: 80}]
";

/// Istio's own example of a match on a cookie.
const COOKIE: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: canary, namespace: shop}
spec:
  hosts: [canary]
  http:
  - name: for jason
    match:
    - headers: {cookie: {regex: '^(.*?;\\s*)?(user=jason)(;.*)?$'}}
    route:
    - destination: {host: canary, subset: v2}
  - name: for all
    route:
    - {destination: {host: canary, subset: v1}, weight: 100}
";

/// One call with this method and these header lines; the whole reply.
async fn call(mesh: &Mesh, target: SocketAddr, method: &str, headers: &str) -> Result<String> {
    let client = mesh.cluster().client("shop/client")?;
    let mut connection = client.connect(target, SOON).await?;
    let request =
        format!("{method} / HTTP/1.1\r\nhost: canary\r\n{headers}connection: close\r\n\r\n");
    connection.write(request.as_bytes()).await?;
    Ok(String::from_utf8(connection.read_to_end().await?)?)
}

/// gRPC servers in the pods of both versions, which answer with their names.
async fn grpc_servers(mesh: &Mesh, peers: &Peers) -> Vec<Process> {
    let mut servers = Vec::new();
    for (pod, version) in [("shop/server-v1", "v1"), ("shop/server-v2", "v2")] {
        let args = ["--name", version, "--grpc", "7070", "--websocket", "7071"];
        let namespace = mesh.cluster().pod(pod).unwrap().namespace();
        let run = mesh.cluster().run();
        let server = peers.start_script(run, namespace, "l7_server.py", &args);
        servers.push(server.await.unwrap());
    }
    servers
}

/// Messages, streams and statuses reach a client in Go as they were sent.
async fn by_grpcurl(peers: &Peers, client: &NetNs, calls: SocketAddr) {
    for (method, times) in [("demo.Other/Greet", 1), ("demo.Other/Repeat", 3)] {
        let printed = peers.grpcurl(client, calls, method).await.unwrap();
        let message = "{\n  \"name\": \"v1\"\n}\n";
        assert_eq!(printed, message.repeat(times), "{method}");
    }
    let failed = peers.grpcurl(client, calls, "demo.Other/Fail").await;
    let failed = format!("{:#}", failed.unwrap_err());
    assert!(failed.contains("Code: FailedPrecondition"), "{failed}");
    assert!(failed.contains("Message: as asked for"), "{failed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_of_the_gateway_api_choose_by_grpc_method_and_answer_preflights() {
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY, VERSIONS, GATEWAY_API])).await;
    let peers = Peers::install_with(mesh.peers_dir(), Peers::L7);
    let peers = peers.await.unwrap();
    let servers = grpc_servers(&mesh, &peers).await;
    let calls = mesh.cluster().vip("shop/calls", Family::V4, 7070).unwrap();
    let client = mesh.cluster().pod("shop/client").unwrap().namespace();
    let target = calls.to_string();
    let methods = ["/demo.Echo/Say", "/demo.Other/Say", "/demo.Echo/Chat"];
    let args = [&["--target", target.as_str()][..], &methods].concat();
    eventually("each method goes its way", SOON, || async {
        let printed = peers.run_script(client, "grpc_call.py", &args).await?;
        // What no rule of a route has is not served.
        let expected = "/demo.Echo/Say v2\n/demo.Other/Say v1\n/demo.Echo/Chat UNIMPLEMENTED\n";
        ensure!(printed == expected, "{printed}");
        Ok(())
    })
    .await
    .unwrap();
    by_grpcurl(&peers, client, calls).await;
    for mut server in servers {
        server.kill().await.unwrap();
    }

    let origin = "origin: https://www.shop.example\r\n";
    let reply = call(&mesh, vip, "GET", origin).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    assert!(reply.contains(r#""version": "v2""#), "{reply}");
    for line in [
        "access-control-allow-origin: https://www.shop.example\r\n",
        "access-control-allow-credentials: true\r\n",
        "access-control-expose-headers: x-version\r\n",
    ] {
        assert!(reply.contains(line), "{line}: {reply}");
    }
    let asks = format!("{origin}access-control-request-method: PUT\r\n");
    let reply = call(&mesh, vip, "OPTIONS", &asks).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    for line in [
        "access-control-allow-methods: GET,PUT\r\n",
        "access-control-allow-headers: x-user\r\n",
        "access-control-max-age: 60\r\n",
    ] {
        assert!(reply.contains(line), "{line}: {reply}");
    }
    // The application does not see it.
    assert!(!reply.contains(r#""version""#), "{reply}");
    let stranger = "origin: https://elsewhere.example\r\n";
    let reply = call(&mesh, vip, "GET", stranger).await.unwrap();
    assert!(!reply.contains("access-control"), "{reply}");
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cookie_chooses_the_route_and_the_pages_show_it() {
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY, COOKIE])).await;
    for (cookie, version) in [
        ("user=jason", "v2"),
        ("a=b; user=jason; c=d", "v2"),
        ("user=jasonx", "v1"),
        ("a=b", "v1"),
    ] {
        let header = format!("cookie: {cookie}\r\n");
        eventually("the cookie decides", SOON, || async {
            let reply = call(&mesh, vip, "GET", &header).await?;
            let expected = format!(r#""version": "{version}""#);
            ensure!(reply.contains(&expected), "{cookie}: {reply}");
            Ok(())
        })
        .await
        .unwrap();
    }

    let waypoint = mesh.waypoint("shop/waypoint").unwrap();
    let routes = waypoint.admin("/routes").await.unwrap();
    let table = &routes["inbound-vip|80|http|canary.shop.svc.cluster.local"];
    let routes = &table["virtual_hosts"][0]["routes"];
    assert_eq!(routes[0]["name"], "for jason", "{table:#}");
    assert!(
        routes[0]["match"]["headers"][0]
            .to_string()
            .contains("cookie"),
        "{table:#}"
    );
    let cluster = &routes[1]["action"]["clusters"][0]["cluster"];
    assert_eq!(
        cluster,
        "inbound-vip|80|http/v1|canary.shop.svc.cluster.local"
    );

    let pod = mesh.cluster().pod("shop/waypoint").unwrap();
    let page = |path: &'static str| async move {
        let target = SocketAddr::from(([127, 0, 0, 1], 15000));
        let reply = pod.client().get(target, path, SOON).await.unwrap();
        assert_eq!(reply.status, StatusCode::OK, "{path}");
        String::from_utf8(reply.body.to_vec()).unwrap()
    };
    let clusters = page("/clusters").await;
    let server = mesh.cluster().pod("shop/server-v1").unwrap().v4(8080);
    let cluster = "inbound-vip|80|http/v1|canary.shop.svc.cluster.local";
    for line in [
        format!("{cluster}::{server}::health_flags::healthy"),
        format!("{cluster}::{server}::tunnel::true"),
        format!("{cluster}::default_priority::max_requests::4294967295"),
    ] {
        assert!(
            clusters.lines().any(|seen| seen == line),
            "{line}: {clusters}"
        );
    }
    let listeners = page("/listeners").await;
    assert!(
        listeners.contains(r#""inbound-vip|9000|tcp|canary.shop.svc.cluster.local": "tcp""#),
        "{listeners}"
    );
    let dump = page("/state").await;
    for part in [
        "chains",
        "clusters",
        "routes",
        "unsupported",
        "certificates",
        "mesh",
    ] {
        assert!(
            dump.contains(&format!("\"{part}\"")),
            "{part} is not in {dump}"
        );
    }
    assert!(
        page("/certs")
            .await
            .contains("spiffe://cluster.local/ns/shop/sa/waypoint")
    );
    mesh.stop().await.unwrap();
}
