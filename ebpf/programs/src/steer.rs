//! Socket lookup of one pod: hands what the application sends to the network, and what the network sends to it, to the
//! proxy's sockets. The accepted sockets' own address is the original destination. Runs once per connection (TCP) or
//! per datagram that no connected socket takes (UDP).
//!
//! How it tells directions: a foreign destination can be delivered here only by the pod's routes, so the application
//! sent it. For a local destination the kernel reports the interface that owns the address, even when the packet came
//! over loopback, so the pod to itself is recognised by its source address, and the proxy in the guise of a client by its
//! binding to loopback, which makes the interface 1. Nothing on the wire can forge that. Between two foreign addresses it
//! is a guest of the pod, which only the rules of its interface bring here.

use aya_ebpf::{
    bindings::{bpf_sk_lookup, sk_action},
    macros::sk_lookup,
    programs::SkLookupContext,
};
use leyline_ebpf_abi::{
    Address, DNS_PORT, DNS_PROXY_PORT, FlowKey, HBONE_PORT, Pod, PodCounter, pod_flag, slot,
};

use crate::{
    counters::count_pod,
    maps::{ADDRESSES, GUEST_LISTENER, POD, PROBES, SOCKETS},
};

pub(crate) const PASS: u32 = sk_action::SK_PASS;
const DROP: u32 = sk_action::SK_DROP;

/// Take exactly the socket in the map, not another of its reuseport group.
const BPF_SK_LOOKUP_F_NO_REUSEPORT: u64 = 2;
const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const LOOPBACK_IFINDEX: u32 = 1;

#[sk_lookup]
pub(crate) fn steer(ctx: SkLookupContext) -> u32 {
    let Some(pod) = POD.get(0) else {
        return PASS;
    };
    let packet = Packet::of(&ctx);
    // SAFETY: the verifier checks the access.
    let on_loopback = unsafe { (*ctx.lookup).ingress_ifindex } == LOOPBACK_IFINDEX;
    if packet.is_of_link() {
        return PASS;
    }
    let from_pod = is_own(&packet.flow.client);
    match (is_own(&packet.flow.server), from_pod || on_loopback) {
        (false, true) => outbound(&ctx, pod, &packet),
        (true, false) => inbound(&ctx, pod, &packet),
        (false, false) if has_guests(pod) => guest(&ctx, pod, &packet),
        _ => local(),
    }
}

/// A packet for which a socket is looked up, as its receiver sees it.
pub(crate) struct Packet {
    pub(crate) flow: FlowKey,
    protocol: u32,
}

impl Packet {
    #[inline(always)]
    pub(crate) fn of(ctx: &SkLookupContext) -> Self {
        let lookup = ctx.lookup;
        // SAFETY: the verifier checks the accesses.
        let (v4, protocol, remote_port, local_port) = unsafe {
            let l = &*lookup;
            (l.family == AF_INET, l.protocol, l.remote_port, l.local_port)
        };
        let (client, server) = if v4 { ends_v4(lookup) } else { ends_v6(lookup) };
        Self {
            flow: FlowKey {
                client,
                server,
                client_port: u16::from_be(remote_port),
                server_port: local_port as u16,
            },
            protocol,
        }
    }

    /// To loopback or to one link: never captured.
    #[inline(always)]
    pub(crate) fn is_of_link(&self) -> bool {
        self.flow.server.is_loopback() || self.flow.server.is_link_local_v6()
    }
}

#[inline(always)]
fn ends_v4(lookup: *mut bpf_sk_lookup) -> (Address, Address) {
    // SAFETY: the verifier checks the accesses.
    unsafe {
        (
            Address::from_v4_word((*lookup).remote_ip4),
            Address::from_v4_word((*lookup).local_ip4),
        )
    }
}

