//! Spans: whether a request is traced, what its upstream is told of it, and how finished spans get to their collector (facts
//! A.10). One span for each request of a chain that has a tracer; who is asked by the waypoint itself is not traced.

pub(crate) mod context;
mod exporter;
pub(crate) mod otlp;
pub(crate) mod sampling;

use http::HeaderMap;

use crate::config::tracing::Tracing;
use context::{Parent, SpanContext};

pub(crate) use exporter::Spans;

/// Begins the span of a request: decides whether it is told, and passes the trace on in the request's headers.
pub(crate) fn begin(tracing: &Tracing, headers: &mut HeaderMap) -> SpanContext {
    let decision = sampling::decide(&tracing.sampling, headers);
    let context = match context::parent(headers) {
        Parent::None => SpanContext::root(decision),
        Parent::Found(found) => SpanContext::child(found, decision),
    };
    if tracing.propagates {
        context.inject(headers);
    }
    context
}
