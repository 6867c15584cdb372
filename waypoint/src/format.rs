//! Envoy's format strings (`%REQ(:METHOD)% %RESPONSE_CODE%`), parsed once when the configuration arrives: access logs, custom
//! tags of spans, and values of rate limit descriptors are written in them.
//!
//! An operator that is not known refuses the configuration; a value that is not there is `-`, or null in JSON.

pub(crate) mod time;

use std::{borrow::Cow, fmt::Write};

use serde_json::{Number, Value};

use self::time::TimeFormat;
use crate::config::error::{At, Compiled, Unsupported};

/// What a missing value is written as.
const MISSING: &str = "-";

/// A format string.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Literal(String),
    Operator {
        operator: Operator,
        /// Longer values are cut.
        limit: Option<usize>,
    },
}

/// One command operator.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operator {
    Request(Names),
    RequestWithoutQuery(Names),
    Response(Names),
    Trailer(Names),
    StartTime(TimeFormat),
    /// Of dynamic metadata: the filter's name, then the path.
    Metadata(Vec<String>),
    Fixed(String),
    Field(Field),
}

/// A header, and the one that stands in for it where it is missing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Names {
    first: String,
    second: Option<String>,
}

/// What has no arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Protocol,
    ResponseCode,
    ResponseCodeDetails,
    ResponseFlags,
    ResponseFlagsLong,
    ConnectionTerminationDetails,
    UpstreamTransportFailureReason,
    BytesReceived,
    BytesSent,
    Duration,
    RequestDuration,
    ResponseDuration,
    ResponseTxDuration,
    UpstreamServiceTime,
    UpstreamHost,
    UpstreamHostWithoutPort,
    UpstreamCluster,
    UpstreamLocalAddress,
    UpstreamAttempts,
    DownstreamLocal,
    DownstreamLocalWithoutPort,
    DownstreamLocalPort,
    DownstreamRemote,
    DownstreamRemoteWithoutPort,
    DownstreamRemotePort,
    RequestedServerName,
    RouteName,
    PeerPrincipal,
    LocalPrincipal,
    Authority,
    Path,
    PathWithoutQuery,
    GrpcStatus,
    GrpcStatusNumber,
    TraceId,
    SpanId,
}

