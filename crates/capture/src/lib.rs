//! Capture of a pod's traffic: puts it on a running network namespace and takes it off, without iptables, conntrack or
//! packet work (but for guests nested in a pod), and without breaking a connection (design A+ of facts/capture.md; the BPF side is `ebpf/programs`).
//!
//! The node agent of ztunnel makes one [`NodeCapture`] and enrols each pod with the sockets it opened inside it.
//! Everything that captures is pinned below `<bpffs>/<instance>`, so it outlives the process: when the process dies, pods
//! are refused, never sent out in plain text, and the next process takes over by enrolling them again.
//!
//! All kernel state is changed by blocking code under one lock per instance, in the order that keeps a pod safe at each
//! step; `node` and `pod` read as lists of those steps.

mod addresses;
mod bpffs;
mod cgroup;
mod config;
mod ebpf;
mod error;
mod guests;
mod layout;
mod netlink;
mod node;
mod pod;
mod removal;
mod sysctl;

pub use config::{HostProbes, Inbound, NodeConfig, PodOptions, PodSockets, SteerProgram, WhenDown};
pub use error::{CaptureError, Cause, NodeStep, PodStep};
pub use guests::{Unreached, WhyUnreached};
pub use leyline_ebpf_abi::{BYPASS_MARK, CAPTURE_MARK, NodeCounter, PodCounter};
pub use netlink::{RULE_PRIORITY_DNS, RULE_PRIORITY_GUESTS, RULE_PRIORITY_MARK, TABLE};
pub use node::{NodeCapture, NodeCounters};
pub use pod::{LocalConnect, PodCapture};
pub use removal::{Removed, remove_instance};
