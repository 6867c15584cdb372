//! The HTTP server on one tunnelled connection: HTTP/1.1 or HTTP/2, by what the client says first.

use std::sync::Arc;

use futures::{StreamExt, stream::FuturesUnordered};
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use leyline_hbone::HboneIo;
use leyline_types::{HboneAuthority, Str};
use metrics::counter;
use tokio::time::{Duration, sleep};
use tracing::debug;

use super::{
    framing::{Framed, Switch},
    life::{Life, LifeLimits},
    pipeline,
    request_log::SeriesCache,
    streams::{Begun, Streams},
};
use crate::{
    app::Shared,
    config::{header_case::HeaderCase, leaving::GRACE},
    listener::Client,
};

/// Bytes of a request's head; Envoy's default.
pub(super) const MAX_HEAD: usize = 60 << 10;
/// Headers of a request; Envoy's default.
const MAX_HEADERS: usize = 100;
/// Requests at once on an HTTP/2 connection.
const MAX_STREAMS: u32 = 1024;
/// Bytes that one stream, and one connection, may have received and not yet handed on.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of one stream that wait for the client.
const SEND_BUFFER: usize = 256 << 10;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_DEADLINE: Duration = Duration::from_secs(20);

/// What all requests of a connection share.
#[derive(Debug)]
pub(crate) struct HttpConnection {
    pub(crate) shared: Arc<Shared>,
    /// Name of the chain that serves it.
    pub(crate) chain: Str,
    pub(crate) client: Client,
    pub(crate) destination: Destination,
    pub(crate) header_case: HeaderCase,
    /// Requests that are under way.
    pub(crate) life: Arc<Life>,
    /// Where its requests are counted.
    pub(crate) series: SeriesCache,
}

/// What the client called, as its proxy says in the CONNECT.
#[derive(Clone, Debug)]
pub(crate) struct Destination(pub(crate) HboneAuthority);

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Destination {
    pub(crate) fn port(&self) -> u16 {
        self.0.port()
    }

    pub(crate) fn address(&self) -> Option<std::net::SocketAddr> {
        match &self.0 {
            HboneAuthority::Address(addr) => Some(*addr),
            HboneAuthority::Host { .. } => None,
        }
    }
}

/// Serves the connection until it ends; on drain, and when it is old or unused, after the requests under way.
pub(crate) async fn serve(conn: HttpConnection, limits: LifeLimits, io: HboneIo) {
    let conn = Arc::new(conn);
    let mut streams = Streams::default();
    let builder = builder(&conn, streams.executor());
    let switch = Arc::new(Switch::default());
    let service = {
        let (conn, switch) = (conn.clone(), switch.clone());
        service_fn(move |request: Request<Incoming>| {
            let (conn, switch) = (conn.clone(), switch.clone());
            // On the heap at once: hyper moves it about on its way to a task of its own.
            Box::pin(async move {
                let busy = conn.life.enter();
                let asked = Switch::asked(&request);
                let response = pipeline::handle(conn, request).await;
                if let Some(asked) = asked {
                    switch.tell(asked, &response);
                }
                Ok::<_, std::convert::Infallible>(response.map(|body| busy.until_end_of(body)))
            })
        })
    };
    let serving = builder
        .serve_connection_with_upgrades(TokioIo::new(Framed::new(io, switch.clone())), service);
    tokio::pin!(serving);
    // Alone in a set, so that it is polled when it is woken and not at each turn of the connection.
    let mut ending = FuturesUnordered::from_iter([end(&conn, limits)]);
    let result = tokio::select! {
        result = streams.drive(serving.as_mut()) => result,
        Some(()) = ending.next() => {
            serving.as_mut().graceful_shutdown();
            streams.drive(serving.as_mut()).await
        }
    };
    match result {
        Ok(()) => switch.finish().await,
        Err(error) => debug!(%error, client = %conn.client.addr, "HTTP connection broke"),
    }
}

/// Resolves when the connection is to take no more requests.
async fn end(conn: &HttpConnection, limits: LifeLimits) {
    let reason = tokio::select! {
        () = conn.shared.drain.started() => return,
        reason = conn.life.over(limits) => reason,
        () = departed(conn) => "service_left",
    };
    counter!("leyline_waypoint_connections_ended_total", "reason" => reason).increment(1);
}

/// What holds for every connection of both protocols.
fn builder(conn: &HttpConnection, streams: Begun) -> auto::Builder<Begun> {
    let mut builder = auto::Builder::new(streams);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(conn.shared.settings.proxy.head_deadline)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .preserve_header_case(conn.header_case == HeaderCase::Preserved);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_DEADLINE);
    builder
}

/// Resolves some time after the service was taken away, in the middle of the while that it is still served: a client that
/// is sending a request at the moment of the change is answered, and hears that it is to go with its answer.
async fn departed(conn: &HttpConnection) {
    let config = &conn.shared.config;
    loop {
        // Before the look, so that no change is missed.
        let departed = config.departed();
        let has_left = || config.load().chain(conn.chain.as_str()).is_none();
        if has_left() {
            sleep(GRACE / 2).await;
            if has_left() {
                return;
            }
            // It is back, and may have left again: the next look tells.
            continue;
        }
        departed.await;
    }
}
