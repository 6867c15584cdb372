//! Towards endpoints: which one, over which connection.

pub(crate) mod balance;
pub(crate) mod connect;
pub(crate) mod endpoint;
pub(crate) mod send;
