//! Loads the committed object, with its maps pinned where they belong.

use std::path::Path;

use aya::{Ebpf, EbpfError, EbpfLoader};
use leyline_ebpf_abi::maps;
use parking_lot::Mutex;

/// Built by `cargo xtask ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../../ebpf/leyline.bpf.o");

/// One loader for the life of the process: making one costs a parse of the kernel's type information, and the object
/// needs none of it.
pub(crate) struct Loader {
    /// Held for one load: the loader has the paths of one pod at a time.
    inner: Mutex<EbpfLoader<'static>>,
    /// For pods with guests, whose connections are remembered in a map that other pods need not have in its size.
    with_guests: Mutex<EbpfLoader<'static>>,
}

/// Whether a pod has guests whose connections are rerouted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guests {
    None,
    Some,
}

impl Loader {
    /// A loader that pins, or opens, the node's maps in `node`.
    pub(crate) fn new(node: &Path) -> Self {
        let of_node = || {
            let mut loader = EbpfLoader::new();
            loader.btf(None);
            for name in maps::OF_NODE {
                loader.map_pin_path(name, node.join(name));
            }
            loader
        };
        let mut with_guests = of_node();
        with_guests.map_max_entries(maps::GUEST_FLOWS, maps::MAX_GUEST_FLOWS);
        Self {
            inner: Mutex::new(of_node()),
            with_guests: Mutex::new(with_guests),
        }
    }

    /// Loads the object for the node. Maps of pods in it are private and go with the returned value.
    pub(crate) fn load_node(&self) -> Result<Ebpf, EbpfError> {
        self.inner.lock().load(OBJECT)
    }

    /// Loads the object for a pod, whose maps are pinned or opened in `pod`.
    pub(crate) fn load_pod(&self, pod: &Path, guests: Guests) -> Result<Ebpf, EbpfError> {
        let mut loader = match guests {
            Guests::None => self.inner.lock(),
            Guests::Some => self.with_guests.lock(),
        };
        if guests == Guests::Some {
            loader.map_pin_path(maps::GUEST_FLOWS, pod.join(maps::GUEST_FLOWS));
        }
        for name in maps::OF_POD {
            loader.map_pin_path(name, pod.join(name));
        }
        loader.load(OBJECT)
    }
}

#[cfg(test)]
mod tests {
    use aya::programs::Program;
    use leyline_ebpf_abi::programs;

    use super::*;

    /// Also those that are only chosen on older kernels.
    #[test]
    fn the_verifier_accepts_every_program() {
        let mut object = EbpfLoader::new().load(OBJECT).unwrap();
        let mut loaded = Vec::new();
        for (name, program) in object.programs_mut() {
            match program {
                Program::CgroupSockAddr(hook) => hook.load().unwrap(),
                Program::SockOps(hook) => hook.load().unwrap(),
                Program::SkLookup(steer) => steer.load().unwrap(),
                Program::SchedClassifier(classifier) => classifier.load().unwrap(),
                other => panic!("{name} is a {:?}", other.prog_type()),
            }
            loaded.push(name.to_owned());
        }
        loaded.sort();
        let mut named = [
            programs::CONNECT4,
            programs::CONNECT4_EPERM,
            programs::CONNECT6,
            programs::CONNECT6_EPERM,
            programs::GETPEERNAME4,
            programs::GETPEERNAME6,
            programs::PROBES,
            programs::RECVMSG4,
            programs::RECVMSG6,
            programs::REROUTE,
            programs::SENDMSG4,
            programs::SENDMSG6,
            programs::STEER,
            programs::STEER_BEFORE_5_17,
        ];
        named.sort_unstable();
        assert_eq!(loaded, named);
    }
}
