//! All that is known of one request, and what is told of it at its end.

use std::{
    borrow::Cow,
    sync::{Arc, atomic::Ordering},
    time::SystemTime,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Version};
use hyper::body::Frame;
use leyline_types::Str;
use serde_json::{Map, Value};
use tokio::time::Instant;
use tracing::debug;

use super::{grpc_status, now, series::Outcome};
use crate::{
    config::{
        access_log::millis, cluster::Cluster, endpoints::EndpointAddress, telemetry::Telemetry,
    },
    format::{Field, Source, Told},
    http::{
        counted::{Messages, Passed},
        flags::Flags,
        reply::Flag,
        request_source::{joined, metadata},
        server::HttpConnection,
    },
    spans::context::SpanContext,
};

/// How a failed connection is told in the details of a response.
const CONNECTION_FAILURE: &str = "upstream_reset_before_response_started{connection_failure|";

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) conn: Arc<HttpConnection>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) start: Instant,
    pub(super) start_time: SystemTime,
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) authority: String,
    pub(super) version: Version,
    pub(super) is_grpc: bool,
    /// Those that the chain's logs and metrics ask for.
    pub(super) request_headers: Captured,
    pub(super) response_headers: Captured,
    trailers: Captured,
    pub(super) route: Option<Str>,
    /// What its route calls it in spans.
    pub(super) operation: Option<Str>,
    pub(super) span: Option<Box<SpanContext>>,
    /// What filters found out.
    pub(super) metadata: Map<String, Value>,
    pub(super) cluster: Option<Arc<Cluster>>,
    pub(super) upstream: Option<EndpointAddress>,
    pub(super) attempts: u32,
    /// When the last attempt began.
    pub(super) forwarded: Option<Instant>,
    /// When the head of the response was there.
    pub(super) responded: Option<Instant>,
    pub(super) status: u16,
    pub(super) grpc_status: Option<u32>,
    pub(super) flags: Flags,
    pub(super) details: String,
    pub(super) received: Arc<Passed>,
    pub(super) sent: u64,
    sent_messages: u64,
    response_messages: Messages,
    /// The last byte of the response has passed.
    pub(super) whole: bool,
}

/// Some headers, by name.
type Captured = Vec<(String, String)>;

/// The values of these headers.
pub(super) fn captured(names: &[String], headers: &HeaderMap) -> Captured {
    let names = names.iter();
    names
        .filter_map(|name| Some((name.clone(), joined(headers, name)?.into_owned())))
        .collect()
}

fn find<'a>(headers: &'a Captured, name: &str) -> Option<Cow<'a, str>> {
    let found = headers.iter().find(|(known, _)| known == name);
    found.map(|(_, value)| value.as_str().into())
}

impl Entry {
    pub(super) fn new(
        conn: Arc<HttpConnection>,
        method: Method,
        path: String,
        authority: String,
        version: Version,
        is_grpc: bool,
    ) -> Self {
        let (start, start_time) = now();
        Self {
            conn,
            telemetry: Arc::default(),
            start,
            start_time,
            method,
            path,
            authority,
            version,
            is_grpc,
            request_headers: Vec::new(),
            response_headers: Vec::new(),
            trailers: Vec::new(),
            route: None,
            operation: None,
            span: None,
            metadata: Map::new(),
            cluster: None,
            upstream: None,
            attempts: 0,
            forwarded: None,
            responded: None,
            status: 0,
            grpc_status: None,
            flags: Flags::default(),
            details: String::new(),
            received: Arc::default(),
            sent: 0,
            sent_messages: 0,
            response_messages: Messages::default(),
            whole: false,
        }
    }

    /// A part of the response.
    pub(super) fn passed(&mut self, frame: &Frame<Bytes>, is_last: bool) {
        if let Some(data) = frame.data_ref() {
            self.sent += data.len() as u64;
            if self.is_grpc {
                self.sent_messages += self.response_messages.count(data);
            }
        }
        if let Some(trailers) = frame.trailers_ref() {
            self.trailers = captured(&self.telemetry.needed.trailers, trailers);
            self.grpc_status = grpc_status(trailers).or(self.grpc_status);
        }
        self.whole |= is_last || frame.is_trailers();
    }

    /// Counts and writes.
    pub(super) fn finish(mut self: Box<Self>) {
        if !self.whole {
            if self.flags.is_empty() {
                self.flags.insert(Flag::Downstream);
            }
            if self.details.is_empty() || self.details == "via_upstream" {
                "downstream_remote_disconnect".clone_into(&mut self.details);
            }
        }
        self.count();
        for line in self.telemetry.logs.lines(&*self) {
            self.conn.shared.log.write_line(line);
        }
        for (collector, entry) in self.telemetry.logs.entries(&*self) {
            self.conn.shared.service_logs.send(collector, entry);
        }
        self.tell_span();
        self.explain();
    }

    fn count(&self) {
        let outcome = Outcome {
            telemetry: self.telemetry.clone(),
            cluster: self.cluster.clone(),
            upstream: self.upstream,
            status: self.status,
            flags: self.flags,
            is_grpc: self.is_grpc,
            grpc_status: self.grpc_status,
        };
        let series = self.conn.series.of(&self.conn, outcome, self);
        series.requests(self.start.elapsed());
        series.bytes(self.received.bytes.load(Ordering::Relaxed), self.sent);
        if self.is_grpc {
            let received = self.received.messages.load(Ordering::Relaxed);
            series.messages(received, self.sent_messages);
        }
    }

