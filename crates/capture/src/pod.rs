//! Capture of one pod: the steps of enrolment in the order that keeps it safe, and the handle to undo it.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray, SockMap},
    programs::links::FdLink,
};
use leyline_ebpf_abi::{
    Address, Enrolment, FlowKey, Pod, PodCounter, enrolment_flag, maps, pod_flag, slot,
};
use leyline_net::NetNs;
use leyline_types::InterfaceName;
use parking_lot::Mutex;
use tracing::{debug, warn};

use crate::{
    addresses::{self, PodAddresses},
    config::{Inbound, PodOptions, PodSockets, WhenDown},
    ebpf::{self, Guests},
    error::{CaptureError, Cause, PodStep},
    guests::{Interfaces, Unreached},
    layout::STEER_LINK,
    netlink::{self, Plan},
    node::{Shared, ignore_missing, load_steer, sum_or_none, take_map},
    removal, sysctl,
};

/// A captured pod. Dropping it changes nothing in the kernel: the pod stays captured and is refused once the sockets
/// close. It keeps the namespace alive, so it must be dropped (or removed) when the pod is gone.
pub struct PodCapture {
    shared: Arc<Shared>,
    netns: NetNs,
    /// Held for single writes; connections to the application take it to announce themselves.
    maps: Mutex<PodMaps>,
    /// Held while interfaces are attached to.
    interfaces: Arc<Mutex<Interfaces>>,
}

impl PodCapture {
    /// The kernel's number for the pod's namespace.
    pub fn cookie(&self) -> u64 {
        self.netns.cookie()
    }

    /// First step of un-enrolment: new connections of and to the pod go direct from here on, at once; captured ones keep
    /// working. Drain them, then [`remove`](Self::remove).
    ///
    /// # Errors
    /// [`CaptureError::Pod`] with the step that failed.
    pub fn stop_new(&self) -> Result<(), CaptureError> {
        let cookie = self.cookie();
        let mut node = self.shared.maps.lock();
        let mut stop = || -> Result<(), MapError> {
            let Some(mut enrolment) = node.enrolment(cookie)? else {
                return Ok(());
            };
            // Open sockets of resolvers still talk to the proxy's port and must see answers from the server's.
            enrolment.flags &= enrolment_flag::DNS_ANSWERS;
            if enrolment.flags == 0 {
                node.remove_enrolment(cookie)
            } else {
                node.set_enrolment(cookie, enrolment)
            }
        };
        stop().map_err(CaptureError::pod(cookie, PodStep::WriteEnrolment))?;
        self.maps
            .lock()
            .change_flags(|flags| flags & !(pod_flag::INBOUND | pod_flag::GUESTS))
            .map_err(CaptureError::pod(cookie, PodStep::WriteFlags))
    }

    /// Last step of un-enrolment: takes everything off the pod. Captured connections that still exist end. Keep the
    /// sockets open until it is done.
    ///
    /// Not cancel safe: a dropped future leaves the removal to finish by itself.
    ///
    /// # Errors
    /// [`CaptureError::Pod`] with the step that failed. What could not be removed stays in a state that refuses.
    pub async fn remove(&self) -> Result<(), CaptureError> {
        removal::release(Arc::clone(&self.shared), self.netns.clone()).await
    }

    /// Attaches to the interfaces of guests that are there and not attached to yet. Call it once a pod is enrolled, and
    /// whenever its interfaces change. Gives back those that are not captured now.
    ///
    /// Not cancel safe: a dropped future leaves the work to finish by itself.
    ///
    /// # Errors
    /// [`CaptureError::Pod`] when the pod's pins or maps are of no use.
    pub async fn reroute(&self) -> Result<Vec<Unreached>, CaptureError> {
        let (shared, netns) = (Arc::clone(&self.shared), self.netns.clone());
        let interfaces = Arc::clone(&self.interfaces);
        tokio::task::spawn_blocking(move || interfaces.lock().reroute(&shared, &netns))
            .await
            .map_err(CaptureError::pod(self.cookie(), PodStep::Task))?
    }

    /// Whether this kernel needs [`announce`](Self::announce).
    pub fn needs_announcements(&self) -> bool {
        self.shared.steer == leyline_ebpf_abi::programs::STEER_BEFORE_5_17
    }

