//! Pods that could not be enrolled yet.

use std::time::Duration;

use leyline_net::NetNs;
use leyline_telemetry::mesh;
use leyline_types::{WorkloadName, WorkloadUid};
use tokio::time::Instant;

use super::{PodManager, RETRY_MAX};
use crate::proxy::{Extent, Shared};

/// A pod that could not be enrolled yet.
pub(super) struct Pending {
    pub(super) name: WorkloadName,
    pub(super) netns: Option<NetNs>,
    pub(super) extent: Extent,
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

    /// Whether this proxy may not be ready before the pod was tried again. Pods that failed for another reason are
    /// their own trouble.
    pub(super) fn holds_readiness(&self, shared: &Shared) -> bool {
        // In this order: what came before the end of the first sync is in the snapshot that is read after it.
        let is_synced = shared.store.snapshot().is_synced();
        let is_known = shared.workload_now(&self.name).is_some();
        self.unknown && may_still_be_taken_over(is_synced, is_known)
    }
}

impl PodManager {
    /// Tries again those whose time has come.
    pub(super) async fn retry(&mut self) {
        let now = Instant::now();
        let due: Vec<WorkloadUid> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.is_due(now, &self.shared))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in due {
            let Some(pending) = self.pending.get(&uid) else {
                continue;
            };
            let (name, netns) = (pending.name.clone(), pending.netns.clone());
            let extent = pending.extent.clone();
            let pause = (pending.pause * 2).min(RETRY_MAX);
            mesh::workload_proxy_retried();
            // An error is told and tried again.
            self.add(uid, name, netns, extent, pause).await.ok();
        }
    }
}

/// Whether a pod whose workload was not known at the last attempt can be expected to be enrolled at the next one: the
/// workload has come since, or it still may. One that the control plane does not know once it has told everything is
/// not waited for.
fn may_still_be_taken_over(is_synced: bool, is_known: bool) -> bool {
    is_known || !is_synced
}

pub(super) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::may_still_be_taken_over;

    #[test]
    fn pods_whose_workload_came_after_the_attempt_hold_readiness() {
        for (is_synced, is_known, expected) in [
            (false, false, true),
            (false, true, true),
            // The whole of the control plane's state came between the attempt and the end of the snapshot of pods.
            (true, true, true),
            (true, false, false),
        ] {
            let holds = may_still_be_taken_over(is_synced, is_known);
            assert_eq!(holds, expected, "synced {is_synced}, known {is_known}");
        }
    }
}
