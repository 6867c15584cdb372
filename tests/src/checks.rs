//! The promises of the mesh, each as one check that the demo prints and a test asserts. A check returns what it saw.
//!
//! Every check starts from [`Mesh::reset`] and enrols what it needs, so that it can run alone or after any other.

mod calls;
mod enrolment;
mod failure;
mod foreign;
mod identity;
mod input;
mod modes;
mod policy;
mod traffic;
mod waypoint;
mod wire;

use std::{future::Future, pin::Pin};

use anyhow::{Context, Result};

use crate::mesh::Mesh;

/// Pods and services of manifests/demo.
pub(crate) mod names {
    /// Calls; on node a.
    pub(crate) const CLIENT: &str = "shop/client";
    /// Serves; on node b.
    pub(crate) const SERVER_V1: &str = "shop/server-v1";
    /// Serves; on node a, as the client.
    pub(crate) const SERVER_V2: &str = "shop/server-v2";
    /// Both.
    pub(crate) const SERVER: &str = "shop/server";
    /// Calls from another namespace of the mesh; on node b.
    pub(crate) const WORKER: &str = "office/worker";
    /// Is not in the mesh; on node a.
    pub(crate) const LEGACY: &str = "legacy/legacy";
    /// Speaks HBONE itself; on node b.
    pub(crate) const GATEWAY: &str = "partner/gateway";
    /// The namespace that checks put into the mesh and take out.
    pub(crate) const SHOP: &str = "shop";

    /// Ports of the app.
    pub(crate) const HTTP: u16 = 8080;
    pub(crate) const HTTP_SERVICE: u16 = 80;
    pub(crate) const TCP: u16 = 9000;
    pub(crate) const BANNER: u16 = 9001;
    pub(crate) const SUMMARY: u16 = 9002;
}

/// One promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Enrolment by label, live, both ways.
    Enrolment,
    /// What is seen on the wire.
    Wire,
    /// Both sides know each other.
    Identity,
    /// STRICT and PERMISSIVE.
    Modes,
    /// Authorization policies.
    Policy,
    /// All the ways in which applications talk.
    Traffic,
    /// Dead proxies and a dead control plane.
    Failure,
    /// Wrong YAML.
    Input,
    /// Peers that share no code with us, good and bad.
    Foreign,
    /// Through a waypoint: a version for some.
    Canary,
    /// Copies of requests.
    Mirror,
    /// Retries and timeouts.
    Resilience,
    /// Faults made on purpose.
    Faults,
    /// Outlier detection.
    Ejection,
    /// Policies about requests.
    RequestPolicy,
    /// Local rate limits.
    LocalLimit,
    /// Rate limits over replicas.
    GlobalLimit,
    /// Tokens.
    Jwt,
    /// gRPC and WebSocket.
    Protocols,
    /// Edits of routes under load.
    RouteChange,
    /// A route with a mistake in it.
    RouteMistake,
    /// A dead waypoint.
    DeadWaypoint,
}

impl Check {
    /// Of the node proxies, in the order of a run. What dies in [`Self::Failure`] stays dead to the end, so it comes last.
    pub const NODE: [Self; 9] = [
        Self::Enrolment,
        Self::Wire,
        Self::Identity,
        Self::Modes,
        Self::Policy,
        Self::Traffic,
        Self::Input,
        Self::Foreign,
        Self::Failure,
    ];

    /// Of waypoints, with what is in manifests/demo/bookstore.
    pub const WAYPOINT: [Self; 13] = [
        Self::Canary,
        Self::Mirror,
        Self::Resilience,
        Self::Faults,
        Self::Ejection,
        Self::RequestPolicy,
        Self::Jwt,
        Self::LocalLimit,
        Self::GlobalLimit,
        Self::Protocols,
        Self::RouteChange,
        Self::RouteMistake,
        Self::DeadWaypoint,
    ];

    /// What it shows, for a line of output.
    pub fn title(self) -> &'static str {
        match self {
            Self::Enrolment => "a label enrols running pods, and its removal releases them",
            Self::Wire => "the wire shows port 15008 only, and no secret",
            Self::Identity => "both sides know each other by SPIFFE id",
            Self::Modes => "PeerAuthentication STRICT and PERMISSIVE",
            Self::Policy => "AuthorizationPolicy, also for live connections",
            Self::Traffic => "every path, family and way of talking",
            Self::Input => "wrong YAML is reported and harms nothing",
            Self::Foreign => "foreign HBONE peers, good ones and bad ones",
            Self::Failure => "killed proxy, stopped control plane",
            Self::Canary => "waypoint: canary by header, 90/10 by weight",
            Self::Mirror => "waypoint: a mirror gets a copy of each request",
            Self::Resilience => "waypoint: retries hide a broken endpoint, timeouts",
            Self::Faults => "waypoint: delays for 10 %, aborts for 5 %",
            Self::Ejection => "waypoint: a failing endpoint is ejected, and comes back",
            Self::LocalLimit => "waypoint: local rate limit for each reader",
            Self::GlobalLimit => "waypoint: one rate limit over two replicas",
            Self::Jwt => "waypoint: only with a valid token",
            Self::RequestPolicy => "waypoint: GET is allowed, POST is not",
            Self::Protocols => "waypoint: gRPC and WebSocket",
            Self::RouteChange => "waypoint: routes change under load",
            Self::RouteMistake => "waypoint: a route with a mistake harms nothing",
            Self::DeadWaypoint => "waypoint: killed and back",
        }
    }

    /// Runs it.
    ///
    /// # Errors
    /// When the promise is not kept, with what was seen instead.
    pub async fn run(self, mesh: &mut Mesh) -> Result<String> {
        mesh.reset().await.context("before the check")?;
        let check: Pin<Box<dyn Future<Output = Result<String>> + Send + '_>> = match self {
            Self::Enrolment => Box::pin(enrolment::check(mesh)),
            Self::Wire => Box::pin(wire::check(mesh)),
            Self::Identity => Box::pin(identity::check(mesh)),
            Self::Modes => Box::pin(modes::check(mesh)),
            Self::Policy => Box::pin(policy::check(mesh)),
            Self::Traffic => Box::pin(traffic::check(mesh)),
            Self::Failure => Box::pin(failure::check(mesh)),
            Self::Input => Box::pin(input::check(mesh)),
            Self::Foreign => Box::pin(foreign::check(mesh)),
            Self::Canary => Box::pin(waypoint::canary(mesh)),
            Self::Mirror => Box::pin(waypoint::mirror(mesh)),
            Self::Resilience => Box::pin(waypoint::resilience(mesh)),
            Self::Faults => Box::pin(waypoint::faults(mesh)),
            Self::Ejection => Box::pin(waypoint::ejection(mesh)),
            Self::LocalLimit => Box::pin(waypoint::local_limit(mesh)),
            Self::RequestPolicy => Box::pin(waypoint::policy(mesh)),
            Self::Jwt => Box::pin(waypoint::jwt(mesh)),
            Self::GlobalLimit => Box::pin(waypoint::global_limit(mesh)),
            Self::Protocols => Box::pin(waypoint::protocols(mesh)),
            Self::RouteChange => Box::pin(waypoint::change(mesh)),
            Self::RouteMistake => Box::pin(waypoint::mistake(mesh)),
            Self::DeadWaypoint => Box::pin(waypoint::killed(mesh)),
        };
        check.await
    }
}
