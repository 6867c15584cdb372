//! Where a pod's network namespace is found, and whether it still is the one that we hold.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::Duration,
};

use leyline_net::NetNs;
use tokio::time::sleep;

/// How often a path is looked at: soon enough for a pod that takes the place of another.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// A path, and the namespace that was there when it was opened. The number of a namespace is not used again while it is
/// held open, and whoever has a location holds the namespace.
#[derive(Clone, Debug)]
pub(super) struct Location {
    /// None for a namespace that was handed over: whoever did so also tells when the pod is gone.
    path: Option<PathBuf>,
    inode: u64,
}

/// What is at a path now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Same,
    /// The namespace of another pod, which has the name now.
    Other,
    Nothing,
}

impl Location {
    pub(super) fn open(path: PathBuf) -> io::Result<(NetNs, Self)> {
        let file = File::open(&path)?;
        let inode = file.metadata()?.ino();
        let netns = NetNs::from_fd(file.into())?;
        let path = Some(path);
        Ok((netns, Self { path, inode }))
    }

    pub(super) fn given(netns: &NetNs) -> Self {
        Self {
            path: None,
            inode: netns.cookie(),
        }
    }

    pub(super) fn look(&self) -> Found {
        let Some(path) = &self.path else {
            return Found::Same;
        };
        match fs::metadata(path) {
            Ok(found) if found.ino() == self.inode => Found::Same,
            Ok(_) => Found::Other,
            Err(_) => Found::Nothing,
        }
    }

    /// Resolves when the namespace is no longer where it was: its pod is gone. Cancel safe.
    pub(super) async fn gone(&self) {
        while self.look() == Found::Same {
            sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_another_namespace_from_the_same_one() {
        let path = std::env::temp_dir().join(format!("leyline-location-{}", std::process::id()));
        std::os::unix::fs::symlink("/proc/self/ns/net", &path).unwrap();
        let (_netns, location) = Location::open(path.clone()).unwrap();
        assert_eq!(location.look(), Found::Same);
        fs::remove_file(&path).unwrap();
        assert_eq!(location.look(), Found::Nothing);
        std::os::unix::fs::symlink("/proc/self/ns/uts", &path).unwrap();
        assert_eq!(location.look(), Found::Other);
        fs::remove_file(&path).unwrap();
    }
}
