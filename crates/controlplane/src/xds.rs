//! Delta ADS (the incremental Envoy v3 discovery protocol): workloads, services and policies for node proxies, all or by
//! name; listeners, clusters, endpoints and routes for waypoints.
//!
//! `session` decides what to send and is pure; here are the stream and its deadlines. At most one response of a type is
//! on its way, so that a slow proxy gets the latest state next and nothing piles up for it.

mod session;

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use leyline_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE,
    SECRET_TYPE,
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_server::AggregatedDiscoveryService,
    },
};
use leyline_runtime::{Drain, spawn};
use leyline_types::NamespacedName;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::{debug, info, info_span, warn};

use crate::{
    auth::{Authenticator, Peer, refuse},
    clients::{Client, Clients, Connected},
    mesh::{Mesh, Published},
};
use session::{Pod, Received, Session};

pub(crate) use session::{AddressIndex, TypeStatus};

/// One response of each type may be on its way.
const RESPONSES_ON_THE_WAY: usize = 6;
/// A proxy that has not acknowledged for so long is stuck; it is disconnected and starts anew.
const ACK_DEADLINE: Duration = Duration::from_secs(60);
/// A client that has not said what it wants by then is not a proxy.
const FIRST_REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// What a proxy calls itself is shown on the status page; Istio's ids have some hundred bytes.
const MAX_NODE_ID_BYTES: usize = 512;
/// The transport must take a response within this time.
const SEND_DEADLINE: Duration = Duration::from_secs(30);

/// The service.
pub(crate) struct DiscoveryService {
    pub(crate) auth: Arc<Authenticator>,
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) clients: Clients,
    pub(crate) drain: Drain,
}

