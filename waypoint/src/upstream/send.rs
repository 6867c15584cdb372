//! One attempt of a request at one endpoint, over a connection that there is or a new one.

use std::{
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use hyper::{
    body::{Body as HttpBody, Frame, Incoming},
    client::conn::TrySendError,
};

use super::{
    connect::ConnectFailure,
    endpoint::Active,
    outlier::{self, Showed},
    pending,
    pool::{self, Client, Http1, Stream},
    state::{Place, Resource},
};
use crate::{
    app::Shared,
    config::{
        cluster::{Cluster, UpstreamHttp},
        endpoints::Endpoint,
    },
    http::{
        body::Body,
        grpc::is_grpc,
        passing::{Polled, Watch},
    },
};

/// Connections that are tried for one attempt: each turned out to be closed before the request was sent.
const MAX_STALE: usize = 5;

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
    /// The cluster's limit is reached.
    #[error("overflow of {}", .0.as_str())]
    Overflow(Resource),
}

/// Sends the request and waits for the head of the response. Cancel safe in that a dropped call drops the exchange.
pub(crate) async fn send(
    shared: &Arc<Shared>,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    downstream: Version,
    request: Request<Body>,
) -> Result<Response<Body>, SendFailure> {
    // Only where the endpoint is told of the client; else connections are shared.
    let client = request.extensions().get::<Client>();
    let client = client.filter(|_| cluster.transport.announce.is_some());
    let attempt = Attempt {
        client: client.map(|client| client.0),
        shared,
        cluster,
        endpoint,
    };
    let http2 = match cluster.http {
        UpstreamHttp::Http1 => false,
        UpstreamHttp::Http2 => true,
        UpstreamHttp::Downstream => downstream == Version::HTTP_2,
    };
    let sent = async {
        // Not even over a connection that there is.
        let deadline = cluster.connect_timeout;
        pending::settled(shared, endpoint.address, deadline).await?;
        if http2 {
            attempt.over_http2(request).await
        } else {
            attempt.over_http1(request).await
        }
    };
    let sent = sent.await;
    match &sent {
        Ok(response) => {
            // Told by the trailers, where the head does not tell.
            if let Some(status) = status(response) {
                outlier::report(cluster, endpoint, Showed::Status(status));
            }
        }
        Err(SendFailure::Overflow(resource)) => resource.overflow(),
        // It is no fault of its own.
        Err(SendFailure::Connect(ConnectFailure::EnrolmentPending(_))) => {}
        Err(SendFailure::Connect(_) | SendFailure::Refused(_) | SendFailure::Reset(_)) => {
            outlier::report(cluster, endpoint, Showed::Broken);
        }
    }
    sent
}

/// The same, by HTTP/2 whatever the cluster says: gRPC has no other.
pub(crate) async fn send_http2(
    shared: &Arc<Shared>,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    request: Request<Body>,
) -> Result<Response<Body>, SendFailure> {
    let attempt = Attempt {
        shared,
        cluster,
        endpoint,
        client: None,
    };
    attempt.over_http2(request).await
}

/// What a response says of its endpoint; nothing yet, when it is gRPC without a status in the head.
fn status(response: &Response<Body>) -> Option<u16> {
    if !is_grpc(response.headers()) || !response.status().is_success() {
        return Some(response.status().as_u16());
    }
    grpc_status(response.headers())
}

fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    let status = headers.get("grpc-status")?.to_str().ok()?;
    status.parse().ok().map(outlier::status_of_grpc)
}

/// Where the request goes.
#[derive(Clone, Copy)]
struct Attempt<'a> {
    shared: &'a Arc<Shared>,
    cluster: &'a Arc<Cluster>,
    endpoint: &'a Arc<Endpoint>,
    client: Option<SocketAddr>,
}

