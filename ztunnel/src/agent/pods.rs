//! The pods that this node carries: opens their namespaces, listens in them, puts capture on and takes it off.
//!
//! One task owns all of it, so that a pod's steps never interleave. One pod's trouble is that pod's: it is reported and
//! tried again, and the others are served meanwhile.

mod command;
mod guests;
mod location;
mod managed;
mod parting;
mod pending;
mod set;
mod sweep;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use leyline_capture::{NodeCapture, PodCapture};
use leyline_net::NetNs;
use leyline_runtime::{Drain, ReadinessTask, spawn};
use leyline_telemetry::mesh;
use leyline_types::{WorkloadName, WorkloadUid};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::{Span, debug, info, warn};

pub(crate) use self::command::{Command, Order, Outcome};
use self::location::{Found, LOOK, Location};
use self::managed::Managed;
use self::parting::{Parting, drained};
use self::pending::{Pending, until};
pub(crate) use self::set::{PodSet, Pods, Waiting};
use crate::{
    config::{CaptureConfig, PodSource},
    proxy::{Extent, Listeners, Pod, Shared, listeners},
};

/// First pause before a failed pod is tried again; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(50);
/// Most of what a pod waits for (its namespace, its workload) comes by itself.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Commands that may wait for this task; the enrolment stream waits beyond that.
pub(crate) const COMMANDS: usize = 256;

/// Owner of all pods.
pub(crate) struct PodManager {
    shared: Arc<Shared>,
    config: CaptureConfig,
    /// None where others turn the connections to us.
    capture: Option<NodeCapture>,
    set: Arc<PodSet>,
    drain: Drain,
    /// None where each command is answered by itself.
    outcomes: Option<mpsc::Sender<Outcome>>,
    /// For what the manager's own tasks tell it.
    orders: mpsc::Sender<Order>,
    enrolled: HashMap<WorkloadUid, Managed>,
    /// Pods whose new connections go direct and whose old ones are still carried, by generation: a pod may come back
    /// before its earlier connections have ended.
    leaving: HashMap<u64, Managed>,
    pending: HashMap<WorkloadUid, Pending>,
    /// Uids named since the snapshot began.
    named: HashSet<WorkloadUid>,
    /// The process itself, where it is served like a pod.
    own: Option<Arc<Pod>>,
    generation: u64,
    /// The source of pods has named all of them, and each was tried.
    complete: bool,
    /// Ready once the first full set was carried out; what fails then is that pod's trouble.
    ready: ReadinessTask,
}

impl PodManager {
    pub(crate) fn new(
        shared: Arc<Shared>,
        config: CaptureConfig,
        capture: Option<NodeCapture>,
        drain: Drain,
        orders: mpsc::Sender<Order>,
        outcomes: Option<mpsc::Sender<Outcome>>,
        ready: ReadinessTask,
    ) -> Self {
        Self {
            shared,
            config,
            capture,
            set: Arc::default(),
            drain,
            outcomes,
            orders,
            enrolled: HashMap::new(),
            leaving: HashMap::new(),
            pending: HashMap::new(),
            named: HashSet::new(),
            own: None,
            generation: 0,
            complete: false,
            ready,
        }
    }

    /// Lets the process itself be shown, and its connections be checked, as those of its pods.
    pub(crate) fn set_own(&mut self, pod: Option<Arc<Pod>>) {
        self.own = pod;
        self.publish();
    }

    pub(crate) fn set(&self) -> Arc<PodSet> {
        self.set.clone()
    }

