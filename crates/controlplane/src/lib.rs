//! The control plane: Kubernetes objects from a watched directory become workload and authorization resources over delta
//! ADS, certificates are signed under the node rule, and nodes are told which pods to enrol.
//!
//! `objects` reads, `translate` computes (pure), `mesh` publishes, `xds`, `ca` and `enrolment` serve; `server` puts them
//! together for the binary and for tests. The data plane never links this crate.

mod auth;
mod ca;
mod clients;
mod enrolment;
mod keys;
mod mesh;
pub mod objects;
mod server;
mod state_dir;
pub mod status;
mod token;
pub mod translate;
pub mod validate;
mod xds;

pub use auth::AuthError;
pub use ca::{Authority, CaError, CsrError, ROOT_FILE};
pub use server::{ControlPlane, ServeError, ServerConfig};
pub use state_dir::{StateDir, StateError};
pub use token::{Caller, TokenError, TokenKey, TokenKeyError};
