//! How OTLP is spoken, for spans and for access logs (opentelemetry-proto 1.x): by gRPC, or by POST, and what messages of both have.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use envoy_types::pb::{
    envoy::config::core::v3::{HttpService, http_uri::HttpUpstreamType},
    opentelemetry::proto::common::v1::{
        AnyValue, InstrumentationScope, KeyValue, any_value::Value,
    },
};
use http::{HeaderValue, Method, Request, header};
use prost::Message;

use crate::{
    app::Shared,
    config::{
        any::duration,
        error::{At, Compiled, Unsupported},
        route::headers::{HeaderChanges, HeaderOps},
    },
    http::body::Body,
    upstream::{
        call::{self, CallFailure, Target},
        grpc,
    },
};

/// The transport.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Otlp {
    #[default]
    Grpc,
    Http {
        path: String,
        headers: HeaderChanges,
    },
}

impl Otlp {
    /// By POST; `deadline` is for one message where nothing is said. istiod writes the URI without its scheme.
    pub(crate) fn by_http(service: &HttpService, deadline: Duration) -> Compiled<(Target, Self)> {
        let uri = service.http_uri.as_ref();
        let uri = uri.ok_or_else(|| Unsupported::missing("http_uri"))?;
        let Some(HttpUpstreamType::Cluster(cluster)) = &uri.http_upstream_type else {
            return Err(Unsupported::missing("cluster"));
        };
        let plain = uri.uri.split_once("://");
        let plain = plain.map_or(uri.uri.as_str(), |(_, rest)| rest);
        let (authority, path) = plain.split_once('/').unwrap_or((plain, ""));
        let headers = HeaderOps::compile(&[], &[], &[], &service.request_headers_to_add)?;
        let said = uri.timeout.as_ref();
        let target = Target {
            cluster: cluster.clone(),
            authority: authority.to_owned(),
            timeout: said.map_or(Ok(deadline), duration).at("timeout")?,
            ..Target::default()
        };
        let how = Self::Http {
            path: format!("/{path}"),
            headers: headers.response,
        };
        Ok((target, how))
    }

    /// Sends one message; `method` is the path of the gRPC method.
    pub(crate) async fn export(
        &self,
        shared: &Arc<Shared>,
        target: &Target,
        method: &'static str,
        request: &impl Message,
    ) -> Result<Response, CallFailure> {
        let config = shared.config.load_full();
        match self {
            Self::Grpc => {
                let asked = grpc::call(shared, &config, target, method, request);
                Box::pin(asked).await
            }
            Self::Http { path, headers } => {
                let mut post = Request::new(Body::full(request.encode_to_vec()));
                *post.method_mut() = Method::POST;
                let kind = HeaderValue::from_static("application/x-protobuf");
                post.headers_mut().insert(header::CONTENT_TYPE, kind);
                headers.apply(post.headers_mut());
                let asked = call::http(shared, &config, target, path, post);
                let answer = Box::pin(asked).await?;
                if !answer.status().is_success() {
                    return Err(CallFailure::Http(answer.status()));
                }
                // Some collectors answer with nothing, or in JSON.
                Ok(Response::decode(answer.into_body()).unwrap_or_default())
            }
        }
    }
}

/// `ExportTraceServiceResponse` and `ExportLogsServiceResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Response {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

impl Response {
    /// How many of so many items the collector does not take, and why.
    pub(crate) fn rejected(self, of: u64) -> (u64, String) {
        let partial = self.partial_success.unwrap_or_default();
        let rejected = u64::try_from(partial.rejected).unwrap_or_default();
        (rejected.min(of), partial.error_message)
    }
}

/// Whom all of a message is from.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Resource {
    #[prost(message, repeated, tag = "1")]
    pub(crate) attributes: Vec<KeyValue>,
}

/// What made the items.
pub(crate) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "leyline-waypoint".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

/// An attribute.
pub(crate) fn attribute(key: impl Into<String>, value: impl Into<String>) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(value.into())),
        }),
        ..KeyValue::default()
    }
}

/// Nanoseconds since 1970, until 2554.
pub(crate) fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::HttpUri;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    #[test]
    fn uris_of_collectors() {
        let check = |uri: &str, authority: &str, path: &str| {
            let service = HttpService {
                http_uri: Some(HttpUri {
                    uri: uri.to_owned(),
                    http_upstream_type: Some(HttpUpstreamType::Cluster("c".to_owned())),
                    ..HttpUri::default()
                }),
                ..HttpService::default()
            };
            let (target, wire) = Otlp::by_http(&service, TIMEOUT).unwrap();
            assert_eq!(target.authority, authority);
            assert_eq!(target.timeout, TIMEOUT);
            assert!(matches!(wire, Otlp::Http { path: found, .. } if found == path));
        };
        check("otel.example/v1/traces", "otel.example", "/v1/traces");
        check(
            "http://otel.example/v1/traces",
            "otel.example",
            "/v1/traces",
        );
        check("otel.example", "otel.example", "/");
    }
}
