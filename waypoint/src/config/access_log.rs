//! Access logs: what is written of which requests, and how. Parsed when the configuration arrives.

mod service;

use std::{sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::{
            accesslog::v3::{
                AccessLog as Proto, AccessLogFilter, ComparisonFilter, access_log,
                access_log_filter::FilterSpecifier, comparison_filter::Op,
            },
            core::v3::{
                DataSource, SubstitutionFormatString, data_source::Specifier,
                substitution_format_string::Format as FormatProto,
            },
        },
        extensions::access_loggers::{
            file::v3::{FileAccessLog, file_access_log::AccessLogFormat},
            grpc::v3::{HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig},
            open_telemetry::v3::OpenTelemetryAccessLogConfig,
            stream::v3::{StderrAccessLog, StdoutAccessLog, stderr_access_log, stdout_access_log},
        },
    },
    google::protobuf::{Struct, Value as ProtoValue, value::Kind},
};
use prost::Name;
use serde_json::{Map, Value};
use tracing::warn;

use self::service::ServiceLog;
use super::{
    any::decode,
    error::{At, Compiled, Unsupported},
    route::matching::Fraction,
};
use crate::{
    format::{Field, Needed, Source, Template, Told, escape_into},
    logs::{Collector, Entry},
};

/// Envoy's own, where a log says nothing.
const ENVOYS: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";
/// Where all access logs go: the standard output, in the order in which requests end.
const STDOUT: &str = "/dev/stdout";

/// The logs of one chain.
#[derive(Debug, Default)]
pub(crate) struct AccessLogs {
    logs: Vec<AccessLog>,
    /// Headers that they write.
    pub(crate) needed: Needed,
}

#[derive(Debug)]
struct AccessLog {
    filter: Option<Filter>,
    sink: Sink,
}

/// Where it goes, and how it looks.
#[derive(Debug)]
enum Sink {
    Lines(Format),
    Service(ServiceLog),
}

#[derive(Debug)]
enum Format {
    Text(Template),
    Json { value: Json, omits_empty: bool },
}

/// A JSON value with templates for its texts.
#[derive(Debug)]
enum Json {
    Fixed(Value),
    Template(Template),
    List(Vec<Self>),
    Object(Vec<(String, Self)>),
}

#[derive(Debug)]
enum Filter {
    Status(Op, u64),
    Duration(Op, u64),
    Flags(Vec<String>),
    Grpc(Vec<u64>, Exclude),
    Share(Fraction),
    And(Vec<Self>),
    Or(Vec<Self>),
    Expression(crate::cel::Expression),
    Always,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exclude {
    These,
    Others,
}

impl AccessLogs {
    pub(crate) fn compile(protos: &[Proto]) -> Compiled<Self> {
        let mut compiled = Self::default();
        for (index, proto) in protos.iter().enumerate() {
            let log = AccessLog::compile(proto).at_item("access_log", index)?;
            if let Some(log) = log {
                log.sink.needs(&mut compiled.needed);
                if let Some(filter) = &log.filter {
                    filter.needs(&mut compiled.needed);
                }
                compiled.logs.push(log);
            }
        }
        Ok(compiled)
    }

    /// The lines of a request or a connection, each with its line feed.
    pub(crate) fn lines(&self, source: &dyn Source) -> impl Iterator<Item = String> {
        self.logs.iter().filter_map(|log| match &log.sink {
            Sink::Lines(format) => log.takes(source).then(|| format.line(source)),
            Sink::Service(_) => None,
        })
    }

    /// What services are told of a request or a connection.
    pub(crate) fn entries(
        &self,
        source: &dyn Source,
    ) -> impl Iterator<Item = (&Arc<Collector>, Entry)> {
        self.logs.iter().filter_map(|log| match &log.sink {
            Sink::Lines(_) => None,
            Sink::Service(service) if log.takes(source) => {
                Some((&service.collector, service.entry(source)?))
            }
            Sink::Service(_) => None,
        })
    }
}

impl AccessLog {
    fn takes(&self, source: &dyn Source) -> bool {
        let filter = self.filter.as_ref();
        filter.is_none_or(|filter| filter.takes(source))
    }

