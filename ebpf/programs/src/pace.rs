//! Connections between an application and the proxy end on loopback, where the pacing of BBR protects nobody and costs a
//! timer for every send.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_netns_cookie, bpf_setsockopt},
    programs::SockOpsContext,
};

use crate::maps::ENROLLED;

const SOL_TCP: i32 = 6;
const TCP_CONGESTION: i32 = 13;

/// Gives the socket of `ctx` Reno, which is in every kernel. Where it cannot be set the connection is slower and as good.
#[inline(always)]
pub(crate) fn unpace(ctx: *mut c_void) {
    let mut algorithm = *b"reno";
    // SAFETY: the option's value lives on the stack for the call.
    unsafe {
        bpf_setsockopt(
            ctx,
            SOL_TCP,
            TCP_CONGESTION,
            (&raw mut algorithm).cast(),
            size_of_val(&algorithm) as i32,
        )
    };
}

/// The same for what an application has accepted from the proxy: it has the proxy's mark (`tcp_fwmark_accept`).
#[inline(always)]
pub(crate) fn unpace_accepted(ctx: &SockOpsContext) {
    // SAFETY: the verifier checks the accesses, and that the socket is there.
    let mark = unsafe {
        let socket = (*ctx.ops).__bindgen_anon_2.sk;
        if socket.is_null() {
            return;
        }
        (*socket).mark
    };
    if mark == 0 {
        return;
    }
    // SAFETY: the context is the one the kernel passed in.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: entries are written as a whole by the loader.
    let enrolment = unsafe { ENROLLED.get(&cookie) };
    if enrolment.is_some_and(|enrolment| enrolment.capture_mark == mark) {
        unpace(ctx.ops.cast());
    }
}
