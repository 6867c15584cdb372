//! The network namespace of the process that calls connect or sends: is it enrolled, which addresses are its own, does
//! its proxy listen. Shared by the hooks on connect and on datagrams.

use core::ptr::addr_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock,
    helpers::{bpf_get_netns_cookie, bpf_map_lookup_elem, bpf_set_retval, bpf_sk_release},
    programs::SockAddrContext,
};
use leyline_ebpf_abi::{Address, Enrolment, LocalKey, NodeCounter, enrolment_flag};

use crate::{
    counters::count_node,
    maps::{ENROLLED, LOCALS, PROXIES},
};

/// The address family of a hook; the verifier lets each read only its own fields.
pub(crate) const V4: bool = false;
pub(crate) const V6: bool = true;

/// How a hook tells the caller that it may not connect.
pub(crate) const WITH_ECONNREFUSED: bool = true;
pub(crate) const WITH_EPERM: bool = false;

/// Return values of the hooks.
pub(crate) const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

const ECONNREFUSED: i32 = 111;
const TCP_LISTEN: u32 = 10;

/// An enrolled namespace, seen from one call of one of its sockets.
pub(crate) struct Namespace {
    cookie: u64,
    enrolment: &'static Enrolment,
}

impl Namespace {
    /// The caller's namespace, unless it is not enrolled or the socket is the proxy's own.
    #[inline(always)]
    pub(crate) fn of(ctx: &SockAddrContext) -> Option<Self> {
        // SAFETY: the context is the one the kernel passed in.
        let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
        // SAFETY: entries are only replaced as a whole by the loader; a torn read can mix two valid sets of flags.
        let enrolment = unsafe { ENROLLED.get(&cookie) }?;
        if mark(ctx) == enrolment.bypass_mark {
            count_node(NodeCounter::Bypassed);
            return None;
        }
        Some(Self { cookie, enrolment })
    }

    #[inline(always)]
    pub(crate) fn has(&self, flag: u32) -> bool {
        self.enrolment.flags & flag != 0
    }

    #[inline(always)]
    pub(crate) fn capture_mark(&self) -> u32 {
        self.enrolment.capture_mark
    }

    /// Whether a connection to `destination` stays inside the pod or on its link.
    #[inline(always)]
    pub(crate) fn keeps(&self, destination: &Address) -> bool {
        if destination.is_loopback() || destination.is_link_local_v6() {
            return true;
        }
        let key = LocalKey {
            cookie: self.cookie,
            address: *destination,
        };
        // SAFETY: only presence is looked at.
        unsafe { LOCALS.get(&key) }.is_some()
    }

    /// Whether what is sent to `destination` would reach a proxy: the pod has routes for the family, and the outbound
    /// listener is open. The kernel drops a dead process's listener from the map, so this is exact and needs no clock.
    #[inline(always)]
    pub(crate) fn reaches_proxy(&self, destination: &Address) -> bool {
        let routed = if destination.is_v4() {
            enrolment_flag::ROUTED_V4
        } else {
            enrolment_flag::ROUTED_V6
        };
        self.has(routed) && listens(self.cookie)
    }
}

#[inline(always)]
fn listens(cookie: u64) -> bool {
    // A sockhash is a bare map definition; aya-ebpf has no plain lookup for it.
    // SAFETY: map and key are valid for the call. The result is a referenced socket or null.
    let socket =
        unsafe { bpf_map_lookup_elem(addr_of!(PROXIES) as *mut _, addr_of!(cookie).cast()) };
    if socket.is_null() {
        return false;
    }
    // A socket that was shut down stays in the map until it is closed, and takes no connections.
    // SAFETY: a full socket, not null; the verifier checks the access.
    let state = unsafe { (*socket.cast::<bpf_sock>()).state };
    // SAFETY: the reference was taken by the lookup above.
    unsafe { bpf_sk_release(socket) };
    state == TCP_LISTEN
}

/// The hook's answer when nobody would take the connection.
#[inline(always)]
pub(crate) fn refuse<const ERRNO: bool>(counter: NodeCounter) -> i32 {
    count_node(counter);
    if ERRNO {
        // SAFETY: only sets the errno that the system call returns.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
    REFUSE
}

/// The address that the caller named.
#[inline(always)]
pub(crate) fn destination<const FAMILY: bool>(ctx: &SockAddrContext) -> Address {
    let call = ctx.sock_addr;
    // SAFETY: the kernel checks each access to the context; volatile keeps the accesses at four bytes.
    unsafe {
        if FAMILY == V6 {
            let words = (&raw const (*call).user_ip6).cast::<u32>();
            Address::from_words([
                words.read_volatile(),
                words.add(1).read_volatile(),
                words.add(2).read_volatile(),
                words.add(3).read_volatile(),
            ])
        } else {
            Address::from_v4_word((&raw const (*call).user_ip4).read_volatile())
        }
    }
}

#[inline(always)]
fn mark(ctx: &SockAddrContext) -> u32 {
    // SAFETY: the verifier checks these accesses and demands the null check.
    unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        if socket.is_null() { 0 } else { (*socket).mark }
    }
}