/// Names of the fields; some have two.
const FIELDS: [(&str, Field); 45] = [
    ("PROTOCOL", Field::Protocol),
    ("RESPONSE_CODE", Field::ResponseCode),
    ("RESPONSE_CODE_DETAILS", Field::ResponseCodeDetails),
    ("RESPONSE_FLAGS", Field::ResponseFlags),
    ("RESPONSE_FLAGS_LONG", Field::ResponseFlagsLong),
    (
        "CONNECTION_TERMINATION_DETAILS",
        Field::ConnectionTerminationDetails,
    ),
    (
        "UPSTREAM_TRANSPORT_FAILURE_REASON",
        Field::UpstreamTransportFailureReason,
    ),
    ("BYTES_RECEIVED", Field::BytesReceived),
    ("BYTES_SENT", Field::BytesSent),
    ("DURATION", Field::Duration),
    ("REQUEST_DURATION", Field::RequestDuration),
    ("RESPONSE_DURATION", Field::ResponseDuration),
    ("RESPONSE_TX_DURATION", Field::ResponseTxDuration),
    ("UPSTREAM_HOST", Field::UpstreamHost),
    ("UPSTREAM_REMOTE_ADDRESS", Field::UpstreamHost),
    (
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
        Field::UpstreamHostWithoutPort,
    ),
    ("UPSTREAM_CLUSTER", Field::UpstreamCluster),
    ("UPSTREAM_CLUSTER_RAW", Field::UpstreamCluster),
    ("UPSTREAM_LOCAL_ADDRESS", Field::UpstreamLocalAddress),
    ("UPSTREAM_REQUEST_ATTEMPT_COUNT", Field::UpstreamAttempts),
    ("DOWNSTREAM_LOCAL_ADDRESS", Field::DownstreamLocal),
    (
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
        Field::DownstreamLocalWithoutPort,
    ),
    ("DOWNSTREAM_LOCAL_PORT", Field::DownstreamLocalPort),
    ("DOWNSTREAM_REMOTE_ADDRESS", Field::DownstreamRemote),
    (
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
        Field::DownstreamRemoteWithoutPort,
    ),
    ("DOWNSTREAM_REMOTE_PORT", Field::DownstreamRemotePort),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", Field::DownstreamRemote),
    (
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
        Field::DownstreamRemoteWithoutPort,
    ),
    ("REQUESTED_SERVER_NAME", Field::RequestedServerName),
    ("ROUTE_NAME", Field::RouteName),
    ("DOWNSTREAM_PEER_URI_SAN", Field::PeerPrincipal),
    ("DOWNSTREAM_LOCAL_URI_SAN", Field::LocalPrincipal),
    (
        "FILTER_STATE(io.istio.peer_principal)",
        Field::PeerPrincipal,
    ),
    (
        "FILTER_STATE(io.istio.peer_principal:PLAIN)",
        Field::PeerPrincipal,
    ),
    (
        "FILTER_STATE(io.istio.local_principal:PLAIN)",
        Field::LocalPrincipal,
    ),
    ("PATH", Field::Path),
    ("PATH(WQ)", Field::Path),
    ("PATH(WQ:ORIG)", Field::Path),
    ("PATH(NQ)", Field::PathWithoutQuery),
    ("PATH(NQ:ORIG)", Field::PathWithoutQuery),
    ("GRPC_STATUS", Field::GrpcStatus),
    ("GRPC_STATUS_NUMBER", Field::GrpcStatusNumber),
    ("TRACE_ID", Field::TraceId),
    ("SPAN_ID", Field::SpanId),
    ("REQ(:AUTHORITY)", Field::Authority),
];

/// Where values come from: a request under way, a finished one, a connection.
pub(crate) trait Source {
    /// A header of the request, by its name in lower case; pseudo headers too.
    fn request(&self, name: &str) -> Option<Cow<'_, str>>;
    /// A header of the response.
    fn response(&self, name: &str) -> Option<Cow<'_, str>>;
    /// A trailer of the response.
    fn trailer(&self, name: &str) -> Option<Cow<'_, str>>;
    /// What a filter found out.
    fn metadata(&self, path: &[String]) -> Option<Cow<'_, str>>;
    /// Anything else.
    fn field(&self, field: Field) -> Option<Told<'_>>;
    /// When it began.
    fn start(&self) -> std::time::SystemTime;
}

/// A value; JSON keeps numbers as numbers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told<'a> {
    Text(Cow<'a, str>),
    Number(u64),
}

impl<'a> Told<'a> {
    pub(crate) fn text(text: impl Into<Cow<'a, str>>) -> Self {
        Self::Text(text.into())
    }

    fn into_text(self) -> Cow<'a, str> {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string().into(),
        }
    }
}

