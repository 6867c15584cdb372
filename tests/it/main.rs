//! End-to-end tests: real programs in network namespaces. They need root and fail where they cannot run.
#![expect(
    clippy::unwrap_used,
    reason = "a test whose surroundings cannot be made has failed"
)]

mod affinity;
mod certificates;
mod cluster;
mod cni;
mod command;
mod dedicated;
mod dns;
mod enrolment;
mod exempt;
mod hostnames;
mod idle;
mod keepalive;
mod lifecycle;
mod local;
mod local_xds;
mod mesh;
mod networks;
mod observability;
mod observe;
mod on_demand;
mod operator;
mod peer;
mod pending;
mod policy;
mod robustness;
mod rotation;
mod shutdown;
mod socks5;
mod spire;
mod spire_delegated;
mod support;
mod takeover;
mod trouble;
mod trust_domains;
mod waypoint;
mod waypoint_access_logs;
mod waypoint_authz;
mod waypoint_balance;
mod waypoint_clients;
mod waypoint_dns;
mod waypoint_endings;
mod waypoint_envoy;
mod waypoint_floods;
mod waypoint_global_limits;
mod waypoint_hops;
mod waypoint_istiod;
mod waypoint_jwt;
mod waypoint_limits;
mod waypoint_locality;
mod waypoint_pages;
mod waypoint_pending;
mod waypoint_policy;
mod waypoint_rates;
mod waypoint_remote_keys;
mod waypoint_resilience;
mod waypoint_restart;
mod waypoint_routes;
mod waypoint_session;
mod waypoint_smuggling;
mod waypoint_telemetry;
mod waypoint_tls;
mod waypoint_tracing;
