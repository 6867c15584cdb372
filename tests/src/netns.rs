//! Makes network namespaces that have a path, and sets them up.

use std::{
    fs::{self, File},
    io,
    path::Path,
    thread,
};

use anyhow::{Context, Result, anyhow};
use leyline_net::NetNs;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// What every namespace of a mesh has set: addresses are usable at once, without duplicate detection.
const SYSCTLS: [(&str, &str); 4] = [
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
];
/// What makes a namespace a router.
const FORWARDING: [(&str, &str); 2] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
];

/// What a namespace does with packets that are not its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Drops them: a pod.
    Host,
    /// Forwards them: a node, the infrastructure.
    Router,
}

/// Makes a network namespace and mounts it on `path`. It lives until it is unmounted and its last process has ended.
pub fn create(path: &Path, role: Role) -> Result<NetNs> {
    File::create_new(path).with_context(|| format!("making {}", path.display()))?;
    // A thread of its own: it moves into the new namespace and never comes back.
    thread::scope(|scope| scope.spawn(|| unshare_onto(path)).join())
        .map_err(|_panic| anyhow!("the thread that makes namespaces panicked"))?
        .with_context(|| format!("making the network namespace {}", path.display()))?;
    let namespace =
        NetNs::open(path).with_context(|| format!("opening the namespace {}", path.display()))?;
    namespace.run(|| sysctls(&SYSCTLS))??;
    if role == Role::Router {
        namespace.run(|| sysctls(&FORWARDING))??;
    }
    Ok(namespace)
}

fn unshare_onto(path: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    mount(
        Some("/proc/thread-self/ns/net"),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    Ok(())
}

/// `/proc/sys/net` is that of the namespace of the thread that looks.
fn sysctls(values: &[(&str, &str)]) -> Result<()> {
    for (name, value) in values {
        let path = Path::new("/proc/sys").join(name);
        fs::write(&path, value)
            .with_context(|| format!("writing {value} to {}", path.display()))?;
    }
    Ok(())
}
