//! The pods that this node carries: opens their namespaces, listens in them, puts capture on and takes it off.
//!
//! One task owns all of it, so that a pod's steps never interleave. One pod's trouble is that pod's: it is reported and
//! tried again, and the others are served meanwhile.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use leyline_capture::{NodeCapture, PodCapture, PodOptions, PodSockets};
use leyline_net::NetNs;
use leyline_runtime::{Drain, DrainOutcome, ReadinessTask, spawn};
use leyline_telemetry::mesh;
use leyline_types::{WorkloadName, WorkloadUid};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tracing::{Span, debug, info, warn};

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
    /// The connections of an earlier instance of a pod have ended.
    Drained {
        uid: WorkloadUid,
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

/// Pods as the rest of the process sees them.
#[derive(Debug, Default)]
pub(crate) struct PodSet(ArcSwap<HashMap<WorkloadUid, Arc<Pod>>>);

impl PodSet {
    pub(crate) fn all(&self) -> Arc<HashMap<WorkloadUid, Arc<Pod>>> {
        self.0.load_full()
    }
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
    pods: HashMap<WorkloadUid, Managed>,
    /// Uids named since the last snapshot began.
    named: Vec<WorkloadUid>,
    pending: HashMap<WorkloadUid, Pending>,
    generation: u64,
    /// Ready once the first full set was carried out; what fails then is that pod's trouble.
    ready: ReadinessTask,
}

struct Managed {
    pod: Arc<Pod>,
    capture: Arc<PodCapture>,
    generation: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Enrolled,
    /// New connections go direct; old ones are still carried.
    Releasing,
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
            pods: HashMap::new(),
            named: Vec::new(),
            pending: HashMap::new(),
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
        loop {
            let retry = self.pending.values().map(|pending| pending.at).min();
            tokio::select! {
                () = &mut draining => break,
                command = commands.recv() => match command {
                    Some(command) => self.carry_out(command).await,
                    None => break,
                },
                () = until(retry) => self.retry().await,
            }
            self.publish();
        }
    }

    async fn carry_out(&mut self, command: Command) {
        debug!(?command, "enrolment");
        match command {
            Command::Add { uid, name } => {
                self.named.push(uid.clone());
                self.add(uid, name, RETRY_MIN).await;
            }
            Command::Keep { uid } => self.named.push(uid),
            Command::Del { uid } => self.release(uid).await,
            Command::SnapshotSent => self.end_snapshot().await,
            Command::Drained { uid, generation } => self.remove(&uid, generation).await,
        }
    }

    /// Releases what the control plane no longer names.
    async fn end_snapshot(&mut self) {
        let named = std::mem::take(&mut self.named);
        let gone: Vec<WorkloadUid> = self
            .pods
            .keys()
            .chain(self.pending.keys())
            .filter(|uid| !named.contains(uid))
            .cloned()
            .collect();
        for uid in gone {
            self.release(uid).await;
        }
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
        let carried = self.pods.values().map(|managed| &managed.pod.name);
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

    async fn add(&mut self, uid: WorkloadUid, name: WorkloadName, pause: Duration) {
        if let Some(managed) = self.pods.get(&uid)
            && managed.state == State::Enrolled
        {
            self.report(Outcome::Enrolled { uid }).await;
            return;
        }
        match self.enroll(&uid, &name).await {
            Ok(managed) => {
                info!(pod = %name, "pod enrolled");
                mesh::workload_proxy_started();
                self.pending.remove(&uid);
                self.pods.insert(uid.clone(), managed);
                self.publish();
                self.report(Outcome::Enrolled { uid }).await;
            }
            Err(error) => {
                let error = format!("{error:#}");
                let known = self
                    .pending
                    .get(&uid)
                    .is_some_and(|pending| pending.error == error);
                if !known {
                    warn!(pod = %name, error, "pod cannot be enrolled yet");
                    self.report(Outcome::Failed {
                        uid: uid.clone(),
                        error: error.clone(),
                    })
                    .await;
                }
                let at = Instant::now() + pause;
                self.pending.insert(
                    uid,
                    Pending {
                        name,
                        pause,
                        at,
                        error,
                    },
                );
            }
        }
    }

    /// Listeners first, capture last: from the first captured connection on there is somebody to take it.
    async fn enroll(&mut self, uid: &WorkloadUid, name: &WorkloadName) -> anyhow::Result<Managed> {
        use anyhow::Context;

        let workload = self
            .shared
            .workload_now(name)
            .context("its workload is not known yet")?;
        let path = self.config.pod_netns_dir.join(file_name(name));
        let netns = NetNs::open(&path)
            .with_context(|| format!("cannot open its network namespace {}", path.display()))?;
        let listeners = Listeners::open(&netns, &self.shared.config)?;
        let sockets = PodSockets {
            outbound: listeners.outbound_fd(),
            inbound: listeners.inbound_fd(),
            hbone: listeners.hbone_fd(),
            dns_udp: None,
            dns_tcp: None,
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
        pod.serve(listeners);
        self.generation += 1;
        Ok(Managed {
            pod,
            capture,
            generation: self.generation,
            state: State::Enrolled,
        })
    }

    /// New connections go direct from here on; those that are carried go on, and everything is removed once they ended.
    async fn release(&mut self, uid: WorkloadUid) {
        self.pending.remove(&uid);
        let Some(managed) = self.pods.get_mut(&uid) else {
            self.report(Outcome::Released { uid }).await;
            return;
        };
        if managed.state == State::Enrolled {
            managed.state = State::Releasing;
            managed.pod.set_draining();
            if let Err(error) = managed.capture.stop_new() {
                warn!(pod = %managed.pod.name, %error, "capture cannot be switched off");
            }
            info!(pod = %managed.pod.name, connections = managed.pod.connections.count(), "pod released");
            let (commands, generation) = (self.commands.clone(), managed.generation);
            let (drain, told) = (managed.pod.drain.clone(), uid.clone());
            spawn("pod release", Span::none(), &self.drain, async move {
                sleep(RELEASE_LINGER).await;
                if let DrainOutcome::Forced { tasks } = drain.run(RELEASE_DEADLINE).await {
                    warn!(uid = %told, tasks, "connections of a released pod were cut");
                }
                sleep(RELEASE_LINGER).await;
                // Fails only when the manager is gone, and then there is nothing to remove.
                commands
                    .send(Command::Drained {
                        uid: told,
                        generation,
                    })
                    .await
                    .ok();
            });
        }
        self.report(Outcome::Released { uid }).await;
    }

    /// Removes what is left of a released pod, unless it was enrolled again meanwhile.
    async fn remove(&mut self, uid: &WorkloadUid, generation: u64) {
        if self
            .pods
            .get(uid)
            .is_none_or(|managed| managed.generation != generation)
        {
            return;
        }
        let Some(Managed { pod, capture, .. }) = self.pods.remove(uid) else {
            return;
        };
        mesh::workload_proxy_stopped();
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
                (
                    uid.clone(),
                    pending.name.clone(),
                    (pending.pause * 2).min(RETRY_MAX),
                )
            })
            .collect();
        for (uid, name, pause) in due {
            self.add(uid, name, pause).await;
        }
    }

    async fn report(&self, outcome: Outcome) {
        // Fails only when the enrolment client is gone at shutdown.
        self.outcomes.send(outcome).await.ok();
    }

    fn publish(&self) {
        let pods = self
            .pods
            .iter()
            .map(|(uid, managed)| (uid.clone(), managed.pod.clone()));
        self.set.0.store(Arc::new(pods.collect()));
        mesh::workload_proxies(self.pods.len() as u32, self.pending.len() as u32);
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
