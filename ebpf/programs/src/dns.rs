//! DNS over UDP: a stateless swap of the server's port, 53 to 15053 on the way out and back on the way in, in enrolled
//! namespaces whose proxy has DNS sockets. A routing rule on port 15053 sends the datagrams to loopback; a mark would
//! come too late, because sendmsg reads the socket's mark before this hook runs. The server's address is kept, so
//! resolvers that check where an answer comes from are content.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use leyline_ebpf_abi::{DNS_PORT, DNS_PROXY_PORT, NodeCounter, enrolment_flag};

use crate::{
    counters::count_node,
    namespace::{ALLOW, Namespace, V4, V6, WITH_EPERM, destination, refuse},
};

/// Ports as the context holds them.
const SERVER: u32 = DNS_PORT.to_be() as u32;
const PROXY: u32 = DNS_PROXY_PORT.to_be() as u32;

#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    send::<V4>(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    send::<V6>(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn recvmsg4(ctx: SockAddrContext) -> i32 {
    show_server::<V4>(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn recvmsg6(ctx: SockAddrContext) -> i32 {
    show_server::<V6>(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
    show_server::<V4>(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
    show_server::<V6>(&ctx)
}

#[inline(always)]
fn send<const FAMILY: bool>(ctx: &SockAddrContext) -> i32 {
    match Namespace::of(ctx) {
        Some(namespace) => divert::<FAMILY, WITH_EPERM>(ctx, &namespace),
        None => ALLOW,
    }
}

/// Sends a datagram (socket) for a DNS server to the proxy instead.
#[inline(always)]
pub(crate) fn divert<const FAMILY: bool, const ERRNO: bool>(
    ctx: &SockAddrContext,
    namespace: &Namespace,
) -> i32 {
    if !namespace.has(enrolment_flag::DNS) || port(ctx) != SERVER {
        return ALLOW;
    }
    let destination = destination::<FAMILY>(ctx);
    if namespace.keeps(&destination) {
        return ALLOW;
    }
    if !namespace.reaches_proxy(&destination) {
        return refuse::<ERRNO>(NodeCounter::Refused);
    }
    set_port(ctx, PROXY);
    count_node(NodeCounter::DnsDiverted);
    ALLOW
}

/// Shows the server's own port to who asks for the sender or the peer.
#[inline(always)]
fn show_server<const FAMILY: bool>(ctx: &SockAddrContext) -> i32 {
    if port(ctx) != PROXY {
        return ALLOW;
    }
    let Some(namespace) = Namespace::of(ctx) else {
        return ALLOW;
    };
    if namespace.has(enrolment_flag::DNS_ANSWERS) && !namespace.keeps(&destination::<FAMILY>(ctx)) {
        set_port(ctx, SERVER);
    }
    ALLOW
}

#[inline(always)]
fn port(ctx: &SockAddrContext) -> u32 {
    // SAFETY: the verifier checks the access.
    unsafe { (*ctx.sock_addr).user_port }
}

#[inline(always)]
fn set_port(ctx: &SockAddrContext, port: u32) {
    // SAFETY: the verifier checks the access.
    unsafe { (*ctx.sock_addr).user_port = port };
}
