//! Connections to endpoints that carry HTTP requests: one that is free, or a new one, or a wait for either where there
//! may be no more of them.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use leyline_runtime::spawn;
use tokio::time::{Duration, Instant, sleep_until, timeout};
use tracing::{Span, debug};

use super::{
    connect::{ConnectFailure, For, UpstreamIo, connect},
    send::SendFailure,
    state::{Place, Resource},
};
use crate::{
    app::Shared,
    config::{cluster::Cluster, endpoints::Endpoint, header_case::HeaderCase},
    http::{body::Body, streams::Streams},
};

/// An unused upstream connection is kept for this long where the configuration says nothing (Envoy's default).
const IDLE: Duration = Duration::from_secs(3600);
/// The longest wait for a connection where the route has no timeout: Envoy's default for a stream without movement.
const PENDING_DEADLINE: Duration = Duration::from_secs(300);

/// An HTTP/1 connection that carries one request.
#[derive(Debug)]
pub(crate) struct Http1 {
    pub(crate) sender: http1::SendRequest<Body>,
    life: Life,
}

/// How much a connection was used.
#[derive(Clone, Copy, Debug)]
struct Life {
    since: Instant,
    requests: u32,
    /// How it is wrapped.
    transport: u64,
    header_case: HeaderCase,
}

/// An HTTP/1 connection that waits for a request.
#[derive(Debug)]
struct Idle {
    connection: Http1,
    /// When it is too old to be used.
    until: Instant,
}

/// A stream of an HTTP/2 connection.
#[derive(Debug)]
pub(crate) struct Http2 {
    pub(crate) sender: http2::SendRequest<Body>,
    pub(crate) stream: Stream,
}

/// Counts a stream for as long as it is there.
#[derive(Debug)]
pub(crate) struct Stream(Arc<AtomicU32>);

/// An HTTP/2 connection that requests share.
#[derive(Debug)]
struct Multiplexed {
    sender: http2::SendRequest<Body>,
    life: Life,
    streams: Arc<AtomicU32>,
    /// When it was last seen without streams.
    idle_since: Option<Instant>,
}

/// The connections of one endpoint that are ready for requests.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    /// The one used last at the end.
    http1: Vec<Idle>,
    http2: Vec<Multiplexed>,
    /// Whether a task closes what is not used.
    reaped: bool,
}

impl Connections {
    /// Closes what was not used for too long; when to look again, if anything is left.
    fn close_idle(&mut self, now: Instant, idle: Duration) -> Option<Instant> {
        self.http1
            .retain(|one| one.until > now && !one.connection.sender.is_closed());
        self.http2.retain_mut(|one| {
            if one.streams.load(Ordering::Acquire) > 0 {
                one.idle_since = None;
            }
            let since = *one.idle_since.get_or_insert(now);
            !one.sender.is_closed() && since + idle > now
        });
        let http1 = self.http1.iter().map(|one| one.until);
        let http2 = self
            .http2
            .iter()
            .map(|one| one.idle_since.unwrap_or(now) + idle);
        let next = http1.chain(http2).min();
        self.reaped = next.is_some();
        next
    }

    /// A stream on a connection that has room for it.
    fn stream(&mut self, cluster: &Cluster, now: Instant) -> Option<Http2> {
        let limits = cluster.connections;
        self.http2
            .retain(|one| !one.sender.is_closed() && one.life.is_good(cluster, now));
        let room = |one: &&mut Multiplexed| one.streams.load(Ordering::Acquire) < limits.streams;
        let found = self.http2.iter_mut().find(room)?;
        found.life.requests += 1;
        found.idle_since = None;
        found.streams.fetch_add(1, Ordering::AcqRel);
        Some(Http2 {
            sender: found.sender.clone(),
            stream: Stream(found.streams.clone()),
        })
    }
}

impl Life {
    /// Of a connection that carries its first request.
    fn first(cluster: &Cluster) -> Self {
        Self {
            since: Instant::now(),
            requests: 1,
            transport: cluster.transport.id,
            header_case: cluster.header_case,
        }
    }

