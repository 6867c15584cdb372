//! What every Leyline process needs around its work: tasks that end on drain, readiness, a small HTTP/1.1 server for
//! admin, metrics and readiness, the environment reader, signals and worker threads.
//!
//! The binaries and the crates that spawn tasks call it; it knows nothing of proxies, policies or metrics names of
//! the mesh. Invariant: a task started here is tracked by a [`Drain`] and cannot outlive its forced end.

mod drain;
pub mod env;
pub mod http;
mod nested;
mod readiness;
pub mod signal;
mod spawn;
pub mod threads;

pub use drain::{Drain, DrainOutcome};
pub use nested::{Beside, Nested, Outgrows, Stays};
pub use readiness::{Readiness, ReadinessTask};
pub use spawn::{spawn, within};
