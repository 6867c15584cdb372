//! Capture on real network namespaces of this machine. Needs root and fails without it.
//!
//! Every row of the table in facts/capture.md 2.4 is a test here, and so is every promise of the crate's documentation.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

mod app;
mod lab;
mod proxy;

mod capturing;
mod dns;
mod failing;
mod guests;
mod life_cycle;
mod socket_kinds;
mod wire;
