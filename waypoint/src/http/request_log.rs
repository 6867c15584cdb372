//! What is told of a request when the last byte of its answer has passed, or when it broke off: one line and the counters.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Method, Request, Response, Version, header::USER_AGENT};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use leyline_types::Str;
use metrics::{counter, histogram};
use tokio::time::Instant;
use tracing::info;

use super::{
    body::{Body, BodyError},
    reply::{Flag, Reply},
    server::HttpConnection,
};
use crate::config::cluster::Cluster;

/// One request. Dropping it before it was attached to a response means that the client went away.
#[derive(Debug)]
pub(crate) struct RequestLog {
    entry: Option<Box<Entry>>,
}

#[derive(Debug)]
struct Entry {
    conn: Arc<HttpConnection>,
    start: Instant,
    method: Method,
    path: String,
    authority: String,
    version: Version,
    user_agent: Option<String>,
    route: Option<Str>,
    cluster: Option<Arc<Cluster>>,
    upstream: Option<SocketAddr>,
    attempts: u32,
    status: u16,
    flag: Flag,
    details: String,
    received: Arc<AtomicU64>,
    sent: u64,
    whole: bool,
}

impl RequestLog {
    pub(crate) fn begin<B>(conn: &Arc<HttpConnection>, request: &Request<B>) -> Self {
        let text = |name| {
            let value = request.headers().get(name)?;
            Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let uri = request.uri();
        let authority = uri
            .authority()
            .map(|authority| authority.as_str().to_owned());
        Self {
            entry: Some(Box::new(Entry {
                conn: conn.clone(),
                start: Instant::now(),
                method: request.method().clone(),
                path: uri
                    .path_and_query()
                    .map_or("", |path| path.as_str())
                    .to_owned(),
                authority: authority
                    .or_else(|| text(http::header::HOST))
                    .unwrap_or_default(),
                version: request.version(),
                user_agent: text(USER_AGENT),
                route: None,
                cluster: None,
                upstream: None,
                attempts: 0,
                status: 0,
                flag: Flag::None,
                details: String::new(),
                received: Arc::default(),
                sent: 0,
                whole: false,
            })),
        }
    }

    fn with(&mut self, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = &mut self.entry {
            change(entry);
        }
    }

    /// This route takes it.
    pub(crate) fn routed(&mut self, name: &Str) {
        self.with(|entry| entry.route = Some(name.clone()));
    }

    /// It goes to this cluster.
    pub(crate) fn cluster(&mut self, cluster: &Arc<Cluster>) {
        self.with(|entry| entry.cluster = Some(cluster.clone()));
    }

    /// One more attempt, at this endpoint.
    pub(crate) fn upstream(&mut self, addr: SocketAddr) {
        self.with(|entry| {
            entry.upstream = Some(addr);
            entry.attempts += 1;
        });
    }

    /// Something about the response that its status does not say.
    pub(crate) fn flag(&mut self, flag: Flag) {
        self.with(|entry| entry.flag = flag);
    }

    /// The waypoint answers by itself.
    pub(crate) fn replied(&mut self, reply: &Reply) {
        self.with(|entry| {
            if entry.flag == Flag::None {
                entry.flag = reply.flag;
            }
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
        Body::new(CountedRequest {
            body,
            received: entry.received.clone(),
        })
    }

    /// Goes with the response to its end.
    pub(crate) fn attach(mut self, response: Response<Body>) -> Response<Body> {
        let entry = self.entry.take();
        let status = response.status().as_u16();
        response.map(|body| {
            let mut logged = Logged {
                body,
                log: Self { entry },
            };
            logged.log.with(|entry| {
                entry.status = status;
                if entry.details.is_empty() {
                    entry.details = "via_upstream".to_owned();
                }
            });
            if logged.body.is_end_stream() {
                logged.log.with(|entry| entry.whole = true);
            }
            Body::new(logged)
        })
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            entry.write();
        }
    }
}

impl Entry {
    fn write(mut self) {
        if !self.whole {
            if self.flag == Flag::None {
                self.flag = Flag::Downstream;
            }
            if self.details.is_empty() || self.details == "via_upstream" {
                self.details = "downstream_remote_disconnect".to_owned();
            }
        }
        let cluster = self.cluster.as_deref();
        let service = cluster.and_then(|cluster| cluster.service.as_ref());
        let duration = self.start.elapsed();
        let host = service
            .map_or("unknown", |service| service.host.as_str())
            .to_owned();
        counter!(
            "istio_requests_total", "reporter" => "waypoint", "destination_service" => host.clone(),
            "response_code" => self.status.to_string(), "response_flags" => self.flag.as_str()
        )
        .increment(1);
        histogram!(
            "istio_request_duration_milliseconds", "reporter" => "waypoint", "destination_service" => host
        )
        .record(duration.as_secs_f64() * 1000.0);
        info!(
            target: "access",
            method = %self.method,
            path = self.path,
            protocol = ?self.version,
            response_code = self.status,
            response_flags = self.flag.as_str(),
            response_code_details = self.details,
            bytes_received = self.received.load(Ordering::Relaxed),
            bytes_sent = self.sent,
            duration = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            authority = self.authority,
            user_agent = self.user_agent,
            upstream_host = self.upstream.map(tracing::field::display),
            upstream_cluster = cluster.map(|cluster| cluster.name.as_str()),
            attempts = self.attempts,
            downstream_local_address = %self.conn.destination,
            downstream_remote_address = %self.conn.client.addr,
            source_principal = &*self.conn.client.principal,
            route_name = self.route.as_ref().map(Str::as_str),
            "request complete"
        );
    }
}

struct CountedRequest {
    body: Body,
    received: Arc<AtomicU64>,
}

impl HttpBody for CountedRequest {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.received
                .fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

struct Logged {
    body: Body,
    log: RequestLog,
}

impl HttpBody for Logged {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if let Poll::Ready(frame) = &polled {
            let ended = this.body.is_end_stream();
            this.log.with(|entry| match frame {
                None => entry.whole = true,
                Some(Ok(frame)) => {
                    entry.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                    entry.whole |= ended || frame.is_trailers();
                }
                Some(Err(error)) => {
                    entry.whole = true;
                    entry.flag = if error.is::<super::deadline::ResponseTimeout>() {
                        Flag::UpstreamTimeout
                    } else {
                        Flag::UpstreamReset
                    };
                    entry.details = error.to_string();
                }
            });
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