    /// Whether one more request may go over the connection. The cluster may have become another since it was made.
    fn is_good(&self, cluster: &Cluster, now: Instant) -> bool {
        let limits = cluster.connections;
        limits.max_requests.is_none_or(|most| self.requests < most)
            && limits.max_age.is_none_or(|most| now < self.since + most)
            && self.transport == cluster.transport.id
            && self.header_case == cluster.header_case
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Who a connection is for. Where the endpoint is told so in a PROXY header, clients do not share connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client(pub(crate) SocketAddr);

/// An HTTP/1 connection that is free or new. Cancel safe.
pub(crate) async fn http1(
    shared: &Arc<Shared>,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    client: Option<SocketAddr>,
) -> Result<Http1, SendFailure> {
    if let Some(free) = free_http1(cluster, endpoint, client).await {
        return Ok(free);
    }
    let _pending = wait_in_line(cluster)?;
    let waiting = async {
        loop {
            // Before the look, so that nothing is missed that is freed between the look and the wait.
            let mut freed = pin!(cluster.state.freed.notified());
            freed.as_mut().enable();
            if let Some(free) = free_http1(cluster, endpoint, client).await {
                return Ok(free);
            }
            if let Some(place) = place(cluster, endpoint) {
                return open_http1(shared, cluster, endpoint, place, client).await;
            }
            freed.await;
        }
    };
    in_line(waiting).await
}

/// A stream of an HTTP/2 connection that there is, or of a new one. Cancel safe.
pub(crate) async fn http2(
    shared: &Arc<Shared>,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    client: Option<SocketAddr>,
) -> Result<Http2, SendFailure> {
    let stream = || match client {
        None => endpoint.state.connections().stream(cluster, Instant::now()),
        Some(_) => None,
    };
    if let Some(stream) = stream() {
        return Ok(stream);
    }
    let _pending = wait_in_line(cluster)?;
    let waiting = async {
        loop {
            let mut freed = pin!(cluster.state.freed.notified());
            freed.as_mut().enable();
            {
                // One connects, the others use what he makes.
                let _dialling = endpoint.state.dialling.lock().await;
                if let Some(stream) = stream() {
                    return Ok(stream);
                }
                if let Some(place) = place(cluster, endpoint) {
                    return open_http2(shared, cluster, endpoint, place, client).await;
                }
            }
            freed.await;
        }
    };
    in_line(waiting).await
}

/// Waits no longer than is good for anybody.
async fn in_line<T>(
    waiting: impl Future<Output = Result<T, SendFailure>>,
) -> Result<T, SendFailure> {
    timeout(PENDING_DEADLINE, Box::pin(waiting))
        .await
        .unwrap_or(Err(SendFailure::Overflow(Resource::Connections)))
}

async fn free_http1(
    cluster: &Cluster,
    endpoint: &Endpoint,
    client: Option<SocketAddr>,
) -> Option<Http1> {
    while client.is_none()
        && let Some(mut free) = take_http1(cluster, endpoint)
    {
        if free.sender.ready().await.is_ok() {
            free.life.requests += 1;
            return Some(free);
        }
    }
    None
}

/// Gives an HTTP/1 connection back after a whole exchange. One that was made for a client ends with it.
pub(crate) fn put_back(
    shared: &Shared,
    cluster: &Cluster,
    endpoint: &Arc<Endpoint>,
    connection: Http1,
) {
    let now = Instant::now();
    let is_good = !connection.sender.is_closed()
        && connection.life.is_good(cluster, now)
        && cluster.transport.announce.is_none();
    if !is_good || shared.drain.is_started() {
        return;
    }
    let idle = cluster.connections.idle.unwrap_or(IDLE);
    let until = now + idle;
    {
        let mut connections = endpoint.state.connections();
        connections.http1.push(Idle { connection, until });
    }
    cluster.state.freed.notify_waiters();
    reap(shared, endpoint, idle);
}

/// Says that a stream has ended.
pub(crate) fn stream_ended(cluster: &Cluster, stream: Stream) {
    drop(stream);
    cluster.state.freed.notify_waiters();
}

fn take_http1(cluster: &Cluster, endpoint: &Endpoint) -> Option<Http1> {
    let now = Instant::now();
    let mut connections = endpoint.state.connections();
    while let Some(Idle { connection, until }) = connections.http1.pop() {
        if until > now && !connection.sender.is_closed() && connection.life.is_good(cluster, now) {
            return Some(connection);
        }
    }
    None
}

fn wait_in_line(cluster: &Arc<Cluster>) -> Result<Place, SendFailure> {
    let place = cluster
        .state
        .enter(Resource::Pending, cluster.limits.pending);
    place.ok_or(SendFailure::Overflow(Resource::Pending))
}

/// Room for one more connection. An endpoint without any gets one whatever the others have: nothing that it could wait
/// for would ever be freed.
fn place(cluster: &Arc<Cluster>, endpoint: &Endpoint) -> Option<Open> {
    let state = &cluster.state;
    let place = state.enter(Resource::Connections, cluster.limits.connections);
    let place = match place {
        None if endpoint.state.open.load(Ordering::Acquire) == 0 => {
            Some(state.enter_anyway(Resource::Connections))
        }
        place => place,
    };
    place.map(|place| Open::new(place, endpoint.state.open.clone()))
}

/// A connection that is open, or being opened.
#[derive(Debug)]
struct Open {
    _place: Place,
    of_endpoint: Arc<AtomicU32>,
}

impl Open {
    fn new(place: Place, of_endpoint: Arc<AtomicU32>) -> Self {
        of_endpoint.fetch_add(1, Ordering::AcqRel);
        Self {
            _place: place,
            of_endpoint,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // Before the place, whose end wakes those who look at this.
        self.of_endpoint.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn open_http1(
    shared: &Arc<Shared>,
    cluster: &Cluster,
    endpoint: &Endpoint,
    place: Open,
    client: Option<SocketAddr>,
) -> Result<Http1, SendFailure> {
    let io = open(shared, cluster, endpoint, client).await?;
    let handshake = http1::Builder::new()
        .preserve_header_case(cluster.header_case == HeaderCase::Preserved)
        .handshake(TokioIo::new(io))
        .await;
    let (sender, connection) = handshake.map_err(ConnectFailure::Http)?;
    let connection = async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(%error, "upstream connection broke");
        }
        drop(place);
    };
    drop(spawn(
        "upstream http/1",
        Span::none(),
        &shared.drain,
        connection,
    ));
    Ok(Http1 {
        sender,
        life: Life::first(cluster),
    })
}

async fn open_http2(
    shared: &Arc<Shared>,
    cluster: &Cluster,
    endpoint: &Arc<Endpoint>,
    place: Open,
    client: Option<SocketAddr>,
) -> Result<Http2, SendFailure> {
    let io = open(shared, cluster, endpoint, client).await?;
    let mut streams = Streams::default();
    let (sender, connection) = http2::Builder::new(streams.executor())
        .timer(TokioTimer::new())
        .adaptive_window(false)
        .handshake(TokioIo::new(io))
        .await
        .map_err(ConnectFailure::Http)?;
    let connection = async move {
        if let Err(error) = streams.drive(pin!(connection)).await {
            debug!(%error, "upstream connection broke");
        }
        // It takes no more requests; those under way have their answers first.
        streams.finish().await;
        drop(place);
    };
    drop(spawn(
        "upstream http/2",
        Span::none(),
        &shared.drain,
        connection,
    ));
    let streams = Arc::new(AtomicU32::new(1));
    let stream = Http2 {
        sender: sender.clone(),
        stream: Stream(streams.clone()),
    };
    if client.is_none() && !shared.drain.is_started() {
        endpoint.state.connections().http2.push(Multiplexed {
            sender,
            life: Life::first(cluster),
            streams,
            idle_since: None,
        });
        reap(shared, endpoint, cluster.connections.idle.unwrap_or(IDLE));
    }
    Ok(stream)
}

/// Where clients share connections, they are the waypoint's own.
async fn open(
    shared: &Arc<Shared>,
    cluster: &Cluster,
    endpoint: &Endpoint,
    client: Option<SocketAddr>,
) -> Result<UpstreamIo, ConnectFailure> {
    let purpose = For {
        client: client.unwrap_or_else(|| (shared.settings.node.instance_ip, 0).into()),
        service: cluster.service.as_ref().map(|service| service.host.clone()),
    };
    connect(shared, cluster, endpoint, purpose).await
}

/// Starts the task that closes connections that are not used, unless there is one. It ends with the last of them or on
/// drain, and keeps nothing alive that nobody else needs.
fn reap(shared: &Shared, endpoint: &Arc<Endpoint>, idle: Duration) {
    let next = {
        let mut connections = endpoint.state.connections();
        if connections.reaped {
            return;
        }
        connections.close_idle(Instant::now(), idle)
    };
    let Some(mut next) = next else {
        return;
    };
    let (state, drain) = (Arc::downgrade(&endpoint.state), shared.drain.clone());
    let reaping = async move {
        loop {
            let drained = tokio::select! {
                () = sleep_until(next) => false,
                () = drain.started() => true,
            };
            let Some(state) = state.upgrade() else {
                return;
            };
            let mut connections = state.connections();
            if drained {
                // Those that are in use end with their last request.
                *connections = Connections::default();
                return;
            }
            let Some(after) = connections.close_idle(Instant::now(), idle) else {
                return;
            };
            next = after;
        }
    };
    drop(spawn("upstream idle", Span::none(), &shared.drain, reaping));
}
