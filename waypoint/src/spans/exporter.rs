//! Finished spans as a message to their collector.

use std::sync::Arc;

use tracing::warn;

use super::otlp;
use crate::{
    app::Shared,
    config::tracing::Collector,
    export::{self, Signal},
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
        let told = collector
            .wire
            .export(&shared, &collector.target, METHOD, &request);
        let told: Result<otlp::Response, _> = told.await;
        match told {
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