    /// `None` for a log of an unknown kind, which is told as a warning: nobody is refused for the lack of it.
    fn compile(proto: &Proto) -> Compiled<Option<Self>> {
        let Some(access_log::ConfigType::TypedConfig(any)) = &proto.config_type else {
            return Err(Unsupported::missing("typed_config"));
        };
        let sink = match any.type_url.as_str() {
            url if url == FileAccessLog::type_url() => Sink::Lines(file(&decode(any)?)?),
            url if url == StdoutAccessLog::type_url() => {
                let log: StdoutAccessLog = decode(any)?;
                let format = log.access_log_format.map(|format| match format {
                    stdout_access_log::AccessLogFormat::LogFormat(format) => format,
                });
                Sink::Lines(substitution(&format.unwrap_or_default())?)
            }
            url if url == StderrAccessLog::type_url() => {
                let log: StderrAccessLog = decode(any)?;
                let format = log.access_log_format.map(|format| match format {
                    stderr_access_log::AccessLogFormat::LogFormat(format) => format,
                });
                Sink::Lines(substitution(&format.unwrap_or_default())?)
            }
            url if url == HttpGrpcAccessLogConfig::type_url() => {
                Sink::Service(ServiceLog::http(&decode(any)?)?)
            }
            url if url == TcpGrpcAccessLogConfig::type_url() => {
                Sink::Service(ServiceLog::tcp(&decode(any)?)?)
            }
            url if url == OpenTelemetryAccessLogConfig::type_url() => {
                Sink::Service(ServiceLog::otlp(&decode(any)?)?)
            }
            url => {
                warn!(url, "access logs of this type are not written");
                return Ok(None);
            }
        };
        let filter = proto.filter.as_ref().map(Filter::compile);
        Ok(Some(Self {
            filter: filter.transpose().at("filter")?,
            sink,
        }))
    }
}

#[expect(deprecated, reason = "older control planes send these forms")]
fn file(log: &FileAccessLog) -> Compiled<Format> {
    if log.path != STDOUT {
        warn!(
            path = log.path,
            "access logs go to the standard output, whatever file is named"
        );
    }
    match &log.access_log_format {
        None => Ok(Format::Text(Template::compile(ENVOYS)?)),
        Some(AccessLogFormat::Format(text)) => Ok(Format::Text(Template::compile(text)?)),
        Some(AccessLogFormat::JsonFormat(fields) | AccessLogFormat::TypedJsonFormat(fields)) => {
            Ok(Format::Json {
                value: Json::object(fields)?,
                omits_empty: false,
            })
        }
        Some(AccessLogFormat::LogFormat(format)) => substitution(format),
    }
}

#[expect(deprecated, reason = "older control planes send a text format")]
fn substitution(format: &SubstitutionFormatString) -> Compiled<Format> {
    match &format.format {
        None => Ok(Format::Text(Template::compile(ENVOYS)?)),
        Some(FormatProto::TextFormat(text)) => Ok(Format::Text(Template::compile(text)?)),
        Some(FormatProto::TextFormatSource(DataSource {
            specifier: Some(Specifier::InlineString(text)),
            ..
        })) => Ok(Format::Text(Template::compile(text)?)),
        Some(FormatProto::TextFormatSource(_)) => {
            Err(Unsupported::new("a format that is not inline"))
        }
        Some(FormatProto::JsonFormat(fields)) => Ok(Format::Json {
            value: Json::object(fields)?,
            omits_empty: format.omit_empty_values,
        }),
    }
}

impl Sink {
    fn needs(&self, needed: &mut Needed) {
        match self {
            Self::Lines(format) => format.needs(needed),
            Self::Service(service) => service.needs(needed),
        }
    }
}

impl Format {
    fn line(&self, source: &dyn Source) -> String {
        match self {
            Self::Text(template) => {
                let mut line = template.line(source);
                if !line.ends_with('\n') {
                    line.push('\n');
                }
                line
            }
            Self::Json { value, omits_empty } => {
                let value = value.fill(source, *omits_empty);
                format!("{value}\n")
            }
        }
    }

