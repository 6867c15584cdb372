//! The maps. Names, owners, sizes and behaviour when full are described in `leyline_ebpf_abi::maps`.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, SockHash, SockMap},
};
use leyline_ebpf_abi::{
    Address, Enrolment, FlowKey, LocalKey, Node, NodeCounter, Pod, PodCounter, maps, slot,
};

#[map]
pub(crate) static NODE: Array<Node> = Array::with_max_entries(1, 0);

#[map]
pub(crate) static ENROLLED: HashMap<u64, Enrolment> =
    HashMap::with_max_entries(maps::MAX_PODS, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static LOCALS: HashMap<LocalKey, u32> =
    HashMap::with_max_entries(maps::MAX_LOCALS, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static PROXIES: SockHash<u64> = SockHash::with_max_entries(maps::MAX_PODS, 0);

#[map]
pub(crate) static PROBES: LruHashMap<FlowKey, u32> =
    LruHashMap::with_max_entries(maps::MAX_PROBES, 0);

#[map]
pub(crate) static NODE_COUNTERS: PerCpuArray<u64> =
    PerCpuArray::with_max_entries(NodeCounter::ALL.len() as u32, 0);

#[map]
pub(crate) static POD: Array<Pod> = Array::with_max_entries(1, 0);

#[map]
pub(crate) static ADDRESSES: HashMap<Address, u32> =
    HashMap::with_max_entries(maps::MAX_ADDRESSES, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static SOCKETS: SockMap = SockMap::with_max_entries(slot::COUNT, 0);

#[map]
pub(crate) static LOCAL_CONNECTS: LruHashMap<FlowKey, u32> =
    LruHashMap::with_max_entries(maps::MAX_LOCAL_CONNECTS, 0);

#[map]
pub(crate) static POD_COUNTERS: PerCpuArray<u64> =
    PerCpuArray::with_max_entries(PodCounter::ALL.len() as u32, 0);

#[map]
pub(crate) static GUEST_LISTENER: SockMap = SockMap::with_max_entries(1, 0);

#[map]
pub(crate) static GUEST_INTERFACES: HashMap<u32, u32> =
    HashMap::with_max_entries(maps::MAX_GUEST_INTERFACES, BPF_F_NO_PREALLOC);

/// The loader gives it its size where there are guests.
#[map]
pub(crate) static GUEST_FLOWS: LruHashMap<FlowKey, u32> = LruHashMap::with_max_entries(1, 0);
