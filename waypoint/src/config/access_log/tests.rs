use std::{borrow::Cow, time::SystemTime};

use envoy_types::pb::{
    envoy::config::{
        accesslog::v3::{AndFilter, ResponseFlagFilter, StatusCodeFilter},
        core::v3::RuntimeUInt32,
    },
    google::protobuf::Any,
};
use prost::Message;
use serde_json::json;

use super::*;

/// A request that was answered with this status.
pub(super) struct Fake(pub(super) u64);

impl Source for Fake {
    fn request(&self, name: &str) -> Option<Cow<'_, str>> {
        match name {
            ":method" => Some("GET".into()),
            ":path" => Some("/a\"b".into()),
            "x-user" => Some("alice".into()),
            _ => None,
        }
    }

    fn response(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }

    fn trailer(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }

    fn metadata(&self, _path: &[String]) -> Option<Cow<'_, str>> {
        None
    }

    fn field(&self, field: Field) -> Option<Told<'_>> {
        match field {
            Field::ResponseCode => Some(Told::Number(self.0)),
            Field::ResponseFlags => Some(Told::text(if self.0 < 500 { "-" } else { "UF,URX" })),
            Field::Protocol => Some(Told::text("HTTP/1.1")),
            _ => None,
        }
    }

    fn start(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

fn logs(format: Option<FormatProto>, filter: Option<FilterSpecifier>) -> AccessLogs {
    let file = FileAccessLog {
        path: STDOUT.to_owned(),
        access_log_format: format.map(|format| {
            AccessLogFormat::LogFormat(SubstitutionFormatString {
                format: Some(format),
                ..SubstitutionFormatString::default()
            })
        }),
    };
    let proto = Proto {
        name: "envoy.access_loggers.file".to_owned(),
        filter: filter.map(|filter| AccessLogFilter {
            filter_specifier: Some(filter),
        }),
        config_type: Some(access_log::ConfigType::TypedConfig(any(&file))),
    };
    AccessLogs::compile(&[proto]).unwrap()
}

fn lines(logs: &AccessLogs, status: u64) -> Vec<String> {
    logs.lines(&Fake(status)).collect()
}

#[test]
fn envoys_own_format_is_a_line_that_a_client_cannot_end() {
    let expected = "[1970-01-01T00:00:00.000Z] \"GET /a\\\"b HTTP/1.1\" 200 - - - - - \"-\" \"-\" \"-\" \"-\" \"-\"\n";
    assert_eq!(lines(&logs(None, None), 200), [expected]);
}

#[test]
fn json_has_its_types_and_an_order() {
    let text = |text: &str| ProtoValue {
        kind: Some(Kind::StringValue(text.to_owned())),
    };
    let fields = [
        ("response_code", text("%RESPONSE_CODE%")),
        ("method", text("%REQ(:METHOD)%")),
        ("route_name", text("%ROUTE_NAME%")),
        ("agent", text("%REQ(USER-AGENT)%")),
    ];
    let fields = fields.map(|(name, value)| (name.to_owned(), value));
    let format = FormatProto::JsonFormat(Struct {
        fields: fields.into_iter().collect(),
    });
    let logs = logs(Some(format), None);
    assert_eq!(logs.needed.request, ["user-agent"]);
    let lines = lines(&logs, 200);
    let read: Value = serde_json::from_str(&lines[0]).unwrap();
    let expected =
        json!({"agent": null, "method": "GET", "response_code": 200, "route_name": null});
    assert_eq!(read, expected);
    assert!(lines[0].starts_with("{\"agent\"") && lines[0].ends_with("}\n"));
}

#[test]
fn filters_choose() {
    let errors = FilterSpecifier::StatusCodeFilter(StatusCodeFilter {
        comparison: Some(ComparisonFilter {
            op: Op::Ge.into(),
            value: Some(RuntimeUInt32 {
                default_value: 400,
                runtime_key: String::new(),
            }),
        }),
    });
    let retried = FilterSpecifier::ResponseFlagFilter(ResponseFlagFilter {
        flags: vec!["URX".to_owned()],
    });
    let both = [&errors, &retried].map(|filter| AccessLogFilter {
        filter_specifier: Some(filter.clone()),
    });
    let both = FilterSpecifier::AndFilter(AndFilter {
        filters: both.into(),
    });
    for (filter, expected) in [
        (errors, [false, true, true]),
        (retried, [false, false, true]),
        (both, [false, false, true]),
    ] {
        let logs = logs(None, Some(filter));
        let written = [200, 404, 503].map(|status| !lines(&logs, status).is_empty());
        assert_eq!(written, expected);
    }
}

#[test]
fn a_format_that_is_not_understood_is_refused() {
    let file = FileAccessLog {
        path: STDOUT.to_owned(),
        access_log_format: Some(AccessLogFormat::LogFormat(SubstitutionFormatString {
            format: Some(FormatProto::TextFormatSource(DataSource {
                specifier: Some(Specifier::InlineString("%NO_SUCH%".to_owned())),
                watched_directory: None,
            })),
            ..SubstitutionFormatString::default()
        })),
    };
    let proto = Proto {
        config_type: Some(access_log::ConfigType::TypedConfig(any(&file))),
        ..Proto::default()
    };
    assert!(AccessLogs::compile(&[proto]).is_err());
}
