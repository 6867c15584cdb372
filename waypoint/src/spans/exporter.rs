//! Finished spans as a message to their collector.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use prost::Message;
use tracing::warn;

use super::otlp;
use crate::{
    app::Shared,
    config::tracing::{Collector, Wire},
    export::{self, Signal},
    http::body::Body,
    upstream::{
        call::{self, CallFailure},
        grpc,
    },
};

const METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// What is told.
#[derive(Debug)]
pub(crate) struct Spans;

impl Signal for Spans {
    type Item = otlp::Span;
    type Collector = Collector;
    const METRIC: &'static str = "leyline_waypoint_spans_total";

    async fn send(shared: Arc<Shared>, collector: Arc<Collector>, spans: Vec<otlp::Span>) {
        let sent = spans.len() as u64;
        let request = request(&collector, spans);
        match export(&shared, &collector, &request).await {
            Ok(response) => {
                let partial = response.partial_success.unwrap_or_default();
                let rejected = u64::try_from(partial.rejected_spans).unwrap_or_default();
                let rejected = rejected.min(sent);
                if rejected > 0 {
                    let reason = partial.error_message;
                    warn!(rejected, reason, "the collector of spans rejects some");
                    export::count::<Self>("rejected", rejected);
                }
                export::count::<Self>("sent", sent - rejected);
            }
            Err(error) => {
                let cluster = collector.target.cluster.as_str();
                warn!(cluster, spans = sent, %error, "the collector of spans does not take them");
                export::count::<Self>("failed", sent);
            }
        }
    }
}

async fn export(
    shared: &Arc<Shared>,
    collector: &Collector,
    request: &otlp::Request,
) -> Result<otlp::Response, CallFailure> {
    let config = shared.config.load_full();
    match &collector.wire {
        Wire::Grpc => {
            let asked = grpc::call(shared, &config, &collector.target, METHOD, request);
            Box::pin(asked).await
        }
        Wire::Http { path, headers } => {
            let mut post = Request::new(Body::full(request.encode_to_vec()));
            *post.method_mut() = Method::POST;
            let kind = HeaderValue::from_static("application/x-protobuf");
            post.headers_mut().insert(header::CONTENT_TYPE, kind);
            headers.apply(post.headers_mut());
            let asked = call::http(shared, &config, &collector.target, path, post);
            let answer = Box::pin(asked).await?;
            if !answer.status().is_success() {
                return Err(CallFailure::Http(answer.status()));
            }
            // Some collectors answer with nothing, or in JSON.
            let body: Bytes = answer.into_body();
            Ok(otlp::Response::decode(body).unwrap_or_default())
        }
    }
}

fn request(collector: &Collector, spans: Vec<otlp::Span>) -> otlp::Request {
    let version = env!("CARGO_PKG_VERSION");
    let attributes = vec![
        otlp::attribute("service.name", collector.service_name.as_str()),
        otlp::attribute("telemetry.sdk.language", "rust"),
        otlp::attribute("telemetry.sdk.name", "leyline"),
        otlp::attribute("telemetry.sdk.version", version),
    ];
    otlp::Request {
        resource_spans: vec![otlp::ResourceSpans {
            resource: Some(otlp::Resource { attributes }),
            scope_spans: vec![otlp::ScopeSpans {
                scope: Some(otlp::Scope {
                    name: "leyline-waypoint".to_owned(),
                    version: version.to_owned(),
                }),
                spans,
            }],
        }],
    }
}
