//! Spans: Telemetry's `tracing` and MeshConfig's `opentelemetry` providers to the tracer of a connection manager, as istiod makes
//! it (facts A.10).

use std::{collections::BTreeMap, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{
                GrpcService, HeaderValue, HeaderValueOption, HttpService, HttpUri,
                grpc_service::{EnvoyGrpc, TargetSpecifier},
                header_value_option::HeaderAppendAction,
                http_uri::HttpUpstreamType,
            },
            trace::v3::{
                OpenTelemetryConfig,
                tracing::{Http, http::ConfigType},
            },
        },
        extensions::{
            filters::network::http_connection_manager::v3::{
                RequestIdExtension, http_connection_manager::Tracing as Tracer,
            },
            request_id::uuid::v3::UuidRequestIdConfig,
        },
        r#type::{
            metadata::v3::{
                MetadataKey, MetadataKind,
                metadata_key::{PathSegment, path_segment::Segment},
                metadata_kind,
            },
            tracing::v3::{
                CustomTag as Tag,
                custom_tag::{Environment, Header, Literal, Metadata, Type},
            },
            v3::Percent,
        },
    },
    google::protobuf::Duration as ProtoDuration,
};
use leyline_types::NamespacedName;

use super::{is_ours, pb};
use crate::{
    objects::{
        duration,
        l7::telemetry::{CustomTag, Telemetry, Tracing},
        mesh_config::{MeshConfig, OpenTelemetry, OtlpHeader},
    },
    translate::waypoint::{settings::Settings, view::View},
};

const TRACER: &str = "envoy.tracers.opentelemetry";
/// Percent of requests, where nobody says: Istio's.
const SAMPLING: f64 = 1.0;
/// Envoy must be told one.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Where dry runs of policies are told: tag, and key in the metadata of the RBAC filter.
const DRY_RUNS: [(&str, &str); 4] = [
    (
        "istio.authorization.dry_run.allow_policy.name",
        "istio_dry_run_allow_shadow_effective_policy_id",
    ),
    (
        "istio.authorization.dry_run.allow_policy.result",
        "istio_dry_run_allow_shadow_engine_result",
    ),
    (
        "istio.authorization.dry_run.deny_policy.name",
        "istio_dry_run_deny_shadow_effective_policy_id",
    ),
    (
        "istio.authorization.dry_run.deny_policy.result",
        "istio_dry_run_deny_shadow_engine_result",
    ),
];
/// What Istio tells of the workload at either end: tag, and field of what Envoy knows of it.
const PEER: [(&str, &str); 9] = [
    ("workload", "workload"),
    ("namespace", "namespace"),
    ("cluster_id", "cluster"),
    ("canonical_service", "service"),
    ("canonical_revision", "revision"),
    ("app", "app"),
    ("app_version", "version"),
    ("workload_type", "type"),
    ("instance_name", "name"),
];

/// The tracer of a chain.
#[derive(Clone, Debug)]
pub(in super::super) struct Traced {
    pub(in super::super) tracer: Tracer,
    pub(in super::super) request_id: RequestIdExtension,
}

/// What the objects say together, the nearest last.
#[derive(Debug, Default)]
struct Said<'a> {
    provider: Option<&'a str>,
    sampling: Option<f64>,
    is_disabled: bool,
    tags: Option<&'a BTreeMap<String, CustomTag>>,
    by_request_id: Option<bool>,
    istio_tags: Option<bool>,
}

impl<'a> Said<'a> {
    fn of(config: &'a MeshConfig, objects: &[&'a Telemetry]) -> Self {
        let defaults = config.default_providers.tracing.first();
        let mut said = Self {
            provider: defaults.map(String::as_str),
            ..Self::default()
        };
        let entries = objects.iter().flat_map(|object| &object.spec.tracing);
        for entry in entries.filter(|entry| is_ours(entry.matches.as_ref())) {
            said.add(entry);
        }
        said
    }

    fn add(&mut self, entry: &'a Tracing) {
        if let Some(provider) = entry.providers.first() {
            self.provider = Some(&provider.name);
        }
        self.sampling = entry.random_sampling_percentage.or(self.sampling);
        self.is_disabled = entry.disable_span_reporting.unwrap_or(self.is_disabled);
        if !entry.custom_tags.is_empty() {
            self.tags = Some(&entry.custom_tags);
        }
        self.by_request_id = entry
            .use_request_id_for_trace_sampling
            .or(self.by_request_id);
        self.istio_tags = entry.enable_istio_tags.or(self.istio_tags);
    }
}

