//! Capture of a node: the hooks on the root cgroup and the maps that all pods share.

use std::{
    fs::File,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray, SockHash},
    programs::{CgroupAttachMode, CgroupSockAddr, ProgramError, SkLookup, SockOps, links::FdLink},
};
use leyline_ebpf_abi::{
    ABI_VERSION, Address, Enrolment, LocalKey, Node, NodeCounter, maps, programs,
};
use leyline_net::NetNs;
use parking_lot::Mutex;
use tracing::{info, warn};

use crate::{
    bpffs, cgroup,
    config::{HostProbes, NodeConfig, PodOptions, PodSockets, SteerProgram},
    ebpf::{self, Loader},
    error::{CaptureError, Cause, NodeStep, PodStep},
    layout::Layout,
    pod::{self, PodCapture},
    removal,
};

/// Hooks that every kernel we support accepts.
const DNS_HOOKS: [&str; 6] = [
    programs::SENDMSG4,
    programs::SENDMSG6,
    programs::RECVMSG4,
    programs::RECVMSG6,
    programs::GETPEERNAME4,
    programs::GETPEERNAME6,
];
/// Each with its fallback for kernels that cannot choose the errno of a refusal.
const CONNECT_HOOKS: [(&str, &str); 2] = [
    (programs::CONNECT4, programs::CONNECT4_EPERM),
    (programs::CONNECT6, programs::CONNECT6_EPERM),
];

/// The node's part of capture, and the entrance to that of its pods. Dropping it changes nothing in the kernel.
pub struct NodeCapture {
    shared: Arc<Shared>,
}

/// What the pods of a node use of it.
pub(crate) struct Shared {
    pub(crate) config: NodeConfig,
    pub(crate) layout: Layout,
    pub(crate) loader: Loader,
    /// Name of the socket lookup program that this kernel takes.
    pub(crate) steer: &'static str,
    /// Held for single writes or a short row of them, never while a namespace is changed: whoever reads a counter waits.
    pub(crate) maps: Mutex<NodeMaps>,
}

