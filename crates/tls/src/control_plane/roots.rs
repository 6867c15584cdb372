//! Follows the file of the CA's roots (facts CRT-9). When it changes, the CA is connected to anew, for it may not be the one
//! that we trust any more; and all certificates are fetched anew, for their answers bring the roots of the mesh.
//!
//! This is what makes a rotation of the roots quick: without it, proxies learn of a new root at the next renewal, which may
//! be half a day away.

use std::{path::PathBuf, sync::Arc, time::Duration};

use metrics::counter;
use tokio::time::sleep;
use tracing::{info, warn};

use super::{RootError, RootSource, parse_roots, read_small};
use crate::{ca::CaClient, seen::Seen, store::CertificateStore};

/// How often the file is looked at. A change counts when it was seen twice: a file that is being written is left alone.
const LOOK: Duration = Duration::from_secs(1);

/// Follows the roots of a CA that are in a file.
#[derive(Debug)]
pub struct RootWatcher {
    path: PathBuf,
    last: Seen,
    /// What of it was acted upon.
    known: Option<String>,
    judged: Seen,
}

impl RootWatcher {
    /// A watcher of the roots as they are now; `None` for roots that cannot change.
    pub fn of(source: &RootSource) -> Option<Self> {
        match source {
            RootSource::File(path) => {
                let seen = Seen::at(path);
                Some(Self {
                    known: read_small(path).ok(),
                    path: path.clone(),
                    last: seen,
                    judged: seen,
                })
            }
            RootSource::Pem(_) | RootSource::System => None,
        }
    }

    /// Follows the file for ever. Cancel safe.
    pub async fn run(mut self, ca: Arc<CaClient>, certificates: Arc<CertificateStore>) {
        loop {
            sleep(LOOK).await;
            // Small, and read only when it has changed: not worth a thread of its own.
            if self.changed() {
                counter!("leyline_ca_root_changes_total").increment(1);
                info!(path = %self.path.display(), "the roots of the CA have changed: all certificates are renewed");
                ca.reconnect();
                certificates.renew_all();
            }
        }
    }

    /// Whether there are other roots in the file than before.
    fn changed(&mut self) -> bool {
        let seen = Seen::at(&self.path);
        let settled = seen == self.last;
        self.last = seen;
        if !settled || seen == self.judged {
            return false;
        }
        self.judged = seen;
        let found = read_small(&self.path).map_err(|source| RootError::Read {
            path: self.path.clone(),
            source,
        });
        match found.and_then(|text| parse_roots(&text).map(|roots| (text, roots.len()))) {
            Ok((text, 1..)) => {
                let other = self.known.as_ref() != Some(&text);
                self.known = Some(text);
                other
            }
            Ok((_, 0)) => {
                warn!(path = %self.path.display(), "no root in the file of the CA's roots");
                false
            }
            Err(error) => {
                warn!(%error, "the roots of the CA cannot be read");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use tempfile::TempDir;

    use super::*;
    use crate::testing::TestCa;

    #[test]
    fn a_change_counts_when_it_is_whole_and_is_one() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("root-cert.pem");
        let (old, new) = (TestCa::new().root_pem(), TestCa::new().root_pem());
        fs::write(&path, &old).unwrap();
        let mut watcher = RootWatcher::of(&RootSource::File(path.clone())).unwrap();
        // Each write has an inode of its own, as by careful writers: times of a file system are coarse.
        let replace = |text: &str| {
            let aside = directory.path().join("aside");
            fs::write(&aside, text).unwrap();
            fs::rename(&aside, &path).unwrap();
        };
        let mut looks = || [watcher.changed(), watcher.changed(), watcher.changed()];
        assert_eq!(looks(), [false; 3]);
        let both = old + &new;
        replace(&both);
        assert_eq!(looks(), [false, true, false]);
        // The same roots again.
        replace(&both);
        assert_eq!(looks(), [false; 3]);
        for nothing in ["", "-----BEGIN CERTIFICATE-----\nAA"] {
            replace(nothing);
            assert_eq!(looks(), [false; 3]);
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(looks(), [false; 3]);
        replace(&new);
        assert_eq!(looks(), [false, true, false]);
    }

    #[test]
    fn only_files_change() {
        assert!(RootWatcher::of(&RootSource::System).is_none());
        assert!(RootWatcher::of(&RootSource::Pem(TestCa::new().root_pem())).is_none());
        // One that is not there yet will be.
        let missing = RootSource::File(Path::new("/nonexistent/root.pem").to_owned());
        assert!(RootWatcher::of(&missing).is_some());
    }
}