/// `None`: nothing is traced.
pub(super) fn of(
    view: &View<'_>,
    settings: &Settings<'_>,
    gateway: &NamespacedName,
    objects: &[&Telemetry],
) -> Option<Traced> {
    let said = Said::of(view.config, objects);
    if said.is_disabled {
        return None;
    }
    let provider = view.config.provider(said.provider?)?;
    let otlp = provider.opentelemetry.as_ref()?;
    let cluster = settings.provider_cluster(&otlp.service, otlp.port)?;
    let mesh = view.config.default_config.tracing.as_ref();
    let of_mesh = mesh.and_then(|mesh| mesh.sampling);
    // As Istio reads it: zero is as if nothing was said.
    let of_mesh = of_mesh.filter(|percent| *percent != 0.0);
    let longest = otlp.max_tag_length.filter(|length| *length > 0);
    let longest = longest.or_else(|| mesh?.max_path_tag_length.filter(|length| *length > 0));
    let percent = |value: f64| Some(Percent { value });
    let tracer = Tracer {
        client_sampling: percent(100.0),
        random_sampling: percent(said.sampling.or(of_mesh).unwrap_or(SAMPLING)),
        overall_sampling: percent(100.0),
        max_path_tag_length: longest.and_then(pb::uint32),
        custom_tags: tags(view, gateway, &said),
        provider: Some(Http {
            name: TRACER.to_owned(),
            config_type: Some(ConfigType::TypedConfig(pb::any(&collector(
                otlp, cluster, gateway,
            )))),
        }),
        ..Tracer::default()
    };
    let by_id = said.by_request_id.unwrap_or(true);
    let request_id = pb::any(&UuidRequestIdConfig {
        use_request_id_for_trace_sampling: pb::boolean(by_id),
        ..UuidRequestIdConfig::default()
    });
    Some(Traced {
        tracer,
        request_id: RequestIdExtension {
            typed_config: Some(request_id),
        },
    })
}

/// What of an object has no effect: providers that collect no spans, and fields; where it stands, and why.
pub(super) fn problems(view: &View<'_>, object: &Telemetry) -> Vec<(String, String)> {
    let entries = object.spec.tracing.iter().enumerate();
    let named = entries.flat_map(|(index, entry)| {
        let providers = entry.providers.iter().enumerate();
        providers.map(move |(place, provider)| {
            let field = format!("spec.tracing[{index}].providers[{place}]");
            (field, &provider.name)
        })
    });
    let unable = named.filter_map(|(field, name)| {
        let problem = problem(view, name)?;
        Some((field, format!("{problem}: nothing is traced")))
    });
    let entries = object.spec.tracing.iter().enumerate();
    let in_vain = entries.filter(|(_, entry)| entry.disable_context_propagation.is_some());
    let in_vain = in_vain.map(|(index, _)| {
        let reason = "has no effect: a traced request carries the waypoint's own span";
        let field = format!("spec.tracing[{index}].disableContextPropagation");
        (field, reason.to_owned())
    });
    unable.chain(in_vain).collect()
}

fn problem(view: &View<'_>, name: &str) -> Option<String> {
    let provider = view.config.provider(name);
    let Some(otlp) = provider.and_then(|provider| provider.opentelemetry.as_ref()) else {
        return Some(format!("{name} is no collector of OpenTelemetry spans"));
    };
    let host = host(&otlp.service);
    let service = view.services.get(host);
    let port = service.and_then(|service| {
        let mut ports = service.ports.iter();
        ports.find(|port| u32::from(port.number) == otlp.port)
    });
    match port {
        Some(_) => None,
        None => Some(format!(
            "there is no service {host} with port {} for provider {name}",
            otlp.port
        )),
    }
}

pub(super) fn host(service: &str) -> &str {
    service.split_once('/').map_or(service, |(_, host)| host)
}

