//! Asks the control plane which pods of this node to carry, and tells it when they are.
//!
//! The stream is the local stand-in for istio-cni's socket; it may break at any time without touching a running pod: the
//! next stream starts with the full set again, and every command is answered again.

use std::time::Duration;

use leyline_proto::{
    istio::workload::zds::{WorkloadRequest, workload_request::Payload},
    leyline::enrolment::v1::{
        Hello, Outcome as WireOutcome, Report, State,
        enrolment_service_client::EnrolmentServiceClient, report::Kind,
    },
};
use leyline_tls::control_plane::AuthInterceptor;
use leyline_types::{WorkloadName, WorkloadUid};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, service::interceptor::InterceptedService, transport::Channel};
use tracing::{info, warn};

use super::pods::{Command, Order, Outcome};
use crate::proxy::Extent;

/// First pause before connecting again; doubled up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// A control plane that is back is noticed within this time.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// For the answer to the request that opens the stream.
const OPEN_DEADLINE: Duration = Duration::from_secs(5);
/// Reports under way; the stream takes them at once, so a few are enough.
const REPORTS: usize = 64;

/// Client of the enrolment service.
pub(crate) type Client = EnrolmentServiceClient<InterceptedService<Channel, AuthInterceptor>>;

/// Follows the service for as long as the process runs; connects again with back-off.
pub(crate) async fn follow(
    mut client: Client,
    node: String,
    commands: mpsc::Sender<Order>,
    mut outcomes: mpsc::Receiver<Outcome>,
) {
    let mut pause = PAUSE_MIN;
    loop {
        match follow_once(&mut client, &node, &commands, &mut outcomes, &mut pause).await {
            Ok(()) => info!("enrolment stream ended by the control plane"),
            Err(status) => {
                warn!(code = ?status.code(), error = status.message(), "enrolment stream broke")
            }
        }
        if commands.is_closed() {
            return;
        }
        forget_outcomes(&mut outcomes, pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Pauses. What comes meanwhile need not be kept: every command is answered again on the next stream.
async fn forget_outcomes(outcomes: &mut mpsc::Receiver<Outcome>, pause: Duration) {
    let forget = async {
        while outcomes.recv().await.is_some() {}
        // The manager has gone; the pause is the same.
        std::future::pending::<()>().await;
    };
    tokio::time::timeout(pause, forget).await.ok();
}

async fn follow_once(
    client: &mut Client,
    node: &str,
    commands: &mpsc::Sender<Order>,
    outcomes: &mut mpsc::Receiver<Outcome>,
    pause: &mut Duration,
) -> Result<(), Status> {
    let (reports, reports_sent) = mpsc::channel(REPORTS);
    send(
        &reports,
        Kind::Hello(Hello {
            node: node.to_owned(),
        }),
    )
    .await?;
    let mut stream: Streaming<WorkloadRequest> = tokio::time::timeout(
        OPEN_DEADLINE,
        client.follow(ReceiverStream::new(reports_sent)),
    )
    .await
    .map_err(|elapsed| Status::deadline_exceeded(elapsed.to_string()))??
    .into_inner();
    info!(node, "following enrolment");
    *pause = PAUSE_MIN;
    // While a command waits for room no other is read, but outcomes are: the manager may wait for their room.
    let mut waiting = Some(Command::SnapshotBegins);
    loop {
        tokio::select! {
            message = stream.message(), if waiting.is_none() => {
                let Some(message) = message? else { return Ok(()) };
                waiting = command(message);
            }
            room = commands.reserve(), if waiting.is_some() => {
                let Ok(room) = room else { return Ok(()) };
                if let Some(command) = waiting.take() {
                    room.send(command.into());
                }
            }
            outcome = outcomes.recv() => {
                let Some(outcome) = outcome else { return Ok(()) };
                send(&reports, Kind::Outcome(wire(outcome))).await?;
            }
        }
    }
}

async fn send(reports: &mpsc::Sender<Report>, kind: Kind) -> Result<(), Status> {
    let sent = reports.send(Report { kind: Some(kind) }).await;
    sent.map_err(|closed| Status::unavailable(closed.to_string()))
}

/// A message without a payload that we know is logged and skipped.
fn command(message: WorkloadRequest) -> Option<Command> {
    match message.payload {
        Some(Payload::Add(add)) => {
            let Some(info) = add.workload_info else {
                warn!(
                    uid = add.uid,
                    "enrolment of a workload without a name is ignored"
                );
                return None;
            };
            Some(Command::Add {
                uid: WorkloadUid::new(add.uid),
                name: WorkloadName {
                    name: info.name.into(),
                    namespace: info.namespace.into(),
                    service_account: info.service_account.into(),
                },
                netns: None,
                extent: Extent::from_wire(add.exempt, &add.reroute_interfaces),
            })
        }
        Some(Payload::Del(del)) => Some(Command::Del {
            uid: WorkloadUid::new(del.uid),
        }),
        Some(Payload::Keep(keep)) => Some(Command::Keep {
            uid: WorkloadUid::new(keep.uid),
        }),
        Some(Payload::SnapshotSent(_)) => Some(Command::SnapshotSent),
        None => {
            warn!("enrolment command of an unknown kind is ignored");
            None
        }
    }
}

fn wire(outcome: Outcome) -> WireOutcome {
    let (uid, error, state) = match outcome {
        Outcome::Enrolled { uid } => (uid, String::new(), State::Enrolled),
        Outcome::Released { uid } => (uid, String::new(), State::Released),
        Outcome::Failed { uid, error } => (uid, error, State::Released),
    };
    WireOutcome {
        uid: uid.to_string(),
        error,
        state: state.into(),
    }
}
