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
    inner: Mutex<EbpfLoader<'static>>,
}

impl Loader {
    /// A loader that pins, or opens, the node's maps in `node`.
    pub(crate) fn new(node: &Path) -> Self {
        let mut inner = EbpfLoader::new();
        inner.btf(None);
        for name in maps::OF_NODE {
            inner.map_pin_path(name, node.join(name));
        }
        Self {
            inner: Mutex::new(inner),
        }
    }

    /// Loads the object for the node. Maps of pods in it are private and go with the returned value.
    pub(crate) fn load_node(&self) -> Result<Ebpf, EbpfError> {
        self.inner.lock().load(OBJECT)
    }

    /// Loads the object for a pod, whose maps are pinned or opened in `pod`.
    pub(crate) fn load_pod(&self, pod: &Path) -> Result<Ebpf, EbpfError> {
        let mut loader = self.inner.lock();
        for name in maps::OF_POD {
            loader.map_pin_path(name, pod.join(name));
        }
        loader.load(OBJECT)
    }
}
