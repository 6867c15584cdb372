//! The outbound end of a tunnel: handshake, the task that drives it, and requests in it. Called by the pool.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use http::{Request, StatusCode, header::HeaderValue};
use leyline_runtime::{Beside, Drain, Nested};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
    time::{Instant, timeout},
};
use tracing::debug;

use crate::{
    config::HboneConfig,
    error::HboneError,
    headers::BAGGAGE,
    housekeeping::{Event, Events, drain_started, keepalive},
    link::{self, End, Link, LinkHandle, Traffic},
    stream::HboneStream,
    usage::{Load, StreamGuard, Usage},
    windows::Windows,
};

/// A tunnel as the pool knows it. When the last reference is dropped, the tunnel closes after its last stream.
pub(crate) struct Tunnel {
    sender: SendRequest<Bytes>,
    beside: Beside<Arc<StreamGuard>>,
    usage: Arc<Usage>,
    /// Streams that the peer allows, as last seen; none but the first before its SETTINGS.
    limit: AtomicUsize,
    most: usize,
    release_batch: usize,
    load: Load,
    /// Closes the tunnel with its streams. Locked only to take it out, once.
    cut: Mutex<Option<oneshot::Sender<()>>>,
}

/// A stream that is counted but not yet requested.
pub(crate) struct Lease {
    pub(crate) tunnel: Arc<Tunnel>,
    guard: Arc<StreamGuard>,
}

/// Resolves when the peer's SETTINGS have arrived.
pub(crate) type Settled = oneshot::Receiver<Result<(), HboneError>>;

/// What the task of a tunnel runs.
pub(crate) struct Driver<IO> {
    outbound: Outbound<IO>,
    streams: Nested<Arc<StreamGuard>>,
}

/// The tunnel itself.
struct Outbound<IO> {
    connection: Connection<Link<IO>, Bytes>,
    link: LinkHandle<IO>,
    traffic: Arc<Traffic>,
    events: Events,
    usage: Arc<Usage>,
    windows: Windows,
    /// How long the tunnel is kept without streams.
    idle: Duration,
    /// Told when the peer's SETTINGS are in, or that they will not come; then gone.
    settled: Option<oneshot::Sender<Result<(), HboneError>>>,
}

/// Why a request got no stream.
pub(crate) enum RequestError {
    /// The peer has not looked at it: safe to try again in another tunnel.
    Unprocessed(HboneError),
    /// Anything else.
    Failed(HboneError),
}

/// Sends the preface and SETTINGS.
pub(crate) async fn handshake<IO>(
    io: IO,
    cfg: &HboneConfig,
    drain: &Drain,
) -> Result<(Tunnel, Driver<IO>, Settled), HboneError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (link, handle) = link::new(io, End::Client);
    let started = cfg.client_builder().handshake::<_, Bytes>(link);
    let (sender, mut connection) = timeout(cfg.handshake_deadline, started)
        .await
        .map_err(|_elapsed| HboneError::HandshakeDeadline)?
        .map_err(|error| HboneError::Handshake(Arc::new(error)))?;
    handle.hold();

    let traffic = handle.traffic();
    let usage = Usage::new(cfg, drain.clone());
    let (cut, cut_asked) = oneshot::channel();
    let events = Events::new();
    if let Some(pings) = connection.ping_pong() {
        events.add(keepalive(pings, traffic.clone(), cfg));
    }
    events.add(unused(usage.clone(), cfg.idle));
    events.add(drain_started(drain.clone()));
    events.add(async move {
        match cut_asked.await {
            Ok(()) => Event::Cut,
            // The pool let go of the tunnel, which ends by itself.
            Err(_) => std::future::pending().await,
        }
    });

    let (settled, settled_seen) = oneshot::channel();
    let streams = Nested::default();
    let tunnel = Tunnel {
        sender,
        beside: streams.beside(),
        usage: usage.clone(),
        limit: AtomicUsize::new(1),
        most: cfg.outbound_streams,
        release_batch: cfg.release_batch(),
        load: Load::new(traffic.clone(), cfg.busy_bytes_per_second),
        cut: Mutex::new(Some(cut)),
    };
    let outbound = Outbound {
        connection,
        link: handle,
        traffic,
        events,
        usage,
        windows: Windows::new(cfg),
        idle: cfg.idle,
        settled: Some(settled),
    };
    let driver = Driver { outbound, streams };
    Ok((tunnel, driver, settled_seen))
}

async fn unused(usage: Arc<Usage>, limit: Duration) -> Event {
    usage.unused(|_| limit).await;
    Event::Unused
}

/// In a drain a tunnel is kept this long without streams, for requests that were just being made.
const DRAIN_IDLE: Duration = Duration::from_millis(250);