    fn needs(&self, needed: &mut Needed) {
        match self {
            Self::Text(template) => needed.extend(template.headers()),
            Self::Json { value, .. } => value.needs(needed),
        }
    }
}

impl Json {
    /// Keys in their order: a struct has none of its own.
    fn object(fields: &Struct) -> Compiled<Self> {
        let mut pairs = Vec::with_capacity(fields.fields.len());
        for (key, value) in &fields.fields {
            pairs.push((key.clone(), Self::of(value).at(key)?));
        }
        pairs.sort_by(|(first, _), (second, _)| first.cmp(second));
        Ok(Self::Object(pairs))
    }

    fn of(value: &ProtoValue) -> Compiled<Self> {
        Ok(match &value.kind {
            None | Some(Kind::NullValue(_)) => Self::Fixed(Value::Null),
            Some(Kind::BoolValue(flag)) => Self::Fixed(Value::Bool(*flag)),
            Some(Kind::NumberValue(number)) => Self::Fixed(Value::from(*number)),
            Some(Kind::StringValue(text)) => Self::Template(Template::compile(text)?),
            Some(Kind::StructValue(fields)) => Self::object(fields)?,
            Some(Kind::ListValue(list)) => Self::List(
                list.values
                    .iter()
                    .map(Self::of)
                    .collect::<Compiled<Vec<_>>>()?,
            ),
        })
    }

    fn fill(&self, source: &dyn Source, omits_empty: bool) -> Value {
        match self {
            Self::Fixed(value) => value.clone(),
            Self::Template(template) => template.json(source),
            Self::List(items) => items
                .iter()
                .map(|item| item.fill(source, omits_empty))
                .collect(),
            Self::Object(pairs) => {
                let mut object = Map::new();
                for (key, value) in pairs {
                    let value = value.fill(source, omits_empty);
                    if !(omits_empty && value.is_null()) {
                        object.insert(key.clone(), value);
                    }
                }
                Value::Object(object)
            }
        }
    }

    fn needs(&self, needed: &mut Needed) {
        match self {
            Self::Fixed(_) => {}
            Self::Template(template) => needed.extend(template.headers()),
            Self::List(items) => items.iter().for_each(|item| item.needs(needed)),
            Self::Object(pairs) => pairs.iter().for_each(|(_, value)| value.needs(needed)),
        }
    }
}

impl Filter {
    fn compile(proto: &AccessLogFilter) -> Compiled<Self> {
        let specifier = proto.filter_specifier.as_ref();
        let all = |filters: &[AccessLogFilter]| {
            let filters = filters.iter().map(Self::compile);
            filters.collect::<Compiled<Vec<_>>>()
        };
        Ok(
            match specifier.ok_or_else(|| Unsupported::missing("filter_specifier"))? {
                FilterSpecifier::StatusCodeFilter(filter) => {
                    let (op, value) = comparison(filter.comparison.as_ref())?;
                    Self::Status(op, value)
                }
                FilterSpecifier::DurationFilter(filter) => {
                    let (op, value) = comparison(filter.comparison.as_ref())?;
                    Self::Duration(op, value)
                }
                FilterSpecifier::ResponseFlagFilter(filter) => Self::Flags(filter.flags.clone()),
                FilterSpecifier::GrpcStatusFilter(filter) => Self::Grpc(
                    filter
                        .statuses
                        .iter()
                        .filter_map(|status| u64::try_from(*status).ok())
                        .collect(),
                    if filter.exclude {
                        Exclude::These
                    } else {
                        Exclude::Others
                    },
                ),
                FilterSpecifier::RuntimeFilter(filter) => Self::Share(Fraction::compile(
                    &filter.percent_sampled.unwrap_or_default(),
                )?),
                FilterSpecifier::AndFilter(filter) => Self::And(all(&filter.filters)?),
                FilterSpecifier::OrFilter(filter) => Self::Or(all(&filter.filters)?),
                // Nothing here is a health check of the waypoint's own.
                FilterSpecifier::NotHealthCheckFilter(_) => Self::Always,
                FilterSpecifier::ExtensionFilter(filter) => expression(filter)?,
                FilterSpecifier::TraceableFilter(_)
                | FilterSpecifier::HeaderFilter(_)
                | FilterSpecifier::MetadataFilter(_)
                | FilterSpecifier::LogTypeFilter(_) => {
                    return Err(Unsupported::new(
                        "a filter by tracing, header, metadata or type of log",
                    ));
                }
            },
        )
    }

