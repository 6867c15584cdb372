//! `resolv.conf`, of the pods and our own (resolv.conf(5)).

use std::{
    fs::File,
    io::{self, Read},
    net::IpAddr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use leyline_net::NetNs;
use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::fstat,
};

/// Larger files are no resolv.conf.
const MAX_SIZE: u64 = 64 << 10;
/// glibc's limit.
const MAX_NDOTS: usize = 15;
/// What is used of longer lists: no library tries more.
const MAX_ENTRIES: usize = 32;

/// What a resolver library is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ResolvConf {
    pub(super) servers: Vec<IpAddr>,
    /// Domains in lower case, without a last dot.
    pub(super) search: Vec<String>,
    /// Names with fewer dots are tried with the search domains first.
    pub(super) ndots: usize,
}

impl ResolvConf {
    /// What Kubernetes gives to a pod that asks for nothing else; without servers.
    pub(super) fn of_kubernetes(namespace: &str, domain: &str) -> Self {
        Self {
            servers: Vec::new(),
            search: vec![
                format!("{namespace}.svc.{domain}"),
                format!("svc.{domain}"),
                domain.to_owned(),
            ],
            ndots: 5,
        }
    }

    /// Reads the text; what is not understood is left out, as libraries do.
    pub(super) fn parse(text: &str) -> Self {
        let mut parsed = Self {
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
        };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // A zone (fe80::1%eth0) means nothing here.
                    let server: Option<IpAddr> = words.next().and_then(|word| word.parse().ok());
                    parsed.servers.extend(server);
                }
                Some("search" | "domain") => {
                    let domains = words.map(|word| word.trim_end_matches('.'));
                    let domains = domains.filter(|word| !word.is_empty());
                    let domains = domains.map(str::to_ascii_lowercase);
                    parsed.search = domains.take(MAX_ENTRIES).collect();
                }
                Some("options") => {
                    let ndots = words.find_map(|word| word.strip_prefix("ndots:")?.parse().ok());
                    let ndots = ndots.map(|ndots: usize| ndots.min(MAX_NDOTS));
                    parsed.ndots = ndots.unwrap_or(parsed.ndots);
                }
                _ => {}
            }
        }
        parsed.servers.truncate(MAX_ENTRIES);
        parsed
    }

    /// Our own.
    pub(super) fn own() -> io::Result<Self> {
        read(File::open("/etc/resolv.conf")?)
    }

    /// That of a container of the pod, found by a process in its network namespace; `None` where /proc shows none.
    ///
    /// Blocks. The pod has no say in what is read: its links are followed within its own root only.
    pub(super) fn of_pod(netns: &NetNs) -> Option<Self> {
        let wanted = fstat(netns.as_fd()).ok()?;
        let ours = std::fs::metadata("/proc/self/ns/mnt").ok()?.ino();
        let processes = std::fs::read_dir("/proc").ok()?.flatten();
        let mut processes = processes.filter(|entry| {
            let is_process = entry.file_name().to_string_lossy().parse::<u32>().is_ok();
            let namespace = |name: &str| std::fs::metadata(entry.path().join("ns").join(name));
            is_process
                && namespace("net").is_ok_and(|net| (net.dev(), net.ino()) == (wanted.st_dev, wanted.st_ino))
                // With our own files it is no container.
                && namespace("mnt").is_ok_and(|mount| mount.ino() != ours)
        });
        processes.find_map(|entry| read(open_in(&entry.path().join("root")).ok()?.into()).ok())
    }
}

/// `/etc/resolv.conf` below a root, wherever links in it lead.
fn open_in(root: &Path) -> io::Result<OwnedFd> {
    let root = File::open(root)?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(root.as_fd(), "etc/resolv.conf", how)?)
}

fn read(file: File) -> io::Result<ResolvConf> {
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut text = Vec::new();
    file.take(MAX_SIZE).read_to_end(&mut text)?;
    Ok(ResolvConf::parse(&String::from_utf8_lossy(&text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libraries_understand_is_understood() {
        let parsed = ResolvConf::parse(
            "# comment\nnameserver 10.96.0.10\nnameserver fe80::1%eth0\nnameserver 2001:db8::1\nsearch a.b\n\
             search Shop.svc.cluster.local. cluster.local .\noptions edns0 ndots:5 timeout:2\noptions ndots:x\nsortlist x\n",
        );
        let expected = ResolvConf {
            servers: vec![
                "10.96.0.10".parse().unwrap(),
                "2001:db8::1".parse().unwrap(),
            ],
            search: vec!["shop.svc.cluster.local".into(), "cluster.local".into()],
            ndots: 5,
        };
        assert_eq!(parsed, expected);
        assert_eq!(ResolvConf::parse("").ndots, 1);
        assert_eq!(ResolvConf::parse("options ndots:4000000").ndots, 15);
    }
}
