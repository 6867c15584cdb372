//! Pods that could not be enrolled yet.

use std::time::Duration;

use leyline_net::NetNs;
use leyline_types::WorkloadName;
use tokio::time::Instant;

use crate::proxy::Shared;

/// A pod that could not be enrolled yet.
pub(super) struct Pending {
    pub(super) name: WorkloadName,
    pub(super) netns: Option<NetNs>,
    /// Between the last attempt and the next.
    pub(super) pause: Duration,
    pub(super) at: Instant,
    pub(super) error: String,
    /// Tried when the control plane had not told of its workload yet.
    pub(super) unknown: bool,
}

impl Pending {
    /// Whether it is time for another attempt, or the workload that the last one missed has come.
    pub(super) fn is_due(&self, now: Instant, shared: &Shared) -> bool {
        self.at <= now || self.unknown && shared.workload_now(&self.name).is_some()
    }
}

pub(super) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
