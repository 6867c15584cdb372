//! Interfaces of a pod behind which there are guests: virtual machines, or containers with a namespace of their own. Their
//! sockets are not of the pod, so no hook sees them connect; what they send is seen here as it enters the pod, once per
//! packet. What is for the proxy gets a mark, by which a rule of the interface delivers it here instead of forwarding it,
//! and `steer` finds the socket.
//!
//! Of TCP that is what opens a connection, and what belongs to one that was opened so. The rest, answers to connections
//! from outside and connections that are older than the capture, goes its way.

use core::ptr::addr_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        bpf_sock, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as TupleV4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as TupleV6,
    },
    helpers::{
        bpf_map_lookup_elem, bpf_sk_release, bpf_skb_load_bytes_relative, bpf_skc_lookup_tcp,
    },
    macros::classifier,
    programs::TcContext,
};
use leyline_ebpf_abi::{Address, DNS_PORT, FlowKey, GUEST_MARK, Pod, PodCounter, pod_flag};

use crate::{
    counters::count_pod,
    maps::{GUEST_FLOWS, GUEST_INTERFACES, GUEST_LISTENER, POD},
    steer::is_own,
};

/// `TC_ACT_UNSPEC`: what others attached decides, else it goes on.
const NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
const DROP: i32 = 2;

const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
/// Of IPv6: hop-by-hop options, routing, destination options. A fragment has no ports to look at, and is not captured.
const EXTENSIONS: [u8; 3] = [0, 43, 60];
/// More than anybody sends; the verifier wants an end.
const MAX_EXTENSIONS: usize = 4;
const V6_HEADER: u32 = 40;
/// `BPF_HDR_START_NET`: interfaces without Ethernet have no header before it.
const FROM_NETWORK_HEADER: u32 = 1;

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
/// Of the namespace of the interface.
const CURRENT_NETNS: u64 = u64::MAX;
const TCP_LISTEN: u32 = 10;

#[classifier]
pub(crate) fn reroute(ctx: TcContext) -> i32 {
    let (Some(pod), Some(packet)) = (POD.get(0), Packet::of(&ctx)) else {
        return NEXT;
    };
    if packet.is_of_pod_or_link() {
        return NEXT;
    }
    match packet.protocol {
        IPPROTO_TCP => tcp(&ctx, pod, &packet),
        IPPROTO_UDP => udp(&ctx, pod, &packet),
        _ => NEXT,
    }
}

/// A packet that has ports.
struct Packet {
    flow: FlowKey,
    protocol: u8,
    /// Of the header that `protocol` names.
    offset: u32,
}

impl Packet {
    #[inline(always)]
    fn of(ctx: &TcContext) -> Option<Self> {
        let (client, server, protocol, offset) = match ctx.skb.protocol() {
            ETH_P_IP => v4(ctx)?,
            ETH_P_IPV6 => v6(ctx)?,
            _ => return None,
        };
        let ports: [u8; 4] = load(ctx, offset)?;
        Some(Self {
            flow: FlowKey {
                client,
                server,
                client_port: u16::from_be_bytes([ports[0], ports[1]]),
                server_port: u16::from_be_bytes([ports[2], ports[3]]),
            },
            protocol,
            offset,
        })
    }

    /// What is for the pod itself is not forwarded, and so is nothing of one link.
    #[inline(always)]
    fn is_of_pod_or_link(&self) -> bool {
        let FlowKey { client, server, .. } = &self.flow;
        server.is_loopback()
            || server.is_link_local_v6()
            || client.is_link_local_v6()
            || is_own(server)
            || is_own(client)
    }
}

#[inline(always)]
fn v4(ctx: &TcContext) -> Option<(Address, Address, u8, u32)> {
    let h: [u8; 20] = load(ctx, 0)?;
    // All but the first fragment.
    if u16::from_be_bytes([h[6], h[7]]) & 0x1fff != 0 {
        return None;
    }
    let word = |at: usize| u32::from_ne_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]]);
    let client = Address::from_v4_word(word(12));
    let server = Address::from_v4_word(word(16));
    Some((client, server, h[9], u32::from(h[0] & 0xf) * 4))
}

#[inline(always)]
fn v6(ctx: &TcContext) -> Option<(Address, Address, u8, u32)> {
    let [mut protocol]: [u8; 1] = load(ctx, 6)?;
    let client = Address::from_octets(load(ctx, 8)?);
    let server = Address::from_octets(load(ctx, 24)?);
    let mut offset = V6_HEADER;
    for _ in 0..MAX_EXTENSIONS {
        if !EXTENSIONS.contains(&protocol) {
            break;
        }
        let [next, eights]: [u8; 2] = load(ctx, offset)?;
        protocol = next;
        offset += (u32::from(eights) + 1) * 8;
    }
    Some((client, server, protocol, offset))
}

#[inline(always)]
fn load<const N: usize>(ctx: &TcContext, offset: u32) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: the buffer lives on the stack for the call and is as long as said.
    let result = unsafe {
        bpf_skb_load_bytes_relative(
            ctx.as_ptr(),
            offset,
            bytes.as_mut_ptr().cast(),
            N as u32,
            FROM_NETWORK_HEADER,
        )
    };
    (result == 0).then_some(bytes)
}

