//! Which pods were captured, kept over restarts: without it, a restarted control plane would publish captured pods as
//! reachable in plaintext until their nodes have reported again.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use tracing::warn;

use crate::state_dir::StateDir;

const FILE: &str = "enrolled.json";

pub(super) struct EnrolledFile {
    directory: StateDir,
    written: Mutex<BTreeSet<String>>,
}

impl EnrolledFile {
    pub(super) fn new(directory: StateDir) -> Self {
        Self {
            directory,
            written: Mutex::new(BTreeSet::new()),
        }
    }

    /// What was stored; nothing when that cannot be read, since nodes report again.
    pub(super) fn load(&self) -> BTreeSet<String> {
        let read = match self.directory.read(FILE) {
            Ok(None) => return BTreeSet::new(),
            Ok(Some(bytes)) => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let uids: BTreeSet<String> = read.unwrap_or_else(|error| {
            warn!(error, "enrolment is not known from before the restart");
            BTreeSet::new()
        });
        self.written.lock().clone_from(&uids);
        uids
    }

    pub(super) fn store(&self, uids: &BTreeSet<String>) {
        let mut written = self.written.lock();
        if *written == *uids {
            return;
        }
        let bytes = serde_json::to_vec(uids).unwrap_or_default();
        match self.directory.replace(FILE, &bytes) {
            Ok(()) => written.clone_from(uids),
            Err(error) => {
                warn!(%error, "enrolment is not stored and will not be known after a restart")
            }
        }
    }
}
