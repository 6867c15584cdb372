//! What the node is told to do about its pods, and what it answers.

use leyline_net::NetNs;
use leyline_types::{WorkloadName, WorkloadUid};
use tokio::sync::oneshot;

use crate::proxy::Extent;

/// A command, and who waits for its end.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) command: Command,
    /// Told once the command was carried out, or why it could not be.
    pub(crate) answer: Option<oneshot::Sender<Result<(), String>>>,
}

impl From<Command> for Order {
    fn from(command: Command) -> Self {
        Self {
            command,
            answer: None,
        }
    }
}

/// What the node is told to do.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    /// A stream has begun: from here to [`Self::SnapshotSent`] all pods of the node are named.
    SnapshotBegins,
    Add {
        uid: WorkloadUid,
        name: WorkloadName,
        /// Its namespace, from istio-cni; else it is found by name.
        netns: Option<NetNs>,
        extent: Extent,
    },
    Keep {
        uid: WorkloadUid,
    },
    Del {
        uid: WorkloadUid,
    },
    /// All pods of the node were named since the stream began.
    SnapshotSent,
    /// Nobody names pods at present.
    SourceLost,
    /// The connections of a pod that left have ended.
    Drained {
        generation: u64,
    },
    /// The interfaces of a pod with guests have changed.
    LinksChanged {
        generation: u64,
    },
}

/// What became of a command, for a source that is told later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Enrolled { uid: WorkloadUid },
    Released { uid: WorkloadUid },
    Failed { uid: WorkloadUid, error: String },
}
