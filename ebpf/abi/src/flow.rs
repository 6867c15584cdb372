//! Keys and values of the maps.

use crate::Address;

/// What the programs of a node know about it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Of the loader that made the maps; zero before it wrote anything.
    pub abi_version: u32,
    /// Keeps the layout free of padding.
    pub reserved: u32,
    /// The namespace whose connections are probes of the node; zero for none.
    pub host_cookie: u64,
}

/// An enrolled network namespace, for the hooks that run for every process of the machine.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enrolment {
    /// See [`enrolment_flag`](crate::enrolment_flag).
    pub flags: u32,
    /// Put on captured sockets.
    pub capture_mark: u32,
    /// Sockets that carry it are left alone.
    pub bypass_mark: u32,
    /// Keeps the layout free of holes in a hash value of eight-byte units.
    pub reserved: u32,
}

/// One address of one enrolled namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalKey {
    /// Of the namespace.
    pub cookie: u64,
    /// An address that the namespace owns.
    pub address: Address,
}

/// The two ends of a TCP connection as its server sees it; ports in host byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    /// Source of the connection.
    pub client: Address,
    /// Destination of the connection.
    pub server: Address,
    /// Source port.
    pub client_port: u16,
    /// Destination port.
    pub server_port: u16,
}

/// A sysctl of the pod before capture changed it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SavedSysctl {
    /// 1 when `value` holds the former value.
    pub saved: u32,
    /// To be restored at removal.
    pub value: i32,
}

/// What the socket lookup of one pod, and the process that will remove it, must know.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// See [`pod_flag`](crate::pod_flag).
    pub flags: u32,
    /// The mark that the pod's rule matches.
    pub capture_mark: u32,
    /// Former values, in the order in which the loader lists its sysctls.
    pub sysctls: [SavedSysctl; 3],
}

#[cfg(feature = "user")]
mod pod {
    use super::{Enrolment, FlowKey, LocalKey, Node, Pod};

    // SAFETY: `repr(C)` over integers without padding; every bit pattern is a value.
    unsafe impl aya::Pod for Node {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Enrolment {}
    // SAFETY: as above.
    unsafe impl aya::Pod for LocalKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Pod {}
}

// A hole would hold stack garbage and make equal keys differ.
const _: () = assert!(size_of::<LocalKey>() == 24);
const _: () = assert!(size_of::<FlowKey>() == 36);
const _: () = assert!(size_of::<Enrolment>() == 16);
const _: () = assert!(size_of::<Node>() == 16);
const _: () = assert!(size_of::<Pod>() == 32);
