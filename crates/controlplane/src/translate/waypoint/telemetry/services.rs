//! Access logs that go to services: MeshConfig's `envoyHttpAls`, `envoyTcpAls` and `envoyOtelAls` as istiod translates them
//! (facts A.10).

use std::collections::BTreeMap;

use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            ApiVersion, GrpcService,
            grpc_service::{EnvoyGrpc, TargetSpecifier},
        },
        extensions::access_loggers::{
            grpc::v3::{
                CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig,
            },
            open_telemetry::v3::OpenTelemetryAccessLogConfig,
        },
    },
    google::protobuf::Any,
    opentelemetry::proto::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList, any_value},
};
use serde_json::Value;

use super::{TEXT, pb, tracing::host};
use crate::{
    objects::mesh_config::{ExtensionProvider, HttpAls, MeshConfig, OtelAls, TcpAls},
    translate::waypoint::{settings::Settings, view::View},
};

const HTTP: &str = "envoy.access_loggers.http_grpc";
const TCP: &str = "envoy.access_loggers.tcp_grpc";
const OTEL: &str = "envoy.access_loggers.open_telemetry";

/// The service of a provider and its port, where it is of one of these kinds.
fn service(provider: &ExtensionProvider) -> Option<(&str, u32)> {
    let http = provider.envoy_http_als.as_ref();
    let http = http.map(|als| (als.service.as_str(), als.port));
    let tcp = provider.envoy_tcp_als.as_ref();
    let tcp = tcp.map(|als| (als.service.as_str(), als.port));
    let otel = provider.envoy_otel_als.as_ref();
    let otel = otel.map(|als| (als.service.as_str(), als.port));
    http.or(tcp).or(otel)
}

/// The log of a provider, and the name of its logger; `None` for one of another kind, or without its service.
pub(super) fn log(
    mesh: &MeshConfig,
    settings: &Settings<'_>,
    name: &str,
) -> Option<(&'static str, Any)> {
    let provider = mesh.provider(name)?;
    let (service, port) = service(provider)?;
    let cluster = settings.provider_cluster(service, port)?;
    let called = |name: &str, default: &str| match name {
        "" => default.to_owned(),
        name => name.to_owned(),
    };
    let common = |log_name: String| CommonGrpcAccessLogConfig {
        log_name,
        grpc_service: Some(GrpcService {
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                cluster_name: cluster.clone(),
                authority: host(service).to_owned(),
                ..EnvoyGrpc::default()
            })),
            ..GrpcService::default()
        }),
        transport_api_version: ApiVersion::V3.into(),
        ..CommonGrpcAccessLogConfig::default()
    };
    if let Some(HttpAls {
        log_name,
        additional_request_headers_to_log: request,
        additional_response_headers_to_log: response,
        additional_response_trailers_to_log: trailers,
        ..
    }) = &provider.envoy_http_als
    {
        let config = HttpGrpcAccessLogConfig {
            common_config: Some(common(called(log_name, "http_envoy_accesslog"))),
            additional_request_headers_to_log: request.clone(),
            additional_response_headers_to_log: response.clone(),
            additional_response_trailers_to_log: trailers.clone(),
        };
        return Some((HTTP, pb::any(&config)));
    }
    if let Some(TcpAls { log_name, .. }) = &provider.envoy_tcp_als {
        let config = TcpGrpcAccessLogConfig {
            common_config: Some(common(called(log_name, "tcp_envoy_accesslog"))),
        };
        return Some((TCP, pb::any(&config)));
    }
    let als = provider.envoy_otel_als.as_ref()?;
    let common = common(called(&als.log_name, "otel_envoy_accesslog"));
    Some((OTEL, pb::any(&otel(als, common))))
}

fn otel(als: &OtelAls, common: CommonGrpcAccessLogConfig) -> OpenTelemetryAccessLogConfig {
    let format = als.log_format.clone().unwrap_or_default();
    let body = format.text.filter(|text| !text.is_empty());
    let labels = format.labels.map(|labels| KeyValueList {
        // Sorted, so that the same always gives the same bytes.
        values: pairs(labels.iter().collect()),
    });
    OpenTelemetryAccessLogConfig {
        grpc_service: common.grpc_service,
        log_name: common.log_name,
        body: Some(text(body.as_deref().unwrap_or(TEXT))),
        attributes: labels,
        ..OpenTelemetryAccessLogConfig::default()
    }
}

/// Why a provider takes no access logs, if it does not.
pub(super) fn problem(view: &View<'_>, name: &str) -> Option<String> {
    let provider = view.config.provider(name);
    let Some((service, port)) = provider.and_then(service) else {
        return Some(format!("{name} is no access log"));
    };
    let host = host(service);
    let known = view.services.get(host);
    let has_port = known.is_some_and(|known| {
        let mut ports = known.ports.iter();
        ports.any(|known| u32::from(known.number) == port)
    });
    (!has_port).then(|| format!("there is no service {host} with port {port} for provider {name}"))
}

fn text(text: &str) -> AnyValue {
    AnyValue {
        value: Some(any_value::Value::StringValue(text.to_owned())),
    }
}

fn pairs(fields: BTreeMap<&String, &Value>) -> Vec<KeyValue> {
    let pairs = fields.into_iter().map(|(key, value)| KeyValue {
        key: key.clone(),
        value: Some(any_value(value)),
        ..KeyValue::default()
    });
    pairs.collect()
}

fn any_value(value: &Value) -> AnyValue {
    use any_value::Value as Any;
    let value = match value {
        Value::Null => None,
        Value::Bool(flag) => Some(Any::BoolValue(*flag)),
        Value::Number(number) => Some(match number.as_i64() {
            Some(whole) => Any::IntValue(whole),
            None => Any::DoubleValue(number.as_f64().unwrap_or_default()),
        }),
        Value::String(text) => Some(Any::StringValue(text.clone())),
        Value::Array(items) => Some(Any::ArrayValue(ArrayValue {
            values: items.iter().map(any_value).collect(),
        })),
        Value::Object(fields) => Some(Any::KvlistValue(KeyValueList {
            values: pairs(fields.iter().collect()),
        })),
    };
    AnyValue { value }
}
