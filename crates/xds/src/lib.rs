//! The client of delta ADS: a pure [`session`] that knows the protocol and a [`client`] that moves its messages.
//!
//! The binaries call [`client::run`] with closures: how to connect, how to apply what came, whom to tell. This crate
//! knows no resource type; what it hands out is bytes with name and version. What was applied is never taken back
//! because a connection ended.
#![warn(missing_docs, clippy::wildcard_enum_match_arm)]
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

pub mod client;
pub mod session;

mod backoff;
mod node;

pub use node::{NodeInfo, node_id};