    /// Carries out commands until the process drains. Pods stay captured then: a ztunnel that follows takes over, and
    /// until it does they are refused rather than sent in plaintext.
    pub(crate) async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let drain = self.drain.clone();
        let mut draining = std::pin::pin!(drain.started());
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = self.shared.changed.subscribe();
        loop {
            let retry = self.pending.values().map(|pending| pending.at).min();
            tokio::select! {
                () = &mut draining => break,
                order = orders.recv() => match order {
                    Some(Order { command, answer }) => {
                        let result = self.carry_out(command).await;
                        self.publish();
                        if let Some(answer) = answer {
                            // Who asked may have lost the connection to its own asker.
                            answer.send(result).ok();
                        }
                    }
                    None => break,
                },
                () = until(retry) => self.retry().await,
                // The sender is in `shared`, which is ours.
                _ = told.changed(), if self.waits_for_workloads() => self.retry().await,
                _ = look.tick() => {
                    self.follow_replaced().await;
                    self.reroute_rest().await;
                }
            }
            self.settle();
            self.publish();
        }
    }

    fn waits_for_workloads(&self) -> bool {
        self.pending.values().any(|pending| pending.unknown)
    }

    /// A proxy that is ready lets the one before it go, so every pod that can be taken over must have been.
    fn settle(&self) {
        let mut pending = self.pending.values();
        if self.complete && !pending.any(|pending| pending.holds_readiness(&self.shared)) {
            self.ready.ready();
        }
    }

    async fn carry_out(&mut self, command: Command) -> Result<(), String> {
        debug!(?command, "enrolment");
        match command {
            // An earlier stream may have broken before it had named all.
            Command::SnapshotBegins => self.named.clear(),
            Command::Add {
                uid,
                name,
                netns,
                extent,
            } => {
                self.named.insert(uid.clone());
                // A new stream is told again what is known already.
                self.pending.remove(&uid);
                let pause = self.first_pause();
                return self.add(uid, name, netns, extent, pause).await;
            }
            Command::Keep { uid } => {
                self.named.insert(uid);
            }
            Command::Del { uid } => {
                self.named.remove(&uid);
                self.release(uid).await;
            }
            Command::SnapshotSent => self.end_snapshot().await,
            Command::SourceLost => {
                self.complete = false;
                self.ready.pending();
            }
            Command::Drained { generation } => self.remove(generation).await,
            Command::LinksChanged { generation } => self.reroute(generation).await,
        }
        Ok(())
    }

    /// What a pod of our own control plane waits for mostly comes at once; istio-cni tries again by itself too (ZDS-8).
    fn first_pause(&self) -> Duration {
        match self.config.source {
            PodSource::ControlPlane | PodSource::Dedicated(_) => RETRY_MIN,
            PodSource::Zds(_) => RETRY_MAX,
        }
    }

    /// Releases what the control plane no longer names.
    async fn end_snapshot(&mut self) {
        let known = self.enrolled.keys().chain(self.pending.keys());
        let gone: Vec<WorkloadUid> = known
            .filter(|uid| !self.named.contains(*uid))
            .cloned()
            .collect();
        for uid in gone {
            self.release(uid).await;
        }
        self.named.clear();
        self.sweep().await;
        self.complete = true;
    }

    fn managed(&self) -> impl Iterator<Item = &Managed> {
        self.enrolled.values().chain(self.leaving.values())
    }

    async fn add(
        &mut self,
        uid: WorkloadUid,
        name: WorkloadName,
        netns: Option<NetNs>,
        extent: Extent,
        pause: Duration,
    ) -> Result<(), String> {
        if let Some(managed) = self.enrolled.get(&uid) {
            if !managed.is_in(&name, netns.as_ref()) {
                self.leave(&uid);
            } else if managed.extent == extent {
                self.report(Outcome::Enrolled { uid }).await;
                return Ok(());
            }
            // Else the pod is captured anew while it is captured, so that there is no moment without.
        }
        // Looked at before the attempt: what comes during it is a change to be told of.
        let unknown = self.shared.workload_now(&name).is_none();
        let error = match self.enroll(&uid, &name, netns.as_ref(), &extent).await {
            Ok(former) => {
                info!(pod = %name, ?extent, "pod enrolled");
                if let Some(former) = former {
                    self.part(former);
                }
                mesh::workload_proxy_started();
                self.pending.remove(&uid);
                self.report(Outcome::Enrolled { uid }).await;
                return Ok(());
            }
            Err(error) => format!("{error:#}"),
        };
        let known = self.pending.get(&uid);
        if known.is_none_or(|pending| pending.error != error) {
            warn!(pod = %name, error, "pod cannot be enrolled yet");
            let (uid, error) = (uid.clone(), error.clone());
            self.report(Outcome::Failed { uid, error }).await;
        }
        let pending = Pending {
            name,
            netns,
            extent,
            pause,
            at: Instant::now() + pause,
            error: error.clone(),
            unknown,
        };
        self.pending.insert(uid, pending);
        Err(error)
    }

    /// Listeners first, then capture: from the first captured connection on there is somebody to take it. The pod is
    /// published before it accepts, so that no connection is admitted that a change of policy does not find. Gives back
    /// the same pod as it was captured before.
    async fn enroll(
        &mut self,
        uid: &WorkloadUid,
        name: &WorkloadName,
        given: Option<&NetNs>,
        extent: &Extent,
    ) -> anyhow::Result<Option<Managed>> {
        // istio-cni may name a pod before the control plane does; its connections wait for that (OUT-1).
        let workload = self.shared.workload_now(name);
        let (netns, location) = if let Some(netns) = given {
            (netns.clone(), Location::given(netns))
        } else {
            anyhow::ensure!(workload.is_some(), "its workload is not known yet");
            let path: PathBuf = self.config.pod_netns_dir.join(file_name(name));
            Location::open(path.clone())
                .with_context(|| format!("cannot open its network namespace {}", path.display()))?
        };
        let listeners = Listeners::open(&netns, &self.shared.config, extent)?;
        let addresses = workload
            .as_ref()
            .map(|workload| workload.addresses.to_vec());
        let capture = self
            .capture(&netns, addresses.unwrap_or_default(), &listeners, extent)
            .await?;
        if let Some(workload) = &workload {
            self.shared.certificates.prefetch(workload.identity.clone());
        }
        let pod = Pod::new(
            uid.clone(),
            name.clone(),
            netns,
            capture.clone(),
            self.shared.config.source_address,
            self.shared.clone(),
            self.drain.child(),
        );
        self.generation += 1;
        let managed = Managed {
            guests: self.watch_guests(&pod, extent),
            pod: pod.clone(),
            capture,
            location,
            extent: extent.clone(),
            generation: self.generation,
        };
        let former = self.enrolled.insert(uid.clone(), managed);
        self.publish();
        pod.serve(listeners);
        self.reroute(self.generation).await;
        Ok(former)
    }

    async fn capture(
        &self,
        netns: &NetNs,
        addresses: Vec<IpAddr>,
        listeners: &Listeners,
        extent: &Extent,
    ) -> anyhow::Result<Option<Arc<PodCapture>>> {
        let Some(capture) = &self.capture else {
            return Ok(None);
        };
        let Some(sockets) = listeners.sockets() else {
            return Ok(None);
        };
        let captured = capture
            .enroll(netns, addresses, sockets, extent.options())
            .await?;
        Ok(Some(Arc::new(captured)))
    }

    /// A pod that was made anew under the same name has another namespace, and nothing of it is captured.
    async fn follow_replaced(&mut self) {
        let replaced: Vec<(WorkloadUid, WorkloadName, Extent)> = self
            .enrolled
            .iter()
            .filter(|(_, managed)| managed.location.look() == Found::Other)
            .map(|(uid, managed)| {
                let (name, extent) = (managed.pod.name.clone(), managed.extent.clone());
                (uid.clone(), name, extent)
            })
            .collect();
        for (uid, name, extent) in replaced {
            info!(pod = %name, "pod has another network namespace");
            // An error is told and tried again.
            self.add(uid, name, None, extent, RETRY_MIN).await.ok();
        }
    }

    async fn release(&mut self, uid: WorkloadUid) {
        let waited = self.pending.remove(&uid).is_some();
        if self.enrolled.contains_key(&uid) {
            self.leave(&uid);
        } else if waited {
            // An earlier ztunnel may have captured it.
            self.sweep().await;
        }
        self.report(Outcome::Released { uid }).await;
    }

    /// New connections go direct from here on; those that are carried go on, and everything is removed once they ended,
    /// or once the pod is gone.
    fn leave(&mut self, uid: &WorkloadUid) {
        let Some(managed) = self.enrolled.remove(uid) else {
            return;
        };
        if let Some(capture) = &managed.capture
            && let Err(error) = capture.stop_new()
        {
            warn!(pod = %managed.pod.name, %error, "capture cannot be switched off");
        }
        let connections = managed.pod.connections.count();
        info!(pod = %managed.pod.name, connections, "pod released");
        self.part(managed);
    }

    /// The connections of a pod that takes no new ones go on.
    fn part(&mut self, mut managed: Managed) {
        managed.guests = None;
        let pod = &managed.pod;
        pod.set_draining();
        let parting = Parting::of(&self.config.source);
        if parting == Parting::Cut {
            pod.drain.start();
        }
        let (orders, generation) = (self.orders.clone(), managed.generation);
        let (carried, location) = (pod.drain.clone(), managed.location.clone());
        let process = self.drain.clone();
        spawn("pod release", Span::none(), &self.drain, async move {
            tokio::select! {
                () = drained(&carried, &location, parting) => {}
                // Nothing is removed then: the pod's connections end by the process's own deadline.
                () = process.started() => return,
            }
            // Fails only when the manager is gone, and then there is nothing to remove.
            orders
                .send(Command::Drained { generation }.into())
                .await
                .ok();
        });
        self.leaving.insert(generation, managed);
    }

    /// Removes what is left of a pod, unless it was enrolled again meanwhile.
    async fn remove(&mut self, generation: u64) {
        let Some(Managed { pod, capture, .. }) = self.leaving.remove(&generation) else {
            return;
        };
        mesh::workload_proxy_stopped();
        let cookie = pod.netns.cookie();
        if self
            .managed()
            .any(|other| other.pod.netns.cookie() == cookie)
        {
            return;
        }
        listeners::release(&pod.netns);
        let Some(capture) = capture else {
            return;
        };
        match capture.remove().await {
            Ok(()) => info!(pod = %pod.name, "pod's capture removed"),
            Err(error) => warn!(pod = %pod.name, %error, "pod's capture is not wholly removed"),
        }
    }

    /// Waits for room, but not beyond the begin of the drain: nobody may read any more.
    async fn report(&self, outcome: Outcome) {
        let Some(outcomes) = &self.outcomes else {
            return;
        };
        tokio::select! {
            // Fails only when the enrolment client is gone at shutdown.
            _ = outcomes.send(outcome) => {}
            () = self.drain.started() => {}
        }
    }

    fn publish(&self) {
        let waiting = self.pending.iter().map(|(uid, pending)| Waiting {
            uid: uid.clone(),
            name: pending.name.clone(),
            error: pending.error.clone(),
        });
        let pods = self.managed().map(|managed| managed.pod.clone());
        self.set.publish(Pods {
            served: pods.chain(self.own.clone()).collect(),
            waiting: waiting.collect(),
        });
        mesh::workload_proxies(self.enrolled.len() as u32, self.pending.len() as u32);
    }
}

/// The name of a pod's namespace in the directory of them.
fn file_name(name: &WorkloadName) -> String {
    format!("{}_{}", name.namespace, name.name)
}
