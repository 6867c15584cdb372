//! Authorization policies and their evaluation. `state` builds the policies from xDS and picks those of a workload;
//! the proxies call [`evaluate`] for each connection, a waypoint [`evaluate_request`] for each request, and need the
//! [`Permit`] to forward a single byte.
//!
//! Pure: no I/O, no clock. Semantics are Istio's, except that what is missing or malformed denies (fail closed).
#![warn(
    missing_docs,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm
)]

mod evaluate;
mod policy;
mod request;

pub use evaluate::{
    ConnectionFacts, Denial, DryRun, Permit, PolicyMatch, PolicyOpinion, PolicySet, dry_run,
    evaluate, opinions,
};
pub use policy::{Action, Clause, Match, Policy, Rule, Scope, ServiceAccountMatch, StringMatch};
pub use request::{
    Condition, ConnectionRules, HeaderMatch, HeaderName, MetadataMatch, NotOfConnections,
    PatternError, RequestDenial, RequestFacts, RequestHead, RequestPolicy, RequestRules,
    RuleAction, TextMatch, TunnelFacts, ValueMatch, evaluate_connection, evaluate_request,
};