#[inline(always)]
fn ends_v6(lookup: *mut bpf_sk_lookup) -> (Address, Address) {
    // SAFETY: the verifier checks the accesses, which must be of four bytes each.
    unsafe {
        let remote = (&raw const (*lookup).remote_ip6).cast::<u32>();
        let local = (&raw const (*lookup).local_ip6).cast::<u32>();
        (
            Address::from_words([
                remote.read_volatile(),
                remote.add(1).read_volatile(),
                remote.add(2).read_volatile(),
                remote.add(3).read_volatile(),
            ]),
            Address::from_words([
                local.read_volatile(),
                local.add(1).read_volatile(),
                local.add(2).read_volatile(),
                local.add(3).read_volatile(),
            ]),
        )
    }
}

/// Whether the pod owns the address.
#[inline(always)]
pub(crate) fn is_own(address: &Address) -> bool {
    // SAFETY: only presence is looked at.
    unsafe { ADDRESSES.get(address) }.is_some()
}

/// The application to the network.
#[inline(always)]
pub(crate) fn outbound(ctx: &SkLookupContext, pod: &Pod, packet: &Packet) -> u32 {
    let dns = pod.flags & pod_flag::DNS != 0;
    if packet.protocol != IPPROTO_TCP {
        if !dns || packet.flow.server_port != DNS_PROXY_PORT {
            return PASS;
        }
        return hand_to::<{ slot::DNS_UDP }>(ctx, PodCounter::DnsUdp);
    }
    if dns && packet.flow.server_port == DNS_PORT {
        return hand_to::<{ slot::DNS_TCP }>(ctx, PodCounter::DnsTcp);
    }
    hand_to::<{ slot::OUTBOUND }>(ctx, PodCounter::Outbound)
}

#[inline(always)]
pub(crate) fn has_guests(pod: &Pod) -> bool {
    pod.flags & pod_flag::GUESTS != 0
}

/// A guest to the network: the rules of its interface have brought it here. `reroute` has counted it already, and asks for
/// its socket by the way of this program for each packet that may be of a captured connection.
#[inline(always)]
pub(crate) fn guest(ctx: &SkLookupContext, pod: &Pod, packet: &Packet) -> u32 {
    let handed = if packet.protocol == IPPROTO_TCP {
        GUEST_LISTENER.redirect_sk_lookup(ctx, 0, BPF_SK_LOOKUP_F_NO_REUSEPORT)
    } else if pod.flags & pod_flag::DNS != 0 && packet.flow.server_port == DNS_PORT {
        SOCKETS.redirect_sk_lookup(ctx, slot::DNS_UDP, BPF_SK_LOOKUP_F_NO_REUSEPORT)
    } else {
        return PASS;
    };
    match handed {
        Ok(()) => PASS,
        Err(_) => DROP,
    }
}

/// The network to the application.
#[inline(always)]
pub(crate) fn inbound(ctx: &SkLookupContext, pod: &Pod, packet: &Packet) -> u32 {
    if packet.protocol != IPPROTO_TCP || pod.flags & pod_flag::INBOUND == 0 {
        return PASS;
    }
    if packet.flow.server_port == HBONE_PORT {
        return hand_to::<{ slot::HBONE }>(ctx, PodCounter::Hbone);
    }
    // SAFETY: only presence is looked at.
    if unsafe { PROBES.get(&packet.flow) }.is_some() {
        count_pod(PodCounter::Probes);
        return PASS;
    }
    let verdict = hand_to::<{ slot::INBOUND }>(ctx, PodCounter::Inbound);
    if verdict == DROP && pod.flags & pod_flag::INBOUND_FAIL_OPEN != 0 {
        return PASS;
    }
    verdict
}

/// The pod to itself, or the proxy to the application.
#[inline(always)]
pub(crate) fn local() -> u32 {
    count_pod(PodCounter::Local);
    PASS
}

#[inline(always)]
fn hand_to<const SLOT: u32>(ctx: &SkLookupContext, counter: PodCounter) -> u32 {
    match SOCKETS.redirect_sk_lookup(ctx, SLOT, BPF_SK_LOOKUP_F_NO_REUSEPORT) {
        Ok(()) => {
            count_pod(counter);
            PASS
        }
        // The proxy is gone. Any socket of the pod that happens to fit must not get this instead.
        Err(_) => {
            count_pod(PodCounter::Refused);
            DROP
        }
    }
}
