//! Moves the messages of a [`Session`] over a tonic channel, for as long as the process lives. The binaries run it as
//! one task.
//!
//! Invariant: an update is applied before it is acknowledged, and nothing is taken back when a stream ends, so the
//! data plane serves what it knows for as long as the control plane is away.

use std::{future::Future, pin::pin, time::Duration};

use leyline_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use prost::Message;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, service::Interceptor, transport::Channel};
use tracing::{debug, info, warn};

mod interest;

pub use interest::{Interest, Names};

use crate::{
    NodeInfo,
    backoff::{Backoff, Stream},
    session::{Received, Rejection, Session, Update},
};

/// Answers that wait to be sent, beside the first requests of a stream; when full, reading waits too.
const REQUEST_QUEUE: usize = 8;
/// A stream that brought a message and lasted this long was a working one: its end starts the back-off again.
const STABLE_AFTER: Duration = Duration::from_secs(1);

/// How the client behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who we are.
    pub node: NodeInfo,
    /// Types to follow, all resources of each unless `interest` says otherwise.
    pub types: Vec<&'static str>,
    /// Which resources are wanted by name; asked at the start and after each update.
    pub interest: Interest,
    /// Types of these that nobody has to wait for: their resources may not exist, and then servers are silent.
    pub optional: Vec<&'static str>,
    /// Largest response; Istio's limit of 200 MiB holds a mesh of a million workloads.
    pub max_message_bytes: usize,
    /// For `connect`.
    pub connect_deadline: Duration,
    /// For the first response of a stream and the following ones, until every type has had one.
    pub answer_deadline: Duration,
    /// For the start of a stream when everything is known already: a server with nothing new may stay silent, so
    /// silence is only suspicious after long. Afterwards HTTP/2 keepalive, set on the channel, guards the idle stream.
    pub silence_deadline: Duration,
    /// For room in the request queue: a server that does not read for so long is broken.
    pub send_deadline: Duration,
}

impl Config {
    /// The defaults for this node and these types.
    pub fn new(node: NodeInfo, types: Vec<&'static str>) -> Self {
        Self {
            node,
            types,
            interest: Interest::default(),
            optional: Vec::new(),
            max_message_bytes: 200 * 1024 * 1024,
            connect_deadline: Duration::from_secs(10),
            answer_deadline: Duration::from_secs(30),
            silence_deadline: Duration::from_secs(300),
            send_deadline: Duration::from_secs(30),
        }
    }
}

/// Any error of the application's `connect`.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum XdsError {
    /// `connect` failed.
    #[error("cannot connect to the control plane")]
    Connect(#[source] BoxError),
    /// `connect` took too long.
    #[error("the control plane did not accept a connection within {0:?}")]
    ConnectDeadline(Duration),
    /// The stream was refused or broke.
    #[error("the control plane ended the stream: {}", .0.message())]
    Stream(#[source] Box<Status>),
    /// Nothing came.
    #[error("the control plane did not answer within {0:?}")]
    AnswerDeadline(Duration),
    /// Our answers are not read.
    #[error("the control plane did not read our requests within {0:?}")]
    SendDeadline(Duration),
    /// Our answers can no longer be sent.
    #[error("the stream to the control plane is closed for requests")]
    RequestsClosed,
}

/// The classes of stream ends that `istio_xds_connection_terminations_total` counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Termination {
    /// No connection could be made.
    ConnectionError,
    /// The server refused, or broke the protocol.
    Error,
    /// The connection went away under the stream.
    Reconnect,
    /// The server ended the stream in order.
    Complete,
}

impl Termination {
    /// The value of the metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionError => "ConnectionError",
            Self::Error => "Error",
            Self::Reconnect => "Reconnect",
            Self::Complete => "Complete",
        }
    }
}

/// What happens, for metrics and readiness.
#[derive(Debug)]
pub enum Observed<'a> {
    /// The server accepted a stream.
    Connected,
    /// A response of a subscribed type came.
    Message {
        /// The type.
        type_url: &'static str,
        /// Encoded size.
        bytes: usize,
    },
    /// A response of a type that was never asked for came and was ignored.
    NotSubscribed {
        /// The type; the server's text, not fit for a metric label.
        type_url: &'a str,
    },
    /// Resources were rejected; the others of the same response are applied.
    Nack {
        /// The type.
        type_url: &'static str,
        /// Which and why.
        rejections: &'a [Rejection],
    },
    /// Every type has been applied once. Told once in the life of a client.
    Synced,
    /// The stream ended or could not be opened.
    Disconnected {
        /// Class, for the metric.
        reason: Termination,
        /// What exactly, unless the server ended the stream in order.
        error: Option<&'a XdsError>,
        /// When the next attempt is made.
        retry_in: Duration,
    },
}