impl Template {
    pub(crate) fn compile(text: &str) -> Compiled<Self> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            literal.push_str(before);
            if let Some(after) = after.strip_prefix('%') {
                literal.push('%');
                rest = after;
                continue;
            }
            let (operator, after) = operator_text(after)?;
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            parts.push(part(operator).at(format!("%{operator}%"))?);
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self { parts })
    }

    /// The text, with `-` for what is missing.
    pub(crate) fn text(&self, source: &dyn Source) -> String {
        self.fill(source, String::push_str)
    }

    /// The same; `put` writes what comes from the request.
    pub(crate) fn fill(&self, source: &dyn Source, put: impl Fn(&mut String, &str)) -> String {
        let mut text = String::with_capacity(256);
        for part in &self.parts {
            match part {
                Part::Literal(literal) => text.push_str(literal),
                Part::Operator { operator, limit } => match operator.value(source) {
                    Some(value) => put(&mut text, cut(&value.into_text(), *limit)),
                    None => text.push_str(MISSING),
                },
            }
        }
        text
    }

    /// The text; `None` when a value is missing.
    pub(crate) fn whole(&self, source: &dyn Source) -> Option<String> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Literal(literal) => text.push_str(literal),
                Part::Operator { operator, limit } => {
                    text.push_str(cut(&operator.value(source)?.into_text(), *limit));
                }
            }
        }
        Some(text)
    }

    /// As a JSON value: an operator alone keeps its type, and is null where it is missing.
    pub(crate) fn json(&self, source: &dyn Source) -> Value {
        match self.parts.as_slice() {
            [Part::Operator { operator, limit }] => match operator.value(source) {
                None => Value::Null,
                Some(Told::Number(number)) => Value::Number(Number::from(number)),
                Some(Told::Text(text)) => Value::String(cut(&text, *limit).to_owned()),
            },
            _ => Value::String(self.text(source)),
        }
    }

    /// The headers that it needs of requests and of responses; pseudo headers left out.
    pub(crate) fn headers(&self) -> Needed {
        let mut needed = Needed::default();
        for part in &self.parts {
            let Part::Operator { operator, .. } = part else {
                continue;
            };
            match operator {
                Operator::Request(names) | Operator::RequestWithoutQuery(names) => {
                    needed.request.extend(names.all());
                }
                Operator::Response(names) => needed.response.extend(names.all()),
                Operator::Trailer(names) => needed.trailers.extend(names.all()),
                Operator::StartTime(_)
                | Operator::Metadata(_)
                | Operator::Fixed(_)
                | Operator::Field(_) => {}
            }
        }
        needed
    }
}

/// Names of headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needed {
    pub(crate) request: Vec<String>,
    pub(crate) response: Vec<String>,
    pub(crate) trailers: Vec<String>,
}

impl Needed {
    pub(crate) fn extend(&mut self, other: Self) {
        let lists = [
            (&mut self.request, other.request),
            (&mut self.response, other.response),
            (&mut self.trailers, other.trailers),
        ];
        for (list, more) in lists {
            for name in more {
                if !list.contains(&name) {
                    list.push(name);
                }
            }
        }
    }
}

impl Names {
    fn all(&self) -> impl Iterator<Item = String> + '_ {
        let both = std::iter::once(&self.first).chain(&self.second);
        both.filter(|name| !name.starts_with(':')).cloned()
    }

    fn parse(argument: &str) -> Compiled<Self> {
        let lower = argument.trim().to_ascii_lowercase();
        let (first, second) = match lower.split_once('?') {
            Some((first, second)) => (first, Some(second.to_owned())),
            None => (lower.as_str(), None),
        };
        if first.is_empty() || second.as_ref().is_some_and(String::is_empty) {
            return Err(Unsupported::new("no name of a header"));
        }
        Ok(Self {
            first: first.to_owned(),
            second,
        })
    }
}

/// At most so many bytes, at a character's end.
fn cut(text: &str, limit: Option<usize>) -> &str {
    let Some(limit) = limit else { return text };
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// What is between two percent signs, one of which may be within parentheses (`%START_TIME(%Y)%`).
fn operator_text(text: &str) -> Compiled<(&str, &str)> {
    let mut depth = 0u32;
    for (position, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            '%' if depth == 0 => {
                let (operator, after) = text.split_at(position);
                return Ok((operator, after.strip_prefix('%').unwrap_or_default()));
            }
            _ => {}
        }
    }
    Err(Unsupported::new(format!("no second % after `%{text}`")))
}

fn part(text: &str) -> Compiled<Part> {
    // A limit follows the closing parenthesis or, where there is none, the name.
    let arguments = text.rfind(')').map_or(0, |end| end + 1);
    let after = text.get(arguments..).unwrap_or_default();
    let (text, limit) = match after.find(':') {
        Some(colon) => text.split_at(arguments + colon),
        None => (text, ""),
    };
    let limit = match limit.strip_prefix(':') {
        None => None,
        Some(number) => Some(
            number
                .parse()
                .map_err(|_not_a_number| Unsupported::new("the limit is no number"))?,
        ),
    };
    Ok(Part::Operator {
        operator: operator(text)?,
        limit,
    })
}

