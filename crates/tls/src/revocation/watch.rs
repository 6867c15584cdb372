//! Reads the file of revocation lists, again whenever it changes.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::sleep;
use tracing::{error, info, warn};

use super::{
    Revocation,
    lists::{CrlError, Lists},
};
use crate::seen::Seen;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Some hundred thousand revoked certificates; a larger file is the wrong one.
const MAX_FILE_BYTES: u64 = 32 * 1024 * 1024;

/// Follows the file; see [`Revocation::of_file`].
#[derive(Debug)]
pub struct CrlWatcher {
    path: PathBuf,
    revocation: Arc<Revocation>,
    last: Seen,
}

impl CrlWatcher {
    pub(super) fn new(path: PathBuf, revocation: Arc<Revocation>) -> Self {
        Self {
            path,
            revocation,
            last: Seen::Nothing,
        }
    }

    /// Reads the file if it has changed. Called once before the first handshake, so that none comes too early.
    pub fn look(&mut self) {
        let seen = Seen::at(&self.path);
        if seen == self.last {
            return;
        }
        let path = self.path.display();
        match &seen {
            // Tolerated, as by Istio: the volume is optional. What was known stays known.
            Seen::Missing => warn!(%path, "no revocation lists: the file is missing"),
            Seen::Nothing | Seen::File { .. } | Seen::Unreadable(_) => match read(&self.path) {
                Ok(lists) => {
                    let (count, revoked) = (lists.len(), lists.revoked());
                    let cut = self.revocation.replace(lists);
                    info!(%path, lists = count, revoked, cut, "revocation lists read");
                }
                Err(error) => {
                    metrics::counter!("leyline_crl_read_failures_total").increment(1);
                    error!(%path, %error, "revocation lists not usable, the last good ones stay in force");
                }
            },
        }
        self.last = seen;
    }

    /// Follows the file for ever. Cancel safe.
    pub async fn run(mut self) {
        loop {
            // Small, and once per change: not worth a thread of its own.
            self.look();
            sleep(LOOK).await;
        }
    }
}

fn read(path: &Path) -> Result<Lists, CrlError> {
    let size = fs::metadata(path).map_err(CrlError::Read)?.len();
    if size > MAX_FILE_BYTES {
        return Err(CrlError::TooLarge(MAX_FILE_BYTES));
    }
    Lists::parse(&fs::read(path).map_err(CrlError::Read)?)
}
