//! What a machine must have before anything is made on it.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};

/// The first kernel with `sk_lookup` programs, on which capture stands.
const OLDEST_KERNEL: (u32, u32) = (5, 9);

/// Says in one sentence what is missing to run a mesh here.
///
/// # Errors
/// The sentence.
pub fn check() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "network namespaces and BPF programs need root: run this as root"
    );
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("reading the kernel's release")?;
    check_release(&release)?;
    ensure!(
        Path::new("/sys/kernel/btf/vmlinux").exists(),
        "this kernel has no type information (/sys/kernel/btf/vmlinux): use one built with CONFIG_DEBUG_INFO_BTF"
    );
    let mounts = fs::read_to_string("/proc/mounts").context("reading /proc/mounts")?;
    ensure!(
        mounts
            .lines()
            .any(|line| line.split(' ').nth(2) == Some("cgroup2")),
        "no cgroup2 file system is mounted: mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`"
    );
    let filesystems =
        fs::read_to_string("/proc/filesystems").context("reading /proc/filesystems")?;
    ensure!(
        filesystems
            .lines()
            .any(|line| line.split_whitespace().last() == Some("bpf")),
        "this kernel has no bpf file system: use one built with CONFIG_BPF_SYSCALL"
    );
    Ok(())
}

fn check_release(release: &str) -> Result<()> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|n| n.parse::<u32>().ok());
    let (Some(major), Some(minor)) = (number(), number()) else {
        bail!("the kernel's release `{}` has no number", release.trim());
    };
    let (oldest_major, oldest_minor) = OLDEST_KERNEL;
    ensure!(
        (major, minor) >= OLDEST_KERNEL,
        "this kernel is {}; capture needs {oldest_major}.{oldest_minor} or later",
        release.trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_refused() {
        for good in ["5.9.0", "6.18.44-fc-v669\n", "5.10-rc1"] {
            check_release(good).unwrap();
        }
        for bad in ["5.8.18", "4.19.0-26-amd64", "", "next"] {
            assert!(check_release(bad).is_err(), "{bad}");
        }
    }
}
