//! HBONE: TCP connections as HTTP/2 CONNECT streams inside one mutually authenticated connection (a tunnel).
//!
//! The outbound side asks a [`Pool`] for a stream to a workload; the inbound side runs [`server::serve`] on each
//! accepted connection. Both get an [`HboneStream`], whose halves are what [`leyline_net::copy`] moves bytes between.
//! This crate is generic over the transport: it knows neither certificates nor workloads.
//!
//! Invariants: everything a peer can make us hold is bounded by [`HboneConfig`]; a stream that did not end with
//! END_STREAM is an error to its reader, never an end; every wait for the peer's protocol has a deadline.
#![warn(missing_docs)]
#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::wildcard_enum_match_arm)
)]

mod client;
mod config;
mod credits;
mod error;
pub mod headers;
mod housekeeping;
mod link;
mod pool;
mod queued;
pub mod server;
pub mod sources;
mod stream;
mod usage;
mod windows;

pub use config::{HboneConfig, StreamTasks};
pub use error::{DialError, HboneError};
pub use headers::{Baggage, Forwarded, HeaderError, Traceparent, WorkloadKind};
pub use pool::{CloseMode, ConnectRequest, Opened, Pool, PoolKey, PoolStats, TunnelUse};
pub use stream::{HboneIo, HboneReader, HboneStream, HboneWriter, TunnelTask};
