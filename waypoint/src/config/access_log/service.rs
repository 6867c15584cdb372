//! Access logs that go to services (facts A.10: `envoyHttpAls`, `envoyTcpAls`, `envoyOtelAls`).

use std::{sync::Arc, time::Duration};

use envoy_types::pb::envoy::extensions::access_loggers::{
    grpc::v3::{CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig},
    open_telemetry::v3::OpenTelemetryAccessLogConfig,
};
use tracing::warn;

use crate::{
    config::error::{At, Compiled, Unsupported},
    format::{Field, Needed, Source},
    logs::{BuiltIn, Collector, Entry, Wire, als, otlp::RecordFormat},
    otlp::Otlp,
    upstream::call::Target,
};

/// For one message, where nothing is said.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A log of a service.
#[derive(Debug)]
pub(super) struct ServiceLog {
    pub(super) collector: Arc<Collector>,
    form: Form,
}

#[derive(Debug)]
enum Form {
    /// Requests, with these headers; connections without requests are not told.
    Http(Needed),
    Tcp,
    Otlp(RecordFormat),
}

impl ServiceLog {
    pub(super) fn http(log: &HttpGrpcAccessLogConfig) -> Compiled<Self> {
        let lower = |names: &[String]| {
            let names = names.iter();
            names.map(|name| name.to_ascii_lowercase()).collect()
        };
        Ok(Self {
            collector: Arc::new(als_collector(log.common_config.as_ref())?),
            form: Form::Http(Needed {
                request: lower(&log.additional_request_headers_to_log),
                response: lower(&log.additional_response_headers_to_log),
                trailers: lower(&log.additional_response_trailers_to_log),
            }),
        })
    }

    pub(super) fn tcp(log: &TcpGrpcAccessLogConfig) -> Compiled<Self> {
        Ok(Self {
            collector: Arc::new(als_collector(log.common_config.as_ref())?),
            form: Form::Tcp,
        })
    }

    #[expect(deprecated, reason = "istiod sends the older form")]
    pub(super) fn otlp(log: &OpenTelemetryAccessLogConfig) -> Compiled<Self> {
        if !log.resource_detectors.is_empty() || !log.custom_tags.is_empty() {
            warn!("resource detectors and custom tags of access logs have no effect");
        }
        let common = log.common_config.as_ref();
        let log_name = match (log.log_name.as_str(), common) {
            ("", Some(common)) => common.log_name.clone(),
            (name, _) => name.to_owned(),
        };
        let (target, how) = match &log.http_service {
            Some(service) => Otlp::by_http(service, TIMEOUT).at("http_service")?,
            None => {
                let older = common.and_then(|common| common.grpc_service.as_ref());
                let service = log.grpc_service.as_ref().or(older);
                let target = Target::compile(service, None, TIMEOUT).at("grpc_service")?;
                (target, Otlp::Grpc)
            }
        };
        let resource = log.resource_attributes.as_ref();
        Ok(Self {
            collector: Arc::new(Collector {
                target,
                log_name,
                wire: Wire::Otlp {
                    how,
                    resource: resource.map(|list| list.values.clone()).unwrap_or_default(),
                    built_in: if log.disable_builtin_labels {
                        BuiltIn::LeftOut
                    } else {
                        BuiltIn::Added
                    },
                },
            }),
            form: Form::Otlp(RecordFormat::compile(
                log.body.as_ref(),
                log.attributes.as_ref(),
            )?),
        })
    }

    /// What is told of a request or a connection.
    pub(super) fn entry(&self, source: &dyn Source) -> Option<Entry> {
        match &self.form {
            Form::Http(headers) => {
                source.field(Field::Protocol)?;
                Some(Entry::Http(Box::new(als::of_request(source, headers))))
            }
            Form::Tcp => Some(Entry::Tcp(Box::new(als::of_connection(source)))),
            Form::Otlp(format) => Some(Entry::Record(format.record(source))),
        }
    }

    pub(super) fn needs(&self, needed: &mut Needed) {
        match &self.form {
            Form::Http(headers) => needed.extend(als::needs(headers)),
            Form::Tcp => {}
            Form::Otlp(format) => format.needs(needed),
        }
    }
}

fn als_collector(common: Option<&CommonGrpcAccessLogConfig>) -> Compiled<Collector> {
    let common = common.ok_or_else(|| Unsupported::missing("common_config"))?;
    if !common.filter_state_objects_to_log.is_empty() || !common.custom_tags.is_empty() {
        warn!("filter states and custom tags are not told to access log services");
    }
    let target = Target::compile(common.grpc_service.as_ref(), None, TIMEOUT);
    Ok(Collector {
        target: target.at("grpc_service")?,
        wire: Wire::Als,
        log_name: common.log_name.clone(),
    })
}

#[cfg(test)]
mod tests;