#[inline(always)]
fn tcp(ctx: &TcContext, pod: &Pod, packet: &Packet) -> i32 {
    // The offset of the data, and the flags.
    let Some([_, flags]) = load(ctx, packet.offset + 12) else {
        return NEXT;
    };
    if flags & (SYN | ACK | RST) == SYN {
        return open(ctx, pod, packet);
    }
    if is_captured(ctx, &packet.flow) {
        return to_proxy(ctx);
    }
    NEXT
}

/// A new connection, or another attempt at one.
#[inline(always)]
fn open(ctx: &TcContext, pod: &Pod, packet: &Packet) -> i32 {
    if !captures_new(ctx, pod) {
        // Another connection had the same ports before.
        let _ = GUEST_FLOWS.remove(&packet.flow);
        return NEXT;
    }
    if !is_routed(pod, &packet.flow.server) || !listens() {
        count_pod(PodCounter::Refused);
        return DROP;
    }
    // Without the entry it is known by its socket.
    let _ = GUEST_FLOWS.insert(&packet.flow, &1, 0);
    count_pod(PodCounter::Guests);
    to_proxy(ctx)
}

#[inline(always)]
fn udp(ctx: &TcContext, pod: &Pod, packet: &Packet) -> i32 {
    let dns = pod.flags & pod_flag::DNS != 0 && packet.flow.server_port == DNS_PORT;
    if !dns || !captures_new(ctx, pod) {
        return NEXT;
    }
    if !is_routed(pod, &packet.flow.server) {
        count_pod(PodCounter::Refused);
        return DROP;
    }
    count_pod(PodCounter::GuestsDns);
    to_proxy(ctx)
}

#[inline(always)]
fn to_proxy(ctx: &TcContext) -> i32 {
    ctx.set_mark(GUEST_MARK);
    NEXT
}

/// Whether what begins on this interface goes to the proxy.
#[inline(always)]
fn captures_new(ctx: &TcContext, pod: &Pod) -> bool {
    // SAFETY: the verifier checks the access.
    let index = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: only presence is looked at.
    pod.flags & pod_flag::GUESTS != 0 && unsafe { GUEST_INTERFACES.get(&index) }.is_some()
}

#[inline(always)]
fn is_routed(pod: &Pod, server: &Address) -> bool {
    let routed = if server.is_v4() {
        pod_flag::GUESTS_ROUTED_V4
    } else {
        pod_flag::GUESTS_ROUTED_V6
    };
    pod.flags & routed != 0
}

#[inline(always)]
fn listens() -> bool {
    let slot = 0u32;
    // SAFETY: map and key are valid for the call. The result is a referenced socket or null.
    let socket =
        unsafe { bpf_map_lookup_elem(addr_of!(GUEST_LISTENER) as *mut _, addr_of!(slot).cast()) };
    if socket.is_null() {
        return false;
    }
    // SAFETY: a full socket, not null; the verifier checks the access.
    let state = unsafe { (*socket.cast::<bpf_sock>()).state };
    // SAFETY: the reference was taken by the lookup above.
    unsafe { bpf_sk_release(socket) };
    state == TCP_LISTEN
}

/// Whether the connection went to the proxy when it began. It may have been forgotten for the sake of others; then its
/// socket tells.
#[inline(always)]
fn is_captured(ctx: &TcContext, flow: &FlowKey) -> bool {
    // SAFETY: only presence is looked at.
    if unsafe { GUEST_FLOWS.get(flow) }.is_some() {
        return true;
    }
    let has_socket = has_socket(ctx, flow);
    if has_socket {
        let _ = GUEST_FLOWS.insert(flow, &1, 0);
    }
    has_socket
}

/// Whether a socket of the pod has this connection; one that listens does not.
#[inline(always)]
fn has_socket(ctx: &TcContext, flow: &FlowKey) -> bool {
    let (client, server) = (flow.client.to_words(), flow.server.to_words());
    let (sport, dport) = (flow.client_port.to_be(), flow.server_port.to_be());
    if flow.server.is_v4() {
        let (saddr, daddr) = (client[3], server[3]);
        find_socket(ctx, TupleV4 { saddr, daddr, sport, dport })
    } else {
        let (saddr, daddr) = (client, server);
        find_socket(ctx, TupleV6 { saddr, daddr, sport, dport })
    }
}

/// `tuple` is one of the two that the kernel tells apart by their length.
#[inline(always)]
fn find_socket<T>(ctx: &TcContext, mut tuple: T) -> bool {
    // SAFETY: the tuple lives on the stack for the call and is as long as said. The result is a referenced socket or null.
    let socket = unsafe {
        bpf_skc_lookup_tcp(
            ctx.as_ptr(),
            (&raw mut tuple).cast(),
            size_of::<T>() as u32,
            CURRENT_NETNS,
            0,
        )
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: not null; the verifier checks the access.
    let state = unsafe { (*socket).state };
    // SAFETY: the reference was taken by the lookup above.
    unsafe { bpf_sk_release(socket.cast()) };
    state != TCP_LISTEN
}