impl NodeCapture {
    /// Attaches the node's hooks, or takes over those that an earlier process pinned, replacing their programs by this
    /// build's without a gap. Pods that are enrolled stay so. Blocks for some 100 ms.
    ///
    /// # Errors
    /// See [`CaptureError`]; needs CAP_SYS_ADMIN and CAP_NET_ADMIN.
    pub fn attach(config: NodeConfig) -> Result<Self, CaptureError> {
        let layout = Layout::new(&config.bpffs, &config.instance)?;
        bpffs::ensure_mounted(&config.bpffs).map_err(CaptureError::node(NodeStep::MountBpffs))?;
        layout
            .create()
            .map_err(CaptureError::node(NodeStep::Directories))?;
        let _lock = layout
            .lock()
            .map_err(CaptureError::node(NodeStep::Directories))?;

        let loader = Loader::new(&layout.node());
        let mut object = loader
            .load_node()
            .map_err(CaptureError::node(NodeStep::LoadObject))?;
        let mut maps =
            NodeMaps::take(&mut object).map_err(CaptureError::node(NodeStep::LoadObject))?;
        let host_cookie =
            host_cookie(config.host_probes).map_err(CaptureError::node(NodeStep::HostNamespace))?;
        maps.write_node(&layout.node(), host_cookie)?;

        let cgroup = cgroup::open_root(config.cgroup.as_deref())
            .map_err(CaptureError::node(NodeStep::OpenCgroup))?;
        attach_hooks(&mut object, &layout, &cgroup)?;
        attach_probes(&mut object, &layout, &cgroup);
        let steer = choose_steer(&mut object, config.steer)?;
        info!(instance = config.instance, steer, "node capture attached");
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                layout,
                loader,
                steer,
                maps: Mutex::new(maps),
            }),
        })
    }

    /// Puts capture on a pod, or takes over a pod that an earlier process captured: from here on new connections go to
    /// `sockets`, connections that exist are not touched. When it fails nothing of a new enrolment is left, and an
    /// existing one stays as it was. `named` are the addresses that the control plane knows; those of the namespace
    /// itself are added.
    ///
    /// Not cancel safe: a dropped future leaves the enrolment to finish by itself, without the value to remove it.
    ///
    /// # Errors
    /// [`CaptureError::Pod`] with the step that failed.
    pub async fn enroll(
        &self,
        netns: &NetNs,
        named: Vec<IpAddr>,
        sockets: PodSockets<'_>,
        options: PodOptions,
    ) -> Result<PodCapture, CaptureError> {
        let cookie = netns.cookie();
        let sockets = pod::Sockets::duplicate(sockets)
            .map_err(CaptureError::pod(cookie, PodStep::Sockets))?;
        let (shared, netns) = (Arc::clone(&self.shared), netns.clone());
        tokio::task::spawn_blocking(move || pod::enroll(shared, netns, &named, &sockets, options))
            .await
            .map_err(CaptureError::pod(cookie, PodStep::Task))?
    }

    /// Cookies of the pods that have pins, of this process or an earlier one.
    ///
    /// # Errors
    /// When the pins cannot be listed.
    pub fn pinned_pods(&self) -> Result<Vec<u64>, CaptureError> {
        self.shared
            .layout
            .pinned_pods()
            .map_err(CaptureError::node(NodeStep::Directories))
    }

    /// Takes capture off a pod that an earlier process captured and that this one does not want. No-op when it is not
    /// captured.
    ///
    /// # Errors
    /// [`CaptureError::Pod`] with the step that failed.
    pub async fn release(&self, netns: &NetNs) -> Result<(), CaptureError> {
        removal::release(Arc::clone(&self.shared), netns.clone()).await
    }

    /// Removes what is left of pods whose namespace is gone, and returns their cookies. Blocks.
    ///
    /// # Errors
    /// When pins cannot be read or removed.
    pub fn collect_garbage(&self) -> Result<Vec<u64>, CaptureError> {
        let _lock = self
            .shared
            .layout
            .lock()
            .map_err(CaptureError::node(NodeStep::Directories))?;
        removal::collect_garbage(&self.shared.layout, &self.shared.maps)
    }

    /// Sum of a counter over all pods and processors since the hooks were first attached.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counter(&self, counter: NodeCounter) -> Result<u64, CaptureError> {
        self.counters().get(counter)
    }

    /// To read counters while somebody else has the capture.
    pub fn counters(&self) -> NodeCounters {
        NodeCounters(Arc::clone(&self.shared))
    }
}

/// Reads the counters of a node's capture.
#[derive(Clone)]
pub struct NodeCounters(Arc<Shared>);

impl NodeCounters {
    /// Sum of a counter over all pods and processors since the hooks were first attached.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn get(&self, counter: NodeCounter) -> Result<u64, CaptureError> {
        sum(&self.0.maps.lock().counters, counter as u32)
            .map_err(CaptureError::node(NodeStep::LoadObject))
    }
}

/// Handles of the node's maps.
pub(crate) struct NodeMaps {
    node: Array<MapData, Node>,
    enrolled: HashMap<MapData, u64, Enrolment>,
    locals: HashMap<MapData, LocalKey, u32>,
    proxies: SockHash<MapData, u64>,
    counters: PerCpuArray<MapData, u64>,
}

impl NodeMaps {
    fn take(object: &mut Ebpf) -> Result<Self, Cause> {
        Ok(Self {
            node: take_map(object, maps::NODE)?.try_into()?,
            enrolled: take_map(object, maps::ENROLLED)?.try_into()?,
            locals: take_map(object, maps::LOCALS)?.try_into()?,
            proxies: take_map(object, maps::PROXIES)?.try_into()?,
            counters: take_map(object, maps::NODE_COUNTERS)?.try_into()?,
        })
    }

    /// Opens the pinned maps without the object, for removal; `None` when an earlier removal got past them.
    pub(crate) fn open(node: &Path) -> Option<Self> {
        let open = |name| MapData::from_pin(node.join(name)).ok();
        Some(Self {
            node: aya::maps::Map::Array(open(maps::NODE)?).try_into().ok()?,
            enrolled: aya::maps::Map::HashMap(open(maps::ENROLLED)?)
                .try_into()
                .ok()?,
            locals: aya::maps::Map::HashMap(open(maps::LOCALS)?)
                .try_into()
                .ok()?,
            proxies: aya::maps::Map::SockHash(open(maps::PROXIES)?)
                .try_into()
                .ok()?,
            counters: aya::maps::Map::PerCpuArray(open(maps::NODE_COUNTERS)?)
                .try_into()
                .ok()?,
        })
    }

