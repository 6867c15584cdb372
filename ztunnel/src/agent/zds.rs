//! Takes the pods of this node from istio-cni over its socket (facts A5), in place of our own control plane's enrolment.
//!
//! The connection may break at any time without touching a running pod: the next one starts with the full set again.
//! Each request is answered before the next is read, as istio-cni waits for it.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use leyline_net::{
    NetNs,
    seqpacket::{Completeness, Packet, SeqPacket},
};
use leyline_proto::istio::workload::zds::{
    Ack, Version, WorkloadRequest, WorkloadResponse, ZdsHello, workload_request, workload_response,
};
use leyline_runtime::Drain;
use leyline_telemetry::mesh;
use leyline_types::{WorkloadName, WorkloadUid};
use prost::Message;
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::pods::{Command, Order};
use crate::proxy::Extent;

/// First pause before connecting again; doubled up to [`PAUSE_MAX`] (ZDS-10).
const CONNECT_PAUSE: Duration = Duration::from_millis(20);
/// First pause after istio-cni was reached and did not listen; doubled likewise.
const ANNOUNCE_PAUSE: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// A packet is at most this long; names of pods are far shorter (ZDS-1).
const PACKET: usize = 1024;
/// istio-cni waits as long for us.
const SEND_DEADLINE: Duration = Duration::from_secs(5);

/// istio-cni speaks another protocol: nothing that it says can be relied on, and a restart is the only way on (ZDS-6).
#[derive(Debug, thiserror::Error)]
#[error("protocol mismatch with istio-cni: {0}; check that its version fits this ztunnel's")]
pub(crate) struct Mismatch(&'static str);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    #[error("cannot announce: {0}")]
    Announce(#[source] io::Error),
    #[error("istio-cni closed the connection")]
    Closed,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("received truncated message")]
    Truncated,
    #[error("unreadable message: {0}")]
    Unreadable(#[from] prost::DecodeError),
    #[error("{0} descriptors came with a message that takes {1}")]
    Descriptors(usize, usize),
    #[error("shutting down")]
    Ending,
}

/// Follows istio-cni until the process drains.
///
/// # Errors
/// When the two do not speak the same protocol.
pub(crate) async fn follow(
    path: PathBuf,
    orders: mpsc::Sender<Order>,
    drain: Drain,
) -> Result<(), Mismatch> {
    tokio::select! {
        result = follow_always(&path, &orders) => result,
        () = drain.started() => Ok(()),
    }
}

async fn follow_always(path: &Path, orders: &mpsc::Sender<Order>) -> Result<(), Mismatch> {
    let (mut connect, mut announce) = (CONNECT_PAUSE, ANNOUNCE_PAUSE);
    loop {
        let mut served = 0;
        let broken = match SeqPacket::connect(path) {
            Ok(socket) => serve(&socket, orders, &mut served).await,
            Err(error) => Broken::Io(error),
        };
        if served > 0 {
            (connect, announce) = (CONNECT_PAUSE, ANNOUNCE_PAUSE);
            order(orders, Command::SourceLost).await.ok();
        }
        let pause = match broken {
            Broken::Mismatch(mismatch) => return Err(mismatch),
            Broken::Ending => return Ok(()),
            Broken::Announce(_) => &mut announce,
            Broken::Closed
            | Broken::Io(_)
            | Broken::Truncated
            | Broken::Unreadable(_)
            | Broken::Descriptors(..) => &mut connect,
        };
        mesh::zds_lost();
        warn!(socket = %path.display(), error = %broken, retry_in = ?*pause, "no connection to istio-cni");
        sleep(*pause).await;
        *pause = (*pause * 2).min(PAUSE_MAX);
    }
}

/// One connection, to its end.
async fn serve(socket: &SeqPacket, orders: &mpsc::Sender<Order>, served: &mut u64) -> Broken {
    let hello = ZdsHello {
        version: Version::V1.into(),
    };
    if let Err(error) = send(socket, &hello).await {
        return Broken::Announce(error);
    }
    info!("connected to istio-cni");
    if order(orders, Command::SnapshotBegins).await.is_err() {
        return Broken::Ending;
    }
    let mut phase = Phase::Snapshot;
    let mut buffer = [0; PACKET];
    loop {
        // istio-cni is silent as long as nothing happens on the node.
        let read = match socket.receive(&mut buffer).await {
            Ok(packet) => read(&buffer, packet, &mut phase),
            Err(error) => return error.into(),
        };
        let result = match read {
            Ok(Asked::Command(command)) => order(orders, command).await,
            Ok(Asked::Nonsense(why)) => Ok(Err(why)),
            Err(broken) => return broken,
        };
        let Ok(result) = result else {
            return Broken::Ending;
        };
        *served += 1;
        let error = result.err().map(|error| {
            mesh::zds_refused();
            format!("failure to start proxy : {error}")
        });
        let ack = Ack {
            error: error.unwrap_or_default(),
        };
        let response = WorkloadResponse {
            payload: Some(workload_response::Payload::Ack(ack)),
        };
        if let Err(error) = send(socket, &response).await {
            return error.into();
        }
    }
}

/// Where a connection is (ZDS-6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Snapshot,
    Live,
}

