//! HTTP inside of a tunnelled connection: path (c) of ARCHITECTURE.md. `pipeline` is its table of contents.

pub(crate) mod server;

pub(crate) mod pipeline;

pub(crate) mod affinity;
pub(crate) mod counted;
pub(crate) mod deadline;
pub(crate) mod filters;
pub(crate) mod flags;
pub(crate) mod forward;
pub(crate) mod grpc;
mod grpc_timeout;
pub(crate) mod life;
pub(crate) mod mirror;
mod named_host;
pub(crate) mod path;
pub(crate) mod reply;
pub(crate) mod request_log;
pub(crate) mod request_source;
pub(crate) mod rewrite;
pub(crate) mod sample;
mod stream_idle;
pub(crate) mod streams;
pub(crate) mod upgrade;
mod warm;

pub(crate) mod body;
mod framing;
pub(crate) mod passing;
pub(crate) mod replay;
