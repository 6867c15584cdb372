//! Interfaces of pods behind which there are guests: watched, as they come and go while the pod runs, and attached to by
//! the manager, so that it does not interleave with other steps of the pod.

use std::{sync::Arc, time::Duration};

use leyline_capture::{PodCapture, Unreached, WhyUnreached};
use leyline_net::{LinkEvents, NetNs};
use leyline_runtime::{Drain, spawn};
use leyline_telemetry::mesh;
use leyline_types::WorkloadName;
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};
use tracing::{Span, info, warn};

use super::{Command, Order, PodManager};
use crate::proxy::{Extent, Pod};

/// Between two looks at a pod whose interfaces change without end.
const PAUSE: Duration = Duration::from_millis(50);

/// What is known of the interfaces of a pod's guests. The pod is not watched any more when it is dropped.
#[derive(Debug)]
pub(super) struct Guests {
    _watched: oneshot::Sender<()>,
    unreached: Vec<Unreached>,
}

impl Guests {
    /// Begins to watch the pod; `generation` names it to the manager.
    pub(super) fn watch(
        name: &WorkloadName,
        netns: &NetNs,
        generation: u64,
        orders: mpsc::Sender<Order>,
        drain: &Drain,
    ) -> Self {
        let (watched, ended) = oneshot::channel();
        match LinkEvents::open(netns) {
            Ok(events) => {
                let watch = watch(events, generation, orders, ended, drain.clone());
                spawn("interfaces of guests", Span::none(), drain, watch);
            }
            // The manager looks by itself at those that are missing.
            Err(error) => {
                warn!(pod = %name, %error, "a pod's interfaces cannot be watched; one that is made anew is not captured");
            }
        }
        Self {
            _watched: watched,
            unreached: Vec::new(),
        }
    }

    /// Tells what has changed, once.
    fn update(&mut self, pod: &WorkloadName, now: Vec<Unreached>) {
        for one in now.iter().filter(|one| !self.unreached.contains(one)) {
            mesh::guest_interface_not_captured();
            let why = match &one.why {
                WhyUnreached::Missing => "the pod has no interface of this name yet",
                WhyUnreached::Failed(error) => error,
            };
            warn!(%pod, interface = %one.interface, why, "guests by this interface are not captured: what they send is forwarded past the mesh");
        }
        let is_in = |all: &[Unreached], one: &Unreached| {
            all.iter().any(|other| other.interface == one.interface)
        };
        for one in self.unreached.iter().filter(|one| !is_in(&now, one)) {
            info!(%pod, interface = %one.interface, "guests by this interface are captured");
        }
        self.unreached = now;
    }
}

async fn watch(
    events: LinkEvents,
    generation: u64,
    orders: mpsc::Sender<Order>,
    mut ended: oneshot::Receiver<()>,
    drain: Drain,
) {
    let mut draining = std::pin::pin!(drain.started());
    loop {
        tokio::select! {
            changed = events.changed() => if changed.is_err() {
                return;
            },
            // Never sent, only dropped.
            _ended = &mut ended => return,
            () = &mut draining => return,
        }
        // Fails only when the manager is gone.
        if orders
            .send(Command::LinksChanged { generation }.into())
            .await
            .is_err()
        {
            return;
        }
        sleep(PAUSE).await;
    }
}

impl PodManager {
    /// Begins to watch the interfaces of the pod that is about to be enrolled, if it names any.
    pub(super) fn watch_guests(&self, pod: &Pod, extent: &Extent) -> Option<Guests> {
        if extent.guests.is_empty() || pod.capture.is_none() {
            return None;
        }
        let (generation, orders) = (self.generation, self.orders.clone());
        let guests = Guests::watch(&pod.name, &pod.netns, generation, orders, &self.drain);
        Some(guests)
    }

    /// The interfaces of a pod have changed.
    pub(super) async fn reroute(&mut self, generation: u64) {
        let mut all = self.enrolled.values_mut();
        let Some(managed) = all.find(|managed| managed.generation == generation) else {
            // An earlier life of a pod.
            return;
        };
        let (Some(capture), Some(guests)) = (&managed.capture, &mut managed.guests) else {
            return;
        };
        let unreached = look(&managed.pod.name, capture).await;
        if let Some(unreached) = unreached {
            guests.update(&managed.pod.name, unreached);
        }
    }

    /// Looks again at what could not be captured.
    pub(super) async fn reroute_rest(&mut self) {
        let rest: Vec<u64> = self
            .enrolled
            .values()
            .filter(|managed| {
                let guests = managed.guests.as_ref();
                guests.is_some_and(|guests| !guests.unreached.is_empty())
            })
            .map(|managed| managed.generation)
            .collect();
        for generation in rest {
            self.reroute(generation).await;
        }
    }
}

async fn look(pod: &WorkloadName, capture: &Arc<PodCapture>) -> Option<Vec<Unreached>> {
    match capture.reroute().await {
        Ok(unreached) => Some(unreached),
        Err(error) => {
            warn!(%pod, %error, "the interfaces of a pod's guests cannot be captured");
            None
        }
    }
}
