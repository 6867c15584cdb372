//! Messages with structs in them, encoded so that the same JSON always gives the same bytes: `google.protobuf.Struct` as
//! generated has no order.

use std::collections::BTreeMap;

use envoy_types::pb::{
    envoy::extensions::access_loggers::file::v3::FileAccessLog, google::protobuf::Any,
};
use prost::{Message, Name, Oneof};
use serde_json::Value as Json;

const TYPED_STRUCT: &str = "type.googleapis.com/udpa.type.v1.TypedStruct";

/// `google.protobuf.Struct`.
#[derive(Clone, PartialEq, Message)]
struct Struct {
    #[prost(btree_map = "string, message", tag = "1")]
    fields: BTreeMap<String, Value>,
}

/// `google.protobuf.Value`.
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Kind {
    #[prost(int32, tag = "1")]
    Null(i32),
    #[prost(double, tag = "2")]
    Number(f64),
    #[prost(string, tag = "3")]
    Text(String),
    #[prost(bool, tag = "4")]
    Flag(bool),
    #[prost(message, tag = "5")]
    Struct(Struct),
    #[prost(message, tag = "6")]
    List(List),
}

/// `google.protobuf.ListValue`.
#[derive(Clone, PartialEq, Message)]
struct List {
    #[prost(message, repeated, tag = "1")]
    values: Vec<Value>,
}

/// `udpa.type.v1.TypedStruct`.
#[derive(Clone, PartialEq, Message)]
struct TypedStruct {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Struct>,
}

/// `envoy.extensions.access_loggers.file.v3.FileAccessLog`.
#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(message, optional, tag = "5")]
    log_format: Option<Format>,
}

/// `envoy.config.core.v3.SubstitutionFormatString`.
#[derive(Clone, PartialEq, Message)]
struct Format {
    #[prost(message, optional, tag = "2")]
    json_format: Option<Struct>,
    #[prost(message, optional, tag = "5")]
    text_format_source: Option<Inline>,
}

/// `envoy.config.core.v3.DataSource`.
#[derive(Clone, PartialEq, Message)]
struct Inline {
    #[prost(string, tag = "3")]
    inline_string: String,
}

impl Struct {
    fn of(json: &Json) -> Self {
        let Json::Object(fields) = json else {
            return Self::default();
        };
        let fields = fields.iter();
        Self {
            fields: fields
                .map(|(name, value)| (name.clone(), Value::of(value)))
                .collect(),
        }
    }
}

impl Value {
    fn of(json: &Json) -> Self {
        let kind = match json {
            Json::Null => Kind::Null(0),
            Json::Bool(flag) => Kind::Flag(*flag),
            Json::Number(number) => Kind::Number(number.as_f64().unwrap_or_default()),
            Json::String(text) => Kind::Text(text.clone()),
            Json::Array(items) => Kind::List(List {
                values: items.iter().map(Self::of).collect(),
            }),
            Json::Object(_) => Kind::Struct(Struct::of(json)),
        };
        Self { kind: Some(kind) }
    }
}

fn file(path: &str, format: Format) -> Any {
    let file = File {
        path: path.to_owned(),
        log_format: Some(format),
    };
    Any {
        type_url: FileAccessLog::type_url(),
        value: file.encode_to_vec(),
    }
}

/// A log whose lines are JSON.
pub(super) fn json_log(path: &str, fields: &Json) -> Any {
    file(
        path,
        Format {
            json_format: Some(Struct::of(fields)),
            text_format_source: None,
        },
    )
}

/// A log whose lines are text.
pub(super) fn text_log(path: &str, text: &str) -> Any {
    file(
        path,
        Format {
            json_format: None,
            text_format_source: Some(Inline {
                inline_string: text.to_owned(),
            }),
        },
    )
}

/// A configuration of Istio's own filters.
pub(super) fn typed_struct(type_url: &str, value: &Json) -> Any {
    let message = TypedStruct {
        type_url: type_url.to_owned(),
        value: Some(Struct::of(value)),
    };
    Any {
        type_url: TYPED_STRUCT.to_owned(),
        value: message.encode_to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::{
        config::core::v3::substitution_format_string::Format as FormatProto,
        extensions::access_loggers::file::v3::file_access_log::AccessLogFormat,
    };
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_reads_as_envoys_message() {
        let any = json_log("/dev/stdout", &json!({"a": {"b": ["%X%", 1, true, null]}}));
        let log = FileAccessLog::decode(any.value.as_slice()).unwrap();
        let Some(AccessLogFormat::LogFormat(format)) = log.access_log_format else {
            panic!("no format");
        };
        assert!(matches!(format.format, Some(FormatProto::JsonFormat(_))));
        let any = text_log("/dev/stdout", "x\n");
        let log = FileAccessLog::decode(any.value.as_slice()).unwrap();
        assert_eq!(log.path, "/dev/stdout");
    }

    #[test]
    fn the_same_json_gives_the_same_bytes() {
        let fields = (0..50).map(|number| (number.to_string(), json!(number)));
        let fields: Json = Json::Object(fields.collect());
        let first = typed_struct("x", &fields);
        assert!((0..20).all(|_| typed_struct("x", &fields.clone()) == first));
    }
}
