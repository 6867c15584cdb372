//! The pods that this node carries: opens their namespaces, listens in them, puts capture on and takes it off.
//!
//! One task owns all of it, so that a pod's steps never interleave. One pod's trouble is that pod's: it is reported and
//! tried again, and the others are served meanwhile.

mod location;
mod set;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use leyline_capture::{NodeCapture, PodCapture, PodOptions, PodSockets};
use leyline_net::NetNs;
use leyline_runtime::{Drain, DrainOutcome, ReadinessTask, spawn};
use leyline_telemetry::mesh;
use leyline_types::{WorkloadName, WorkloadUid};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tracing::{Span, debug, info, warn};

use self::location::{Found, LOOK, Location};
pub(crate) use self::set::{PodSet, Pods, Waiting};
use crate::{
    config::CaptureConfig,
    proxy::{Listeners, Pod, Shared},
};

/// First pause before a failed pod is tried again; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(50);
/// Most of what a pod waits for (its namespace, its workload) comes by itself.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Connections of a pod that is no longer enrolled may take as long as they like; this only keeps the timer finite.
const RELEASE_DEADLINE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Connections that were on their way into a listener when capture was switched off are still accepted for this long,
/// and the last packets of those that ended still find their routes. A handshake takes a round trip.
const RELEASE_LINGER: Duration = Duration::from_secs(1);
/// Commands that may wait for this task; the enrolment stream waits beyond that.
pub(crate) const COMMANDS: usize = 256;

/// What the node is told to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// A stream has begun: from here to [`Self::SnapshotSent`] all pods of the node are named.
    SnapshotBegins,
    Add {
        uid: WorkloadUid,
        name: WorkloadName,
    },
    Keep {
        uid: WorkloadUid,
    },
    Del {
        uid: WorkloadUid,
    },
    /// All pods of the node were named since the stream began.
    SnapshotSent,
    /// The connections of a pod that left have ended.
    Drained {
        generation: u64,
    },
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Enrolled { uid: WorkloadUid },
    Released { uid: WorkloadUid },
    Failed { uid: WorkloadUid, error: String },
}

/// Owner of all pods.
pub(crate) struct PodManager {
    shared: Arc<Shared>,
    config: CaptureConfig,
    capture: NodeCapture,
    set: Arc<PodSet>,
    drain: Drain,
    outcomes: mpsc::Sender<Outcome>,
    /// For what the manager's own tasks tell it.
    commands: mpsc::Sender<Command>,
    enrolled: HashMap<WorkloadUid, Managed>,
    /// Pods whose new connections go direct and whose old ones are still carried, by generation: a pod may come back
    /// before its earlier connections have ended.
    leaving: HashMap<u64, Managed>,
    pending: HashMap<WorkloadUid, Pending>,
    /// Uids named since the snapshot began.
    named: HashSet<WorkloadUid>,
    generation: u64,
    /// Ready once the first full set was carried out; what fails then is that pod's trouble.
    ready: ReadinessTask,
}

struct Managed {
    pod: Arc<Pod>,
    capture: Arc<PodCapture>,
    location: Location,
    generation: u64,
}

/// A pod that could not be enrolled yet.
struct Pending {
    name: WorkloadName,
    pause: Duration,
    at: Instant,
    error: String,
}

impl PodManager {
    pub(crate) fn new(
        shared: Arc<Shared>,
        config: CaptureConfig,
        capture: NodeCapture,
        drain: Drain,
        commands: mpsc::Sender<Command>,
        outcomes: mpsc::Sender<Outcome>,
        ready: ReadinessTask,
    ) -> Self {
        Self {
            shared,
            config,
            capture,
            set: Arc::default(),
            drain,
            outcomes,
            commands,
            enrolled: HashMap::new(),
            leaving: HashMap::new(),
            pending: HashMap::new(),
            named: HashSet::new(),
            generation: 0,
            ready,
        }
    }

    pub(crate) fn set(&self) -> Arc<PodSet> {
        self.set.clone()
    }

