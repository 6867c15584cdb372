//! Local mode: the mesh on one machine. A node is a network namespace, a pod is a network namespace joined to its node,
//! and the control plane and the node proxies are the real programs as real processes.
//!
//! `cargo xtask demo` and the end-to-end tests both stand on this crate and run the same [`checks`], so what is shown is
//! what is tested. It plays the part of kubelet and nothing else: enrolment, capture, xDS and certificates are the
//! product's own code. The network of the machine itself is never touched, and everything a run makes bears its id, so
//! that it can be removed even after the run was killed.

pub mod run;

pub mod fabric;
pub mod netlink;
pub mod netns;

pub mod cluster;
pub mod cni;
pub mod config_dir;
pub mod kubelet;
pub mod manifest;
pub mod process;

pub mod controlplane;
pub mod daemon;
pub mod dump;
pub mod mesh;
pub mod waypoint;
pub mod ztunnel;

pub mod client;
pub mod echo;
pub mod eventually;
pub mod payload;
pub mod session;

pub mod access_log;
pub mod certificates;
pub mod metrics;
pub mod peers;
pub mod profile;
pub mod rate_limit;
pub mod scraper;
pub mod sniffer;

pub mod bench;
pub mod checks;
pub mod preflight;
