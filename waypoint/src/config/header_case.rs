//! How the names of HTTP/1.1 headers are written: in lower case, or as the other side wrote them (Envoy's "Header casing").

use envoy_types::pb::envoy::{
    config::core::v3::{
        Http1ProtocolOptions, http1_protocol_options::header_key_format::HeaderFormat,
    },
    extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig,
};
use prost::Name;

/// What is kept of the names in messages that are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum HeaderCase {
    /// They are passed on in lower case.
    #[default]
    Lower,
    /// They are passed on as they were written. What is added here is in lower case.
    Preserved,
}

impl HeaderCase {
    /// Of the messages that a listener or a cluster reads. Other formats change the looks of names, which mean the same.
    pub(crate) fn of(options: Option<&Http1ProtocolOptions>) -> Self {
        let format = options.and_then(|options| options.header_key_format.as_ref());
        let config = match format.and_then(|format| format.header_format.as_ref()) {
            Some(HeaderFormat::StatefulFormatter(formatter)) => formatter.typed_config.as_ref(),
            Some(HeaderFormat::ProperCaseWords(_)) | None => None,
        };
        match config {
            Some(any) if any.type_url == PreserveCaseFormatterConfig::type_url() => Self::Preserved,
            Some(_) | None => Self::Lower,
        }
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::{
        envoy::config::core::v3::{
            TypedExtensionConfig,
            http1_protocol_options::{HeaderKeyFormat, header_key_format::ProperCaseWords},
        },
        google::protobuf::Any,
    };

    use super::*;

    fn of(format: HeaderFormat) -> HeaderCase {
        HeaderCase::of(Some(&Http1ProtocolOptions {
            header_key_format: Some(HeaderKeyFormat {
                header_format: Some(format),
            }),
            ..Http1ProtocolOptions::default()
        }))
    }

    #[test]
    fn the_formatter_that_istiod_names_is_known() {
        let formatter = |type_url: String| {
            HeaderFormat::StatefulFormatter(TypedExtensionConfig {
                name: "envoy.http.stateful_header_formatters.preserve_case".to_owned(),
                typed_config: Some(Any {
                    type_url,
                    value: Vec::new(),
                }),
            })
        };
        let known = formatter(PreserveCaseFormatterConfig::type_url());
        assert_eq!(of(known), HeaderCase::Preserved);
        for other in [
            formatter("type.googleapis.com/unknown".to_owned()),
            HeaderFormat::ProperCaseWords(ProperCaseWords {}),
        ] {
            assert_eq!(of(other), HeaderCase::Lower);
        }
        assert_eq!(HeaderCase::of(None), HeaderCase::Lower);
    }
}
