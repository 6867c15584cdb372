//! What is spoken on ports: to the client by the filters of a chain, to the application by the options of a cluster.

use envoy_types::pb::envoy::{
    config::core::v3::{
        Http1ProtocolOptions, http1_protocol_options::header_key_format::HeaderFormat,
    },
    config::listener::v3::filter::ConfigType,
    extensions::{
        filters::network::http_connection_manager::v3::HttpConnectionManager,
        upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{
                UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
            },
        },
    },
};
use prost::Name;

use super::{security::mesh_config, *};

fn managers(config: &WaypointConfig) -> Vec<HttpConnectionManager> {
    let listeners = decoded::<Listener>(&config.listeners.resources);
    let main = listeners.iter().find(|one| one.name == "main_internal");
    let filters = main.unwrap().filter_chains.iter();
    let last = filters.filter_map(|chain| chain.filters.last()?.config_type.as_ref());
    let decoded = last.filter_map(|config| match config {
        ConfigType::TypedConfig(any) if any.type_url == HttpConnectionManager::type_url() => {
            Some(HttpConnectionManager::decode(any.value.as_slice()).unwrap())
        }
        _ => None,
    });
    decoded.collect()
}

/// The versions of a cluster, each with the letters that its names are written in.
fn spoken(cluster: &Cluster) -> Vec<String> {
    let options = cluster.typed_extension_protocol_options.values().next();
    let options = HttpProtocolOptions::decode(options.unwrap().value.as_slice()).unwrap();
    let http1 = |options: &Http1ProtocolOptions| format!("HTTP/1.1{}", case(Some(options)));
    match options.upstream_protocol_options.unwrap() {
        UpstreamProtocolOptions::ExplicitHttpConfig(explicit) => {
            match explicit.protocol_config.unwrap() {
                ProtocolConfig::HttpProtocolOptions(options) => vec![http1(&options)],
                ProtocolConfig::Http2ProtocolOptions(_) => vec!["HTTP/2".to_owned()],
                other => vec![format!("{other:?}")],
            }
        }
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(both) => {
            vec![
                http1(&both.http_protocol_options.unwrap()),
                "HTTP/2".to_owned(),
            ]
        }
        other => vec![format!("{other:?}")],
    }
}

fn case(options: Option<&Http1ProtocolOptions>) -> String {
    let format = options.and_then(|options| options.header_key_format.as_ref());
    match format.and_then(|format| format.header_format.as_ref()) {
        None => String::new(),
        Some(HeaderFormat::StatefulFormatter(formatter)) => {
            let name = formatter.name.rsplit('.').next().unwrap();
            let url = &formatter.typed_config.as_ref().unwrap().type_url;
            format!(" {name} {}", url.rsplit('.').next().unwrap())
        }
        Some(other) => format!("{other:?}"),
    }
}

fn check(yaml: &str, expected: Expect) {
    let (translation, config) = config(yaml);
    let mut text = String::new();
    for manager in managers(&config) {
        let filters = manager.http_filters.iter();
        let has_web = filters
            .map(|filter| filter.name.as_str())
            .find(|name| *name == "envoy.filters.http.grpc_web");
        let case = case(manager.http_protocol_options.as_ref());
        let headers = (
            manager.server_name.as_str(),
            manager.server_header_transformation,
            manager.generate_request_id.map(|flag| flag.value),
        );
        let headers = match headers {
            ("istio-envoy", 0, Some(true)) => String::new(),
            other => format!(" {other:?}"),
        };
        writeln!(
            text,
            "{}{case}{headers} {}",
            manager.stat_prefix,
            has_web.unwrap_or("-")
        )
        .unwrap();
    }
    let clusters = decoded::<Cluster>(&config.clusters.resources);
    for cluster in clusters.iter().filter(|one| one.name.contains("|http|")) {
        writeln!(text, "{}: {}", cluster.name, spoken(cluster).join(", ")).unwrap();
    }
    text.push_str(&advice(&translation));
    expected.assert_eq(&text);
}