    fn write_node(&mut self, path: &Path, host_cookie: u64) -> Result<(), CaptureError> {
        let failed = || CaptureError::node(NodeStep::WriteMap);
        let found = self.node.get(&0, 0).map_err(failed())?.abi_version;
        // Zero: the maps are new.
        if found != 0 && found != ABI_VERSION {
            return Err(CaptureError::AbiMismatch {
                path: path.to_owned(),
                found,
                ours: ABI_VERSION,
            });
        }
        let node = Node {
            abi_version: ABI_VERSION,
            reserved: 0,
            host_cookie,
        };
        self.node.set(0, node, 0).map_err(failed())
    }

    /// Makes `addresses` the addresses of the namespace.
    pub(crate) fn set_locals(&mut self, cookie: u64, addresses: &[IpAddr]) -> Result<(), MapError> {
        let wanted: Vec<Address> = addresses.iter().map(|ip| (*ip).into()).collect();
        for address in &wanted {
            self.add_local(cookie, *address)?;
        }
        self.keep_locals(|key| key.cookie != cookie || wanted.contains(&key.address))
    }

    /// One address more of the namespace.
    pub(crate) fn add_local(&mut self, cookie: u64, address: Address) -> Result<(), MapError> {
        self.locals.insert(LocalKey { cookie, address }, 1, 0)
    }

    /// Where new outbound connections of the namespace find a proxy.
    pub(crate) fn set_proxy(
        &mut self,
        cookie: u64,
        listener: BorrowedFd<'_>,
    ) -> Result<(), MapError> {
        self.proxies.insert(cookie, listener, 0)
    }

    pub(crate) fn set_enrolment(
        &mut self,
        cookie: u64,
        enrolment: Enrolment,
    ) -> Result<(), MapError> {
        self.enrolled.insert(cookie, enrolment, 0)
    }

