//! Taking capture off: one pod, pods whose namespace is gone, everything.

use std::{
    collections::HashMap,
    fs, io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::maps::{Array, MapData};
use leyline_ebpf_abi::{Pod, maps};
use leyline_net::NetNs;
use nix::sys::stat::fstat;
use parking_lot::Mutex;
use tracing::{info, warn};

use crate::{
    bpffs,
    ebpf::PinnedLink,
    error::{CaptureError, NodeStep, PodStep},
    layout::{Layout, STEER_LINK},
    netlink,
    node::{NodeMaps, Shared},
    pod::inside,
    sysctl,
};

/// What a final removal did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Pods that were captured and are not any more.
    pub pods: Vec<u64>,
    /// Pods whose namespace lives but cannot be entered. They stay captured, and so does the node for their sake: rules
    /// without the socket lookup would be worse.
    pub unreachable: Vec<u64>,
}

/// Removes everything of an instance without attaching it first: for cleaning up after a process that is gone. Blocks.
///
/// # Errors
/// When a pin cannot be removed.
pub fn remove_instance(
    bpffs: &Path,
    instance: &str,
    known: &[NetNs],
) -> Result<Removed, CaptureError> {
    let layout = Layout::new(bpffs, instance)?;
    let failed = || CaptureError::node(NodeStep::Directories);
    if !layout.root().exists() {
        return Ok(Removed::default());
    }
    bpffs::ensure_mounted(bpffs).map_err(CaptureError::node(NodeStep::MountBpffs))?;
    let _lock = layout.lock().map_err(failed())?;
    let mut removed = Removed::default();
    if let Some(maps) = NodeMaps::open(&layout.node()).map(Mutex::new) {
        removed.pods = collect_garbage(&layout, &maps)?;
        let mut namespaces = Namespaces::of(known);
        for cookie in layout.pinned_pods().map_err(failed())? {
            match namespaces.find(&layout, cookie).map_err(failed())? {
                Some(netns) => {
                    remove_pod(&layout, &maps, &netns)?;
                    removed.pods.push(cookie);
                }
                None => removed.unreachable.push(cookie),
            }
        }
    }
    if removed.unreachable.is_empty() {
        for directory in [layout.node(), layout.pods()] {
            remove_pins(&directory).map_err(failed())?;
        }
        fs::remove_dir(layout.root()).map_err(failed())?;
        info!(instance, pods = removed.pods.len(), "capture removed");
    } else {
        warn!(instance, pods = ?removed.unreachable, "pods cannot be reached and stay captured");
    }
    Ok(removed)
}

/// Takes everything off a pod of this process, from a task that may block.
///
/// Not cancel safe: a dropped future leaves the removal to finish by itself.
pub(crate) async fn release(shared: Arc<Shared>, netns: NetNs) -> Result<(), CaptureError> {
    let cookie = netns.cookie();
    tokio::task::spawn_blocking(move || {
        let _lock = shared
            .layout
            .lock()
            .map_err(CaptureError::pod(cookie, PodStep::Pins))?;
        remove_pod(&shared.layout, &shared.maps, &netns)
    })
    .await
    .map_err(CaptureError::pod(cookie, PodStep::Task))?
}

/// Takes everything off a pod, in the order in which each step leaves it working or refused. The caller holds the lock.
pub(crate) fn remove_pod(
    layout: &Layout,
    node: &Mutex<NodeMaps>,
    netns: &NetNs,
) -> Result<(), CaptureError> {
    let cookie = netns.cookie();
    let path = layout.pod(cookie);
    node.lock()
        .remove_enrolment(cookie)
        .map_err(CaptureError::pod(cookie, PodStep::WriteEnrolment))?;
    if path.exists() {
        inside(netns, PodStep::Routes, netlink::remove)?;
        if let Some(pod) = read_pod(&path) {
            inside(netns, PodStep::Sysctls, || sysctl::restore(&pod.sysctls))?;
        }
        remove_pins(&path).map_err(CaptureError::pod(cookie, PodStep::Pins))?;
    }
    node.lock()
        .forget(cookie)
        .map_err(CaptureError::pod(cookie, PodStep::WriteEnrolment))
}

