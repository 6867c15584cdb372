//! Telemetry objects and MeshConfig to what a chain tells: access logs, spans, and changes of metrics (facts A.10).
//!
//! Objects count from far to near: the root namespace, the waypoint's namespace, then those that target the service, the
//! waypoint or its class. Nearer ones are put over farther ones.

mod ordered;
mod services;
mod tracing;

use envoy_types::pb::{
    envoy::{
        config::{
            accesslog::v3::{
                AccessLog, AccessLogFilter, ExtensionFilter, access_log,
                access_log_filter::FilterSpecifier, extension_filter,
            },
            listener::v3::{Filter, filter::ConfigType as FilterConfig},
        },
        extensions::{
            access_loggers::filters::cel::v3::ExpressionFilter,
            filters::network::http_connection_manager::v3::HttpFilter,
        },
    },
    google::protobuf::Any,
};
use leyline_types::NamespacedName;
use serde_json::{Map, Value, json};

use super::{
    listeners::http_filter,
    pb,
    settings::Settings,
    view::{ServiceView, View},
};
use crate::{
    objects::{
        Kind, ObjectKey,
        l7::telemetry::{AccessLogging, MetricOverride, ModeMatch, Telemetry},
        mesh_config::{FileAccessLog, LogFormat, MeshConfig},
    },
    translate::Advice,
};
pub(super) use tracing::Traced;

/// The provider that is there without being configured: lines on the standard output.
const ENVOY: &str = "envoy";
/// Metrics are always scraped.
const PROMETHEUS: &str = "prometheus";
const STDOUT: &str = "/dev/stdout";
const FILE_LOGGER: &str = "envoy.access_loggers.file";
const STATS_TYPE: &str = "type.googleapis.com/stats.PluginConfig";

/// Istio's line (facts A.10).
const TEXT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% \
%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% \
%REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// Istio's JSON (facts A.10).
const JSON: [(&str, &str); 24] = [
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    (
        "connection_termination_details",
        "%CONNECTION_TERMINATION_DETAILS%",
    ),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    (
        "upstream_service_time",
        "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    ),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    (
        "upstream_transport_failure_reason",
        "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    ),
];

/// Telemetry's names of metrics and Istio's own.
const METRICS: [(&str, &str); 10] = [
    ("REQUEST_COUNT", "requests_total"),
    ("REQUEST_DURATION", "request_duration_milliseconds"),
    ("REQUEST_SIZE", "request_bytes"),
    ("RESPONSE_SIZE", "response_bytes"),
    ("TCP_OPENED_CONNECTIONS", "tcp_connections_opened_total"),
    ("TCP_CLOSED_CONNECTIONS", "tcp_connections_closed_total"),
    ("TCP_SENT_BYTES", "tcp_sent_bytes_total"),
    ("TCP_RECEIVED_BYTES", "tcp_received_bytes_total"),
    ("GRPC_REQUEST_MESSAGES", "request_messages_total"),
    ("GRPC_RESPONSE_MESSAGES", "response_messages_total"),
];

/// What the chains of a service tell.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub(super) access_logs: Vec<AccessLog>,
    /// The tracer, where requests are traced.
    pub(super) traced: Option<Traced>,
    /// The configuration of Istio's stats filter, where it changes anything.
    stats: Option<Any>,
}

impl Told {
    pub(super) fn http_filter(&self) -> Option<HttpFilter> {
        let stats = self.stats.clone()?;
        Some(http_filter("istio.stats", stats))
    }

    pub(super) fn network_filter(&self) -> Option<Filter> {
        Some(Filter {
            name: "istio.stats".to_owned(),
            config_type: Some(FilterConfig::TypedConfig(self.stats.clone()?)),
        })
    }
}

/// Of one service of a waypoint.
pub(super) fn of<'a>(
    view: &View<'a>,
    settings: &Settings<'a>,
    gateway: &NamespacedName,
    service: &ServiceView<'_>,
) -> Told {
    let objects = applying(view, settings, gateway, service);
    Told {
        access_logs: access_logs(view.config, settings, &objects),
        traced: tracing::of(view, settings, gateway, &objects),
        stats: stats(&objects),
    }
}

