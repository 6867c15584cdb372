//! The root of the cgroup2 hierarchy, to which every process of the machine belongs, whichever version its controllers
//! are in.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process,
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Opens the configured root, or a mounted one, or mounts one for the moment of opening it.
pub(crate) fn open_root(configured: Option<&Path>) -> io::Result<File> {
    if let Some(path) = configured {
        return File::open(path);
    }
    match find_mounted(&fs::read_to_string("/proc/self/mountinfo")?) {
        Some(path) => File::open(path),
        None => open_unmounted(),
    }
}

/// A mount of the whole hierarchy, from the text of mountinfo (proc(5): root is the fourth field, mount point the fifth,
/// the type follows a lone dash).
fn find_mounted(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (kind.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(point))
    })
}

fn open_unmounted() -> io::Result<File> {
    let point = PathBuf::from(format!("/run/leyline-cgroup2-{}", process::id()));
    fs::create_dir_all(&point)?;
    mount(
        Some("none"),
        &point,
        Some("cgroup2"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        None::<&str>,
    )?;
    let opened = File::open(&point);
    // The descriptor keeps the file system alive.
    umount2(&point, MntFlags::MNT_DETACH)?;
    fs::remove_dir(&point)?;
    opened
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_whole_hierarchy_only() {
        let hybrid = "30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            find_mounted(hybrid),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
        let part = "31 30 0:27 /kubepods/pod1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mounted(part), None);
    }

    #[test]
    fn can_be_opened_without_a_lasting_mount() {
        let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let root = open_unmounted().unwrap();
        assert!(root.metadata().unwrap().is_dir());
        assert_eq!(before, fs::read_to_string("/proc/self/mountinfo").unwrap());
    }
}
