//! The tracer of a chain: how many requests are traced, with which tags, and who collects the spans. It only observes: what of it
//! is not known is left out with a warning, and the chain is served without.

use std::{sync::Arc, time::Duration};

use envoy_types::pb::envoy::{
    config::trace::v3::{OpenTelemetryConfig, tracing::http::ConfigType},
    extensions::{
        filters::network::http_connection_manager::v3::{
            HttpConnectionManager, http_connection_manager::Tracing as Proto,
        },
        request_id::uuid::v3::UuidRequestIdConfig,
    },
    r#type::{
        metadata::v3::{MetadataKey, metadata_key::path_segment::Segment, metadata_kind},
        tracing::v3::{CustomTag, custom_tag::Type},
        v3::Percent,
    },
};
use tracing::warn;

use super::{
    any::decode,
    error::{At, Compiled, Unsupported},
};
use crate::{
    format::{Needed, Template},
    otlp::Otlp,
    spans::sampling::{Chance, Sampling, Share},
    upstream::call::Target,
};

/// Envoy's default.
const MAX_PATH: usize = 256;
/// A collector that is slower is not worth waiting for, where nothing is said.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A compiled tracer.
#[derive(Debug)]
pub(crate) struct Tracing {
    pub(crate) sampling: Sampling,
    pub(crate) max_path: usize,
    pub(crate) tags: Vec<Tag>,
    pub(crate) collector: Arc<Collector>,
    /// Whether the upstream is told of the trace.
    pub(crate) propagates: bool,
}

/// Where spans go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Collector {
    pub(crate) target: Target,
    pub(crate) wire: Otlp,
    /// Who we say we are.
    pub(crate) service_name: String,
}

/// An attribute that the user, or Istio, wants.
#[derive(Clone, Debug)]
pub(crate) struct Tag {
    pub(crate) name: String,
    pub(crate) value: TagValue,
}

/// Where its value comes from; without a value the attribute is left out.
#[derive(Clone, Debug)]
pub(crate) enum TagValue {
    Literal(String),
    Environment {
        name: String,
        default: String,
    },
    Header {
        name: String,
        default: String,
    },
    /// What a filter found out.
    Metadata {
        path: Vec<String>,
        default: String,
    },
    /// Of the workload at one end.
    Peer(End, PeerField),
    Template(Template),
}

/// An end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

/// What is known of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerField {
    Workload,
    Namespace,
    Cluster,
    Service,
    Revision,
    Name,
}

impl Tracing {
    /// `None`: nothing is traced.
    pub(crate) fn compile(manager: &HttpConnectionManager) -> Option<Self> {
        let proto = manager.tracing.as_ref()?;
        match Self::compile_known(proto, manager) {
            Ok(tracing) => tracing,
            Err(error) => {
                warn!(chain = manager.stat_prefix, %error, "nothing is traced");
                None
            }
        }
    }

    fn compile_known(proto: &Proto, manager: &HttpConnectionManager) -> Compiled<Option<Self>> {
        let Some(provider) = &proto.provider else {
            return Ok(None);
        };
        let Some(ConfigType::TypedConfig(config)) = &provider.config_type else {
            return Err(Unsupported::missing("typed_config"));
        };
        let config: OpenTelemetryConfig = decode(config).at(&provider.name)?;
        // It would decide on each span, and istiod then samples all of them.
        if config.sampler.is_some() {
            return Err(Unsupported::new("sampler"));
        }
        if !config.resource_detectors.is_empty() || config.exporter.is_some() {
            warn!("resource detectors and exporters of spans have no effect");
        }
        let spawns = proto.spawn_upstream_span.as_ref();
        if spawns.is_some_and(|flag| flag.value) {
            warn!("a span is made for the whole of a request, and none for its upstream");
        }
        let share = |percent: Option<&Percent>| {
            percent.map_or(Share::ALL, |percent| Share::of_percent(percent.value))
        };
        let tags = proto.custom_tags.iter();
        let tags = tags.filter_map(|tag| match Tag::compile(tag) {
            Ok(tag) => Some(tag),
            Err(error) => {
                warn!(tag = tag.tag, %error, "a tag of spans is left out");
                None
            }
        });
        let max_path = proto.max_path_tag_length.as_ref();
        Ok(Some(Self {
            sampling: Sampling {
                client: share(proto.client_sampling.as_ref()),
                random: share(proto.random_sampling.as_ref()),
                overall: share(proto.overall_sampling.as_ref()),
                chance: chance(manager)?,
            },
            max_path: max_path.map_or(MAX_PATH, |length| {
                usize::try_from(length.value).unwrap_or(MAX_PATH)
            }),
            tags: tags.collect(),
            collector: Arc::new(collector(&config)?),
            propagates: !proto.no_context_propagation,
        }))
    }

