//! Connections that processes in the node's own namespace open, such as kubelet's probes. They are noted before their
//! SYN leaves and forgotten when they close, so that a pod's `steer` can let exactly these pass, and not what is merely
//! forwarded or translated to the node's address. A cgroup has one program of this kind, so that it spares accepted
//! connections their pace as well.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_ops,
    helpers::{bpf_get_netns_cookie, bpf_sock_ops_cb_flags_set},
    macros::sock_ops,
    programs::SockOpsContext,
};
use leyline_ebpf_abi::{Address, FlowKey, NodeCounter};

use crate::{
    counters::count_node,
    maps::{NODE, PROBES},
    pace::unpace_accepted,
};

/// The source port is chosen, the SYN not yet sent.
const TCP_CONNECT_CB: u32 = 3;
/// A connection was accepted, and its congestion control not yet begun.
const PASSIVE_ESTABLISHED_CB: u32 = 5;
const STATE_CB: u32 = 10;
const STATE_CB_FLAG: i32 = 1 << 2;
const TCP_CLOSE: u32 = 7;
const AF_INET: u32 = 2;

#[sock_ops]
pub(crate) fn probes(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        TCP_CONNECT_CB => note(&ctx),
        PASSIVE_ESTABLISHED_CB => unpace_accepted(&ctx),
        STATE_CB => forget(&ctx),
        _ => {}
    }
    0
}

#[inline(always)]
fn note(ctx: &SockOpsContext) {
    // SAFETY: the context is the one the kernel passed in.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    match NODE.get(0) {
        Some(node) if node.host_cookie == cookie => {}
        _ => return,
    }
    if PROBES.insert(&key(ctx), &1, 0).is_err() {
        return;
    }
    count_node(NodeCounter::ProbesNoted);
    // SAFETY: only asks for the callback below.
    unsafe { bpf_sock_ops_cb_flags_set(ctx.ops, STATE_CB_FLAG | ctx.cb_flags() as i32) };
}

#[inline(always)]
fn forget(ctx: &SockOpsContext) {
    if ctx.arg(1) == TCP_CLOSE {
        let _ = PROBES.remove(&key(ctx));
    }
}

#[inline(always)]
fn key(ctx: &SockOpsContext) -> FlowKey {
    let (client, server) = if ctx.family() == AF_INET {
        (
            Address::from_v4_word(ctx.local_ip4()),
            Address::from_v4_word(ctx.remote_ip4()),
        )
    } else {
        (local_v6(ctx.ops), remote_v6(ctx.ops))
    };
    FlowKey {
        client,
        server,
        client_port: ctx.local_port() as u16,
        server_port: u32::from_be(ctx.remote_port()) as u16,
    }
}

#[inline(always)]
fn local_v6(ops: *mut bpf_sock_ops) -> Address {
    // SAFETY: the verifier checks the accesses, which must be of four bytes each.
    unsafe {
        let words = (&raw const (*ops).local_ip6).cast::<u32>();
        Address::from_words([
            words.read_volatile(),
            words.add(1).read_volatile(),
            words.add(2).read_volatile(),
            words.add(3).read_volatile(),
        ])
    }
}

#[inline(always)]
fn remote_v6(ops: *mut bpf_sock_ops) -> Address {
    // SAFETY: as in `local_v6`.
    unsafe {
        let words = (&raw const (*ops).remote_ip6).cast::<u32>();
        Address::from_words([
            words.read_volatile(),
            words.add(1).read_volatile(),
            words.add(2).read_volatile(),
            words.add(3).read_volatile(),
        ])
    }
}
