//! The node proxy: one per node, it carries the connections of the node's pods to other nodes as HBONE, admits those
//! that policies allow, and tells what it saw. The binary is `main.rs`; `app` puts the parts together.

mod admin;
mod agent;
mod app;
mod certificates;
mod config;
mod discovery;
mod explain;
mod local_xds;
mod proxy;
mod version;

pub use app::{cleanup, run};
pub use config::variables;
pub use explain::client::explain;
pub use version::line as version_line;
