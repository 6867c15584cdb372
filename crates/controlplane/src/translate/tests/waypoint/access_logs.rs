//! Access logs that go to services, in the connection manager of a waypoint.

use envoy_types::pb::{
    envoy::{
        config::accesslog::v3::access_log::ConfigType,
        extensions::access_loggers::{
            grpc::v3::{HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig},
            open_telemetry::v3::OpenTelemetryAccessLogConfig,
        },
    },
    opentelemetry::proto::common::v1::any_value::Value,
};

use super::{
    security::{manager, mesh_config},
    *,
};

const PROVIDERS: &str = "extensionProviders:
    - name: requests
      envoyHttpAls:
        service: shop/other.shop.svc.cluster.local
        port: 80
        additionalRequestHeadersToLog: [x-user]
    - name: connections
      envoyTcpAls: {service: other.shop.svc.cluster.local, port: 80, logName: tcp}
    - name: otel
      envoyOtelAls:
        service: other.shop.svc.cluster.local
        port: 80
        logFormat: {labels: {b: '%DURATION%', a: 1}}
    - name: gone
      envoyHttpAls: {service: gone.shop.svc.cluster.local, port: 80}";

fn decoded<M: Message + Default>(config: &Option<ConfigType>) -> M {
    let Some(ConfigType::TypedConfig(any)) = config else {
        panic!("no configuration");
    };
    M::decode(any.value.as_slice()).unwrap()
}

#[test]
fn providers_that_are_services_get_what_istiod_would_send() {
    let telemetry = "apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: logs, namespace: shop}
spec:
  accessLogging:
  - providers: [{name: requests}, {name: connections}, {name: otel}, {name: gone}]
    filter: {expression: 'response.code >= 400'}
---
";
    let mesh = mesh_config("istio-system", PROVIDERS);
    let (_, config) = config(&format!("{telemetry}{mesh}"));
    let logs = manager(&config).access_log;
    let names: Vec<&str> = logs.iter().map(|log| log.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "envoy.access_loggers.http_grpc",
            "envoy.access_loggers.tcp_grpc",
            "envoy.access_loggers.open_telemetry"
        ]
    );
    assert!(logs.iter().all(|log| log.filter.is_some()));
    let cluster = "outbound|80||other.shop.svc.cluster.local";
    let http: HttpGrpcAccessLogConfig = decoded(&logs[0].config_type);
    assert_eq!(http.additional_request_headers_to_log, ["x-user"]);
    let common = http.common_config.unwrap();
    assert_eq!(common.log_name, "http_envoy_accesslog");
    assert!(format!("{:?}", common.grpc_service).contains(cluster));
    let tcp: TcpGrpcAccessLogConfig = decoded(&logs[1].config_type);
    assert_eq!(tcp.common_config.unwrap().log_name, "tcp");
    let otel: OpenTelemetryAccessLogConfig = decoded(&logs[2].config_type);
    assert_eq!(otel.log_name, "otel_envoy_accesslog");
    let Some(Value::StringValue(body)) = otel.body.unwrap().value else {
        panic!("the body is no text");
    };
    assert!(body.starts_with("[%START_TIME%]"), "{body}");
    let attributes = otel.attributes.unwrap().values;
    let shown: Vec<String> = attributes
        .iter()
        .map(|one| format!("{} {:?}", one.key, one.value.as_ref().unwrap().value))
        .collect();
    assert_eq!(
        shown,
        ["a Some(IntValue(1))", "b Some(StringValue(\"%DURATION%\"))"]
    );
}
