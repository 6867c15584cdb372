//! A small HTTP/1.1 server for the process's own pages: admin, metrics, readiness. Not for traffic of workloads.
//!
//! It serves loopback and cluster clients that may be slow or hostile, so every step has a bound: connections at
//! once (more are closed unread and counted), bytes and time for the headers, time for the answer, age of a
//! connection. On drain it stops accepting, lets the request in progress finish, and closes.

use std::{convert::Infallible, pin::Pin, sync::Arc, time::Duration};

use ::http::{Method, Request, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::{Instrument, Span, debug, debug_span, warn};

use crate::{Drain, Readiness, spawn};

/// After a failed accept (mostly: out of file descriptors) a new try soon succeeds or never does; without a pause
/// the loop would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The answer to a request. Boxed, so that one server type serves every page.
pub type ResponseFuture = Pin<Box<dyn Future<Output = Response<Full<Bytes>>> + Send>>;

/// What answers requests; [`handler`] makes one of an async function.
pub type Handler = Arc<dyn Fn(Request<Incoming>) -> ResponseFuture + Send + Sync>;

/// Bounds of one server.
#[derive(Clone, Debug)]
pub struct HttpLimits {
    /// Connections at once. A probe and a few scrapers need a handful.
    pub connections: usize,
    /// Time for the headers of a request, also the idle time between two. As Istio's ztunnel.
    pub header_deadline: Duration,
    /// Bytes of the headers. As Istio's ztunnel; the least that hyper can do.
    pub buffer: usize,
    /// Time for one answer, and for a request in progress when the server shuts down.
    pub request_deadline: Duration,
    /// Age after which a connection is closed when its request is done.
    pub lifetime: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections: 64,
            header_deadline: Duration::from_secs(2),
            buffer: 8 * 1024,
            request_deadline: Duration::from_secs(30),
            lifetime: Duration::from_secs(300),
        }
    }
}

/// Accepts connections in a task of `drain` until it starts.
pub fn serve(listener: TcpListener, handler: Handler, drain: &Drain, limits: HttpLimits) {
    let server = Server {
        handler,
        slots: Arc::new(Semaphore::new(limits.connections)),
        limits,
        drain: drain.clone(),
    };
    // The task is tracked by the drain; nobody waits for its output.
    drop(spawn(
        "http accept",
        debug_span!("http"),
        drain,
        server.accept(listener),
    ));
}

/// Makes a [`Handler`] of an async function.
pub fn handler<F, Fut>(answer: F) -> Handler
where
    F: Fn(Request<Incoming>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    Arc::new(move |request| Box::pin(answer(request)))
}

/// `GET /healthz/ready`: 200 `ready`, or 500 with the names of what is pending.
pub fn readiness_handler(readiness: Readiness) -> Handler {
    handler(move |request| {
        let response = readiness_response(request.method(), request.uri().path(), &readiness);
        std::future::ready(response)
    })
}

/// A plain text answer.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", body)
}

/// An answer of another content type.
pub fn typed(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let value = header::HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

#[derive(Clone)]
struct Server {
    handler: Handler,
    slots: Arc<Semaphore>,
    limits: HttpLimits,
    drain: Drain,
}

impl Server {
    async fn accept(self, listener: TcpListener) {
        loop {
            // A connection that is not accepted yet stays in the kernel's queue when the drain wins.
            tokio::select! {
                () = self.drain.started() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.admit(stream),
                    Err(error) => {
                        warn!(%error, "cannot accept a connection");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    fn admit(&self, stream: TcpStream) {
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            metrics::counter!("leyline_http_connections_refused_total").increment(1);
            debug!("too many connections, one is closed unread");
            return;
        };
        let server = self.clone();
        let connection = async move {
            server.connection(stream).await;
            drop(slot);
        };
        // As above: tracked, no output.
        drop(spawn(
            "http connection",
            Span::current(),
            &self.drain,
            connection,
        ));
    }

    async fn connection(&self, stream: TcpStream) {
        let service = service_fn(|request| self.answer(request));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_deadline)
            .max_buf_size(self.limits.buffer)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        // The connection is only borrowed, so that it can finish its request after either of the other two.
        let ended = tokio::select! {
            ended = connection.as_mut() => Ok(ended),
            () = self.drain.started() => Err("drain"),
            () = sleep(self.limits.lifetime) => Err("age"),
        };
        let ended = match ended {
            Ok(ended) => ended,
            Err(reason) => {
                debug!(reason, "closing after the request in progress");
                connection.as_mut().graceful_shutdown();
                match timeout(self.limits.request_deadline, connection).await {
                    Ok(ended) => ended,
                    Err(_) => return debug!("cut: the client does not read its answer"),
                }
            }
        };
        if let Err(error) = ended {
            debug!(%error, "connection ended");
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let answer = (self.handler)(request).in_current_span();
        Ok(timeout(self.limits.request_deadline, answer)
            .await
            .unwrap_or_else(|_| text(StatusCode::SERVICE_UNAVAILABLE, "deadline passed\n")))
    }
}

fn readiness_response(method: &Method, path: &str, readiness: &Readiness) -> Response<Full<Bytes>> {
    if path != "/healthz/ready" {
        return text(StatusCode::NOT_FOUND, "not found\n");
    }
    if method != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
    }
    let pending = readiness.pending();
    if pending.is_empty() {
        return text(StatusCode::OK, "ready\n");
    }
    let body = format!("not ready, pending: {}\n", pending.join(", "));
    text(StatusCode::INTERNAL_SERVER_ERROR, body)
}

#[cfg(test)]
mod tests;
