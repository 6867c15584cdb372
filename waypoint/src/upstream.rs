//! Towards the endpoints: which one, over which connection, and one attempt.

pub(crate) mod balance;
pub(crate) mod call;
pub(crate) mod connect;
mod direct;
pub(crate) mod dynamic;
pub(crate) mod endpoint;
pub(crate) mod grpc;
pub(crate) mod names;
pub(crate) mod outlier;
pub(crate) mod pending;
pub(crate) mod pool;
pub(crate) mod send;
pub(crate) mod state;