/// From far to near.
fn applying<'a>(
    view: &View<'a>,
    settings: &Settings<'a>,
    gateway: &NamespacedName,
    service: &ServiceView<'_>,
) -> Vec<&'a Telemetry> {
    let root = view.mesh.root_namespace.as_str();
    let distance = |name: &NamespacedName, object: &Telemetry| {
        let namespace = name.namespace.as_str();
        let spec = &object.spec;
        let mut targets = spec.targets().peekable();
        if targets.peek().is_some() {
            let hit = targets.any(|target| settings.targets(target, namespace, service));
            return hit.then_some(2);
        }
        // Chosen by labels of pods: not a waypoint.
        if spec.selector.is_some() {
            return None;
        }
        match namespace {
            _ if namespace == root => Some(0),
            _ if namespace == gateway.namespace.as_str() => Some(1),
            _ => None,
        }
    };
    let index = &view.index.telemetries;
    let aimed = settings.aimed_at(index, service).into_iter();
    let mut found: Vec<(u8, &Telemetry)> = aimed
        .chain(index.untargeted())
        .filter_map(|(name, object)| Some((distance(name, object)?, object)))
        .collect();
    found.sort_by_key(|(distance, _)| *distance);
    found.into_iter().map(|(_, object)| object).collect()
}

/// A waypoint is the server's side.
fn is_ours(mode: Option<&ModeMatch>) -> bool {
    let mode = mode.and_then(|mode| mode.mode.as_deref());
    mode != Some("CLIENT")
}

fn access_logs(
    mesh: &MeshConfig,
    settings: &Settings<'_>,
    objects: &[&Telemetry],
) -> Vec<AccessLog> {
    let entries = objects.iter().flat_map(|it| &it.spec.access_logging);
    let entries: Vec<&AccessLogging> = entries
        .filter(|entry| is_ours(entry.matches.as_ref()))
        .collect();
    let mut providers: Vec<String> = mesh.default_providers.access_logging.clone();
    let mut is_disabled = false;
    let mut filter = None;
    if entries.is_empty() {
        if providers.is_empty() && mesh.access_log_file.is_empty() {
            return Vec::new();
        }
    } else {
        for entry in &entries {
            if !entry.providers.is_empty() {
                providers = entry.providers.iter().map(|it| it.name.clone()).collect();
            }
            is_disabled = entry.disabled.unwrap_or(false);
            filter = entry
                .filter
                .as_ref()
                .map(|it| it.expression.clone())
                .or(filter);
        }
    }
    if is_disabled {
        return Vec::new();
    }
    if providers.is_empty() {
        providers.push(ENVOY.to_owned());
    }
    let logs = providers.iter().filter_map(|name| {
        let file = file_log(mesh, name).map(|config| (FILE_LOGGER, config));
        file.or_else(|| services::log(mesh, settings, name))
    });
    logs.map(|(logger, config)| AccessLog {
        name: logger.to_owned(),
        filter: filter.as_deref().map(expression_filter),
        config_type: Some(access_log::ConfigType::TypedConfig(config)),
    })
    .collect()
}

fn expression_filter(expression: &str) -> AccessLogFilter {
    let config = pb::any(&ExpressionFilter {
        expression: expression.to_owned(),
        cel_config: None,
    });
    AccessLogFilter {
        filter_specifier: Some(FilterSpecifier::ExtensionFilter(ExtensionFilter {
            name: "envoy.access_loggers.extension_filters.cel".to_owned(),
            config_type: Some(extension_filter::ConfigType::TypedConfig(config)),
        })),
    }
}

/// The log of a provider; `None` for one that is no file.
fn file_log(mesh: &MeshConfig, name: &str) -> Option<Any> {
    let configured = mesh.provider(name);
    if let Some(FileAccessLog { path, log_format }) =
        configured.and_then(|provider| provider.envoy_file_access_log.as_ref())
    {
        let path = if path.is_empty() { STDOUT } else { path };
        let log = match log_format {
            Some(LogFormat {
                labels: Some(labels),
                ..
            }) => ordered::json_log(path, &Value::Object(labels.clone())),
            Some(LogFormat {
                text: Some(text), ..
            }) => ordered::text_log(path, &with_end(text)),
            Some(LogFormat { .. }) | None => ordered::text_log(path, TEXT),
        };
        return Some(log);
    }
    (configured.is_none() && name == ENVOY).then(|| mesh_log(mesh))
}