type Responses = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for DiscoveryService {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let caller = self
            .auth
            .require("xds", request.metadata(), request.extensions())
            .map_err(|status| *status)?;
        let address = request.extensions().get::<Peer>().map(|peer| peer.address);
        let (responses, receiver) = mpsc::channel(RESPONSES_ON_THE_WAY);
        let client = Client {
            node_id: String::new(),
            account: format!("{}/{}", caller.namespace, caller.service_account),
            node: caller.node.clone(),
            address,
            pod: None,
            types: std::collections::BTreeMap::new(),
            addresses_generation: None,
        };
        let Some(connected) = self.clients.connect(client) else {
            let status =
                Status::resource_exhausted("this account has too many streams from its node");
            refuse("xds", &status);
            return Err(status);
        };
        let stream = XdsStream {
            requests: request.into_inner(),
            responses,
            published: self.mesh.subscribe(),
            connected,
            expiry: caller.expiry(),
            drain: self.drain.clone(),
            session: Session::of_node(caller.node.clone().unwrap_or_default()),
            account: NamespacedName {
                namespace: caller.namespace.as_str().into(),
                name: caller.service_account.as_str().into(),
            },
            sent_at: None,
        };
        let span = info_span!(
            "xds",
            peer = address.map(tracing::field::display),
            node = caller.node,
            account = %format!("{}/{}", caller.namespace, caller.service_account)
        );
        drop(spawn("xds stream", span, &self.drain, stream.run()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

struct XdsStream {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: Responses,
    published: watch::Receiver<Arc<Published>>,
    connected: Connected,
    drain: Drain,
    /// Of the token.
    expiry: Instant,
    session: Session,
    /// Proven by the token.
    account: NamespacedName,
    /// Since when a response waits for its acknowledgement.
    sent_at: Option<Instant>,
}

/// Why a stream ends.
enum End {
    /// The client left, or the server drains.
    Quiet(&'static str),
    /// The client is told.
    Told(Status),
}

impl XdsStream {
    async fn run(mut self) {
        info!("proxy connected");
        match self.serve().await {
            End::Quiet(reason) => info!(reason, "proxy disconnected"),
            End::Told(status) => {
                refuse("xds", &status);
                // It may be gone, or not reading; then nothing can be told.
                tokio::select! {
                    () = self.drain.started() => {}
                    _told = timeout(SEND_DEADLINE, self.responses.send(Err(status))) => {}
                }
            }
        }
    }

    async fn serve(&mut self) -> End {
        match timeout(FIRST_REQUEST_DEADLINE, self.requests.message()).await {
            Ok(Ok(Some(request))) => {
                let mut node_id = request
                    .node
                    .as_ref()
                    .map(|node| node.id.clone())
                    .unwrap_or_default();
                node_id.truncate(node_id.floor_char_boundary(MAX_NODE_ID_BYTES));
                let pod = pod_of(&node_id, &self.account);
                let name = pod.as_ref().map(|pod| pod.name.clone());
                self.connected.update(|client| {
                    client.node_id = node_id;
                    client.pod = name;
                });
                if let Some(pod) = pod {
                    self.session.identify(pod);
                }
                if let Err(end) = self.receive(request) {
                    return end;
                }
            }
            Ok(Ok(None)) => return End::Quiet("left"),
            Ok(Err(status)) => return broken(&status),
            Err(_) => return End::Told(Status::deadline_exceeded("no request")),
        }
        loop {
            if let Err(end) = self.send_pending().await {
                return end;
            }
            let ack_deadline = self.sent_at.map(|sent_at| sent_at + ACK_DEADLINE);
            tokio::select! {
                () = self.drain.started() => return End::Quiet("server stops"),
                () = sleep_until(self.expiry) => {
                    // The proxy comes back with a token that is valid now, and with what it knows.
                    return End::Told(Status::unauthenticated("token has expired"));
                }
                () = until(ack_deadline) => {
                    return End::Told(Status::deadline_exceeded("no acknowledgement"));
                }
                message = self.requests.message() => match message {
                    Ok(Some(request)) => {
                        if let Err(end) = self.receive(request) {
                            return end;
                        }
                    }
                    Ok(None) => return End::Quiet("left"),
                    Err(status) => return broken(&status),
                },
                // Seen by `send_pending`. The sender lives as long as the mesh, which outlives its streams.
                changed = self.published.changed() => if changed.is_err() {
                    return End::Quiet("server stops");
                },
            }
        }
    }

    fn receive(&mut self, request: DeltaDiscoveryRequest) -> Result<(), End> {
        match self.session.receive(request) {
            Ok(Received::Nack { type_url, reason }) => {
                metrics::counter!("leyline_xds_rejections_total", "type" => short(type_url))
                    .increment(1);
                warn!(resource_type = type_url, reason, "proxy rejected resources");
            }
            Ok(Received::UnknownType(type_url)) => {
                debug!(
                    resource_type = type_url,
                    "proxy asks for a type that is not served"
                );
            }
            Ok(Received::Subscribed | Received::Unsubscribed | Received::Ack | Received::Stale) => {
            }
            Err(error) => return Err(End::Told(Status::invalid_argument(error.to_string()))),
        }
        if !self.session.waits_for_ack() {
            self.sent_at = None;
        }
        Ok(())
    }

    async fn send_pending(&mut self) -> Result<(), End> {
        let published = self.published.borrow_and_update().clone();
        while let Some(response) = self.session.next_response(&published) {
            debug!(
                resource_type = response.type_url,
                resources = response.resources.len(),
                removed = response.removed_resources.len(),
                generation = published.generation,
                "push"
            );
            let type_name = short(&response.type_url);
            metrics::counter!("leyline_xds_pushes_total", "type" => type_name).increment(1);
            match timeout(SEND_DEADLINE, self.responses.send(Ok(response))).await {
                Ok(Ok(())) => self.sent_at = Some(Instant::now()),
                Ok(Err(_)) => return Err(End::Quiet("left")),
                Err(_) => return Err(End::Quiet("does not read")),
            }
        }
        let session = &self.session;
        self.connected.update(|client| {
            client.types = session.status();
            client.addresses_generation = session.addresses_generation();
        });
        Ok(())
    }
}

/// The pod in a node's id, `type~address~pod.namespace~domain` (facts A.1), if it is of the caller's namespace.
fn pod_of(node_id: &str, account: &NamespacedName) -> Option<Pod> {
    let (name, namespace) = node_id.split('~').nth(2)?.rsplit_once('.')?;
    (namespace == account.namespace.as_str()).then(|| Pod {
        name: NamespacedName {
            namespace: namespace.into(),
            name: name.into(),
        },
        service_account: account.name.to_string(),
    })
}

/// A message that cannot be read is answered, so that its sender need not guess; a broken connection cannot be.
fn broken(status: &Status) -> End {
    match status.code() {
        Code::Internal | Code::OutOfRange | Code::InvalidArgument | Code::Unimplemented => {
            End::Told(Status::invalid_argument(status.message()))
        }
        _ => {
            debug!(error = %status, "stream broke");
            End::Quiet("connection broke")
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// A label for metrics and the status page.
fn short(type_url: &str) -> &'static str {
    match type_url {
        ADDRESS_TYPE => "address",
        AUTHORIZATION_TYPE => "authorization",
        CLUSTER_TYPE => "cluster",
        ENDPOINT_TYPE => "endpoint",
        LISTENER_TYPE => "listener",
        ROUTE_TYPE => "route",
        SECRET_TYPE => "secret",
        _ => "other",
    }
}
