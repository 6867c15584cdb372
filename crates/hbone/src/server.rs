//! The inbound end of a tunnel: every CONNECT becomes a [`Request`], whose connection runs in the tunnel's task or its own.

mod request;

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::FutureExt;
use h2::{
    Reason, RecvStream,
    server::{Connection, SendResponse},
};
use http::{Response, StatusCode};
use leyline_runtime::{Drain, Nested, spawn};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tracing::Span;

pub use request::{BadRequest, Request};

use crate::{
    config::{HboneConfig, StreamTasks},
    error::HboneError,
    housekeeping::{Event, Events, drain_started, keepalive},
    link::{self, End, Link, LinkHandle},
    usage::Usage,
    windows::Windows,
};

/// Tasks per allowed stream. A peer that opens and resets streams makes tasks that outlive their streams
/// (CVE-2023-44487); twice as many as streams is room for those that are just ending.
const TASKS_PER_STREAM: usize = 2;

/// Serves one connection until it and its streams end. Each CONNECT runs `handler`, in this task or in one on `drain`, as
/// [`HboneConfig::stream_tasks`] says; what is not a valid CONNECT is answered here and told to `refused`.
///
/// When `drain` starts, the peer is told to open no more streams and those open go on; when it is forced, they are cut.
/// Not cancel safe: dropping it cuts all streams.
///
/// # Errors
/// When the connection ended otherwise than by agreement.
pub fn serve<IO, H, F, R>(
    io: IO,
    cfg: &HboneConfig,
    drain: &Drain,
    handler: H,
    refused: R,
) -> impl Future<Output = Result<(), HboneError>>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    H: Fn(Request) -> F,
    F: Future<Output = ()> + Send + 'static,
    R: Fn(BadRequest),
{
    // Not within another future, which would hold everything twice.
    serve_until(io, cfg, drain, std::future::pending(), handler, refused)
}

/// The same; when `leaving` resolves, the peer is told to open no more streams, too. Not cancel safe.
///
/// # Errors
/// When the connection ended otherwise than by agreement.
pub async fn serve_until<IO, H, F, R>(
    io: IO,
    cfg: &HboneConfig,
    drain: &Drain,
    leaving: impl Future<Output = ()> + Send + 'static,
    handler: H,
    refused: R,
) -> Result<(), HboneError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    H: Fn(Request) -> F,
    F: Future<Output = ()> + Send + 'static,
    R: Fn(BadRequest),
{
    let (link, handle) = link::new(io, End::Server);
    let handshake = cfg.server_builder().handshake::<_, Bytes>(link);
    let connection = timeout(cfg.handshake_deadline, handshake)
        .await
        .map_err(|_elapsed| HboneError::HandshakeDeadline)?
        .map_err(|error| HboneError::Handshake(Arc::new(error)))?;
    handle.hold();

    let mut streams = Nested::default();
    let result = {
        // Gone at the end of the block.
        let mut inbound = Inbound::new(connection, handle, cfg, drain, leaving);
        loop {
            match poll_fn(|cx| streams.poll_turn(cx, |cx| inbound.poll_step(cx))).await {
                Step::Ended(result) => break result,
                Step::Event(event) => {
                    if let Err(error) = inbound.handle(event, drain) {
                        break Err(error);
                    }
                }
                Step::TooLarge => refused(BadRequest::Headers),
                Step::Stream(head, receive, respond) => {
                    let request = match inbound.request(head, receive, respond, cfg) {
                        Ok(request) => request,
                        Err(reason) => {
                            refused(reason);
                            continue;
                        }
                    };
                    let guard = request.guard().clone();
                    let task = handler(request);
                    match cfg.stream_tasks {
                        StreamTasks::Tunnel => streams.push(task, guard),
                        // Tracked by the drain; the stream belongs to the task alone.
                        StreamTasks::Own => {
                            drop(spawn("hbone stream", Span::current(), drain, task));
                        }
                    }
                }
            }
        }
    };
    // They have data to hand on, or learn that no more will come.
    streams.finish().await;
    result
}

impl HboneConfig {
    fn most_tasks(&self) -> usize {
        let streams = usize::try_from(self.inbound_streams).unwrap_or(usize::MAX);
        streams.saturating_mul(TASKS_PER_STREAM)
    }
}

/// No first request in time, or none for long.
fn unused(usage: Arc<Usage>, cfg: &HboneConfig) -> impl Future<Output = Event> + use<> {
    let (first, later) = (cfg.request_deadline, cfg.inbound_idle);
    async move {
        usage
            .unused(|usage| if usage.was_used() { later } else { first })
            .await;
        Event::Unused
    }
}

