//! Kubernetes objects from watched directories of YAML.
//!
//! `Loader` turns files into typed `Objects`, keeps the last good version of whatever is broken now, and lists every
//! problem as an `Issue`. `watch` calls it when files change. Nothing a file contains can panic or spread to another object.

mod decode;
mod document;
pub(crate) mod duration;
mod field;
mod gateway;
mod key;
pub mod l7;
mod loader;
pub mod mesh_config;
mod secret;
mod security;
mod service_entry;
mod set;
mod validate;
mod watch;

#[cfg(test)]
pub(crate) use document::Node;
pub use gateway::{
    AllowedRoutes, EAST_WEST_CLASS, Gateway, GatewayAddress, GatewayClass, GatewayClassSpec,
    GatewayListener, GatewaySpec, GatewayStatus, HBONE, MESH_CONTROLLERS, REMOTE_CLASS,
    RouteNamespaces, WAYPOINT_CLASS,
};
pub use key::{Kind, ObjectKey};
pub(crate) use loader::DOCUMENTS_FILE;
pub use loader::{GoodDocument, Loaded, Loader, Origin, ScanError};
pub use secret::{KeyPair, TlsSecret};
pub use security::{
    AuthorizationPolicy, AuthorizationPolicySpec, Condition, From as SourceList, MutualTls,
    Operation, PeerAuthentication, PeerAuthenticationSpec, Provider, Rule, Selector, Source,
    TargetRef, To,
};
pub use service_entry::{
    AllocatedAddress, EntryPort, EntrySelector, ServiceEntry, ServiceEntrySpec, ServiceEntryStatus,
    WorkloadEntry, WorkloadEntrySpec,
};
pub use set::{Issue, Objects, Severity};
pub(crate) use validate::{grpc_status, parse_block};
pub use watch::{WatchError, Watcher};
