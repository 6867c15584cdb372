//! Telemetry's `tracing` and MeshConfig in the connection manager of a waypoint.

use envoy_types::pb::envoy::{
    config::trace::v3::{OpenTelemetryConfig, tracing::http::ConfigType},
    extensions::filters::network::http_connection_manager::v3::http_connection_manager::Tracing,
    r#type::{tracing::v3::custom_tag::Type, v3::Percent},
};

use super::{
    security::{manager, mesh_config},
    *,
};

const PROVIDERS: &str = "extensionProviders:
    - name: otel
      opentelemetry: {service: shop/other.shop.svc.cluster.local, port: 80, maxTagLength: 64}
    - name: http
      opentelemetry:
        service: other.shop.svc.cluster.local
        port: 80
        http: {path: v1/traces, headers: [{name: x-key, value: k}]}
    - name: gone
      opentelemetry: {service: gone.shop.svc.cluster.local, port: 80}
    - name: metrics
      prometheus: {}";

fn telemetry(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {{name: {name}, namespace: {namespace}}}
spec:
{spec}
---
"
    )
}

fn traced(documents: &[&str]) -> Option<Tracing> {
    let mesh = mesh_config("istio-system", PROVIDERS);
    let documents = documents.concat();
    let (_, config) = config(&format!("{documents}{mesh}"));
    manager(&config).tracing
}

fn collector(tracing: &Tracing) -> OpenTelemetryConfig {
    let provider = tracing.provider.as_ref().unwrap();
    assert_eq!(provider.name, "envoy.tracers.opentelemetry");
    let Some(ConfigType::TypedConfig(any)) = &provider.config_type else {
        panic!("no configuration");
    };
    OpenTelemetryConfig::decode(any.value.as_slice()).unwrap()
}

fn tag(tracing: &Tracing, name: &str) -> Option<Type> {
    let tag = tracing.custom_tags.iter().find(|tag| tag.tag == name)?;
    tag.r#type.clone()
}

#[test]
fn the_nearest_telemetry_says_how_spans_are_made() {
    let root = telemetry(
        "root",
        "istio-system",
        "  tracing: [{providers: [{name: otel}], randomSamplingPercentage: 5}]",
    );
    let tracing = traced(&[&root]).unwrap();
    let percent = |percent: &Option<_>| percent.as_ref().map(|it: &Percent| it.value);
    assert_eq!(percent(&tracing.random_sampling), Some(5.0));
    assert_eq!(percent(&tracing.client_sampling), Some(100.0));
    assert_eq!(tracing.max_path_tag_length.map(|it| it.value), Some(64));
    let config = collector(&tracing);
    assert_eq!(config.service_name, "wp.shop");
    let grpc = format!("{:?}", config.grpc_service);
    assert!(
        grpc.contains("outbound|80||other.shop.svc.cluster.local"),
        "{grpc}"
    );
    let Some(Type::Literal(service)) = tag(&tracing, "istio.canonical_service") else {
        panic!("{:?}", tracing.custom_tags);
    };
    assert_eq!(service.value, "wp");
    let Some(Type::Value(workload)) = tag(&tracing, "istio.source_workload") else {
        panic!("{:?}", tracing.custom_tags);
    };
    assert_eq!(
        workload,
        "%FILTER_STATE(downstream_peer_obj:FIELD:workload)%"
    );
    let names: Vec<&String> = tracing.custom_tags.iter().map(|tag| &tag.tag).collect();
    assert!(names.is_sorted(), "{names:?}");

    // Nearer: other tags, by HTTP, and a client's side that a waypoint is not.
    let near = telemetry(
        "near",
        "shop",
        "  targetRefs: [{kind: Service, group: \"\", name: server}]
  tracing:
  - providers: [{name: http}]
    enableIstioTags: false
    customTags: {stage: {literal: {value: test}}, user: {header: {name: x-user}}}
  - match: {mode: CLIENT}
    randomSamplingPercentage: 99",
    );
    let tracing = traced(&[&root, &near]).unwrap();
    assert_eq!(percent(&tracing.random_sampling), Some(5.0));
    assert!(tag(&tracing, "istio.canonical_service").is_none());
    assert!(matches!(
        tag(&tracing, "user"),
        Some(Type::RequestHeader(_))
    ));
    let http = collector(&tracing).http_service.unwrap();
    let uri = http.http_uri.unwrap();
    assert_eq!(uri.uri, "other.shop.svc.cluster.local/v1/traces");
    assert!(uri.timeout.is_some());
    assert_eq!(http.request_headers_to_add.len(), 1);

    let off = telemetry(
        "silent",
        "shop",
        "  tracing: [{disableSpanReporting: true}]",
    );
    assert!(traced(&[&root, &off]).is_none());
    assert!(traced(&[]).is_none());
}

#[test]
fn providers_that_collect_no_spans_are_told() {
    let of = |provider: &str| {
        telemetry(
            "spans",
            "shop",
            &format!("  tracing: [{{providers: [{{name: {provider}}}]}}]"),
        )
    };
    let reasons = |provider: &str| {
        let mesh = mesh_config("istio-system", PROVIDERS);
        let (translation, found) = config(&format!("{}{mesh}", of(provider)));
        let advice = translation.advice.into_iter();
        let told = advice.filter(|one| one.object.name == "spans");
        let told: Vec<String> = told.map(|one| one.reason).collect();
        (told, manager(&found).tracing.is_some())
    };
    assert_eq!(reasons("otel"), (Vec::new(), true));
    for (provider, reason) in [
        (
            "metrics",
            "metrics is no collector of OpenTelemetry spans: nothing is traced",
        ),
        (
            "gone",
            "there is no service gone.shop.svc.cluster.local with port 80 for provider gone: nothing is traced",
        ),
    ] {
        assert_eq!(reasons(provider), (vec![reason.to_owned()], false));
    }
}