    fn takes(&self, source: &dyn Source) -> bool {
        let number = |field| match source.field(field) {
            Some(Told::Number(number)) => number,
            Some(Told::Text(_)) | None => 0,
        };
        match self {
            Self::Status(op, value) => compare(*op, number(Field::ResponseCode), *value),
            Self::Duration(op, value) => compare(*op, number(Field::Duration), *value),
            Self::Flags(wanted) => match source.field(Field::ResponseFlags) {
                Some(Told::Text(flags)) => flags.split(',').any(|flag| {
                    flag != "-" && (wanted.is_empty() || wanted.iter().any(|one| one == flag))
                }),
                Some(Told::Number(_)) | None => false,
            },
            Self::Grpc(statuses, exclude) => {
                let status = number(Field::GrpcStatusNumber);
                statuses.contains(&status) == (*exclude == Exclude::Others)
            }
            Self::Share(share) => share.takes(rand::random()),
            Self::And(filters) => filters.iter().all(|filter| filter.takes(source)),
            Self::Or(filters) => filters.iter().any(|filter| filter.takes(source)),
            Self::Expression(expression) => expression.is_true(source),
            Self::Always => true,
        }
    }

    fn needs(&self, needed: &mut Needed) {
        match self {
            Self::And(filters) | Self::Or(filters) => {
                filters.iter().for_each(|filter| filter.needs(needed));
            }
            Self::Expression(expression) => needed.extend(expression.headers()),
            Self::Status(..)
            | Self::Duration(..)
            | Self::Flags(_)
            | Self::Grpc(..)
            | Self::Share(_)
            | Self::Always => {}
        }
    }
}

fn expression(
    filter: &envoy_types::pb::envoy::config::accesslog::v3::ExtensionFilter,
) -> Compiled<Filter> {
    use envoy_types::pb::envoy::{
        config::accesslog::v3::extension_filter::ConfigType,
        extensions::access_loggers::filters::cel::v3::ExpressionFilter,
    };
    let Some(ConfigType::TypedConfig(any)) = &filter.config_type else {
        return Err(Unsupported::missing("extension_filter.typed_config"));
    };
    let filter: ExpressionFilter = decode(any)?;
    crate::cel::Expression::compile(&filter.expression)
        .map(Filter::Expression)
        .at("expression")
}

fn comparison(filter: Option<&ComparisonFilter>) -> Compiled<(Op, u64)> {
    let filter = filter.ok_or_else(|| Unsupported::missing("comparison"))?;
    let op = Op::try_from(filter.op).map_err(|_unknown| Unsupported::new("op"))?;
    let value = filter.value.as_ref().map_or(0, |value| value.default_value);
    Ok((op, value.into()))
}

fn compare(op: Op, had: u64, wanted: u64) -> bool {
    match op {
        Op::Eq => had == wanted,
        Op::Ge => had >= wanted,
        Op::Le => had <= wanted,
        Op::Ne => had != wanted,
    }
}

/// Milliseconds, whole.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Template {
    /// The text as a line of a log: what clients send cannot break out of it.
    fn line(&self, source: &dyn Source) -> String {
        self.fill(source, escape_into)
    }
}

#[cfg(test)]
mod tests;