    pub(crate) fn enrolment(&self, cookie: u64) -> Result<Option<Enrolment>, MapError> {
        match self.enrolled.get(&cookie, 0) {
            Ok(enrolment) => Ok(Some(enrolment)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// New connections of the namespace go direct from here on.
    pub(crate) fn remove_enrolment(&mut self, cookie: u64) -> Result<(), MapError> {
        ignore_missing(self.enrolled.remove(&cookie))
    }

    /// Everything else about a namespace.
    pub(crate) fn forget(&mut self, cookie: u64) -> Result<(), MapError> {
        self.remove_enrolment(cookie)?;
        ignore_missing(self.proxies.remove(&cookie))?;
        self.keep_locals(|key| key.cookie != cookie)
    }

    fn keep_locals(&mut self, keep: impl Fn(&LocalKey) -> bool) -> Result<(), MapError> {
        let keys: Vec<LocalKey> = self.locals.keys().collect::<Result<_, _>>()?;
        for key in keys.iter().filter(|key| !keep(key)) {
            ignore_missing(self.locals.remove(key))?;
        }
        Ok(())
    }
}

pub(crate) fn ignore_missing(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// A counter that a pod's pins lack, as an earlier version made them, has counted nothing.
pub(crate) fn sum_or_none(
    counters: &PerCpuArray<MapData, u64>,
    index: u32,
) -> Result<u64, MapError> {
    match sum(counters, index) {
        Err(MapError::KeyNotFound) => Ok(0),
        other => other,
    }
}

pub(crate) fn take_map(object: &mut Ebpf, name: &str) -> Result<aya::maps::Map, Cause> {
    object
        .take_map(name)
        .ok_or_else(|| format!("the bpf object has no map {name}").into())
}

pub(crate) fn sum(counters: &PerCpuArray<MapData, u64>, index: u32) -> Result<u64, MapError> {
    Ok(counters.get(&index, 0)?.iter().sum())
}

fn host_cookie(probes: HostProbes) -> std::io::Result<u64> {
    match probes {
        HostProbes::OfThisProcess => Ok(NetNs::current()?.cookie()),
        HostProbes::OfNamespace(cookie) => Ok(cookie),
        HostProbes::Off => Ok(0),
    }
}

fn attach_hooks(object: &mut Ebpf, layout: &Layout, cgroup: &File) -> Result<(), CaptureError> {
    for name in DNS_HOOKS {
        let hook =
            load_hook(object, name).map_err(CaptureError::node(NodeStep::LoadProgram(name)))?;
        attach_hook(hook, layout, name, cgroup)?;
    }
    for (name, fallback) in CONNECT_HOOKS {
        let chosen = match load_hook(object, name) {
            Ok(_) => name,
            Err(e) => {
                warn!(error = %e, "kernel before 5.18: without a proxy, connect fails with EPERM");
                fallback
            }
        };
        let hook = load_hook(object, chosen)
            .map_err(CaptureError::node(NodeStep::LoadProgram(fallback)))?;
        attach_hook(hook, layout, name, cgroup)?;
    }
    Ok(())
}

fn load_hook<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSockAddr, Cause> {
    let hook: &mut CgroupSockAddr = program(object, name)?.try_into()?;
    match hook.load() {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(hook),
        Err(e) => Err(e.into()),
    }
}

fn attach_hook(
    hook: &mut CgroupSockAddr,
    layout: &Layout,
    name: &'static str,
    cgroup: &File,
) -> Result<(), CaptureError> {
    let mut attach = || -> Result<(), Cause> {
        let running = hook.fd()?.try_clone()?;
        ebpf::attach_or_replace(&layout.node_link(name), running.as_fd(), || {
            // `Single` is how aya asks for a link without flags; links share a cgroup anyway.
            let id = hook.attach(cgroup, CgroupAttachMode::Single)?;
            FdLink::try_from(hook.take_link(id)?).map_err(into_program_error)
        })?;
        Ok(())
    };
    attach().map_err(CaptureError::node(NodeStep::AttachProgram(name)))
}

/// A convenience: without it the node's probes go through the proxy, which may refuse them, and applications pace what
/// they answer.
fn attach_probes(object: &mut Ebpf, layout: &Layout, cgroup: &File) {
    let mut attach = || -> Result<(), Cause> {
        let hook: &mut SockOps = program(object, programs::PROBES)?.try_into()?;
        hook.load()?;
        let running = hook.fd()?.try_clone()?;
        ebpf::attach_or_replace(&layout.node_link(programs::PROBES), running.as_fd(), || {
            let id = hook.attach(cgroup, CgroupAttachMode::Single)?;
            FdLink::try_from(hook.take_link(id)?).map_err(into_program_error)
        })?;
        Ok(())
    };
    if let Err(e) = attach() {
        warn!(error = %e, "probes of the node are not recognised and will go through the proxy");
    }
}

pub(crate) fn into_program_error(error: aya::programs::links::LinkError) -> ProgramError {
    ProgramError::IOError(std::io::Error::other(error))
}

/// Finds out which variant the kernel takes, once; each pod loads its own instance.
fn choose_steer(object: &mut Ebpf, wanted: SteerProgram) -> Result<&'static str, CaptureError> {
    let candidates: &[&'static str] = match wanted {
        SteerProgram::ByKernel => &[programs::STEER, programs::STEER_BEFORE_5_17],
        SteerProgram::Before5_17 => &[programs::STEER_BEFORE_5_17],
    };
    let mut last: Option<CaptureError> = None;
    for &name in candidates {
        match load_steer(object, name) {
            Ok(_) => return Ok(name),
            Err(e) => last = Some(CaptureError::node(NodeStep::LoadProgram(name))(e)),
        }
    }
    Err(last.unwrap_or_else(|| {
        CaptureError::node(NodeStep::LoadProgram(programs::STEER))("no variant to load")
    }))
}

pub(crate) fn load_steer<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut SkLookup, Cause> {
    let steer: &mut SkLookup = program(object, name)?.try_into()?;
    steer.load()?;
    Ok(steer)
}

pub(crate) fn program<'a>(
    object: &'a mut Ebpf,
    name: &str,
) -> Result<&'a mut aya::programs::Program, Cause> {
    object
        .program_mut(name)
        .ok_or_else(|| format!("the bpf object has no program {name}").into())
}
