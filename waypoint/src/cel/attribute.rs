//! Envoy's attributes (`request.headers['x']`, `response.code`, `source.address`), by the fields of format strings.

use super::{Value, count};
use crate::{
    config::error::{Compiled, Unsupported},
    format::{Field, Needed, Source, Told},
};

/// One attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attribute {
    Request(String),
    Response(String),
    Trailer(String),
    Metadata(Vec<String>),
    Field(Field),
    /// Of a path, without its query.
    UrlPath,
    Query,
    IsMutualTls,
}

/// By their whole names.
const FIELDS: [(&str, Field); 24] = [
    ("request.protocol", Field::Protocol),
    ("request.size", Field::BytesReceived),
    ("request.total_size", Field::BytesReceived),
    ("request.duration", Field::Duration),
    ("response.code", Field::ResponseCode),
    ("response.code_details", Field::ResponseCodeDetails),
    ("response.flags", Field::ResponseFlags),
    ("response.grpc_status", Field::GrpcStatusNumber),
    ("response.size", Field::BytesSent),
    ("response.total_size", Field::BytesSent),
    ("source.address", Field::DownstreamRemote),
    ("source.port", Field::DownstreamRemotePort),
    ("source.principal", Field::PeerPrincipal),
    ("destination.address", Field::DownstreamLocal),
    ("destination.port", Field::DownstreamLocalPort),
    (
        "connection.requested_server_name",
        Field::RequestedServerName,
    ),
    ("connection.uri_san_peer_certificate", Field::PeerPrincipal),
    (
        "connection.uri_san_local_certificate",
        Field::LocalPrincipal,
    ),
    (
        "connection.termination_details",
        Field::ConnectionTerminationDetails,
    ),
    ("upstream.address", Field::UpstreamHost),
    ("upstream.local_address", Field::UpstreamLocalAddress),
    (
        "upstream.transport_failure_reason",
        Field::UpstreamTransportFailureReason,
    ),
    ("xds.cluster_name", Field::UpstreamCluster),
    ("xds.route_name", Field::RouteName),
];

/// Those that are headers.
const HEADERS: [(&str, &str); 7] = [
    ("request.path", ":path"),
    ("request.host", ":authority"),
    ("request.method", ":method"),
    ("request.scheme", ":scheme"),
    ("request.useragent", "user-agent"),
    ("request.referer", "referer"),
    ("request.id", "x-request-id"),
];

impl Attribute {
    /// From the names and indexes that were written.
    pub(super) fn compile(path: &[String]) -> Compiled<Self> {
        let whole = path.join(".");
        if let Some((_, field)) = FIELDS.iter().find(|(name, _)| *name == whole) {
            return Ok(Self::Field(*field));
        }
        if let Some((_, header)) = HEADERS.iter().find(|(name, _)| *name == whole) {
            return Ok(Self::Request((*header).to_owned()));
        }
        let parts: Vec<&str> = path.iter().map(String::as_str).collect();
        match parts.as_slice() {
            ["request", "headers", name] => Ok(Self::Request(name.to_ascii_lowercase())),
            ["response", "headers", name] => Ok(Self::Response(name.to_ascii_lowercase())),
            ["response", "trailers", name] => Ok(Self::Trailer(name.to_ascii_lowercase())),
            ["request", "url_path"] => Ok(Self::UrlPath),
            ["request", "query"] => Ok(Self::Query),
            ["connection", "mtls"] => Ok(Self::IsMutualTls),
            ["metadata", "filter_metadata", rest @ ..] if !rest.is_empty() => Ok(Self::Metadata(
                rest.iter().map(|part| (*part).to_owned()).collect(),
            )),
            _ => Err(Unsupported::new(format!(
                "the attribute {whole} is not known"
            ))),
        }
    }

    pub(super) fn value(&self, source: &dyn Source) -> Value {
        let text = |value: Option<std::borrow::Cow<'_, str>>| {
            value.map_or(Value::Error, |value| Value::Text(value.into_owned()))
        };
        let path = || source.request(":path").map(std::borrow::Cow::into_owned);
        match self {
            Self::Request(name) => text(source.request(name)),
            Self::Response(name) => text(source.response(name)),
            Self::Trailer(name) => text(source.trailer(name)),
            Self::Metadata(path) => text(source.metadata(path)),
            Self::Field(field) => match source.field(*field) {
                Some(Told::Number(number)) => {
                    Value::Int(count(usize::try_from(number).unwrap_or(usize::MAX)))
                }
                Some(Told::Text(value)) => Value::Text(value.into_owned()),
                None => Value::Error,
            },
            Self::UrlPath => match path() {
                Some(path) => Value::Text(path.split('?').next().unwrap_or_default().to_owned()),
                None => Value::Error,
            },
            Self::Query => match path() {
                Some(path) => {
                    let query = path.split_once('?').map_or("", |(_, query)| query);
                    Value::Text(query.to_owned())
                }
                None => Value::Error,
            },
            Self::IsMutualTls => Value::Bool(source.field(Field::PeerPrincipal).is_some()),
        }
    }

    pub(super) fn needs(&self, needed: &mut Needed) {
        let (list, name) = match self {
            Self::Request(name) => (&mut needed.request, name),
            Self::Response(name) => (&mut needed.response, name),
            Self::Trailer(name) => (&mut needed.trailers, name),
            Self::Metadata(_)
            | Self::Field(_)
            | Self::UrlPath
            | Self::Query
            | Self::IsMutualTls => return,
        };
        if !name.starts_with(':') && !list.contains(name) {
            list.push(name.clone());
        }
    }
}
