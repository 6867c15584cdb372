//! Reads the file of revocation lists, again whenever it changes.
//!
//! It is looked at once a second instead of being watched: Kubernetes replaces a symbolic link two levels above the file,
//! the file and its directory may be missing, and one `stat` costs nothing.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
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

/// What tells one state of the file from another, through all symbolic links.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Nothing,
    Missing,
    File {
        device: u64,
        inode: u64,
        size: u64,
        modified: (i64, i64),
    },
    Unreadable(io::ErrorKind),
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
        let seen = look_at(&self.path);
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

fn look_at(path: &Path) -> Seen {
    match fs::metadata(path) {
        Ok(file) => Seen::File {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Seen::Missing,
        Err(error) => Seen::Unreadable(error.kind()),
    }
}

fn read(path: &Path) -> Result<Lists, CrlError> {
    let size = fs::metadata(path).map_err(CrlError::Read)?.len();
    if size > MAX_FILE_BYTES {
        return Err(CrlError::TooLarge(MAX_FILE_BYTES));
    }
    Lists::parse(&fs::read(path).map_err(CrlError::Read)?)
}