/// What a request wants.
#[derive(Debug)]
enum Asked {
    Command(Command),
    /// A pod's request that cannot be carried out; the connection goes on.
    Nonsense(String),
}

fn read(buffer: &[u8], packet: Packet, phase: &mut Phase) -> Result<Asked, Broken> {
    let Packet {
        length,
        mut descriptors,
        completeness,
    } = packet;
    if completeness == Completeness::Truncated {
        return Err(Broken::Truncated);
    }
    // An empty message would be a request without a payload, which is none.
    let bytes = match buffer.get(..length) {
        None | Some([]) => return Err(Broken::Closed),
        Some(bytes) => bytes,
    };
    let request = WorkloadRequest::decode(bytes)?;
    let expected = match &request.payload {
        Some(workload_request::Payload::Add(_)) => 1,
        Some(_) | None => 0,
    };
    if descriptors.len() != expected {
        return Err(Broken::Descriptors(descriptors.len(), expected));
    }
    let command = match request.payload.ok_or(Mismatch("unknown request"))? {
        workload_request::Payload::Add(add) => {
            let info = add.workload_info;
            let info = info.ok_or(Mismatch("a pod without a name"))?;
            let name = WorkloadName {
                name: info.name.into(),
                namespace: info.namespace.into(),
                service_account: info.service_account.into(),
            };
            let Some(netns) = descriptors.pop() else {
                return Err(Broken::Descriptors(0, expected));
            };
            let extent = Extent::from_wire(add.exempt, &add.reroute_interfaces);
            return Ok(add_command(add.uid, name, netns, extent));
        }
        workload_request::Payload::Keep(_) if *phase == Phase::Live => {
            return Err(Mismatch("a pod to keep after the snapshot").into());
        }
        workload_request::Payload::Keep(keep) => Command::Keep {
            uid: WorkloadUid::new(keep.uid),
        },
        workload_request::Payload::Del(del) => Command::Del {
            uid: WorkloadUid::new(del.uid),
        },
        workload_request::Payload::SnapshotSent(_) if *phase == Phase::Live => {
            return Err(Mismatch("a second snapshot").into());
        }
        workload_request::Payload::SnapshotSent(_) => {
            *phase = Phase::Live;
            Command::SnapshotSent
        }
    };
    Ok(Asked::Command(command))
}

fn add_command(uid: String, name: WorkloadName, netns: OwnedFd, extent: Extent) -> Asked {
    match NetNs::from_fd(netns) {
        Ok(netns) => Asked::Command(Command::Add {
            uid: WorkloadUid::new(uid),
            name,
            netns: Some(netns),
            extent,
        }),
        // The pod may be gone already.
        Err(error) => Asked::Nonsense(format!("cannot enter the namespace of {name}: {error}")),
    }
}