    /// Carries out commands until the process drains. Pods stay captured then: a ztunnel that follows takes over, and
    /// until it does they are refused rather than sent in plaintext.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let drain = self.drain.clone();
        let mut draining = std::pin::pin!(drain.started());
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let retry = self.pending.values().map(|pending| pending.at).min();
            tokio::select! {
                () = &mut draining => break,
                command = commands.recv() => match command {
                    Some(command) => self.carry_out(command).await,
                    None => break,
                },
                () = until(retry) => self.retry().await,
                _ = look.tick() => self.follow_replaced().await,
            }
            self.publish();
        }
    }

    async fn carry_out(&mut self, command: Command) {
        debug!(?command, "enrolment");
        match command {
            // An earlier stream may have broken before it had named all.
            Command::SnapshotBegins => self.named.clear(),
            Command::Add { uid, name } => {
                self.named.insert(uid.clone());
                // A new stream is told again what is known already.
                self.pending.remove(&uid);
                self.add(uid, name, RETRY_MIN).await;
            }
            Command::Keep { uid } => {
                self.named.insert(uid);
            }
            Command::Del { uid } => self.release(uid).await,
            Command::SnapshotSent => self.end_snapshot().await,
            Command::Drained { generation } => self.remove(generation).await,
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
        self.ready.ready();
    }

    /// Takes capture off pods that an earlier ztunnel captured and that are gone or no longer wanted.
    async fn sweep(&self) {
        match self.capture.collect_garbage() {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => info!(pods = gone.len(), "removed capture of pods that are gone"),
            Err(error) => warn!(%error, "cannot remove capture of pods that are gone"),
        }
        let pinned = match self.capture.pinned_pods() {
            Ok(pinned) => pinned,
            Err(error) => return warn!(%error, "cannot list captured pods"),
        };
        for netns in self.unwanted_namespaces() {
            if !pinned.contains(&netns.cookie()) {
                continue;
            }
            match self.capture.release(&netns).await {
                Ok(()) => info!(
                    cookie = netns.cookie(),
                    "released a pod that is no longer enrolled"
                ),
                Err(error) => warn!(%error, "cannot release a pod that is no longer enrolled"),
            }
        }
    }

    /// Namespaces of pods of the node that are neither carried nor about to be: a pod that cannot be enrolled yet stays
    /// captured as an earlier ztunnel left it, and so is refused rather than sent in plaintext.
    fn unwanted_namespaces(&self) -> Vec<NetNs> {
        let entries = match std::fs::read_dir(&self.config.pod_netns_dir) {
            Ok(entries) => entries,
            Err(error) => {
                warn!(%error, dir = %self.config.pod_netns_dir.display(), "cannot list pod namespaces");
                return Vec::new();
            }
        };
        let carried = self.managed().map(|managed| &managed.pod.name);
        let pending = self.pending.values().map(|pending| &pending.name);
        let wanted: HashSet<String> = carried.chain(pending).map(file_name).collect();
        entries
            .flatten()
            .filter(|entry| {
                !entry
                    .file_name()
                    .to_str()
                    .is_some_and(|name| wanted.contains(name))
            })
            .filter_map(|entry| NetNs::open(&entry.path()).ok())
            .collect()
    }

    fn managed(&self) -> impl Iterator<Item = &Managed> {
        self.enrolled.values().chain(self.leaving.values())
    }

    async fn add(&mut self, uid: WorkloadUid, name: WorkloadName, pause: Duration) {
        if let Some(managed) = self.enrolled.get(&uid) {
            if managed.pod.name == name && managed.location.look() != Found::Other {
                return self.report(Outcome::Enrolled { uid }).await;
            }
            self.leave(&uid);
        }
        match self.enroll(&uid, &name).await {
            Ok(()) => {
                info!(pod = %name, "pod enrolled");
                mesh::workload_proxy_started();
                self.pending.remove(&uid);
                self.report(Outcome::Enrolled { uid }).await;
            }
            Err(error) => {
                let error = format!("{error:#}");
                let known = self.pending.get(&uid);
                if known.is_none_or(|pending| pending.error != error) {
                    warn!(pod = %name, error, "pod cannot be enrolled yet");
                    let (uid, error) = (uid.clone(), error.clone());
                    self.report(Outcome::Failed { uid, error }).await;
                }
                let pending = Pending {
                    name,
                    pause,
                    at: Instant::now() + pause,
                    error,
                };
                self.pending.insert(uid, pending);
            }
        }
    }

    /// Listeners first, then capture: from the first captured connection on there is somebody to take it. The pod is
    /// published before it accepts, so that no connection is admitted that a change of policy does not find.
    async fn enroll(&mut self, uid: &WorkloadUid, name: &WorkloadName) -> anyhow::Result<()> {
        let workload = self
            .shared
            .workload_now(name)
            .context("its workload is not known yet")?;
        let path: PathBuf = self.config.pod_netns_dir.join(file_name(name));
        let (netns, location) = Location::open(path.clone())
            .with_context(|| format!("cannot open its network namespace {}", path.display()))?;
        let listeners = Listeners::open(&netns, &self.shared.config)?;
        let sockets = PodSockets {
            outbound: listeners.outbound_fd(),
            inbound: listeners.inbound_fd(),
            hbone: listeners.hbone_fd(),
            dns_udp: listeners.dns_udp_fd(),
            dns_tcp: listeners.dns_tcp_fd(),
        };
        let addresses = workload.addresses.to_vec();
        let capture = self
            .capture
            .enroll(&netns, addresses, sockets, PodOptions::default())
            .await?;
        let capture = Arc::new(capture);
        self.shared.certificates.prefetch(workload.identity.clone());
        let pod = Pod::new(
            uid.clone(),
            name.clone(),
            netns,
            capture.clone(),
            self.shared.clone(),
            self.drain.child(),
        );
        self.generation += 1;
        let managed = Managed {
            pod: pod.clone(),
            capture,
            location,
            generation: self.generation,
        };
        self.enrolled.insert(uid.clone(), managed);
        self.publish();
        pod.serve(listeners);
        Ok(())
    }

    /// A pod that was made anew under the same name has another namespace, and nothing of it is captured.
    async fn follow_replaced(&mut self) {
        let replaced: Vec<(WorkloadUid, WorkloadName)> = self
            .enrolled
            .iter()
            .filter(|(_, managed)| managed.location.look() == Found::Other)
            .map(|(uid, managed)| (uid.clone(), managed.pod.name.clone()))
            .collect();
        for (uid, name) in replaced {
            info!(pod = %name, "pod has another network namespace");
            self.add(uid, name, RETRY_MIN).await;
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
        let pod = &managed.pod;
        pod.set_draining();
        if let Err(error) = managed.capture.stop_new() {
            warn!(pod = %pod.name, %error, "capture cannot be switched off");
        }
        info!(pod = %pod.name, connections = pod.connections.count(), "pod released");
        let (commands, generation) = (self.commands.clone(), managed.generation);
        let (carried, location) = (pod.drain.clone(), managed.location.clone());
        let process = self.drain.clone();
        spawn("pod release", Span::none(), &self.drain, async move {
            tokio::select! {
                () = drained(&carried, &location) => {}
                // Nothing is removed then: the pod's connections end by the process's own deadline.
                () = process.started() => return,
            }
            // Fails only when the manager is gone, and then there is nothing to remove.
            commands.send(Command::Drained { generation }).await.ok();
        });
        self.leaving.insert(generation, managed);
    }

    /// Removes what is left of a pod, unless it was enrolled again meanwhile.
    async fn remove(&mut self, generation: u64) {
        let Some(Managed { pod, capture, .. }) = self.leaving.remove(&generation) else {
            return;
        };
        mesh::workload_proxy_stopped();
        let cookie = capture.cookie();
        if self.managed().any(|other| other.capture.cookie() == cookie) {
            return;
        }
        match capture.remove().await {
            Ok(()) => info!(pod = %pod.name, "pod's capture removed"),
            Err(error) => warn!(pod = %pod.name, %error, "pod's capture is not wholly removed"),
        }
    }

    async fn retry(&mut self) {
        let now = Instant::now();
        let due: Vec<(WorkloadUid, WorkloadName, Duration)> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.at <= now)
            .map(|(uid, pending)| {
                let pause = (pending.pause * 2).min(RETRY_MAX);
                (uid.clone(), pending.name.clone(), pause)
            })
            .collect();
        for (uid, name, pause) in due {
            self.add(uid, name, pause).await;
        }
    }

    /// Waits for room, but not beyond the begin of the drain: nobody may read any more.
    async fn report(&self, outcome: Outcome) {
        tokio::select! {
            // Fails only when the enrolment client is gone at shutdown.
            _ = self.outcomes.send(outcome) => {}
            () = self.drain.started() => {}
        }
    }

    fn publish(&self) {
        let waiting = self.pending.iter().map(|(uid, pending)| Waiting {
            uid: uid.clone(),
            name: pending.name.clone(),
            error: pending.error.clone(),
        });
        self.set.publish(Pods {
            served: self.managed().map(|managed| managed.pod.clone()).collect(),
            waiting: waiting.collect(),
        });
        mesh::workload_proxies(self.enrolled.len() as u32, self.pending.len() as u32);
    }
}

/// Waits for the connections of a pod that leaves; those of one that is gone are cut.
async fn drained(carried: &Drain, location: &Location) {
    let in_order = async {
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

/// The name of a pod's namespace in the directory of them.
fn file_name(name: &WorkloadName) -> String {
    format!("{}_{}", name.namespace, name.name)
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