/// Follows the control plane until `stop` resolves; reconnects for ever.
///
/// `connect` makes the channel of one stream (a lazily connected one will do), `authenticate` adds metadata to each
/// call, `apply` applies one update and tells what it rejects; it must not block for long. Cancel safe: an update is
/// applied without awaiting, so dropping the future never leaves one half applied.
pub async fn run<Connecting>(
    cfg: Config,
    connect: impl Fn() -> Connecting,
    authenticate: impl Interceptor + Clone,
    apply: impl FnMut(Update) -> Vec<Rejection>,
    observe: impl FnMut(Observed<'_>),
    stop: impl Future<Output = ()>,
) where
    Connecting: Future<Output = Result<Channel, BoxError>>,
{
    let mut session = Session::new(cfg.node.clone(), &cfg.types);
    if let Some(type_url) = cfg.interest.type_on_demand() {
        session.set_on_demand(type_url);
    }
    for type_url in &cfg.optional {
        session.set_optional(type_url);
    }
    let mut client = Client {
        session,
        cfg,
        apply,
        observe,
    };
    let follow = async {
        let mut backoff = Backoff::new();
        loop {
            let (end, stream) = client.follow_stream(&connect, authenticate.clone()).await;
            let delay = backoff.delay(end.reason(), stream, rand::random());
            client.report(&end, delay);
            sleep(delay).await;
        }
    };
    let follow = pin!(follow);
    // Whichever comes first: `follow` never ends by itself, and dropping it closes the stream.
    tokio::select! {
        () = follow => {}
        () = stop => debug!("xds client stops"),
    }
}

/// The session with the application around it.
struct Client<Apply, Observe> {
    session: Session,
    cfg: Config,
    apply: Apply,
    observe: Observe,
}

/// How a stream ended.
enum End {
    Complete,
    Failed(Termination, XdsError),
}

impl<Apply, Observe> Client<Apply, Observe>
where
    Apply: FnMut(Update) -> Vec<Rejection>,
    Observe: FnMut(Observed<'_>),
{
    /// One stream from connect to end.
    async fn follow_stream<Connecting>(
        &mut self,
        connect: &impl Fn() -> Connecting,
        authenticate: impl Interceptor,
    ) -> (End, Stream)
    where
        Connecting: Future<Output = Result<Channel, BoxError>>,
    {
        let opened = self.open(connect(), authenticate).await;
        let (requests, mut responses) = match opened {
            Ok(opened) => opened,
            Err(end) => return (end, Stream::Brief),
        };
        (self.observe)(Observed::Connected);
        debug!("xds stream open");
        let start = Instant::now();
        let mut messages = 0_usize;
        let end = loop {
            // Both can be dropped: a message is taken whole or not at all.
            let next = tokio::select! {
                next = self.next(&mut responses) => next,
                () = self.cfg.interest.changed() => match self.send_wants(&requests).await {
                    Ok(()) => continue,
                    Err(end) => break end,
                },
            };
            let response = match next {
                Ok(Some(response)) => response,
                Ok(None) => break End::Complete,
                Err(end) => break end,
            };
            messages += 1;
            if let Err(end) = self.handle(response, &requests).await {
                break end;
            }
        };
        let stable = messages > 0 && start.elapsed() >= STABLE_AFTER;
        (
            end,
            if stable {
                Stream::Stable
            } else {
                Stream::Brief
            },
        )
    }

    /// Connects and sends the first requests; a gRPC server may hold its headers back until its first response.
    async fn open(
        &mut self,
        connecting: impl Future<Output = Result<Channel, BoxError>>,
        authenticate: impl Interceptor,
    ) -> Result<
        (
            mpsc::Sender<DeltaDiscoveryRequest>,
            Streaming<DeltaDiscoveryResponse>,
        ),
        End,
    > {
        let limit = self.cfg.connect_deadline;
        let channel = timeout(limit, connecting)
            .await
            .map_err(|_elapsed| End::connection(XdsError::ConnectDeadline(limit)))?
            .map_err(|error| End::connection(XdsError::Connect(error)))?;
        let mut client = AggregatedDiscoveryServiceClient::with_interceptor(channel, authenticate)
            .max_decoding_message_size(self.cfg.max_message_bytes);

        // What is known from an earlier stream is asked for by the first requests.
        self.wants();
        let (requests, queue) = mpsc::channel(self.session.types() + REQUEST_QUEUE);
        for request in self.session.open_stream() {
            requests
                .try_send(request)
                .map_err(|_full| End::error(XdsError::RequestsClosed))?;
        }
        let limit = match self.session.is_synced() {
            true => self.cfg.silence_deadline,
            false => self.cfg.answer_deadline,
        };
        // Boxed: tonic's future is large and lives once per stream.
        let opening = Box::pin(client.delta_aggregated_resources(ReceiverStream::new(queue)));
        let responses = timeout(limit, opening)
            .await
            .map_err(|_elapsed| End::error(XdsError::AnswerDeadline(limit)))?
            .map_err(End::from_status)?;
        Ok((requests, responses.into_inner()))
    }

    /// The next response; without deadline once all is known, because then silence is the normal state.
    async fn next(
        &self,
        responses: &mut Streaming<DeltaDiscoveryResponse>,
    ) -> Result<Option<DeltaDiscoveryResponse>, End> {
        let message = if self.session.is_synced() {
            responses.message().await
        } else {
            let limit = self.cfg.answer_deadline;
            timeout(limit, responses.message())
                .await
                .map_err(|_elapsed| End::error(XdsError::AnswerDeadline(limit)))?
        };
        message.map_err(End::from_status)
    }

    /// Applies one response, then answers it.
    async fn handle(
        &mut self,
        response: DeltaDiscoveryResponse,
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    ) -> Result<(), End> {
        let bytes = response.encoded_len();
        let (update, pending) = match self.session.receive(response) {
            Received::Apply(update, pending) => (update, pending),
            Received::NotSubscribed { type_url } => {
                warn!(type_url, "xds response of a type that was not asked for");
                (self.observe)(Observed::NotSubscribed {
                    type_url: &type_url,
                });
                return Ok(());
            }
        };
        let type_url = update.type_url;
        let (resources, removed) = (update.resources.len(), update.removed.len());
        (self.observe)(Observed::Message { type_url, bytes });
        let was_synced = self.session.is_synced();
        let rejected = (self.apply)(update);
        let answer = self.session.answer(pending, rejected);
        if answer.rejections.is_empty() {
            debug!(type_url, resources, removed, bytes, "xds update applied");
        } else {
            let rejections = &answer.rejections[..];
            let first = rejections.first();
            warn!(
                type_url,
                rejected = rejections.len(),
                name = first.map(|r| r.name.as_str()),
                reason = first.map(|r| r.reason.as_str()),
                "xds resources rejected"
            );
            (self.observe)(Observed::Nack {
                type_url,
                rejections,
            });
        }
        // Before the answer: a server that sends what depends on these resources after it then sends that after them.
        let wanted = self.wants();
        for request in wanted.into_iter().chain(answer.request) {
            self.send(requests, request).await?;
        }
        if !was_synced && self.session.is_synced() {
            info!("xds synced");
            (self.observe)(Observed::Synced);
        }
        Ok(())
    }

    /// Changes of what is wanted by name.
    fn wants(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let types = self.cfg.types.iter();
        let named =
            types.filter_map(|type_url| Some((*type_url, self.cfg.interest.names(type_url)?)));
        let session = &mut self.session;
        named
            .filter_map(|(type_url, names)| session.want(type_url, names))
            .collect()
    }

    async fn send_wants(
        &mut self,
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    ) -> Result<(), End> {
        for request in self.wants() {
            self.send(requests, request).await?;
        }
        Ok(())
    }

    async fn send(
        &self,
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
        request: DeltaDiscoveryRequest,
    ) -> Result<(), End> {
        let limit = self.cfg.send_deadline;
        timeout(limit, requests.send(request))
            .await
            .map_err(|_elapsed| End::error(XdsError::SendDeadline(limit)))?
            .map_err(|_closed| End::Failed(Termination::Reconnect, XdsError::RequestsClosed))
    }

    fn report(&mut self, end: &End, retry_in: Duration) {
        let reason = end.reason();
        let error = match end {
            End::Complete => None,
            End::Failed(_, error) => Some(error),
        };
        match error {
            None => info!(?retry_in, "xds stream ended by the control plane"),
            Some(error) => warn!(
                reason = reason.as_str(),
                error = error as &dyn std::error::Error,
                ?retry_in,
                "xds stream failed"
            ),
        }
        (self.observe)(Observed::Disconnected {
            reason,
            error,
            retry_in,
        });
    }
}

impl End {
    fn connection(error: XdsError) -> Self {
        Self::Failed(Termination::ConnectionError, error)
    }

    fn error(error: XdsError) -> Self {
        Self::Failed(Termination::Error, error)
    }

    fn from_status(status: Status) -> Self {
        Self::Failed(classify(&status), XdsError::Stream(Box::new(status)))
    }

    fn reason(&self) -> Termination {
        match self {
            Self::Complete => Termination::Complete,
            Self::Failed(reason, _) => *reason,
        }
    }
}

/// A status as the metric counts it; the classes and texts are those of Istio's ztunnel.
fn classify(status: &Status) -> Termination {
    let source = std::error::Error::source(status);
    if source.is_some_and(|source| source.is::<tonic::transport::Error>()) {
        return Termination::ConnectionError;
    }
    let went_away = matches!(
        status.code(),
        Code::Unknown | Code::Cancelled | Code::DeadlineExceeded
    ) || status.message().contains("transport is closing")
        || status.message().contains("received prior goaway");
    if went_away {
        Termination::Reconnect
    } else {
        Termination::Error
    }
}

#[cfg(test)]
mod tests;
