//! connect(): puts the capture mark on new TCP connections of enrolled namespaces, so that the pod's routing rule sends
//! them to loopback, where `steer` finds the proxy. The address is not touched: the application sees the truth.
//! Connections that exist at enrolment never pass here and stay as they are.

use aya_ebpf::{helpers::bpf_setsockopt, macros::cgroup_sock_addr, programs::SockAddrContext};
use leyline_ebpf_abi::{NodeCounter, enrolment_flag};

use crate::{
    counters::count_node,
    dns,
    namespace::{ALLOW, Namespace, V4, V6, WITH_ECONNREFUSED, WITH_EPERM, destination, refuse},
    pace::unpace,
};

const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_MPTCP: u32 = 262;
const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;

#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    connect::<V4, WITH_ECONNREFUSED>(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    connect::<V6, WITH_ECONNREFUSED>(&ctx)
}

#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4_eperm(ctx: SockAddrContext) -> i32 {
    connect::<V4, WITH_EPERM>(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6_eperm(ctx: SockAddrContext) -> i32 {
    connect::<V6, WITH_EPERM>(&ctx)
}

#[inline(always)]
fn connect<const FAMILY: bool, const ERRNO: bool>(ctx: &SockAddrContext) -> i32 {
    let Some(namespace) = Namespace::of(ctx) else {
        return ALLOW;
    };
    // SAFETY: the verifier checks the access.
    match unsafe { (*ctx.sock_addr).protocol } {
        IPPROTO_TCP | IPPROTO_MPTCP => connect_tcp::<FAMILY, ERRNO>(ctx, &namespace),
        IPPROTO_UDP => dns::divert::<FAMILY, ERRNO>(ctx, &namespace),
        _ => ALLOW,
    }
}

#[inline(always)]
fn connect_tcp<const FAMILY: bool, const ERRNO: bool>(
    ctx: &SockAddrContext,
    namespace: &Namespace,
) -> i32 {
    if !namespace.has(enrolment_flag::TCP) {
        return ALLOW;
    }
    let destination = destination::<FAMILY>(ctx);
    if namespace.keeps(&destination) {
        count_node(NodeCounter::Local);
        return ALLOW;
    }
    if !namespace.reaches_proxy(&destination) {
        return refuse::<ERRNO>(NodeCounter::Refused);
    }
    let mut mark = namespace.capture_mark();
    // SAFETY: the option's value lives on the stack for the call.
    let result = unsafe {
        bpf_setsockopt(
            ctx.sock_addr.cast(),
            SOL_SOCKET,
            SO_MARK,
            (&raw mut mark).cast(),
            size_of::<u32>() as i32,
        )
    };
    if result != 0 {
        // Without the mark it would leave the pod in plain text.
        return refuse::<ERRNO>(NodeCounter::MarkFailed);
    }
    unpace(ctx.sock_addr.cast());
    count_node(NodeCounter::Captured);
    ALLOW
}