    /// Announces a connection that the proxy is about to make to the pod's application in the guise of `client`. Needed
    /// on kernels before 5.17 only, where the socket lookup cannot tell it from one of the network; keep the value until
    /// connect has returned. Costs nothing elsewhere.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn announce(
        self: &Arc<Self>,
        client: SocketAddr,
        application: SocketAddr,
    ) -> Result<LocalConnect, CaptureError> {
        let mut announced = LocalConnect {
            pod: Arc::clone(self),
            key: None,
        };
        if self.needs_announcements() {
            let key = FlowKey {
                client: client.ip().into(),
                server: application.ip().into(),
                client_port: client.port(),
                server_port: application.port(),
            };
            self.maps
                .lock()
                .local_connects
                .insert(key, 1, 0)
                .map_err(CaptureError::pod(self.cookie(), PodStep::WriteFlags))?;
            announced.key = Some(key);
        }
        Ok(announced)
    }

    /// Sum of a counter over all processors since the pod was enrolled.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counter(&self, counter: PodCounter) -> Result<u64, CaptureError> {
        sum_or_none(&self.maps.lock().counters, counter as u32)
            .map_err(CaptureError::pod(self.cookie(), PodStep::ReadCounters))
    }
}

/// An announced connection of the proxy to the application; withdrawn when dropped.
pub struct LocalConnect {
    pod: Arc<PodCapture>,
    key: Option<FlowKey>,
}

impl Drop for LocalConnect {
    fn drop(&mut self) {
        if let Some(key) = self.key
            && let Err(e) = ignore_missing(self.pod.maps.lock().local_connects.remove(&key))
        {
            // The map forgets the oldest entries by itself.
            debug!(error = %e, "an announced local connection could not be withdrawn");
        }
    }
}

/// Duplicates of the caller's sockets, for the blocking task that hands them to the kernel.
pub(crate) struct Sockets {
    slots: Vec<(u32, OwnedFd)>,
    outbound: OwnedFd,
    dns: bool,
    guests: Option<OwnedFd>,
}

impl Sockets {
    pub(crate) fn duplicate(sockets: PodSockets<'_>) -> io::Result<Self> {
        let mut slots = vec![
            (slot::OUTBOUND, sockets.outbound.try_clone_to_owned()?),
            (slot::INBOUND, sockets.inbound.try_clone_to_owned()?),
            (slot::HBONE, sockets.hbone.try_clone_to_owned()?),
        ];
        let dns = sockets.dns_udp.zip(sockets.dns_tcp);
        if let Some((udp, tcp)) = dns {
            slots.push((slot::DNS_UDP, udp.try_clone_to_owned()?));
            slots.push((slot::DNS_TCP, tcp.try_clone_to_owned()?));
        }
        Ok(Self {
            slots,
            outbound: sockets.outbound.try_clone_to_owned()?,
            dns: dns.is_some(),
            guests: sockets
                .guests
                .map(|fd| fd.try_clone_to_owned())
                .transpose()?,
        })
    }
}

/// Handles of one pod's maps.
struct PodMaps {
    pod: Array<MapData, Pod>,
    addresses: HashMap<MapData, Address, u32>,
    sockets: SockMap<MapData>,
    local_connects: HashMap<MapData, FlowKey, u32>,
    counters: PerCpuArray<MapData, u64>,
    guest_listener: SockMap<MapData>,
}

impl PodMaps {
    fn take(object: &mut Ebpf) -> Result<Self, Cause> {
        Ok(Self {
            pod: take_map(object, maps::POD)?.try_into()?,
            addresses: take_map(object, maps::ADDRESSES)?.try_into()?,
            sockets: take_map(object, maps::SOCKETS)?.try_into()?,
            local_connects: take_map(object, maps::LOCAL_CONNECTS)?.try_into()?,
            counters: take_map(object, maps::POD_COUNTERS)?.try_into()?,
            guest_listener: take_map(object, maps::GUEST_LISTENER)?.try_into()?,
        })
    }

    fn set_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), MapError> {
        let wanted: Vec<Address> = addresses.iter().map(|ip| (*ip).into()).collect();
        let present: Vec<Address> = self.addresses.keys().collect::<Result<_, _>>()?;
        // Old ones go first, so that a full map takes the new.
        for stale in present.iter().filter(|a| !wanted.contains(a)) {
            ignore_missing(self.addresses.remove(stale))?;
        }
        for address in wanted {
            self.addresses.insert(address, 1, 0)?;
        }
        Ok(())
    }

    /// Each slot is replaced in one step; the old socket keeps what it has accepted or queued.
    fn set_sockets(&mut self, sockets: &Sockets) -> Result<(), MapError> {
        for (index, socket) in &sockets.slots {
            self.sockets.set(*index, &socket.as_raw_fd(), 0)?;
        }
        if let Some(listener) = &sockets.guests {
            self.guest_listener.set(0, &listener.as_raw_fd(), 0)?;
        }
        Ok(())
    }

    fn change_flags(&mut self, change: impl FnOnce(u32) -> u32) -> Result<(), MapError> {
        let mut pod = self.pod.get(&0, 0)?;
        pod.flags = change(pod.flags);
        self.pod.set(0, pod, 0)
    }
}

