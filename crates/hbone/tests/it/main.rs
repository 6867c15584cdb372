//! Tunnels end to end in memory and over loopback, against ourselves, hand-made frames, and Node's HTTP/2.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, which may fail loudly"
)]

mod fairness;
mod node;
mod peers;
mod pool;
mod raw;
mod server;
mod streams;
mod support;
mod tls;
