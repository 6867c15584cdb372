//! `steer` for kernels that do not tell the interface in a socket lookup: the proxy announces its connections in the
//! guise of a client before it makes them, and what the application sends is known by its source address alone.

use aya_ebpf::{macros::sk_lookup, programs::SkLookupContext};

use crate::{
    maps::{LOCAL_CONNECTS, POD},
    steer::{PASS, Packet, guest, has_guests, inbound, is_own, local, outbound},
};

#[sk_lookup]
pub(crate) fn steer_before_5_17(ctx: SkLookupContext) -> u32 {
    let Some(pod) = POD.get(0) else {
        return PASS;
    };
    let packet = Packet::of(&ctx);
    if packet.is_of_link() {
        return PASS;
    }
    match (is_own(&packet.flow.server), is_own(&packet.flow.client)) {
        (false, true) => outbound(&ctx, pod, &packet),
        (true, false) if !is_announced(&packet) => inbound(&ctx, pod, &packet),
        (false, false) if has_guests(pod) => guest(&ctx, pod, &packet),
        _ => local(),
    }
}

#[inline(always)]
fn is_announced(packet: &Packet) -> bool {
    // SAFETY: only presence is looked at.
    unsafe { LOCAL_CONNECTS.get(&packet.flow) }.is_some()
}
