//! `leyline.enrolment.v1.EnrolmentService`: tells each node which of its pods to capture and hears what came of it.
//!
//! A pod is published as reachable over HBONE only while its node says it is captured. In the other direction the order
//! is reversed: first every connected proxy has learnt that the pod is no longer reachable over HBONE (or a second has
//! passed), then its node is told to release it. When a node's stream breaks, what was known stays, since its proxy may
//! well go on serving.

mod node;

use std::{collections::HashMap, pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use leyline_proto::{
    istio::workload::zds::WorkloadRequest,
    leyline::enrolment::v1::{Report, enrolment_service_server::EnrolmentService, report},
};
use leyline_runtime::{Drain, spawn};
use parking_lot::Mutex;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::info_span;

use crate::{auth::Authenticator, clients::Clients, mesh::Mesh};
use node::NodeStream;

/// Commands on their way to one node; more wait, since the node reads them one by one.
const COMMANDS_ON_THE_WAY: usize = 64;
/// A node says hello at once.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// The newest stream of each node. Only it may report: an older one is of a proxy that is on its way out.
#[derive(Clone, Default)]
struct NewestStreams {
    streams: Arc<Mutex<HashMap<String, u64>>>,
}

impl NewestStreams {
    fn enter(&self, node: &str) -> u64 {
        let mut streams = self.streams.lock();
        // Grows with the nodes that hold valid tokens, not with connections.
        let newest = streams.entry(node.to_owned()).or_insert(0);
        *newest += 1;
        *newest
    }

    fn is_newest(&self, node: &str, stream: u64) -> bool {
        self.streams.lock().get(node) == Some(&stream)
    }
}

/// The service.
pub(crate) struct Enrolment {
    auth: Arc<Authenticator>,
    mesh: Arc<Mesh>,
    clients: Clients,
    drain: Drain,
    newest: NewestStreams,
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
            newest: NewestStreams::default(),
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
            .require("enrolment", request.metadata())
            .map_err(|status| *status)?;
        let Some(node) = self.auth.node_of(&caller).map(ToOwned::to_owned) else {
            return Err(Status::permission_denied(
                "not a node proxy with a token bound to a node",
            ));
        };
        let mut reports = request.into_inner();
        let (commands, receiver) = mpsc::channel(COMMANDS_ON_THE_WAY);
        let (mesh, clients, newest) = (
            Arc::clone(&self.mesh),
            self.clients.clone(),
            self.newest.clone(),
        );
        let drain = self.drain.clone();
        let span = info_span!("enrolment", node);
        let follow = async move {
            let hello = timeout(HELLO_DEADLINE, reports.message()).await;
            let refused = match hello {
                Ok(Ok(Some(Report {
                    kind: Some(report::Kind::Hello(hello)),
                }))) if hello.node == node => None,
                Ok(Ok(Some(Report {
                    kind: Some(report::Kind::Hello(hello)),
                }))) => {
                    tracing::warn!(
                        claimed = hello.node,
                        "node claims another name than its token"
                    );
                    Some(Status::permission_denied("token is bound to another node"))
                }
                Ok(Ok(_)) => Some(Status::invalid_argument("the first message must be hello")),
                Ok(Err(_)) => return,
                Err(_) => Some(Status::deadline_exceeded("no hello")),
            };
            if let Some(status) = refused {
                // It may be gone; then nothing can be told.
                let _told = commands.send(Err(status)).await;
                return;
            }
            let stream = newest.enter(&node);
            NodeStream::new(node, stream, newest, mesh, clients, commands)
                .run(reports, drain)
                .await;
        };
        drop(spawn("enrolment stream", span, &self.drain, follow));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