/// The steps of enrolment. Blocks.
pub(crate) fn enroll(
    shared: Arc<Shared>,
    netns: NetNs,
    named: &[IpAddr],
    sockets: &Sockets,
    options: PodOptions,
) -> Result<PodCapture, CaptureError> {
    let cookie = netns.cookie();
    let path = shared.layout.pod(cookie);
    let _lock = shared
        .layout
        .lock()
        .map_err(CaptureError::pod(cookie, PodStep::Pins))?;
    let found = inside(&netns, PodStep::ReadAddresses, netlink::addresses)?;
    let addresses = addresses::collect(cookie, named, &found)?;

    let is_new = !path.join(STEER_LINK).exists();
    fs::create_dir_all(&path).map_err(CaptureError::pod(cookie, PodStep::Pins))?;
    match put_on(&shared, &netns, &path, &addresses, sockets, &options) {
        Ok((maps, interfaces)) => {
            debug!(cookie, is_new, addresses = ?addresses.all, "pod captured");
            Ok(PodCapture {
                shared,
                netns,
                maps: Mutex::new(maps),
                interfaces: Arc::new(Mutex::new(interfaces)),
            })
        }
        Err(e) => {
            if is_new && let Err(undo) = removal::remove_pod(&shared.layout, &shared.maps, &netns) {
                warn!(cookie, error = %undo, "what a failed enrolment left could not be removed");
            }
            Err(e)
        }
    }
}

/// Everything that enrolment changes. The order matters: the socket lookup is there before the rules that need it, the
/// rules before the mark that they match.
fn put_on(
    shared: &Shared,
    netns: &NetNs,
    path: &Path,
    addresses: &PodAddresses,
    sockets: &Sockets,
    options: &PodOptions,
) -> Result<(PodMaps, Interfaces), CaptureError> {
    let cookie = netns.cookie();
    let guests = match &sockets.guests {
        Some(_) => options.guests.clone(),
        None => Vec::new(),
    };
    let has_guests = if guests.is_empty() {
        Guests::None
    } else {
        Guests::Some
    };
    let mut object = shared
        .loader
        .load_pod(path, has_guests)
        .map_err(CaptureError::pod(cookie, PodStep::LoadObject))?;
    let mut maps =
        PodMaps::take(&mut object).map_err(CaptureError::pod(cookie, PodStep::LoadObject))?;
    maps.set_addresses(&addresses.all)
        .map_err(CaptureError::pod(cookie, PodStep::WriteAddresses))?;
    maps.set_sockets(sockets)
        .map_err(CaptureError::pod(cookie, PodStep::WriteSockets))?;
    let (plan, routed) = plan(shared, netns, addresses, sockets, guests.clone())?;
    let mut interfaces = Interfaces::take(&mut object, guests)
        .map_err(CaptureError::pod(cookie, PodStep::LoadObject))?;
    interfaces
        .forget_unnamed(netns)
        .map_err(CaptureError::pod(cookie, PodStep::Guests))?;
    let flags = pod_flags(sockets, options, &plan, routed);
    let sysctls = save_state(shared, netns, &mut maps, flags)?;
    attach_steer(&mut object, shared.steer, path, netns)?;

    inside(netns, PodStep::Sysctls, || sysctl::apply(&sysctls))?;
    inside(netns, PodStep::Routes, || netlink::apply(&plan))?;

    tell_node(shared, cookie, addresses, sockets, routed)?;
    Ok((maps, interfaces))
}

/// What the hooks that run for every process are told of the pod; from here on they act.
fn tell_node(
    shared: &Shared,
    cookie: u64,
    addresses: &PodAddresses,
    sockets: &Sockets,
    routed: u32,
) -> Result<(), CaptureError> {
    let mut node = shared.maps.lock();
    node.set_locals(cookie, &addresses.all)
        .map_err(CaptureError::pod(cookie, PodStep::WriteAddresses))?;
    node.set_proxy(cookie, sockets.outbound.as_fd())
        .map_err(CaptureError::pod(cookie, PodStep::WriteSockets))?;
    let dns = if sockets.dns {
        enrolment_flag::DNS | enrolment_flag::DNS_ANSWERS
    } else {
        // Of a pod whose DNS was captured before, queries may be under way.
        let former = node.enrolment(cookie);
        let former = former.map_err(CaptureError::pod(cookie, PodStep::WriteEnrolment))?;
        former.map_or(0, |former| former.flags & enrolment_flag::DNS_ANSWERS)
    };
    node.set_enrolment(
        cookie,
        Enrolment {
            flags: enrolment_flag::TCP | dns | routed,
            capture_mark: shared.config.capture_mark,
            bypass_mark: shared.config.bypass_mark,
            reserved: 0,
        },
    )
    .map_err(CaptureError::pod(cookie, PodStep::WriteEnrolment))
}

