//! One attempt of a request at one endpoint, over a connection that there is or a new one.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, Version};
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use leyline_runtime::spawn;
use tokio::time::{Duration, Instant};
use tracing::{Span, debug};

use super::{
    connect::{ConnectFailure, For, UpstreamIo, connect},
    endpoint::{Active, EndpointState},
};
use crate::{
    app::Shared,
    config::{
        cluster::{Cluster, UpstreamHttp},
        endpoints::Endpoint,
    },
    http::{
        body::{Body, BodyError},
        executor::DrainExecutor,
    },
};

/// An unused upstream connection is kept for this long where the configuration says nothing (Envoy's default).
const IDLE: Duration = Duration::from_secs(3600);

/// Why an attempt brought no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendFailure {
    #[error("upstream connect error: {0}")]
    Connect(#[from] ConnectFailure),
    /// The endpoint has not looked at the request.
    #[error("upstream refused the stream: {0}")]
    Refused(#[source] hyper::Error),
    /// The connection broke before the response's head.
    #[error("upstream reset before headers: {0}")]
    Reset(#[source] hyper::Error),
}

/// Sends the request and waits for the head of the response. Cancel safe in that a dropped call drops the exchange.
pub(crate) async fn send(
    shared: &Arc<Shared>,
    cluster: &Cluster,
    endpoint: &Endpoint,
    downstream: Version,
    mut request: Request<Body>,
) -> Result<Response<Body>, SendFailure> {
    let active = endpoint.state.enter();
    let http2 = match cluster.http {
        UpstreamHttp::Http1 => false,
        UpstreamHttp::Http2 => true,
        UpstreamHttp::Downstream => downstream == Version::HTTP_2,
    };
    let until = Instant::now() + cluster.idle.unwrap_or(IDLE);
    if http2 {
        *request.version_mut() = Version::HTTP_2;
        let response = over_http2(shared, cluster, endpoint, request).await?;
        return Ok(response.map(|body| Body::new(Exchange::new(body, active, None))));
    }
    *request.version_mut() = Version::HTTP_11;
    let (response, sender) = over_http1(shared, cluster, endpoint, request).await?;
    let back = Back {
        state: endpoint.state.clone(),
        sender,
        until,
    };
    Ok(response.map(|body| Body::new(Exchange::new(body, active, Some(back)))))
}

/// A connection that was used before may be closed by the endpoint just now: what was not sent is sent over a new one.
async fn over_http1(
    shared: &Arc<Shared>,
    cluster: &Cluster,
    endpoint: &Endpoint,
    mut request: Request<Body>,
) -> Result<(Response<Incoming>, http1::SendRequest<Body>), SendFailure> {
    while let Some(mut sender) = endpoint.state.take_http1() {
        if sender.ready().await.is_err() {
            continue;
        }
        match sender.try_send_request(request).await {
            Ok(response) => return Ok((response, sender)),
            Err(mut error) => match error.take_message() {
                Some(unsent) => request = unsent,
                None => return Err(failure(error)),
            },
        }
    }
    let io = open(shared, cluster, endpoint).await?;
    let (mut sender, connection) = http1::Builder::new()
        .handshake(TokioIo::new(io))
        .await
        .map_err(ConnectFailure::Http)?;
    let connection = async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(%error, "upstream connection broke");
        }
    };
    drop(spawn(
        "upstream http/1",
        Span::none(),
        &shared.drain,
        connection,
    ));
    match sender.try_send_request(request).await {
        Ok(response) => Ok((response, sender)),
        Err(error) => Err(failure(error)),
    }
}

async fn over_http2(
    shared: &Arc<Shared>,
    cluster: &Cluster,
    endpoint: &Endpoint,
    mut request: Request<Body>,
) -> Result<Response<Incoming>, SendFailure> {
    if let Some(mut sender) = endpoint.state.http2()
        && sender.ready().await.is_ok()
    {
        match sender.try_send_request(request).await {
            Ok(response) => return Ok(response),
            Err(mut error) => match error.take_message() {
                Some(unsent) => request = unsent,
                None => return Err(failure(error)),
            },
        }
    }
    let io = open(shared, cluster, endpoint).await?;
    let executor = DrainExecutor::new(shared.drain.clone());
    let (mut sender, connection) = http2::Builder::new(executor)
        .timer(TokioTimer::new())
        .adaptive_window(false)
        .handshake(TokioIo::new(io))
        .await
        .map_err(ConnectFailure::Http)?;
    let connection = async move {
        if let Err(error) = connection.await {
            debug!(%error, "upstream connection broke");
        }
    };
    drop(spawn(
        "upstream http/2",
        Span::none(),
        &shared.drain,
        connection,
    ));
    endpoint.state.share_http2(sender.clone());
    sender.try_send_request(request).await.map_err(failure)
}

/// Clients share the connections, so that they are the waypoint's own.
async fn open(
    shared: &Arc<Shared>,
    cluster: &Cluster,
    endpoint: &Endpoint,
) -> Result<UpstreamIo, ConnectFailure> {
    let purpose = For {
        client: (shared.settings.node.instance_ip, 0).into(),
        service: cluster.service.as_ref().map(|service| service.host.clone()),
    };
    connect(shared, endpoint.address, purpose, cluster.connect_timeout).await
}

fn failure<T>(error: TrySendError<T>) -> SendFailure {
    let error = error.into_error();
    if error.is_canceled() {
        SendFailure::Refused(error)
    } else {
        SendFailure::Reset(error)
    }
}

/// A connection to be given back.
struct Back {
    state: Arc<EndpointState>,
    sender: http1::SendRequest<Body>,
    until: Instant,
}

/// The body of a response: counts its request until the end, then gives the connection back.
struct Exchange {
    body: Incoming,
    _active: Active,
    back: Option<Back>,
}

impl Exchange {
    fn new(body: Incoming, active: Active, back: Option<Back>) -> Self {
        let mut exchange = Self {
            body,
            _active: active,
            back,
        };
        if exchange.body.is_end_stream() {
            exchange.give_back();
        }
        exchange
    }

    fn give_back(&mut self) {
        if let Some(back) = self.back.take() {
            back.state.put_http1(back.sender, back.until);
        }
    }
}

impl HttpBody for Exchange {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(frame) = &polled {
            match frame {
                None => self.give_back(),
                Some(Ok(_)) if self.body.is_end_stream() => self.give_back(),
                Some(Ok(_)) => {}
                Some(Err(_)) => self.back = None,
            }
        }
        polled.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
