//! The BPF file system that holds the pins; mounted where it is missing.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use tracing::info;

/// Makes sure that `path` is a BPF file system.
pub(crate) fn ensure_mounted(path: &Path) -> io::Result<()> {
    if !path.exists() {
        fs::create_dir_all(path)?;
    }
    if is_bpffs(path)? {
        return Ok(());
    }
    // Two nodes of one machine may start together, and a second mount would hide the pins below the first.
    let _lock = Flock::lock(File::open(path)?, FlockArg::LockExclusive)
        .map_err(|(_, errno)| io::Error::from(errno))?;
    if is_bpffs(path)? {
        return Ok(());
    }
    mount(
        Some("bpf"),
        path,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )?;
    info!(path = %path.display(), "mounted a bpf file system");
    Ok(())
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.filesystem_type() == BPF_FS_MAGIC)
}
