//! The span of a finished request, with Envoy's tags and those of the chain's tracer (facts A.10).

use std::{borrow::Cow, sync::atomic::Ordering};

use envoy_types::pb::opentelemetry::proto::common::v1::KeyValue;

use super::entry::{Entry, grpc_name};
use crate::{
    config::{
        endpoints::EndpointAddress,
        tracing::{End, PeerField, TagValue, Tracing},
    },
    format::Source,
    otlp::{attribute, nanoseconds},
    spans::{
        context::SpanContext,
        otlp::{ERROR, SERVER, Span, Status},
    },
    stats::labels::{Peer, UNKNOWN},
};

/// What Envoy calls a span whose request no route took.
const INGRESS: &str = "ingress";

impl Entry {
    /// Hands the span over to the exporter.
    pub(super) fn tell_span(&self) {
        let Some((tracing, context)) = self.telemetry.tracing.as_ref().zip(self.span.as_deref())
        else {
            return;
        };
        if context.is_sampled() {
            let span = self.to_span(tracing, context);
            self.conn.shared.spans.send(&tracing.collector, span);
        }
    }

    fn to_span(&self, tracing: &Tracing, context: &SpanContext) -> Span {
        let parent = context.parent.map(u64::to_be_bytes);
        let operation = self.operation.as_ref().map(|name| name.as_str());
        let operation = operation.filter(|name| !name.is_empty());
        let is_failed = self.status >= 500 || self.status == 0;
        let mut attributes = self.envoys(tracing, is_failed);
        let mut ends = Ends {
            entry: self,
            source: None,
            destination: None,
        };
        for tag in &tracing.tags {
            if let Some(value) = ends.value(&tag.value) {
                put(&mut attributes, &tag.name, value);
            }
        }
        Span {
            trace_id: context.trace.to_be_bytes().into(),
            span_id: context.span.to_be_bytes().into(),
            trace_state: context.state.clone(),
            parent_span_id: parent.map(Into::into).unwrap_or_default(),
            name: operation.unwrap_or(INGRESS).to_owned(),
            kind: SERVER,
            start_time_unix_nano: nanoseconds(self.start_time),
            end_time_unix_nano: nanoseconds(self.start_time + self.start.elapsed()),
            attributes,
            status: is_failed.then(|| Status {
                code: ERROR,
                ..Status::default()
            }),
        }
    }

    /// Those that Envoy always gives, in its order.
    fn envoys(&self, tracing: &Tracing, is_failed: bool) -> Vec<KeyValue> {
        let path = cut(&self.path, tracing.max_path);
        let node = &self.conn.shared.settings.node;
        let header = |name: &str| self.request(name);
        let or_dash =
            |value: Option<Cow<'_, str>>| value.map_or_else(|| "-".to_owned(), Cow::into_owned);
        let mut attributes = vec![attribute("node_id", node.id())];
        let mut tell = |name: &str, value: String| attributes.push(attribute(name, value));
        if let Some(id) = header("x-request-id") {
            tell("guid:x-request-id", id.into_owned());
        }
        tell("http.url", format!("http://{}{path}", self.authority));
        tell("http.method", self.method.to_string());
        let cluster = header("x-envoy-downstream-service-cluster");
        tell("downstream_cluster", or_dash(cluster));
        tell("user_agent", or_dash(header("user-agent")));
        tell("http.protocol", self.protocol().to_owned());
        tell("peer.address", self.conn.client.addr.ip().to_string());
        if let Some(id) = header("x-client-trace-id") {
            tell("guid:x-client-trace-id", id.into_owned());
        }
        if self.is_grpc {
            tell("grpc.path", path.to_owned());
            tell("grpc.authority", self.authority.clone());
            for (tag, name) in [
                ("grpc.content_type", "content-type"),
                ("grpc.timeout", "grpc-timeout"),
            ] {
                if let Some(value) = header(name) {
                    tell(tag, value.into_owned());
                }
            }
        }
        let received = self.received.bytes.load(Ordering::Relaxed);
        tell("request_size", received.to_string());
        tell("component", "proxy".to_owned());
        if let Some(cluster) = &self.cluster {
            tell("upstream_cluster", cluster.name.to_string());
            tell("upstream_cluster.name", cluster.name.to_string());
        }
        if let Some(upstream) = self.upstream.map(EndpointAddress::addr) {
            tell("upstream_address", upstream.to_string());
        }
        tell("http.status_code", self.status.to_string());
        if let Some(status) = self.grpc_status.filter(|_| self.is_grpc) {
            tell("grpc.status_code", status.to_string());
            if status != 0 {
                tell("grpc.message", grpc_name(status).into_owned());
            }
        }
        tell("response_size", self.sent.to_string());
        tell("response_flags", self.flags.to_string());
        if is_failed {
            tell("error", "true".to_owned());
        }
        attributes
    }
}

/// The workloads at both ends, looked up when a tag asks for them.
struct Ends<'a> {
    entry: &'a Entry,
    source: Option<Peer>,
    destination: Option<Peer>,
}

impl Ends<'_> {
    /// `None`: there is no value.
    fn value(&mut self, value: &TagValue) -> Option<String> {
        let or_default = |value: Option<String>, default: &str| {
            let default = (!default.is_empty()).then(|| default.to_owned());
            value.or(default)
        };
        let entry = self.entry;
        match value {
            TagValue::Literal(text) => Some(text.clone()),
            TagValue::Environment { name, default } => {
                let environment = &entry.conn.shared.settings.environment;
                or_default(environment.get(name).cloned(), default)
            }
            TagValue::Header { name, default } => {
                or_default(entry.request(name).map(Cow::into_owned), default)
            }
            TagValue::Metadata { path, default } => {
                or_default(entry.metadata(path).map(Cow::into_owned), default)
            }
            TagValue::Template(template) => Some(template.text(entry)),
            TagValue::Peer(end, field) => {
                let peer = self.peer(*end)?;
                let value = match field {
                    PeerField::Workload => &peer.workload,
                    PeerField::Namespace => &peer.namespace,
                    PeerField::Cluster => &peer.cluster,
                    PeerField::Service => &peer.service,
                    PeerField::Revision => &peer.revision,
                    PeerField::Name => &peer.name,
                };
                (value != UNKNOWN).then(|| value.to_string())
            }
        }
    }

    fn peer(&mut self, end: End) -> Option<&Peer> {
        let entry = self.entry;
        let mesh = || entry.conn.shared.mesh.snapshot();
        match end {
            End::Source => {
                let peer = || Peer::source(&mesh(), &entry.conn.client);
                Some(self.source.get_or_insert_with(peer))
            }
            End::Destination => {
                let upstream = entry.upstream?;
                let peer = || Peer::destination(&mesh(), upstream);
                Some(self.destination.get_or_insert_with(peer))
            }
        }
    }
}

/// Attributes are unique; a later one takes the place of an earlier one.
fn put(attributes: &mut Vec<KeyValue>, name: &str, value: String) {
    let new = attribute(name, value);
    match attributes.iter_mut().find(|known| known.key == name) {
        Some(known) => *known = new,
        None => attributes.push(new),
    }
}

/// At most so many bytes, at a character's end.
fn cut(text: &str, most: usize) -> &str {
    let end = text.floor_char_boundary(most);
    text.get(..end).unwrap_or_default()
}