/// As MeshConfig says it.
fn mesh_log(mesh: &MeshConfig) -> Any {
    let path = match mesh.access_log_file.as_str() {
        "" => STDOUT,
        path => path,
    };
    let format = mesh.access_log_format.as_str();
    if mesh.access_log_encoding.as_deref() != Some("JSON") {
        let text = if format.is_empty() { TEXT } else { format };
        return ordered::text_log(path, &with_end(text));
    }
    let custom = serde_json::from_str(format).ok().filter(Value::is_object);
    let fields = custom.unwrap_or_else(|| {
        let fields = JSON.map(|(key, value)| (key.to_owned(), Value::from(value)));
        Value::Object(fields.into_iter().collect())
    });
    ordered::json_log(path, &fields)
}

fn with_end(text: &str) -> String {
    let end = if text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{end}")
}

fn stats(objects: &[&Telemetry]) -> Option<Any> {
    let overrides = objects
        .iter()
        .flat_map(|object| &object.spec.metrics)
        .flat_map(|metrics| &metrics.overrides);
    let metrics: Vec<Value> = overrides
        .filter(|one| {
            let matches = one.matches.as_ref();
            matches.and_then(|it| it.mode.as_deref()) != Some("CLIENT")
        })
        .filter_map(metric)
        .collect();
    (!metrics.is_empty()).then(|| {
        let config = json!({
            "disable_host_header_fallback": true,
            "metrics": metrics,
            "reporter": "SERVER_GATEWAY",
        });
        ordered::typed_struct(STATS_TYPE, &config)
    })
}

fn metric(one: &MetricOverride) -> Option<Value> {
    let mut metric = Map::new();
    if let Some(matches) = &one.matches {
        // A metric of the user's own is none of ours.
        if matches.custom_metric.is_some() {
            return None;
        }
        let wanted = matches.metric.as_deref().unwrap_or("ALL_METRICS");
        if let Some((_, name)) = METRICS.iter().find(|(name, _)| *name == wanted) {
            metric.insert("name".to_owned(), Value::from(*name));
        }
    }
    let mut dimensions = Map::new();
    let mut removed = Vec::new();
    for (tag, change) in &one.tag_overrides {
        match (change.operation.as_deref(), &change.value) {
            (Some("REMOVE"), _) => removed.push(Value::from(tag.as_str())),
            (_, Some(value)) => {
                dimensions.insert(tag.clone(), Value::from(value.as_str()));
            }
            (_, None) => {}
        }
    }
    if !dimensions.is_empty() {
        metric.insert("dimensions".to_owned(), Value::Object(dimensions));
    }
    if !removed.is_empty() {
        metric.insert("tags_to_remove".to_owned(), Value::Array(removed));
    }
    if let Some(disabled) = one.disabled {
        metric.insert("drop".to_owned(), Value::Bool(disabled));
    }
    Some(Value::Object(metric))
}

/// Tells of providers and fields that have no effect.
pub(super) fn advise(view: &View<'_>, advice: &mut Vec<Advice>) {
    for (name, object) in &view.objects.telemetries {
        let mut tell = |field: String, reason: String| {
            advice.push(Advice {
                object: ObjectKey::new(
                    Kind::Telemetry,
                    Some(name.namespace.as_str()),
                    name.name.as_str(),
                ),
                field,
                reason,
            });
        };
        if object.spec.selector.is_some() {
            tell(
                "spec.selector".to_owned(),
                "has no effect: waypoints are chosen by targetRefs".to_owned(),
            );
        }
        for (field, problem) in tracing::problems(view, object) {
            tell(field, problem);
        }
        for (index, entry) in object.spec.access_logging.iter().enumerate() {
            for (place, provider) in entry.providers.iter().enumerate() {
                if file_log(view.config, &provider.name).is_some() {
                    continue;
                }
                if let Some(problem) = services::problem(view, &provider.name) {
                    tell(
                        format!("spec.accessLogging[{index}].providers[{place}]"),
                        format!("{problem}: nothing is logged there"),
                    );
                }
            }
        }
        for (index, metrics) in object.spec.metrics.iter().enumerate() {
            for (place, provider) in metrics.providers.iter().enumerate() {
                let known = view.config.provider(&provider.name);
                let is_scraped = known.is_some_and(|it| it.prometheus.is_some());
                if provider.name != PROMETHEUS && !is_scraped {
                    tell(
                        format!("spec.metrics[{index}].providers[{place}]"),
                        format!("{} has no effect: metrics are scraped", provider.name),
                    );
                }
            }
            if metrics.reporting_interval.is_some() {
                tell(
                    format!("spec.metrics[{index}].reportingInterval"),
                    "has no effect: bytes of connections are counted every 5 s".to_owned(),
                );
            }
        }
    }
}
