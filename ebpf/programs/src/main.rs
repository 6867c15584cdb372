//! The BPF side of capture. Built by `cargo xtask ebpf` into `ebpf/leyline.bpf.o`, loaded by `crates/capture`.
//!
//! Two places decide. The hooks on connect run for every process of the machine, know enrolled namespaces by cookie and
//! put a mark on their new connections, which a routing rule in the pod sends to loopback. There the socket lookup of
//! that pod hands them, and what comes from the network, to the proxy's sockets. Everything fails closed.
//!
//! What is nested in a pod has sockets of another namespace: a third place marks its packets where they enter the pod.
#![no_std]
#![no_main]

mod connect;
mod counters;
mod dns;
mod maps;
mod namespace;
mod pace;
mod probes;
mod reroute;
mod steer;
mod steer_before_5_17;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 4] = *b"GPL\0";
