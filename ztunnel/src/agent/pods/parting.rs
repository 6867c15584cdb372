//! How the connections of a pod end that is not carried any more.

use std::time::Duration;

use leyline_runtime::{Drain, DrainOutcome};
use tokio::time::sleep;
use tracing::info;

use super::location::Location;
use crate::config::PodSource;

/// Connections of a pod that is no longer enrolled may take as long as they like; this only keeps the timer finite.
const RELEASE_DEADLINE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Connections that were on their way into a listener when capture was switched off are still accepted for this long,
/// and the last packets of those that ended still find their routes. A handshake takes a round trip.
const RELEASE_LINGER: Duration = Duration::from_secs(1);
/// For GOAWAY to reach the peers of a pod that is about to be gone.
const GOODBYE: Duration = Duration::from_millis(250);

/// What becomes of the connections of a pod that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parting {
    /// They go on until they end, or the pod is gone.
    Finish,
    /// istio-cni tells of it when the pod is gone or its rules are: peers are told, then all is cut.
    Cut,
}

impl Parting {
    pub(super) fn of(source: &PodSource) -> Self {
        match source {
            PodSource::ControlPlane | PodSource::Dedicated(_) => Self::Finish,
            PodSource::Zds(_) => Self::Cut,
        }
    }
}

/// Waits for the connections of a pod that leaves; those of one that is gone are cut.
pub(super) async fn drained(carried: &Drain, location: &Location, parting: Parting) {
    let in_order = async {
        if parting == Parting::Cut {
            return carried.run(GOODBYE).await;
        }
        sleep(RELEASE_LINGER).await;
        let outcome = carried.run(RELEASE_DEADLINE).await;
        sleep(RELEASE_LINGER).await;
        outcome
    };
    let outcome = tokio::select! {
        outcome = in_order => outcome,
        () = location.gone() => carried.run(Duration::ZERO).await,
    };
    if let DrainOutcome::Forced { tasks } = outcome {
        info!(tasks, "connections of a pod that is gone were cut");
    }
}