/// What the pod's programs are told of it.
fn pod_flags(sockets: &Sockets, options: &PodOptions, plan: &Plan, routed: u32) -> u32 {
    let of_guests = [
        (enrolment_flag::ROUTED_V4, pod_flag::GUESTS_ROUTED_V4),
        (enrolment_flag::ROUTED_V6, pod_flag::GUESTS_ROUTED_V6),
    ];
    let mut flags = match options.inbound {
        Inbound::Captured => pod_flag::INBOUND,
        Inbound::Direct => 0,
    };
    if sockets.dns {
        flags |= pod_flag::DNS;
    }
    if options.when_down == WhenDown::InboundDirect {
        flags |= pod_flag::INBOUND_FAIL_OPEN;
    }
    if !plan.guests.is_empty() {
        flags |= pod_flag::GUESTS;
    }
    for (has, tells) in of_guests {
        if routed & has != 0 {
            flags |= tells;
        }
    }
    flags
}

/// Writes the pod's flags, and the sysctls' values to go back to, before they change.
fn save_state(
    shared: &Shared,
    netns: &NetNs,
    maps: &mut PodMaps,
    flags: u32,
) -> Result<[leyline_ebpf_abi::SavedSysctl; 3], CaptureError> {
    let failed = || CaptureError::pod(netns.cookie(), PodStep::WriteFlags);
    let former = maps.pod.get(&0, 0).map_err(failed())?;
    let sysctls = inside(netns, PodStep::Sysctls, || sysctl::save(former.sysctls))?;
    let pod = Pod {
        flags,
        capture_mark: shared.config.capture_mark,
        sysctls,
    };
    maps.pod.set(0, pod, 0).map_err(failed())?;
    Ok(sysctls)
}

fn attach_steer(
    object: &mut Ebpf,
    name: &str,
    path: &Path,
    netns: &NetNs,
) -> Result<(), CaptureError> {
    let cookie = netns.cookie();
    let steer = load_steer(object, name).map_err(CaptureError::pod(cookie, PodStep::LoadSteer))?;
    let mut attach = || -> Result<(), Cause> {
        let running = steer.fd()?.try_clone()?;
        ebpf::attach_or_replace(&path.join(STEER_LINK), running.as_fd(), || {
            let id = steer.attach(netns)?;
            Ok(FdLink::from(steer.take_link(id)?))
        })?;
        Ok(())
    };
    attach().map_err(CaptureError::pod(cookie, PodStep::AttachSteer))
}

/// Which routes and rules the pod needs, and the flags that tell the hooks which families have them.
fn plan(
    shared: &Shared,
    netns: &NetNs,
    addresses: &PodAddresses,
    sockets: &Sockets,
    guests: Vec<InterfaceName>,
) -> Result<(Plan, u32), CaptureError> {
    let mut routed = 0;
    let mut families = Vec::new();
    if let Some(v4) = &addresses.v4 {
        routed |= enrolment_flag::ROUTED_V4;
        families.push(v4.clone());
    }
    if let Some(v6) = &addresses.v6 {
        if inside(netns, PodStep::Sysctls, sysctl::has_ipv6)? {
            routed |= enrolment_flag::ROUTED_V6;
            families.push(v6.clone());
        } else {
            warn!(
                cookie = netns.cookie(),
                "IPv6 is off on the pod's loopback; its IPv6 connections are refused"
            );
        }
    }
    let plan = Plan {
        capture_mark: shared.config.capture_mark,
        dns: sockets.dns,
        families,
        guests,
    };
    Ok((plan, routed))
}

/// Runs a step inside the pod's namespace.
pub(crate) fn inside<T>(
    netns: &NetNs,
    step: PodStep,
    work: impl FnOnce() -> io::Result<T>,
) -> Result<T, CaptureError> {
    netns
        .run(work)
        .map_err(CaptureError::pod(netns.cookie(), PodStep::EnterNamespace))?
        .map_err(CaptureError::pod(netns.cookie(), step))
}
