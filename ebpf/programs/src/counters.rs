//! Counting decisions.

use aya_ebpf::maps::PerCpuArray;
use leyline_ebpf_abi::{NodeCounter, PodCounter};

use crate::maps::{NODE_COUNTERS, POD_COUNTERS};

#[inline(always)]
pub(crate) fn count_node(counter: NodeCounter) {
    add_one(&NODE_COUNTERS, counter as u32);
}

#[inline(always)]
pub(crate) fn count_pod(counter: PodCounter) {
    add_one(&POD_COUNTERS, counter as u32);
}

#[inline(always)]
fn add_one(counters: &PerCpuArray<u64>, index: u32) {
    if let Some(value) = counters.get_ptr_mut(index) {
        // SAFETY: the slot belongs to this CPU, and programs are not preempted on it by another of ours.
        unsafe { *value += 1 }
    }
}
