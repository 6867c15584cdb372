//! What the choice of an endpoint needs beside the snapshot: how busy endpoints are, which have failed, and which one a
//! client stays with. The application knows that and lends a view of it for one decision; this crate keeps none of it.

use std::net::IpAddr;

use leyline_types::WorkloadUid;

use crate::service::Service;

/// Endpoints as the application sees them at this moment. Asked for each endpoint that is looked at, so it must be quick.
pub trait EndpointView {
    /// Connections that are open to an endpoint, from here.
    fn load(&self, endpoint: &WorkloadUid) -> u64;

    /// Whether an endpoint should be used now.
    fn standing(&self, endpoint: &WorkloadUid) -> Standing;

    /// The endpoint that the client was given before, for a service that wants it kept.
    fn kept(&self, service: &Service) -> Option<WorkloadUid>;

    /// An address of an endpoint that has only a host name, if it was resolved; of the family of `like` if it has one.
    fn resolved(&self, _hostname: &str, _like: IpAddr) -> Option<IpAddr> {
        None
    }
}

/// How willingly an endpoint is used; larger is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Not at all: it has failed this very connection.
    Excluded,
    /// Only where there is no other: it has failed lately.
    Avoided,
    /// Like any other.
    Good,
}

/// Nothing is known: all endpoints are idle and good.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl EndpointView for Unobserved {
    fn load(&self, _endpoint: &WorkloadUid) -> u64 {
        0
    }

    fn standing(&self, _endpoint: &WorkloadUid) -> Standing {
        Standing::Good
    }

    fn kept(&self, _service: &Service) -> Option<WorkloadUid> {
        None
    }
}

/// What one decision chooses by.
pub(crate) struct Chooser<'a, R> {
    pub(crate) view: &'a dyn EndpointView,
    pub(crate) rng: &'a mut R,
}
