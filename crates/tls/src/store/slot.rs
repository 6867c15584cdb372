//! What the store holds for one identity, and what that means at a given moment.

use std::{sync::Arc, time::SystemTime};

use tokio::{sync::watch, time::Instant};

use super::FetchError;
use crate::{certificate::WorkloadCertificate, standing::Anchors};

/// One identity's place in the store. Those who wait for a certificate watch its state.
pub(super) struct Slot {
    pub(super) state: watch::Sender<State>,
    /// How the last fetch failed; none after a success.
    pub(super) failure: Option<Arc<FetchError>>,
    /// The tunnels of all its certificates.
    pub(super) anchors: Arc<Anchors>,
}

#[derive(Clone)]
pub(super) enum State {
    Initializing,
    Available(Lease),
    Unavailable(Arc<FetchError>),
}

#[derive(Clone)]
pub(super) struct Lease {
    pub(super) cert: Arc<WorkloadCertificate>,
    pub(super) expires: Instant,
}

impl Lease {
    pub(super) fn new(cert: Arc<WorkloadCertificate>, now: Instant, clock: SystemTime) -> Self {
        let remaining = cert.not_after().duration_since(clock).unwrap_or_default();
        let expires = now + remaining;
        Self { cert, expires }
    }

    /// By both clocks: the monotonic one does not run while the machine sleeps, the other can be set back.
    pub(super) fn is_valid(&self, now: Instant, clock: SystemTime) -> bool {
        now < self.expires && clock < self.cert.not_after()
    }
}

impl Slot {
    pub(super) fn new(anchors: Arc<Anchors>) -> Self {
        Self {
            anchors,
            state: watch::Sender::new(State::Initializing),
            failure: None,
        }
    }

    /// The state by the clock: a certificate can have expired since the last event.
    pub(super) fn current(&self, now: Instant, clock: SystemTime) -> State {
        let state = self.state.borrow().clone();
        match (&state, &self.failure) {
            (State::Available(lease), _) if lease.is_valid(now, clock) => state,
            (State::Available(_), Some(failure)) => State::Unavailable(Arc::clone(failure)),
            (State::Available(_), None) => State::Initializing,
            (State::Initializing | State::Unavailable(_), _) => state,
        }
    }
}
