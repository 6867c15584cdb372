//! Where the pins of an instance are: `<bpffs>/<instance>/node` and `<bpffs>/<instance>/pods/<cookie>`.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use crate::error::CaptureError;

/// Names become part of paths.
const MAX_INSTANCE: usize = 64;

/// Name of the pinned socket lookup link of a pod.
pub(crate) const STEER_LINK: &str = "link_steer";
/// Begin of the names of a pod's pinned links of `reroute`; the index of the interface follows, as its name may have dots,
/// which this file system does not take.
pub(crate) const REROUTE_LINK: &str = "link_reroute_";

/// Paths of one instance.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn new(bpffs: &Path, instance: &str) -> Result<Self, CaptureError> {
        let valid = !instance.is_empty()
            && instance.len() <= MAX_INSTANCE
            && instance
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !valid {
            return Err(CaptureError::Instance(instance.to_owned()));
        }
        Ok(Self {
            root: bpffs.join(instance),
        })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn node(&self) -> PathBuf {
        self.root.join("node")
    }

    pub(crate) fn node_link(&self, name: &str) -> PathBuf {
        self.node().join(format!("link_{name}"))
    }

    pub(crate) fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    pub(crate) fn pod(&self, cookie: u64) -> PathBuf {
        self.pods().join(cookie.to_string())
    }

    pub(crate) fn create(&self) -> io::Result<()> {
        fs::create_dir_all(self.node())?;
        fs::create_dir_all(self.pods())
    }

    /// Excludes other changes of this instance, in this process or another that is handing over.
    pub(crate) fn lock(&self) -> io::Result<Flock<File>> {
        Flock::lock(File::open(&self.root)?, FlockArg::LockExclusive)
            .map_err(|(_, errno)| errno.into())
    }

    /// Cookies of the pods that have pins.
    pub(crate) fn pinned_pods(&self) -> io::Result<Vec<u64>> {
        let mut cookies = Vec::new();
        for entry in fs::read_dir(self.pods())? {
            if let Some(cookie) = entry?.file_name().to_str().and_then(|n| n.parse().ok()) {
                cookies.push(cookie);
            }
        }
        Ok(cookies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instance_names_cannot_leave_the_directory() {
        for bad in ["", "..", "a/b", "a.b", " ", &"x".repeat(65)] {
            assert!(Layout::new(Path::new("/x"), bad).is_err(), "{bad:?}");
        }
        let good = Layout::new(Path::new("/x"), "leyline-a_1").unwrap();
        assert_eq!(good.pod(7), Path::new("/x/leyline-a_1/pods/7"));
    }
}
