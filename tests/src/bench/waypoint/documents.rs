//! The YAML of the comparison: the same for both waypoints, but for the namespace and the addresses.

use std::net::{Ipv4Addr, SocketAddr};

use super::scene::Proxy;

/// Where nginx listens (`tests/peers/nginx_bench.conf`).
const HTTP1_PORT: u16 = 8090;
const HTTP2_PORT: u16 = 8091;
/// Ports of the service, by protocol.
pub(super) const HTTP1: u16 = 80;
pub(super) const HTTP2: u16 = 81;
/// The service that is called is one of them.
pub(super) const SERVICE: &str = "server";

/// A client on one node, a server on the other, and a waypoint between them.
pub(super) fn pair(proxy: Proxy) -> String {
    let namespace = proxy.namespace();
    let mut text = format!(
        "\
kind: Namespace
apiVersion: v1
metadata:
  name: {namespace}
  labels: {{istio.io/dataplane-mode: ambient}}
---
kind: Gateway
apiVersion: gateway.networking.k8s.io/v1
metadata:
  name: waypoint
  namespace: {namespace}
  labels: {{istio.io/waypoint-for: service}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]
---
{}",
        service(namespace, SERVICE, address(proxy, 0))
            + &format!("  - {{name: http2, port: {HTTP2}, targetPort: {HTTP2_PORT}}}\n")
    );
    for (name, node) in [("client", "node-a"), ("server", "node-b")] {
        text += &format!(
            "\
---
kind: ServiceAccount
apiVersion: v1
metadata: {{name: {name}, namespace: {namespace}}}
---
kind: Pod
apiVersion: v1
metadata:
  name: {name}
  namespace: {namespace}
  labels: {{app: {name}, version: v1}}
spec:
  nodeName: {node}
  serviceAccountName: {name}
  containers:
  - name: app
    image: leyline-echo
    args: [--http=8080]
    ports: [{{name: http, containerPort: 8080}}]
"
        );
    }
    text
}

/// Further services of the waypoint, from number 1 on.
pub(super) fn services(proxy: Proxy, count: usize) -> String {
    let services = (1..=count)
        .map(|number| service(proxy.namespace(), &numbered(number), address(proxy, number)));
    services.collect::<Vec<_>>().join("---\n")
}

/// A VirtualService for each of them, with so many routes.
pub(super) fn routes(proxy: Proxy, services: usize, each: usize) -> String {
    let one = |number: usize| {
        let paths = (1..=each).map(|path| format!("/route-{path}/"));
        virtual_service(proxy, &numbered(number), paths, number)
    };
    (1..=services).map(one).collect::<Vec<_>>().join("---\n")
}

/// The route that is changed: its responses bear this number.
pub(super) fn changed(proxy: Proxy, number: usize) -> String {
    virtual_service(proxy, SERVICE, std::iter::once("/changed/".into()), number)
}

/// The name of a header of responses.
pub(super) const MARK: &str = "x-route";

fn virtual_service(
    proxy: Proxy,
    host: &str,
    paths: impl Iterator<Item = String>,
    mark: usize,
) -> String {
    let namespace = proxy.namespace();
    let to = format!("{{host: {host}, port: {{number: {HTTP1}}}}}");
    let mut text = format!(
        "\
kind: VirtualService
apiVersion: networking.istio.io/v1
metadata: {{name: {host}, namespace: {namespace}}}
spec:
  hosts: [{host}]
  http:
"
    );
    for path in paths {
        text += &format!("  - match: [{{uri: {{prefix: {path}}}}}]\n");
        text += &format!("    headers: {{response: {{set: {{{MARK}: \"{mark}\"}}}}}}\n");
        text += &format!("    route: [{{destination: {to}}}]\n");
    }
    text += &format!("  - route: [{{destination: {to}}}]\n");
    text
}

fn numbered(number: usize) -> String {
    format!("service-{number}")
}

/// Where a numbered service is called; 0 is the one that the pair has from the start.
pub(super) fn target(proxy: Proxy, number: usize, port: u16) -> SocketAddr {
    SocketAddr::from((address(proxy, number), port))
}

/// In a range of the proxy's own.
fn address(proxy: Proxy, number: usize) -> Ipv4Addr {
    let range: u32 = match proxy {
        Proxy::Leyline => 0x0a61_0000,
        Proxy::Envoy => 0x0a62_0000,
    };
    Ipv4Addr::from(range + 1 + u32::try_from(number).unwrap_or(0))
}

fn service(namespace: &str, name: &str, address: Ipv4Addr) -> String {
    format!(
        "\
kind: Service
apiVersion: v1
metadata:
  name: {name}
  namespace: {namespace}
  labels: {{istio.io/use-waypoint: waypoint}}
spec:
  clusterIP: {address}
  clusterIPs: [{address}]
  selector: {{app: server}}
  ports:
  - {{name: http, port: {HTTP1}, targetPort: {HTTP1_PORT}}}
"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn all_of_it_is_yaml() {
        for (text, documents) in [
            (pair(Proxy::Envoy), 7),
            (services(Proxy::Envoy, 3), 3),
            (routes(Proxy::Leyline, 3, 2), 3),
            (changed(Proxy::Leyline, 5), 1),
        ] {
            let read: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
            assert_eq!(read.len(), documents, "{text}");
        }
        let routes: Value = serde_saphyr::from_str(&routes(Proxy::Leyline, 1, 2)).unwrap();
        assert_eq!(routes["spec"]["http"].as_array().map(Vec::len), Some(3));
    }
}