#[test]
fn ports_of_browsers_speak_grpc_to_the_application() {
    check(
        "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec:
  clusterIP: 10.96.0.40
  selector: {app: server}
  ports:
  - {name: grpc-web, port: 1}
  - {name: grpc-web-shop, port: 2}
  - {name: shop, port: 3, appProtocol: grpc-web}
  - {name: grpc-webb, port: 4, appProtocol: grpc}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec:
  hosts: [out.example]
  addresses: [192.0.2.1]
  resolution: STATIC
  ports: [{number: 5, name: web, protocol: GRPC-WEB}, {number: 6, name: grpc, protocol: GRPC}]
  endpoints: [{address: 192.0.2.2}]
",
        expect![[r#"
            inbound-vip|1|http|web.shop.svc.cluster.local envoy.filters.http.grpc_web
            inbound-vip|2|http|web.shop.svc.cluster.local envoy.filters.http.grpc_web
            inbound-vip|3|http|web.shop.svc.cluster.local envoy.filters.http.grpc_web
            inbound-vip|4|http|web.shop.svc.cluster.local -
            inbound-vip|5|http|out.example envoy.filters.http.grpc_web
            inbound-vip|6|http|out.example -
            inbound-vip|80|http|server.shop.svc.cluster.local -
            inbound-vip|90|http|server.shop.svc.cluster.local -
            inbound-vip|1|http|web.shop.svc.cluster.local: HTTP/2
            inbound-vip|2|http|web.shop.svc.cluster.local: HTTP/2
            inbound-vip|3|http|web.shop.svc.cluster.local: HTTP/2
            inbound-vip|4|http|web.shop.svc.cluster.local: HTTP/2
            inbound-vip|5|http|out.example: HTTP/2
            inbound-vip|6|http|out.example: HTTP/2
            inbound-vip|80|http|server.shop.svc.cluster.local: HTTP/1.1
            inbound-vip|90|http|server.shop.svc.cluster.local: HTTP/1.1, HTTP/2
        "#]],
    );
}

#[test]
fn names_of_headers_are_kept_where_the_mesh_says_so() {
    check(
        &proxy_headers("preserveHttp1HeaderCase: true"),
        expect![[r#"
            inbound-vip|80|http|server.shop.svc.cluster.local preserve_case PreserveCaseFormatterConfig -
            inbound-vip|90|http|server.shop.svc.cluster.local preserve_case PreserveCaseFormatterConfig -
            inbound-vip|80|http|server.shop.svc.cluster.local: HTTP/1.1 preserve_case PreserveCaseFormatterConfig
            inbound-vip|90|http|server.shop.svc.cluster.local: HTTP/1.1 preserve_case PreserveCaseFormatterConfig, HTTP/2
        "#]],
    );
    check(
        &proxy_headers("preserveHttp1HeaderCase: false"),
        expect![[r#"
            inbound-vip|80|http|server.shop.svc.cluster.local -
            inbound-vip|90|http|server.shop.svc.cluster.local -
            inbound-vip|80|http|server.shop.svc.cluster.local: HTTP/1.1
            inbound-vip|90|http|server.shop.svc.cluster.local: HTTP/1.1, HTTP/2
        "#]],
    );
}

#[test]
fn the_mesh_says_which_headers_proxies_set() {
    check(
        &proxy_headers("server: {value: shop}, requestId: {disabled: true}"),
        expect![[r#"
            inbound-vip|80|http|server.shop.svc.cluster.local ("shop", 0, Some(false)) -
            inbound-vip|90|http|server.shop.svc.cluster.local ("shop", 0, Some(false)) -
            inbound-vip|80|http|server.shop.svc.cluster.local: HTTP/1.1
            inbound-vip|90|http|server.shop.svc.cluster.local: HTTP/1.1, HTTP/2
        "#]],
    );
    check(
        &proxy_headers("server: {disabled: true}, requestId: {}"),
        expect![[r#"
            inbound-vip|80|http|server.shop.svc.cluster.local ("istio-envoy", 2, Some(true)) -
            inbound-vip|90|http|server.shop.svc.cluster.local ("istio-envoy", 2, Some(true)) -
            inbound-vip|80|http|server.shop.svc.cluster.local: HTTP/1.1
            inbound-vip|90|http|server.shop.svc.cluster.local: HTTP/1.1, HTTP/2
        "#]],
    );
}

fn proxy_headers(text: &str) -> String {
    let text = format!("defaultConfig: {{proxyHeaders: {{{text}}}}}");
    mesh_config("istio-system", &text)
}
