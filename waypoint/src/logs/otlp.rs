//! Access logs as OTLP has them (opentelemetry-proto 1.x, `opentelemetry.proto.collector.logs.v1`): the few messages by their field
//! numbers, and the templates that bodies and attributes are made of.

use envoy_types::pb::opentelemetry::proto::common::v1::{
    AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value::Value,
};

use super::Entry;
use crate::{
    config::error::{At, Compiled},
    format::{Field, Needed, Source, Template, Told},
    otlp::{Resource, nanoseconds, scope},
};

/// `ExportLogsServiceRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Request {
    #[prost(message, repeated, tag = "1")]
    resource_logs: Vec<ResourceLogs>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceLogs {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_logs: Vec<ScopeLogs>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScopeLogs {
    #[prost(message, optional, tag = "1")]
    scope: Option<InstrumentationScope>,
    #[prost(message, repeated, tag = "2")]
    log_records: Vec<Record>,
}

/// `LogRecord`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Record {
    #[prost(fixed64, tag = "1")]
    time_unix_nano: u64,
    #[prost(message, optional, tag = "5")]
    body: Option<AnyValue>,
    #[prost(message, repeated, tag = "6")]
    attributes: Vec<KeyValue>,
    #[prost(bytes = "vec", tag = "9")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "10")]
    span_id: Vec<u8>,
}

/// All of a message.
pub(super) fn request(attributes: Vec<KeyValue>, entries: Vec<Entry>) -> Request {
    let records = entries.into_iter().filter_map(|entry| match entry {
        Entry::Record(record) => Some(record),
        // Another wire's.
        Entry::Http(_) | Entry::Tcp(_) => None,
    });
    Request {
        resource_logs: vec![ResourceLogs {
            resource: Some(Resource { attributes }),
            scope_logs: vec![ScopeLogs {
                scope: Some(scope()),
                log_records: records.collect(),
            }],
        }],
    }
}

/// What records are made of.
#[derive(Debug)]
pub(crate) struct RecordFormat {
    body: Option<Shape>,
    attributes: Vec<(String, Shape)>,
}

/// A value with templates for its texts.
#[derive(Debug)]
enum Shape {
    Fixed(Option<Value>),
    Text(Template),
    List(Vec<Self>),
    Map(Vec<(String, Self)>),
}

impl RecordFormat {
    pub(crate) fn compile(
        body: Option<&AnyValue>,
        attributes: Option<&KeyValueList>,
    ) -> Compiled<Self> {
        Ok(Self {
            body: body.map(Shape::compile).transpose().at("body")?,
            attributes: Shape::pairs(attributes).at("attributes")?,
        })
    }

    pub(crate) fn needs(&self, needed: &mut Needed) {
        let values = self.attributes.iter().map(|(_, value)| value);
        values
            .chain(&self.body)
            .for_each(|value| value.needs(needed));
    }

    /// Of a request or a connection.
    pub(crate) fn record(&self, source: &dyn Source) -> Record {
        let id = |field| match source.field(field) {
            Some(Told::Text(text)) => bytes(&text),
            Some(Told::Number(_)) | None => Vec::new(),
        };
        let attributes = self.attributes.iter();
        Record {
            time_unix_nano: nanoseconds(source.start()),
            body: self.body.as_ref().map(|body| body.fill(source)),
            attributes: attributes
                .map(|(key, value)| pair(key, value.fill(source)))
                .collect(),
            trace_id: id(Field::TraceId),
            span_id: id(Field::SpanId),
        }
    }
}

fn pair(key: &str, value: AnyValue) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(value),
        ..KeyValue::default()
    }
}

impl Shape {
    fn compile(value: &AnyValue) -> Compiled<Self> {
        Ok(match &value.value {
            Some(Value::StringValue(text)) => Self::Text(Template::compile(text)?),
            Some(Value::ArrayValue(list)) => Self::List(
                list.values
                    .iter()
                    .map(Self::compile)
                    .collect::<Compiled<_>>()?,
            ),
            Some(Value::KvlistValue(list)) => Self::Map(Self::pairs(Some(list))?),
            fixed => Self::Fixed(fixed.clone()),
        })
    }

    fn pairs(list: Option<&KeyValueList>) -> Compiled<Vec<(String, Self)>> {
        let pairs = list.into_iter().flat_map(|list| &list.values);
        pairs
            .map(|pair| {
                let value = pair.value.as_ref().map(Self::compile).transpose();
                let value = value.at(&pair.key)?.unwrap_or(Self::Fixed(None));
                Ok((pair.key.clone(), value))
            })
            .collect()
    }

    fn fill(&self, source: &dyn Source) -> AnyValue {
        let value = match self {
            Self::Fixed(value) => value.clone(),
            Self::Text(template) => Some(Value::StringValue(template.text(source))),
            Self::List(items) => Some(Value::ArrayValue(ArrayValue {
                values: items.iter().map(|item| item.fill(source)).collect(),
            })),
            Self::Map(pairs) => Some(Value::KvlistValue(KeyValueList {
                values: pairs
                    .iter()
                    .map(|(key, value)| pair(key, value.fill(source)))
                    .collect(),
            })),
        };
        AnyValue { value }
    }

    fn needs(&self, needed: &mut Needed) {
        match self {
            Self::Fixed(_) => {}
            Self::Text(template) => needed.extend(template.headers()),
            Self::List(items) => items.iter().for_each(|item| item.needs(needed)),
            Self::Map(pairs) => pairs.iter().for_each(|(_, value)| value.needs(needed)),
        }
    }
}

/// Hexadecimal digits as bytes.
fn bytes(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks_exact(2);
    pairs
        .filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}
