//! `leyline.enrolment.v1.EnrolmentService`: tells each node which of its pods to capture and hears what came of it.
//!
//! A pod is published as reachable over HBONE only while its node says it is captured. In the other direction the order
//! is reversed: first every connected proxy has learnt that the pod is no longer reachable over HBONE (or a second has
//! passed), then its node is told to release it. When a node's stream breaks, what was known stays, since its proxy may
//! well go on serving.
//!
//! While a node has two streams (its proxy is being replaced) only the newest is told of new pods and only its reports
//! count; should it end first, the other takes over again. What is captured is one instance of a pod: a later one under the
//! same name, on another node or with another address, is published in plaintext until it is captured itself.

mod node;

use std::{
    collections::{BTreeSet, HashMap},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures::Stream;
use leyline_proto::{
    istio::workload::zds::WorkloadRequest,
    leyline::enrolment::v1::{Report, enrolment_service_server::EnrolmentService, report},
};
use leyline_runtime::{Drain, spawn};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::info_span;

use crate::{
    auth::{Authenticator, refuse},
    clients::Clients,
    mesh::Mesh,
};
use node::NodeStream;

/// Commands on their way to one node; more wait, since the node reads them one by one.
const COMMANDS_ON_THE_WAY: usize = 64;
/// A proxy that is replaced and one that tries again while its broken connection is not noticed yet.
const MAX_STREAMS_OF_NODE: usize = 8;
/// A node says hello at once.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// The streams of each node. Only the newest may report: an older one is of a proxy that is on its way out.
#[derive(Clone)]
struct Streams {
    inner: Arc<StreamsInner>,
}

struct StreamsInner {
    /// The last number given, and the numbers of the streams by node.
    streams: Mutex<(u64, HashMap<String, BTreeSet<u64>>)>,
    /// Ticks whenever one ends.
    ended: watch::Sender<()>,
}

impl Streams {
    fn new() -> Self {
        Self {
            inner: Arc::new(StreamsInner {
                streams: Mutex::default(),
                ended: watch::Sender::new(()),
            }),
        }
    }

    /// `None` when the node has too many.
    fn enter(&self, node: &str) -> Option<Entered> {
        let mut streams = self.inner.streams.lock();
        let number = streams.0 + 1;
        let of_node = streams.1.entry(node.to_owned()).or_default();
        if of_node.len() >= MAX_STREAMS_OF_NODE {
            return None;
        }
        of_node.insert(number);
        streams.0 = number;
        Some(Entered {
            inner: Arc::clone(&self.inner),
            node: node.to_owned(),
            number,
        })
    }
}

/// A stream while it lasts.
struct Entered {
    inner: Arc<StreamsInner>,
    node: String,
    number: u64,
}

impl Entered {
    fn is_newest(&self) -> bool {
        let streams = self.inner.streams.lock();
        let of_node = streams.1.get(&self.node);
        of_node.and_then(BTreeSet::last) == Some(&self.number)
    }

    fn ended(&self) -> watch::Receiver<()> {
        self.inner.ended.subscribe()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut streams = self.inner.streams.lock();
        if let Some(of_node) = streams.1.get_mut(&self.node) {
            of_node.remove(&self.number);
            if of_node.is_empty() {
                streams.1.remove(&self.node);
            }
        }
        drop(streams);
        self.inner.ended.send_replace(());
    }
}

/// The service.
pub(crate) struct Enrolment {
    auth: Arc<Authenticator>,
    mesh: Arc<Mesh>,
    clients: Clients,
    drain: Drain,
    streams: Streams,
}

impl Enrolment {
    pub(crate) fn new(
        auth: Arc<Authenticator>,
        mesh: Arc<Mesh>,
        clients: Clients,
        drain: Drain,
    ) -> Self {
        Self {
            auth,
            mesh,
            clients,
            drain,
            streams: Streams::new(),
        }
    }
}

#[tonic::async_trait]
impl EnrolmentService for Enrolment {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<WorkloadRequest, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<tonic::Streaming<Report>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let caller = self
            .auth
            .require("enrolment", request.metadata(), request.extensions())
            .map_err(|status| *status)?;
        let expiry = caller.expiry();
        let Some(node) = self.auth.node_of(&caller).map(ToOwned::to_owned) else {
            let status = Status::permission_denied("not a node proxy with a token bound to a node");
            refuse("enrolment", &status);
            return Err(status);
        };
        let mut reports = request.into_inner();
        let (commands, receiver) = mpsc::channel(COMMANDS_ON_THE_WAY);
        let (mesh, clients, streams) = (
            Arc::clone(&self.mesh),
            self.clients.clone(),
            self.streams.clone(),
        );
        let drain = self.drain.clone();
        let span = info_span!("enrolment", node);
        let follow = async move {
            let entered = hello(&node, &mut reports).await.and_then(|()| {
                streams.enter(&node).ok_or_else(|| {
                    Status::resource_exhausted("this node has too many enrolment streams")
                })
            });
            match entered {
                Ok(stream) => {
                    let node = NodeStream::new(node, stream, mesh, clients, commands);
                    node.run(reports, drain, expiry).await;
                }
                Err(status) => {
                    refuse("enrolment", &status);
                    // It may be gone; then nothing can be told.
                    let _told = commands.send(Err(status)).await;
                }
            }
        };
        drop(spawn("enrolment stream", span, &self.drain, follow));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// The first message must name the node of the token.
async fn hello(node: &str, reports: &mut tonic::Streaming<Report>) -> Result<(), Status> {
    let first = timeout(HELLO_DEADLINE, reports.message()).await;
    let Ok(first) = first else {
        return Err(Status::deadline_exceeded("no hello"));
    };
    match first?.and_then(|report| report.kind) {
        Some(report::Kind::Hello(hello)) if hello.node == node => Ok(()),
        Some(report::Kind::Hello(hello)) => {
            tracing::warn!(
                claimed = hello.node,
                "node claims another name than its token"
            );
            Err(Status::permission_denied("token is bound to another node"))
        }
        Some(report::Kind::Outcome(_)) | None => {
            Err(Status::invalid_argument("the first message must be hello"))
        }
    }
}