struct Inbound<IO> {
    connection: Connection<Link<IO>, Bytes>,
    link: LinkHandle<IO>,
    events: Events,
    usage: Arc<Usage>,
    windows: Windows,
}

#[expect(
    clippy::large_enum_variant,
    reason = "made and taken apart at once, on the stack"
)]
enum Step {
    Ended(Result<(), HboneError>),
    Event(Event),
    /// h2 has answered a request.
    TooLarge,
    Stream(http::request::Parts, RecvStream, SendResponse<Bytes>),
}

impl<IO: AsyncRead + AsyncWrite + Send + Unpin + 'static> Inbound<IO> {
    fn new(
        mut connection: Connection<Link<IO>, Bytes>,
        link: LinkHandle<IO>,
        cfg: &HboneConfig,
        drain: &Drain,
        leaving: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let usage = Usage::new(cfg, drain.clone());
        let events = Events::new();
        if let Some(pings) = connection.ping_pong() {
            events.add(keepalive(pings, link.traffic(), cfg));
        }
        events.add(unused(usage.clone(), cfg));
        events.add(drain_started(drain.clone()));
        events.add(leaving.map(|()| Event::Leaving));
        Self {
            connection,
            link,
            events,
            usage,
            windows: Windows::new(cfg),
        }
    }

    /// One round: a new stream, or what h2 has to do and then one flush of all that it wrote.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        if let Poll::Ready(step) = self.poll_connection(cx) {
            return Poll::Ready(step);
        }
        // Once all streams that have arrived are counted, and before any of them is answered.
        if self.follow_windows()
            && let Poll::Ready(step) = self.poll_connection(cx)
        {
            return Poll::Ready(step);
        }
        // Before the flush, so that who has the answer finds it counted.
        if self.link.take_too_large() {
            return Poll::Ready(Step::TooLarge);
        }
        if let Poll::Ready(Err(error)) = self.link.poll_flush(cx) {
            let error = HboneError::Transport(Arc::new(error));
            return Poll::Ready(Step::Ended(Err(error)));
        }
        self.events.poll_next(cx).map(Step::Event)
    }

    fn poll_connection(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        self.connection
            .poll_accept(cx)
            .map(|accepted| match accepted {
                Some(Ok((request, respond))) => {
                    let (head, receive) = request.into_parts();
                    Step::Stream(head, receive, respond)
                }
                Some(Err(error)) => Step::Ended(Err(HboneError::tunnel(error))),
                None => Step::Ended(Ok(())),
            })
    }

    /// Windows for as many streams as there are now. Says whether h2 has something to send for it.
    fn follow_windows(&mut self) -> bool {
        let told = self.windows.follow(self.usage.streams(), |sizes| {
            self.connection.set_initial_window_size(sizes.stream)?;
            self.connection.set_target_window_size(sizes.tunnel);
            Ok(())
        });
        let acked = self.link.take_settings_acked();
        told | (acked && self.usage.credits.tell())
    }

    fn request(
        &self,
        head: http::request::Parts,
        receive: RecvStream,
        mut respond: SendResponse<Bytes>,
        cfg: &HboneConfig,
    ) -> Result<Request, BadRequest> {
        self.link.await_answer(respond.stream_id().as_u32());
        if let Some(guard) = self.usage.enter(cfg.most_tasks()) {
            return Request::parse(head, receive, respond, cfg, guard);
        }
        respond.send_reset(Reason::REFUSED_STREAM);
        Err(BadRequest::TooMany)
    }

    fn handle(&mut self, event: Event, drain: &Drain) -> Result<(), HboneError> {
        match event {
            Event::Dead => Err(HboneError::PingDeadline),
            Event::Unused | Event::Leaving => {
                self.connection.graceful_shutdown();
                Ok(())
            }
            Event::DrainStarted => {
                self.connection.graceful_shutdown();
                let drain = drain.clone();
                self.events.add(async move {
                    drain.forced().await;
                    Event::Cut
                });
                Ok(())
            }
            Event::Cut => {
                self.connection.abrupt_shutdown(Reason::NO_ERROR);
                Ok(())
            }
        }
    }
}

/// Answers without opening a stream.
fn answer(mut respond: SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    // It fails only when the peer has given up the stream.
    let _gone = respond.send_response(response, true);
}
