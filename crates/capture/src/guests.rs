//! Interfaces of a pod behind which there are guests: finds them by name, and attaches the classifier `reroute` to each.
//! They come and go while the pod runs; one that is missing is that interface's trouble and not the pod's.

use std::{collections::HashSet, fs, io, os::fd::AsFd, path::Path};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, links::FdLink, tc::TcAttachOptions,
    },
};
use leyline_ebpf_abi::{Address, maps, programs};
use leyline_net::NetNs;
use leyline_types::InterfaceName;
use nix::{errno::Errno, net::if_::if_nametoindex};
use tracing::debug;

use crate::{
    ebpf::{self, Guests, PinnedLink},
    error::{CaptureError, Cause, PodStep},
    layout::{REROUTE_LINK, STEER_LINK},
    netlink,
    node::{Shared, ignore_missing, into_program_error, program, take_map},
    pod::inside,
};

/// An interface of guests that is not captured: what comes in by it goes its way without the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreached {
    /// As the pod names it.
    pub interface: InterfaceName,
    /// Why.
    pub why: WhyUnreached,
}

/// Why an interface is not captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhyUnreached {
    /// The pod has none of this name.
    Missing,
    /// The kernel refuses, for the reason in words.
    Failed(String),
}

/// The interfaces that one pod names.
pub(crate) struct Interfaces {
    names: Vec<InterfaceName>,
    /// Indexes of those whose new connections are for the proxy.
    captured: HashMap<MapData, u32, u32>,
    /// Indexes of those that run the program of this build.
    attached: HashSet<u32>,
}

impl Interfaces {
    pub(crate) fn take(object: &mut Ebpf, names: Vec<InterfaceName>) -> Result<Self, Cause> {
        Ok(Self {
            names,
            captured: take_map(object, maps::GUEST_INTERFACES)?.try_into()?,
            attached: HashSet::new(),
        })
    }

    /// New connections by interfaces that are not named any more go direct. What is attached stays, for those that are
    /// open.
    pub(crate) fn forget_unnamed(&mut self, netns: &NetNs) -> Result<(), Cause> {
        let indexes = netns.run(|| find(&self.names))??;
        self.keep(&indexes)?;
        Ok(())
    }

    /// See [`PodCapture::reroute`](crate::PodCapture::reroute).
    pub(crate) fn reroute(
        &mut self,
        shared: &Shared,
        netns: &NetNs,
    ) -> Result<Vec<Unreached>, CaptureError> {
        let cookie = netns.cookie();
        let _lock = shared
            .layout
            .lock()
            .map_err(CaptureError::pod(cookie, PodStep::Pins))?;
        let path = shared.layout.pod(cookie);
        if self.names.is_empty() || !path.join(STEER_LINK).exists() {
            // There is nothing to do, or the pod was released meanwhile.
            return Ok(Vec::new());
        }
        add_addresses(shared, netns, &path)?;
        self.remove_dead(&path)
            .map_err(CaptureError::pod(cookie, PodStep::Guests))?;
        let indexes = inside(netns, PodStep::Guests, || find(&self.names))?;
        self.keep(&indexes)
            .map_err(CaptureError::pod(cookie, PodStep::Guests))?;
        let mut object = None;
        let mut unreached = Vec::new();
        for (name, index) in self.names.clone().into_iter().zip(indexes) {
            let why = match index {
                None => WhyUnreached::Missing,
                Some(index) if self.attached.contains(&index) => continue,
                Some(index) => match self.attach(shared, netns, &path, &mut object, &name, index) {
                    Ok(()) => {
                        debug!(cookie, interface = %name, index, "guests are captured");
                        self.attached.insert(index);
                        continue;
                    }
                    Err(error) => WhyUnreached::Failed(chain(error.as_ref())),
                },
            };
            let interface = name;
            unreached.push(Unreached { interface, why });
        }
        Ok(unreached)
    }

    fn keep(&mut self, indexes: &[Option<u32>]) -> Result<(), MapError> {
        let present: Vec<u32> = self.captured.keys().collect::<Result<_, _>>()?;
        for stale in present.iter().filter(|i| !indexes.contains(&Some(**i))) {
            ignore_missing(self.captured.remove(stale))?;
        }
        Ok(())
    }

    /// Removes the pins of links whose interface is gone.
    fn remove_dead(&mut self, path: &Path) -> io::Result<()> {
        for entry in fs::read_dir(path)? {
            let pin = entry?;
            let name = pin.file_name();
            let index = name.to_str().and_then(|n| n.strip_prefix(REROUTE_LINK));
            let Some(index) = index.and_then(|index| index.parse().ok()) else {
                continue;
            };
            let link = PinnedLink::open(&pin.path())?;
            if link.map_or(Ok(None), |link| link.target())?.is_none() {
                fs::remove_file(pin.path())?;
                self.attached.remove(&index);
            }
        }
        Ok(())
    }

    /// Loads the program with the first interface that needs it.
    fn attach(
        &mut self,
        shared: &Shared,
        netns: &NetNs,
        path: &Path,
        object: &mut Option<Ebpf>,
        name: &InterfaceName,
        index: u32,
    ) -> Result<(), Cause> {
        let object = match object {
            Some(object) => object,
            None => object.insert(shared.loader.load_pod(path, Guests::Some)?),
        };
        let classifier: &mut SchedClassifier = program(object, programs::REROUTE)?.try_into()?;
        match classifier.load() {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
            Err(e) => return Err(e.into()),
        }
        self.captured.insert(index, 1, 0)?;
        let running = classifier.fd()?.try_clone()?;
        let pin = path.join(format!("{REROUTE_LINK}{index}"));
        // The kernel looks for the interface in the namespace of the thread.
        netns.run(|| {
            ebpf::attach_or_replace(&pin, running.as_fd(), || {
                let order = TcAttachOptions::TcxOrder(LinkOrder::default());
                let ingress = TcAttachType::Ingress;
                let id = classifier.attach_with_options(name.as_str(), ingress, order)?;
                FdLink::try_from(classifier.take_link(id)?).map_err(into_program_error)
            })
        })??;
        Ok(())
    }
}

/// An interface that has come has mostly brought an address of the pod, which its guests call as that of the pod.
fn add_addresses(shared: &Shared, netns: &NetNs, path: &Path) -> Result<(), CaptureError> {
    let cookie = netns.cookie();
    let found = inside(netns, PodStep::ReadAddresses, netlink::addresses)?;
    let add = || -> Result<(), Cause> {
        let data = MapData::from_pin(path.join(maps::ADDRESSES))?;
        let mut own: HashMap<_, Address, u32> = aya::maps::Map::HashMap(data).try_into()?;
        let mut node = shared.maps.lock();
        for address in found.iter().map(|one| Address::from(one.ip)) {
            match own.get(&address, 0) {
                Ok(_) => {}
                Err(MapError::KeyNotFound) => {
                    node.add_local(cookie, address)?;
                    own.insert(address, 1, 0)?;
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    };
    add().map_err(CaptureError::pod(cookie, PodStep::WriteAddresses))
}

/// The index of each interface that the namespace of the thread has.
fn find(names: &[InterfaceName]) -> io::Result<Vec<Option<u32>>> {
    let index = |name: &InterfaceName| match if_nametoindex(name.as_str()) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::ENODEV | Errno::ENXIO) => Ok(None),
        Err(e) => Err(e.into()),
    };
    names.iter().map(index).collect()
}

/// An error with what is behind it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
