//! What an operator sees of a running process: logs, the access log, metrics.
//!
//! The binaries install [`log`] and [`metrics`] once at start; the proxies open one [`traffic::AccessLog`] per
//! connection. Names, labels, keys and their order are Istio's (facts A19, A20) and are tested contracts. Nothing here
//! ever blocks or slows traffic: a log line that cannot be written is dropped and counted.

pub mod dns;
pub mod idle;
pub mod log;
pub mod mesh;
pub mod metrics;
pub mod traffic;

pub mod endpoints;

/// Why logs or metrics cannot be set up, or a level not be set.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A level is not one of the words we know.
    #[error(
        "`{0}` is not a log level; use error, warn, info, debug, trace, off or <module>=<level>"
    )]
    Level(String),
    /// Something else installed itself first.
    #[error("{0} are already set up in this process")]
    AlreadyInstalled(&'static str),
    /// A histogram has no bounds.
    #[error("a histogram has no bounds")]
    Buckets,
    /// The log's writer thread cannot be started.
    #[error("starting the log writer")]
    Writer(#[source] std::io::Error),
    /// The filter cannot be changed any more.
    #[error("changing the log filter")]
    Reload(#[source] tracing_subscriber::reload::Error),
}
