//! What is told of a request when the last byte of its answer has passed, or when it broke off: the metrics and the access
//! logs of its chain.

mod entry;
mod series;
mod span;

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::SystemTime,
};

use http::{HeaderMap, Request, Response};
use hyper::body::Body as HttpBody;
use serde_json::{Map, Value};
use tokio::time::Instant;

use self::entry::{Entry, captured};
use super::{
    body::Body,
    counted::{Counted, Messages},
    grpc::is_grpc,
    passing::{Polled, Watch},
    pipeline::Exchange,
    reply::{Flag, Reply},
    server::HttpConnection,
};
use crate::{
    config::{cluster::Cluster, endpoints::EndpointAddress, route::Route, telemetry::Telemetry},
    spans::context::SpanContext,
};

pub(crate) use series::SeriesCache;

/// One request. Dropping it before it was attached to a response means that the client went away.
#[derive(Debug)]
pub(crate) struct RequestLog {
    entry: Option<Box<Entry>>,
}

impl RequestLog {
    pub(crate) fn begin<B>(conn: &Arc<HttpConnection>, request: &Request<B>) -> Self {
        let uri = request.uri();
        let host = || {
            let host = request.headers().get(http::header::HOST)?;
            Some(String::from_utf8_lossy(host.as_bytes()).into_owned())
        };
        let authority = uri
            .authority()
            .map(|authority| authority.as_str().to_owned());
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        Self {
            entry: Some(Box::new(Entry::new(
                conn.clone(),
                request.method().clone(),
                path.to_owned(),
                authority.or_else(host).unwrap_or_default(),
                request.version(),
                is_grpc(request.headers()),
            ))),
        }
    }

    fn with(&mut self, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = &mut self.entry {
            change(entry);
        }
    }

    /// The chain that serves it says what is told.
    pub(crate) fn served_by(&mut self, telemetry: &Arc<Telemetry>, headers: &HeaderMap) {
        self.with(|entry| {
            entry.request_headers = captured(&telemetry.needed.request, headers);
            entry.telemetry = telemetry.clone();
        });
    }

    /// It is as it is decided on: normalised, with its identifier.
    pub(crate) fn prepared(&mut self, exchange: &Exchange) {
        self.with(|entry| {
            entry.path.clone_from(&exchange.path);
            entry.authority.clone_from(&exchange.authority);
            let needed = &entry.telemetry.needed.request;
            entry.request_headers = captured(needed, &exchange.head.headers);
        });
    }

    /// From here on it is gRPC.
    pub(crate) fn becomes_grpc(&mut self) {
        self.with(|entry| entry.is_grpc = true);
    }

    /// It is traced, or said to be not.
    pub(crate) fn traced(&mut self, context: SpanContext) {
        self.with(|entry| entry.span = Some(Box::new(context)));
    }

    /// What filters found out so far.
    pub(crate) fn found(&mut self, metadata: &Map<String, Value>) {
        self.with(|entry| entry.metadata.clone_from(metadata));
    }

    /// This route takes it.
    pub(crate) fn routed(&mut self, route: &Route) {
        self.with(|entry| {
            entry.route = Some(route.name.clone());
            entry.operation.clone_from(&route.operation);
        });
    }

    /// It goes to this cluster.
    pub(crate) fn cluster(&mut self, cluster: &Arc<Cluster>) {
        self.with(|entry| entry.cluster = Some(cluster.clone()));
    }

    /// One more attempt, at this endpoint.
    pub(crate) fn upstream(&mut self, endpoint: EndpointAddress) {
        self.with(|entry| {
            entry.upstream = Some(endpoint);
            entry.attempts += 1;
            entry.forwarded = Some(Instant::now());
        });
    }

    /// Something about the response that its status does not say.
    pub(crate) fn flag(&mut self, flag: Flag) {
        self.with(|entry| entry.flags.insert(flag));
    }

    /// The waypoint answers by itself.
    pub(crate) fn replied(&mut self, reply: &Reply) {
        self.with(|entry| {
            entry.flags.insert(reply.flag);
            entry.details.clone_from(&reply.details);
        });
    }

    /// Counts the bytes of the request.
    pub(crate) fn count_request(&self, body: Body) -> Body {
        let Some(entry) = &self.entry else {
            return body;
        };
        if body.is_end_stream() {
            return body;
        }
        let messages = entry.is_grpc.then(Messages::default);
        body.watched(Counted {
            passed: entry.received.clone(),
            messages,
        })
    }

    /// Goes with the response to its end.
    pub(crate) fn attach(mut self, response: Response<Body>) -> Response<Body> {
        let entry = self.entry.take();
        let (head, body) = response.into_parts();
        let mut log = Self { entry };
        log.with(|entry| {
            entry.status = head.status.as_u16();
            entry.responded = Some(Instant::now());
            entry.response_headers = captured(&entry.telemetry.needed.response, &head.headers);
            entry.grpc_status = grpc_status(&head.headers);
            if entry.details.is_empty() {
                entry.details = "via_upstream".to_owned();
            }
            entry.whole = body.is_end_stream();
        });
        Response::from_parts(head, body.watched(Logged(log)))
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            entry.finish();
        }
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

struct Logged(RequestLog);

impl Watch for Logged {
    fn seen(&mut self, body: &Body, polled: Polled, _cx: &mut Context<'_>) -> Polled {
        if let Poll::Ready(frame) = &polled {
            let ended = body.is_end_stream();
            self.0.with(|entry| match frame {
                None => entry.whole = true,
                Some(Ok(frame)) => entry.passed(frame, ended),
                Some(Err(error)) => {
                    entry.whole = true;
                    let timeout = error.is::<super::deadline::ResponseTimeout>();
                    entry.flags.insert(if timeout {
                        Flag::UpstreamTimeout
                    } else {
                        Flag::UpstreamReset
                    });
                    entry.details = error.to_string();
                }
            });
        }
        polled
    }
}

/// A clock reading of both kinds: one to measure by, one to tell.
fn now() -> (Instant, SystemTime) {
    (Instant::now(), SystemTime::now())
}