fn collector(
    otlp: &OpenTelemetry,
    cluster: String,
    gateway: &NamespacedName,
) -> OpenTelemetryConfig {
    let config = OpenTelemetryConfig {
        // Who tells, not who is told of.
        service_name: format!("{}.{}", gateway.name, gateway.namespace),
        ..OpenTelemetryConfig::default()
    };
    let host = host(&otlp.service);
    let Some(http) = &otlp.http else {
        let grpc = otlp.grpc.clone().unwrap_or_default();
        let metadata = grpc.initial_metadata.iter();
        return OpenTelemetryConfig {
            grpc_service: Some(GrpcService {
                timeout: timeout(grpc.timeout.as_deref()),
                initial_metadata: metadata.map(header).collect(),
                target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                    cluster_name: cluster,
                    authority: host.to_owned(),
                    ..EnvoyGrpc::default()
                })),
                ..GrpcService::default()
            }),
            ..config
        };
    };
    let headers = http.headers.iter().map(|one| HeaderValueOption {
        header: Some(header(one)),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    });
    OpenTelemetryConfig {
        http_service: Some(HttpService {
            http_uri: Some(HttpUri {
                uri: format!("{host}/{}", http.path.trim_start_matches('/')),
                timeout: timeout(http.timeout.as_deref()),
                http_upstream_type: Some(HttpUpstreamType::Cluster(cluster)),
            }),
            request_headers_to_add: headers.collect(),
            ..HttpService::default()
        }),
        ..config
    }
}

fn header(header: &OtlpHeader) -> HeaderValue {
    HeaderValue {
        key: header.name.clone(),
        value: header.value.clone().unwrap_or_default(),
        ..HeaderValue::default()
    }
}

fn timeout(text: Option<&str>) -> Option<ProtoDuration> {
    let told = text.and_then(|text| duration::parse(text).ok());
    pb::duration(told.unwrap_or(TIMEOUT))
}

/// In the order of their names.
fn tags(view: &View<'_>, gateway: &NamespacedName, said: &Said<'_>) -> Vec<Tag> {
    let mut tags: BTreeMap<String, Type> = BTreeMap::new();
    let mut put = |name: &str, value: Type| tags.insert(name.to_owned(), value);
    for (end, object) in [("source", "downstream"), ("destination", "upstream")] {
        for (name, field) in PEER {
            let value = format!("%FILTER_STATE({object}_peer_obj:FIELD:{field})%");
            put(&format!("istio.{end}_{name}"), Type::Value(value));
        }
    }
    if said.istio_tags.unwrap_or(true) {
        let trust_domain = view.mesh.trust_domain.to_string();
        for (name, value) in [
            ("istio.canonical_service", gateway.name.as_str()),
            ("istio.canonical_revision", "latest"),
            ("istio.mesh_id", &trust_domain),
            ("istio.namespace", gateway.namespace.as_str()),
            ("istio.cluster_id", &view.mesh.cluster_id),
        ] {
            put(name, literal(value));
        }
        for (name, key) in DRY_RUNS {
            put(name, dry_run(key));
        }
    }
    match said.tags {
        Some(custom) => {
            for (name, tag) in custom {
                if let Some(value) = value(tag) {
                    put(name, value);
                }
            }
        }
        None => {
            let mesh = view.config.default_config.tracing.as_ref();
            for (name, tag) in mesh.iter().flat_map(|mesh| &mesh.custom_tags) {
                let tag = serde_json::from_value::<CustomTag>(tag.clone()).ok();
                if let Some(value) = tag.as_ref().and_then(value) {
                    put(name, value);
                }
            }
        }
    }
    let tags = tags.into_iter();
    tags.map(|(tag, value)| Tag {
        tag,
        r#type: Some(value),
    })
    .collect()
}

fn literal(value: &str) -> Type {
    Type::Literal(Literal {
        value: value.to_owned(),
    })
}

fn dry_run(key: &str) -> Type {
    Type::Metadata(Metadata {
        kind: Some(MetadataKind {
            kind: Some(metadata_kind::Kind::Request(
                metadata_kind::Request::default(),
            )),
        }),
        metadata_key: Some(MetadataKey {
            key: "envoy.filters.http.rbac".to_owned(),
            path: vec![PathSegment {
                segment: Some(Segment::Key(key.to_owned())),
            }],
        }),
        ..Metadata::default()
    })
}

fn value(tag: &CustomTag) -> Option<Type> {
    let default = |default: &Option<String>| default.clone().unwrap_or_default();
    match tag {
        CustomTag {
            literal: Some(text),
            ..
        } => Some(literal(&text.value)),
        CustomTag {
            environment: Some(variable),
            ..
        } => Some(Type::Environment(Environment {
            name: variable.name.clone(),
            default_value: default(&variable.default_value),
        })),
        CustomTag {
            header: Some(header),
            ..
        } => Some(Type::RequestHeader(Header {
            name: header.name.clone(),
            default_value: default(&header.default_value),
        })),
        CustomTag {
            formatter: Some(format),
            ..
        } => Some(Type::Value(format.value.clone())),
        _ => None,
    }
}