impl<IO: AsyncRead + AsyncWrite + Send + Unpin + 'static> Driver<IO> {
    /// Drives the tunnel to its end. `retire` is asked to forget the tunnel once it is unused, and says whether it did.
    pub(crate) async fn run(mut self, retire: impl Fn() -> bool) {
        let result = self.drive(&retire).await;
        if let Err(error) = &result {
            debug!(%error, "tunnel ended");
        }
        if let Some(settled) = self.outbound.settled.take() {
            let _gone: Result<(), _> =
                settled.send(Err(result.err().unwrap_or(HboneError::Closed)));
        }
        // Out of the pool, and its streams learn that nothing follows.
        drop(retire);
        drop(self.outbound);
        self.streams.finish().await;
    }

    async fn drive(&mut self, retire: &impl Fn() -> bool) -> Result<(), HboneError> {
        let Self { outbound, streams } = self;
        loop {
            match poll_fn(|cx| outbound.poll_turn(streams, cx)).await {
                Step::Ended(result) => return result,
                Step::Event(Event::Dead) => return Err(HboneError::PingDeadline),
                Step::Event(Event::Cut) => return Err(HboneError::Closed),
                Step::Event(Event::DrainStarted) => {
                    outbound.idle = DRAIN_IDLE;
                    outbound.await_unused();
                }
                // The pool is told, and lets go of the tunnel.
                Step::Event(Event::Leaving) => {}
                Step::Event(Event::Unused) => {
                    if !retire() {
                        outbound.await_unused();
                    }
                }
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Send + Unpin + 'static> Outbound<IO> {
    fn await_unused(&self) {
        self.events.add(unused(self.usage.clone(), self.idle));
    }

    /// One turn of the task, which is timed.
    fn poll_turn(
        &mut self,
        streams: &mut Nested<Arc<StreamGuard>>,
        cx: &mut Context<'_>,
    ) -> Poll<Step> {
        let start = Instant::now();
        let step = streams.poll_turn(cx, |cx| self.poll_step(cx));
        self.traffic.turn(start);
        step
    }

    /// One round: what h2 has to do, then one flush of all that it wrote.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        if let Poll::Ready(result) = Pin::new(&mut self.connection).poll(cx) {
            return Poll::Ready(Step::Ended(result.map_err(HboneError::tunnel)));
        }
        if self.follow_windows()
            && let Poll::Ready(result) = Pin::new(&mut self.connection).poll(cx)
        {
            return Poll::Ready(Step::Ended(result.map_err(HboneError::tunnel)));
        }
        if let Poll::Ready(Err(error)) = self.link.poll_flush(cx) {
            return Poll::Ready(Step::Ended(Err(HboneError::Transport(Arc::new(error)))));
        }
        if self.traffic.received() > 0
            && let Some(settled) = self.settled.take()
        {
            // The pool may have given up the dial.
            let _gone: Result<(), _> = settled.send(Ok(()));
        }
        self.events.poll_next(cx).map(Step::Event)
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
}

enum Step {
    Ended(Result<(), HboneError>),
    Event(Event),
}

impl Tunnel {
    /// Takes a place for one more stream, if there is one.
    pub(crate) fn lease(self: &Arc<Self>) -> Option<Lease> {
        let guard = self.usage.enter(self.limit.load(Ordering::Acquire))?;
        Some(Lease {
            tunnel: self.clone(),
            guard,
        })
    }

    /// The peer's SETTINGS are known: as many streams as it and we allow.
    pub(crate) fn settle(&self) {
        let limit = self.sender.current_max_send_streams().min(self.most);
        self.limit.store(limit, Ordering::Release);
    }

    pub(crate) fn streams(&self) -> usize {
        self.usage.streams()
    }

    /// Whether it moves so much data that one core may be all at work for it.
    pub(crate) fn is_busy(&self) -> bool {
        self.load.is_busy()
    }

    /// Closes the tunnel with all its streams.
    pub(crate) fn cut(&self) {
        let cut = self.cut.lock().take();
        if let Some(cut) = cut {
            // It fails when the task has ended already.
            let _gone: Result<(), ()> = cut.send(());
        }
    }
}

impl Lease {
    /// Sends the request and waits for the response.
    pub(crate) async fn request(
        self,
        request: Request<()>,
        deadline: Duration,
    ) -> Result<(HboneStream, Option<HeaderValue>), RequestError> {
        let mut sender = self.tunnel.sender.clone();
        // Fails at once in a tunnel that has ended or is going away.
        poll_fn(|cx| sender.poll_ready(cx))
            .await
            .map_err(|error| RequestError::Unprocessed(HboneError::tunnel(error)))?;
        let (response, send) = sender
            .send_request(request, false)
            .map_err(|error| RequestError::Unprocessed(HboneError::tunnel(error)))?;
        drop(sender);
        let response = match timeout(deadline, response).await {
            Err(_) => return Err(RequestError::Failed(HboneError::ResponseDeadline)),
            Ok(Err(error)) => return Err(classify(error)),
            Ok(Ok(response)) => response,
        };
        let (head, receive) = response.into_parts();
        if head.status != StatusCode::OK {
            return Err(RequestError::Failed(HboneError::Status(head.status)));
        }
        // The peer may have lowered its limit.
        if self.tunnel.limit.load(Ordering::Relaxed) > 1 {
            self.tunnel.settle();
        }
        let batch = self.tunnel.release_batch;
        let stream = HboneStream::new(receive, send, batch, self.guard);
        let stream = stream.beside(self.tunnel.beside.clone());
        Ok((stream, head.headers.get(BAGGAGE).cloned()))
    }
}

/// A GOAWAY reaches only streams above the last one that the peer looked at; REFUSED_STREAM says the same of one
/// stream (RFC 9113, 8.7).
fn classify(error: h2::Error) -> RequestError {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    if error.is_remote() && (error.is_go_away() || refused) {
        RequestError::Unprocessed(HboneError::tunnel(error))
    } else {
        RequestError::Failed(HboneError::tunnel(error))
    }
}
