//! The control plane: Kubernetes objects from a watched directory become workload and authorization resources over delta
//! ADS, certificates are signed under the node rule, and nodes are told which pods to enrol.
//!
//! `objects` reads, `translate` computes (pure), `mesh` publishes, `xds`, `ca` and `enrolment` serve; `server` puts them
//! together for the binary and for tests. The data plane never links this crate.

pub mod objects;
pub mod translate;