/// Has a command carried out.
///
/// # Errors
/// When nobody carries out commands any more.
async fn order(
    orders: &mpsc::Sender<Order>,
    command: Command,
) -> Result<Result<(), String>, oneshot::error::RecvError> {
    debug!(?command, "istio-cni asks");
    let (answer, answered) = oneshot::channel();
    let order = Order {
        command,
        answer: Some(answer),
    };
    // A failure drops the order, and with it the other end of the answer.
    orders.send(order).await.ok();
    answered.await
}

async fn send(socket: &SeqPacket, message: &impl Message) -> io::Result<()> {
    let packet = message.encode_to_vec();
    timeout(SEND_DEADLINE, socket.send(&packet))
        .await
        .unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use leyline_proto::istio::workload::zds::{
        AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, WorkloadInfo,
    };
    use workload_request::Payload;

    use super::*;

    /// The outcome of one request, in a word.
    fn check(payload: Option<Payload>, descriptors: usize, phase: Phase, expected: &str) {
        let bytes = WorkloadRequest { payload }.encode_to_vec();
        let described = format!("{bytes:?} with {descriptors} in {phase:?}");
        let netns = || File::open("/proc/self/ns/uts").unwrap().into();
        let packet = Packet {
            length: bytes.len(),
            descriptors: (0..descriptors).map(|_| netns()).collect(),
            completeness: Completeness::Whole,
        };
        let mut phase = phase;
        let outcome = match read(&bytes, packet, &mut phase) {
            Ok(Asked::Command(_)) => "command",
            Ok(Asked::Nonsense(_)) => "nack",
            Err(Broken::Mismatch(_)) => "mismatch",
            Err(Broken::Descriptors(..)) => "descriptors",
            Err(Broken::Closed) => "closed",
            Err(_) => "broken",
        };
        assert_eq!(outcome, expected, "{described}");
    }

    #[test]
    fn requests_are_carried_out_refused_or_break_the_connection() {
        let add = |workload_info| {
            Some(Payload::Add(AddWorkload {
                uid: "u".to_owned(),
                exempt: None,
                reroute_interfaces: Vec::new(),
                workload_info,
            }))
        };
        let info = WorkloadInfo {
            name: "p".to_owned(),
            namespace: "n".to_owned(),
            service_account: "s".to_owned(),
        };
        let uid = || "u".to_owned();
        let keep = || Some(Payload::Keep(KeepWorkload { uid: uid() }));
        let del = || Some(Payload::Del(DelWorkload { uid: uid() }));
        let sent = || Some(Payload::SnapshotSent(SnapshotSent {}));
        let (before, after) = (Phase::Snapshot, Phase::Live);
        // Not a network namespace: that pod's trouble.
        check(add(Some(info.clone())), 1, before, "nack");
        check(add(None), 1, before, "mismatch");
        check(add(Some(info.clone())), 0, before, "descriptors");
        check(add(Some(info)), 2, after, "descriptors");
        check(keep(), 0, before, "command");
        check(keep(), 0, after, "mismatch");
        check(del(), 0, after, "command");
        check(del(), 1, after, "descriptors");
        check(sent(), 0, before, "command");
        check(sent(), 0, after, "mismatch");
        check(None, 0, before, "closed");
    }

    #[test]
    fn bytes_are_as_istio_writes_them() {
        let hello = ZdsHello {
            version: Version::V1.into(),
        };
        assert_eq!(hello.encode_to_vec(), [0x08, 0x01]);
        let ack = WorkloadResponse {
            payload: Some(workload_response::Payload::Ack(Ack::default())),
        };
        assert_eq!(ack.encode_to_vec(), [0x0a, 0x00]);
    }
}