    /// For whoever looks into one waypoint, whatever logs are configured.
    fn explain(&self) {
        debug!(
            target: "access",
            method = %self.method,
            path = self.path,
            response_code = self.status,
            response_flags = %self.flags,
            response_code_details = self.details,
            duration = millis(self.start.elapsed()),
            upstream_host = self.upstream.map(|it| tracing::field::display(it.addr())),
            downstream_local_address = %self.conn.destination,
            downstream_remote_address = %self.conn.client.addr,
            source_principal = &*self.conn.client.principal,
            "request complete"
        );
    }

    pub(super) fn protocol(&self) -> &'static str {
        match self.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2",
            _ => "HTTP/1.1",
        }
    }

    fn since_start(&self, then: Option<Instant>) -> Option<u64> {
        then.map(|then| millis(then.saturating_duration_since(self.start)))
    }

    fn service_time(&self) -> Option<u64> {
        let (forwarded, responded) = self.forwarded.zip(self.responded)?;
        Some(millis(responded.saturating_duration_since(forwarded)))
    }

    fn transport_failure(&self) -> Option<&str> {
        let reason = self.details.strip_prefix(CONNECTION_FAILURE)?;
        Some(reason.trim_end_matches('}'))
    }
}

impl Source for Entry {
    fn request(&self, name: &str) -> Option<Cow<'_, str>> {
        match name {
            ":method" => Some(self.method.as_str().into()),
            ":path" => Some(self.path.as_str().into()),
            ":authority" | "host" => Some(self.authority.as_str().into()),
            ":scheme" => Some("http".into()),
            name => find(&self.request_headers, name),
        }
    }

    fn response(&self, name: &str) -> Option<Cow<'_, str>> {
        find(&self.response_headers, name)
    }

    fn trailer(&self, name: &str) -> Option<Cow<'_, str>> {
        find(&self.trailers, name)
    }

    fn metadata(&self, path: &[String]) -> Option<Cow<'_, str>> {
        metadata(&self.metadata, path)
    }

    fn start(&self) -> SystemTime {
        self.start_time
    }

    // tidy: table
    fn field(&self, field: Field) -> Option<Told<'_>> {
        let upstream = self.upstream.map(EndpointAddress::addr);
        match field {
            Field::Protocol => Some(Told::text(self.protocol())),
            Field::ResponseCode => Some(Told::Number(self.status.into())),
            Field::ResponseCodeDetails => Some(Told::text(self.details.as_str())),
            Field::ResponseFlags => Some(Told::text(self.flags.to_string())),
            Field::ResponseFlagsLong => Some(Told::text(self.flags.long())),
            Field::UpstreamTransportFailureReason => self.transport_failure().map(Told::text),
            Field::BytesReceived => Some(Told::Number(self.received.bytes.load(Ordering::Relaxed))),
            Field::BytesSent => Some(Told::Number(self.sent)),
            Field::Duration => Some(Told::Number(millis(self.start.elapsed()))),
            Field::RequestDuration => self.since_start(self.forwarded).map(Told::Number),
            Field::ResponseDuration => self.since_start(self.responded).map(Told::Number),
            Field::ResponseTxDuration => {
                let responded = self.responded?;
                Some(Told::Number(millis(responded.elapsed())))
            }
            Field::UpstreamServiceTime => self.service_time().map(Told::Number),
            Field::UpstreamHost => upstream.map(|addr| Told::text(addr.to_string())),
            Field::UpstreamHostWithoutPort => {
                upstream.map(|addr| Told::text(addr.ip().to_string()))
            }
            Field::UpstreamCluster => {
                let cluster = self.cluster.as_ref()?;
                Some(Told::text(cluster.name.as_str()))
            }
            Field::UpstreamAttempts => Some(Told::Number(self.attempts.into())),
            Field::RouteName => {
                let name = self.route.as_ref().map(Str::as_str);
                name.filter(|name| !name.is_empty()).map(Told::text)
            }
            Field::GrpcStatus => {
                let status = self.grpc_status.filter(|_| self.is_grpc)?;
                Some(Told::text(grpc_name(status)))
            }
            Field::GrpcStatusNumber => {
                let status = self.grpc_status.filter(|_| self.is_grpc)?;
                Some(Told::Number(status.into()))
            }
            Field::TraceId => {
                let span = self.span.as_ref()?;
                Some(Told::text(format!("{:032x}", span.trace)))
            }
            Field::SpanId => {
                let span = self.span.as_ref()?;
                Some(Told::text(format!("{:016x}", span.span)))
            }
            other => self.conn.field(other),
        }
    }
}

/// Names of gRPC's statuses.
pub(super) fn grpc_name(status: u32) -> Cow<'static, str> {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    let name = usize::try_from(status).ok().and_then(|at| NAMES.get(at));
    name.map_or_else(|| status.to_string().into(), |name| (*name).into())
}
