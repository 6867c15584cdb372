//! Finished spans as a message to their collector.

use std::sync::Arc;

use tracing::warn;

use super::otlp::{Request, ResourceSpans, ScopeSpans, Span};
use crate::{
    app::Shared,
    config::tracing::Collector,
    export::{self, Signal},
    otlp::{Resource, attribute, scope},
};

const METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// What is told.
#[derive(Debug)]
pub(crate) struct Spans;

impl Signal for Spans {
    type Item = Span;
    type Collector = Collector;
    const METRIC: &'static str = "leyline_waypoint_spans_total";

    async fn send(shared: Arc<Shared>, collector: Arc<Collector>, spans: Vec<Span>) {
        let sent = spans.len() as u64;
        let request = request(&collector, spans);
        let told = collector
            .wire
            .export(&shared, &collector.target, METHOD, &request);
        match told.await {
            Ok(response) => {
                let (rejected, reason) = response.rejected(sent);
                if rejected > 0 {
                    warn!(rejected, reason, "the collector of spans rejects some");
                }
                export::count_taken::<Self>(sent, rejected);
            }
            Err(error) => {
                let cluster = collector.target.cluster.as_str();
                warn!(cluster, spans = sent, %error, "the collector of spans does not take them");
                export::count::<Self>("failed", sent);
            }
        }
    }
}

fn request(collector: &Collector, spans: Vec<Span>) -> Request {
    let attributes = vec![
        attribute("service.name", collector.service_name.as_str()),
        attribute("telemetry.sdk.language", "rust"),
        attribute("telemetry.sdk.name", "leyline"),
        attribute("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
    ];
    Request {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes }),
            scope_spans: vec![ScopeSpans {
                scope: Some(scope()),
                spans,
            }],
        }],
    }
}