    /// Headers that its tags look at.
    pub(crate) fn needs(&self, needed: &mut Needed) {
        let mut headers: Vec<String> = OWN_HEADERS.map(str::to_owned).into();
        for tag in &self.tags {
            match &tag.value {
                TagValue::Header { name, .. } => headers.push(name.clone()),
                TagValue::Template(template) => needed.extend(template.headers()),
                TagValue::Literal(_)
                | TagValue::Environment { .. }
                | TagValue::Metadata { .. }
                | TagValue::Peer(..) => {}
            }
        }
        needed.extend(Needed {
            request: headers,
            ..Needed::default()
        });
    }
}

/// What Envoy's own tags look at.
const OWN_HEADERS: [&str; 6] = [
    "x-request-id",
    "user-agent",
    "x-client-trace-id",
    "x-envoy-downstream-service-cluster",
    "content-type",
    "grpc-timeout",
];

fn chance(manager: &HttpConnectionManager) -> Compiled<Chance> {
    let extension = manager.request_id_extension.as_ref();
    let Some(config) = extension.and_then(|extension| extension.typed_config.as_ref()) else {
        return Ok(Chance::RequestId);
    };
    let config: UuidRequestIdConfig = decode(config).at("request_id_extension")?;
    let by_id = config.use_request_id_for_trace_sampling;
    Ok(match by_id.is_none_or(|flag| flag.value) {
        true => Chance::RequestId,
        false => Chance::Dice,
    })
}

fn collector(config: &OpenTelemetryConfig) -> Compiled<Collector> {
    let service_name = match config.service_name.as_str() {
        // As OpenTelemetry asks for.
        "" => "unknown_service:waypoint".to_owned(),
        name => name.to_owned(),
    };
    let (target, wire) = match &config.http_service {
        Some(service) => Otlp::by_http(service, TIMEOUT).at("http_service")?,
        None => {
            let target = Target::compile(config.grpc_service.as_ref(), None, TIMEOUT);
            (target.at("grpc_service")?, Otlp::Grpc)
        }
    };
    Ok(Collector {
        target,
        wire,
        service_name,
    })
}

impl Tag {
    fn compile(proto: &CustomTag) -> Compiled<Self> {
        let value = proto.r#type.as_ref();
        let value = match value.ok_or_else(|| Unsupported::missing("type"))? {
            Type::Literal(literal) => TagValue::Literal(literal.value.clone()),
            Type::Environment(variable) => TagValue::Environment {
                name: variable.name.clone(),
                default: variable.default_value.clone(),
            },
            Type::RequestHeader(header) => TagValue::Header {
                name: header.name.to_ascii_lowercase(),
                default: header.default_value.clone(),
            },
            Type::Metadata(metadata) => {
                let kind = metadata.kind.as_ref().and_then(|kind| kind.kind.as_ref());
                if !matches!(kind, None | Some(metadata_kind::Kind::Request(_))) {
                    return Err(Unsupported::new("metadata that is not of the request"));
                }
                let key = metadata.metadata_key.as_ref();
                TagValue::Metadata {
                    path: metadata_path(key.ok_or_else(|| Unsupported::missing("metadata_key"))?)?,
                    default: metadata.default_value.clone(),
                }
            }
            Type::Value(text) => match peer(text) {
                Some((end, field)) => TagValue::Peer(end, field),
                None => TagValue::Template(Template::compile(text)?),
            },
        };
        Ok(Self {
            name: proto.tag.clone(),
            value,
        })
    }
}

fn metadata_path(key: &MetadataKey) -> Compiled<Vec<String>> {
    let mut path = vec![key.key.clone()];
    for segment in &key.path {
        match &segment.segment {
            Some(Segment::Key(key)) => path.push(key.clone()),
            Some(Segment::Index(_)) | None => return Err(Unsupported::new("metadata key")),
        }
    }
    Ok(path)
}

/// Where Istio's filters leave what they know of both ends: `%FILTER_STATE(upstream_peer_obj:FIELD:workload)%`.
fn peer(text: &str) -> Option<(End, PeerField)> {
    let inner = text.strip_prefix("%FILTER_STATE(")?.strip_suffix(")%")?;
    let (object, field) = inner.split_once(":FIELD:")?;
    let end = match object {
        "downstream_peer_obj" => End::Source,
        "upstream_peer_obj" => End::Destination,
        _ => return None,
    };
    let field = match field {
        "workload" => PeerField::Workload,
        "namespace" => PeerField::Namespace,
        "cluster" => PeerField::Cluster,
        // App and version are the canonical ones.
        "service" | "app" => PeerField::Service,
        "revision" | "version" => PeerField::Revision,
        "name" => PeerField::Name,
        _ => return None,
    };
    Some((end, field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_istio_are_of_the_workloads() {
        let source = peer("%FILTER_STATE(downstream_peer_obj:FIELD:workload)%");
        assert_eq!(source, Some((End::Source, PeerField::Workload)));
        let app = peer("%FILTER_STATE(upstream_peer_obj:FIELD:app)%");
        assert_eq!(app, Some((End::Destination, PeerField::Service)));
        assert_eq!(peer("%FILTER_STATE(other:FIELD:app)%"), None);
        assert_eq!(peer("%REQ(x)%"), None);
    }
}