impl Attempt<'_> {
    /// A connection that was used before may be closed by the endpoint just now: what was not sent is sent over another.
    async fn over_http1(self, mut request: Request<Body>) -> Result<Response<Body>, SendFailure> {
        *request.version_mut() = Version::HTTP_11;
        let mut stale = 0;
        loop {
            let mut http1 =
                pool::http1(self.shared, self.cluster, self.endpoint, self.client).await?;
            let using = self.using()?;
            match http1.sender.try_send_request(request).await {
                Ok(response) => {
                    let back = Back::Http1(http1);
                    return Ok(response.map(|body| self.exchange(body, using, back)));
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) if stale < MAX_STALE => request = unsent,
                    Some(_) | None => return Err(failure(error)),
                },
            }
            stale += 1;
        }
    }

    async fn over_http2(self, mut request: Request<Body>) -> Result<Response<Body>, SendFailure> {
        *request.version_mut() = Version::HTTP_2;
        let mut stale = 0;
        loop {
            let mut http2 =
                pool::http2(self.shared, self.cluster, self.endpoint, self.client).await?;
            let using = self.using()?;
            if let Err(error) = http2.sender.ready().await
                && stale == MAX_STALE
            {
                return Err(SendFailure::Refused(error));
            }
            match http2.sender.try_send_request(request).await {
                Ok(response) => {
                    let back = Back::Http2(http2.stream);
                    return Ok(response.map(|body| self.exchange(body, using, back)));
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) if stale < MAX_STALE => request = unsent,
                    Some(_) | None => return Err(failure(error)),
                },
            }
            stale += 1;
        }
    }

    /// Counts the request for as long as it is there.
    fn using(self) -> Result<(Active, Place), SendFailure> {
        let limit = self.cluster.limits.requests;
        let place = self.cluster.state.enter(Resource::Requests, limit);
        let place = place.ok_or(SendFailure::Overflow(Resource::Requests))?;
        Ok((self.endpoint.state.enter(), place))
    }

    fn exchange(self, body: Incoming, using: (Active, Place), back: Back) -> Body {
        let body = Body::incoming(body);
        let mut exchange = Exchange {
            _using: using,
            shared: self.shared.clone(),
            cluster: self.cluster.clone(),
            endpoint: self.endpoint.clone(),
            back: Some(back),
        };
        if body.is_end_stream() {
            exchange.give_back();
        }
        body.watched(exchange)
    }
}

fn failure<T>(error: TrySendError<T>) -> SendFailure {
    let error = error.into_error();
    if error.is_canceled() {
        SendFailure::Refused(error)
    } else {
        SendFailure::Reset(error)
    }
}

/// What is used again after the exchange.
enum Back {
    Http1(Http1),
    Http2(Stream),
}

/// Goes with the body of a response: counts its request until the end, then gives the connection back.
struct Exchange {
    _using: (Active, Place),
    shared: Arc<Shared>,
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    back: Option<Back>,
}

impl Exchange {
    fn give_back(&mut self) {
        match self.back.take() {
            Some(Back::Http1(connection)) => {
                pool::put_back(&self.shared, &self.cluster, &self.endpoint, connection);
            }
            Some(Back::Http2(stream)) => pool::stream_ended(&self.cluster, stream),
            None => {}
        }
    }

    /// The status that gRPC has only at the end.
    fn read_trailers(&self, frame: &Frame<Bytes>) {
        if let Some(status) = frame.trailers_ref().and_then(grpc_status) {
            outlier::report(&self.cluster, &self.endpoint, Showed::Status(status));
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // Who waits for a stream is told of this one, too; an HTTP/1 connection in the middle of an exchange is closed.
        if let Some(Back::Http2(stream)) = self.back.take() {
            pool::stream_ended(&self.cluster, stream);
        }
    }
}

impl Watch for Exchange {
    fn seen(&mut self, body: &Body, polled: Polled, _cx: &mut Context<'_>) -> Polled {
        if let Poll::Ready(frame) = &polled {
            match frame {
                None => self.give_back(),
                Some(Ok(frame)) => {
                    self.read_trailers(frame);
                    if body.is_end_stream() {
                        self.give_back();
                    }
                }
                // A broken HTTP/1 connection is of no use; that of a broken stream knows by itself.
                Some(Err(_)) => self.back = None,
            }
        }
        polled
    }
}
