//! A control plane that does what the test says: every stream that a client opens is handed to the test, which reads
//! the requests and writes the responses itself.

use std::{net::SocketAddr, time::Duration};

use leyline_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
    aggregated_discovery_service_server::{
        AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
    },
};
use prost_types::Any;
use tokio::{net::TcpListener, runtime::Runtime, sync::mpsc, time::timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap, transport::Server};

/// A test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// The listening control plane.
pub(super) struct Peer {
    pub(super) addr: SocketAddr,
    streams: mpsc::Receiver<PeerStream>,
    /// Its own, because tonic serves each connection in a task of its own: only a runtime ends them all.
    runtime: Option<Runtime>,
}

/// One stream of a client.
pub(super) struct PeerStream {
    pub(super) metadata: MetadataMap,
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

struct Service {
    streams: mpsc::Sender<PeerStream>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, queue) = mpsc::channel(8);
        let stream = PeerStream {
            metadata: request.metadata().clone(),
            requests: request.into_inner(),
            responses,
        };
        let gone = |_| Status::unavailable("test is over");
        self.streams.send(stream).await.map_err(gone)?;
        Ok(Response::new(ReceiverStream::new(queue)))
    }
}

impl Peer {
    pub(super) async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    pub(super) async fn start_at(addr: SocketAddr) -> Self {
        let (sender, streams) = mpsc::channel(8);
        let service = AggregatedDiscoveryServiceServer::new(Service { streams: sender });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (told, bound) = tokio::sync::oneshot::channel();
        runtime.spawn(async move {
            let listener = TcpListener::bind(addr).await.unwrap();
            told.send(listener.local_addr().unwrap()).unwrap();
            let incoming = TcpListenerStream::new(listener);
            let server = Server::builder().add_service(service);
            server.serve_with_incoming(incoming).await.unwrap();
        });
        Self {
            addr: bound.await.unwrap(),
            streams,
            runtime: Some(runtime),
        }
    }

    /// The next stream.
    pub(super) async fn accept(&mut self) -> PeerStream {
        timeout(PATIENCE, self.streams.recv())
            .await
            .unwrap()
            .unwrap()
    }

    /// Ends everything at once, connections included.
    pub(super) async fn kill(mut self) {
        let runtime = self.runtime.take().unwrap();
        let shutdown = tokio::task::spawn_blocking(|| runtime.shutdown_timeout(PATIENCE));
        shutdown.await.unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl PeerStream {
    pub(super) async fn request(&mut self) -> DeltaDiscoveryRequest {
        timeout(PATIENCE, self.requests.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    }

    /// Whether the client has ended the stream.
    pub(super) async fn is_closed(&mut self) -> bool {
        let next = timeout(PATIENCE, self.requests.message()).await.unwrap();
        !matches!(next, Ok(Some(_)))
    }

    pub(super) async fn respond(&self, response: DeltaDiscoveryResponse) {
        self.responses.send(Ok(response)).await.unwrap();
    }

    pub(super) async fn fail(self, status: Status) {
        self.responses.send(Err(status)).await.unwrap();
    }
}

/// A response of resources `name@version` of one type.
pub(super) fn response(
    type_url: &str,
    nonce: &str,
    resources: &[(&str, &str)],
    removed: &[&str],
) -> DeltaDiscoveryResponse {
    let resources = resources.iter().map(|(name, version)| Resource {
        name: name.to_string(),
        version: version.to_string(),
        resource: Some(Any {
            type_url: type_url.to_owned(),
            value: format!("{name}@{version}").into_bytes(),
        }),
        ..Resource::default()
    });
    DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        resources: resources.collect(),
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}