fn operator(text: &str) -> Compiled<Operator> {
    if let Some((_, field)) = FIELDS.iter().find(|(name, _)| *name == text) {
        return Ok(Operator::Field(*field));
    }
    let (name, argument) = match text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        Some((name, argument)) => (name, Some(argument)),
        None => (text, None),
    };
    match (name, argument) {
        ("REQ", Some(argument)) => Names::parse(argument).map(Operator::Request),
        ("REQ_WITHOUT_QUERY", Some(argument)) => {
            Names::parse(argument).map(Operator::RequestWithoutQuery)
        }
        ("RESP", Some(argument)) => {
            let names = Names::parse(argument)?;
            // Envoy's router sets this header; here the time is known without it.
            if names.first == "x-envoy-upstream-service-time" {
                return Ok(Operator::Field(Field::UpstreamServiceTime));
            }
            Ok(Operator::Response(names))
        }
        ("TRAILER", Some(argument)) => Names::parse(argument).map(Operator::Trailer),
        ("START_TIME", argument) => {
            TimeFormat::compile(argument.unwrap_or_default()).map(Operator::StartTime)
        }
        ("DYNAMIC_METADATA", Some(argument)) => Ok(Operator::Metadata(
            argument.split(':').map(str::to_owned).collect(),
        )),
        // Set once for the life of the process.
        ("HOSTNAME", None) => Ok(Operator::Fixed(hostname())),
        ("GRPC_STATUS", Some("CAMEL_STRING")) => Ok(Operator::Field(Field::GrpcStatus)),
        ("GRPC_STATUS", Some("NUMBER")) => Ok(Operator::Field(Field::GrpcStatusNumber)),
        _ => Err(Unsupported::new("an operator that is not known")),
    }
}

fn hostname() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname");
    text.map_or_else(
        |_unreadable| MISSING.to_owned(),
        |text| text.trim().to_owned(),
    )
}

impl Operator {
    fn value<'a>(&'a self, source: &'a dyn Source) -> Option<Told<'a>> {
        let header = |names: &'a Names, get: &dyn Fn(&'a str) -> Option<Cow<'a, str>>| {
            get(&names.first).or_else(|| get(names.second.as_deref()?))
        };
        match self {
            Self::Request(names) => header(names, &|name| source.request(name)).map(Told::Text),
            Self::RequestWithoutQuery(names) => {
                let value = header(names, &|name| source.request(name))?;
                let path = value.split('?').next().unwrap_or_default();
                Some(Told::text(path.to_owned()))
            }
            Self::Response(names) => header(names, &|name| source.response(name)).map(Told::Text),
            Self::Trailer(names) => header(names, &|name| source.trailer(name)).map(Told::Text),
            Self::StartTime(format) => Some(Told::text(format.text(source.start()))),
            Self::Metadata(path) => source.metadata(path).map(Told::Text),
            Self::Fixed(text) => Some(Told::text(text.as_str())),
            Self::Field(Field::Authority) => source.request(":authority").map(Told::Text),
            Self::Field(Field::Path) => source.request(":path").map(Told::Text),
            Self::Field(Field::PathWithoutQuery) => {
                let path = source.request(":path")?;
                let path = path.split('?').next().unwrap_or_default();
                Some(Told::text(path.to_owned()))
            }
            Self::Field(field) => source.field(*field),
        }
    }
}

/// A string in a line of text: quotes and control characters cannot end it.
pub(crate) fn escape_into(line: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            control if control.is_control() => {
                // A string takes everything.
                write!(line, "\\x{:02x}", u32::from(control)).ok();
            }
            plain => line.push(plain),
        }
    }
}

#[cfg(test)]
mod tests;