/// Removes what is left of pods whose namespace is gone. The caller holds the lock.
pub(crate) fn collect_garbage(
    layout: &Layout,
    node: &Mutex<NodeMaps>,
) -> Result<Vec<u64>, CaptureError> {
    let mut gone = Vec::new();
    let pinned = layout
        .pinned_pods()
        .map_err(CaptureError::node(NodeStep::Directories))?;
    for cookie in pinned {
        let path = layout.pod(cookie);
        let failed = || CaptureError::pod(cookie, PodStep::Pins);
        // Without a link the enrolment was cut short before anything in the namespace changed.
        let link = PinnedLink::open(&path.join(STEER_LINK)).map_err(failed())?;
        let lives = match link {
            Some(link) => link.target().map_err(failed())?.is_some(),
            None => false,
        };
        if lives {
            continue;
        }
        remove_pins(&path).map_err(failed())?;
        node.lock()
            .forget(cookie)
            .map_err(CaptureError::pod(cookie, PodStep::WriteEnrolment))?;
        gone.push(cookie);
    }
    Ok(gone)
}

fn read_pod(path: &Path) -> Option<Pod> {
    let data = MapData::from_pin(path.join(maps::POD)).ok()?;
    let map: Array<MapData, Pod> = aya::maps::Map::Array(data).try_into().ok()?;
    map.get(&0, 0).ok()
}

/// Removes a directory of pins. Links are detached at once, not when the kernel gets to it.
fn remove_pins(directory: &Path) -> io::Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(directory)? {
        let pin = entry?;
        if pin.file_name().as_encoded_bytes().starts_with(b"link_")
            && let Some(link) = PinnedLink::open(&pin.path())?
        {
            link.detach()?;
        }
        fs::remove_file(pin.path())?;
    }
    fs::remove_dir(directory)
}

/// Finds the namespace of a pin: among those the caller knows, else among those that processes are in or that are
/// mounted (as `ip netns` and container runtimes do).
struct Namespaces<'a> {
    known: &'a [NetNs],
    /// Inode to namespace, read from /proc on the first miss.
    running: Option<HashMap<u64, NetNs>>,
}

impl<'a> Namespaces<'a> {
    fn of(known: &'a [NetNs]) -> Self {
        Self {
            known,
            running: None,
        }
    }

    fn find(&mut self, layout: &Layout, cookie: u64) -> io::Result<Option<NetNs>> {
        if let Some(netns) = self.known.iter().find(|n| n.cookie() == cookie) {
            return Ok(Some(netns.clone()));
        }
        let link = PinnedLink::open(&layout.pod(cookie).join(STEER_LINK))?;
        let Some(inode) = link.map_or(Ok(None), |l| l.target())? else {
            return Ok(None);
        };
        if self.running.is_none() {
            self.running = Some(running_namespaces()?);
        }
        Ok(self
            .running
            .as_ref()
            .and_then(|all| all.get(&u64::from(inode)))
            .cloned())
    }
}

/// Every network namespace that can be found.
fn running_namespaces() -> io::Result<HashMap<u64, NetNs>> {
    let mut paths: Vec<PathBuf> = fs::read_to_string("/proc/self/mountinfo")?
        .lines()
        .filter_map(|line| {
            // Fields of proc(5): the fourth is the namespace's name, the fifth where it is mounted.
            let mut fields = line.split(' ').skip(3);
            let (root, point) = (fields.next()?, fields.next()?);
            root.starts_with("net:[").then(|| point.into())
        })
        .collect();
    for entry in fs::read_dir("/proc")? {
        paths.push(entry?.path().join("ns/net"));
    }
    let mut all = HashMap::new();
    for path in paths {
        // Processes come and go meanwhile.
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        if !all.contains_key(&metadata.ino())
            && let Ok(netns) = NetNs::open(&path)
            && fstat(netns.as_fd()).is_ok_and(|opened| opened.st_ino == metadata.ino())
        {
            all.insert(metadata.ino(), netns);
        }
    }
    Ok(all)
}
