use envoy_types::pb::{
    envoy::config::core::v3::{
        GrpcService,
        grpc_service::{EnvoyGrpc, TargetSpecifier},
    },
    opentelemetry::proto::common::v1::{AnyValue, KeyValue, KeyValueList, any_value::Value},
};

use super::{super::tests::Fake, *};

fn common() -> CommonGrpcAccessLogConfig {
    CommonGrpcAccessLogConfig {
        log_name: "shop".to_owned(),
        grpc_service: Some(GrpcService {
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                cluster_name: "outbound|9811||als.office".to_owned(),
                ..EnvoyGrpc::default()
            })),
            ..GrpcService::default()
        }),
        ..CommonGrpcAccessLogConfig::default()
    }
}

#[test]
fn requests_are_told_with_the_headers_that_are_asked_for() {
    let log = HttpGrpcAccessLogConfig {
        common_config: Some(common()),
        additional_request_headers_to_log: vec!["X-User".to_owned(), "none".to_owned()],
        ..HttpGrpcAccessLogConfig::default()
    };
    let log = ServiceLog::http(&log).unwrap();
    assert_eq!(log.collector.log_name, "shop");
    assert_eq!(log.collector.target.cluster, "outbound|9811||als.office");
    let mut needed = Needed::default();
    log.needs(&mut needed);
    for name in ["x-user", "user-agent", "x-request-id"] {
        assert!(needed.request.iter().any(|known| known == name), "{name}");
    }
    let Some(Entry::Http(entry)) = log.entry(&Fake(503)) else {
        panic!("no entry of a request");
    };
    let (request, response) = (entry.request.unwrap(), entry.response.unwrap());
    assert_eq!(request.path, "/a\"b");
    assert_eq!(request.request_method, 1);
    assert_eq!(request.request_headers.len(), 1);
    assert_eq!(request.request_headers["x-user"], "alice");
    assert_eq!(response.response_code.unwrap().value, 503);
    let flags = entry.common_properties.unwrap().response_flags.unwrap();
    assert!(flags.upstream_connection_failure && !flags.no_route_found);
}

#[test]
fn records_are_made_of_templates() {
    let text = |text: &str| AnyValue {
        value: Some(Value::StringValue(text.to_owned())),
    };
    let log = OpenTelemetryAccessLogConfig {
        grpc_service: common().grpc_service,
        log_name: "shop".to_owned(),
        body: Some(text("%REQ(:METHOD)% %RESPONSE_CODE%")),
        attributes: Some(KeyValueList {
            values: vec![KeyValue {
                key: "flags".to_owned(),
                value: Some(text("%RESPONSE_FLAGS%")),
                ..KeyValue::default()
            }],
        }),
        ..OpenTelemetryAccessLogConfig::default()
    };
    let told = ServiceLog::otlp(&log).unwrap();
    let Some(Entry::Record(record)) = told.entry(&Fake(503)) else {
        panic!("no record");
    };
    let shown = format!("{record:?}");
    for part in ["\"GET 503\"", "\"flags\"", "\"UF,URX\""] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let bad = OpenTelemetryAccessLogConfig {
        body: Some(text("%NO_SUCH%")),
        ..log
    };
    assert!(ServiceLog::otlp(&bad).is_err());
    let none = TcpGrpcAccessLogConfig::default();
    assert!(
        ServiceLog::tcp(&none)
            .unwrap_err()
            .to_string()
            .contains("common_config")
    );
}
