//! One node's stream: what it was told and what is still to be told.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use leyline_proto::{
    istio::workload::zds::{
        AddWorkload, DelWorkload, SnapshotSent, WorkloadInfo, WorkloadRequest,
        workload_request::Payload,
    },
    leyline::enrolment::v1::{Outcome, Report, State, report},
};
use leyline_runtime::Drain;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use super::Entered;
use crate::{
    clients::Clients,
    mesh::{Enrolment, Mesh, Published},
    translate::WantedPod,
};

/// How long proxies may take to learn that a pod leaves; the edit itself is to arrive within a second.
const RELEASE_PATIENCE: Duration = Duration::from_secs(1);
/// The transport must take a command within this time.
const SEND_DEADLINE: Duration = Duration::from_secs(10);

/// Ends when every proxy knows that some pods leave, with their uids and the generation that it knows.
type Waiting = Pin<Box<dyn Future<Output = (BTreeSet<String>, u64)> + Send>>;

/// A reason as shown on the status page; a node could send megabytes.
const MAX_REASON_BYTES: usize = 2048;

fn bounded(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_REASON_BYTES));
    text
}

/// The node is gone or does not read.
struct Gone;

pub(super) struct NodeStream {
    node: String,
    stream: Entered,
    mesh: Arc<Mesh>,
    clients: Clients,
    commands: mpsc::Sender<Result<WorkloadRequest, Status>>,
    /// What the node was told to capture and not to release.
    told: BTreeMap<String, WantedPod>,
}

impl NodeStream {
    pub(super) fn new(
        node: String,
        stream: Entered,
        mesh: Arc<Mesh>,
        clients: Clients,
        commands: mpsc::Sender<Result<WorkloadRequest, Status>>,
    ) -> Self {
        Self {
            node,
            stream,
            mesh,
            clients,
            commands,
            told: BTreeMap::new(),
        }
    }

    pub(super) async fn run(mut self, reports: Streaming<Report>, drain: Drain, expiry: Instant) {
        info!("node follows");
        if self.follow(reports, drain, expiry).await.is_err() {
            warn!("node does not take its commands");
        }
        info!("node no longer follows, its pods stay as they are");
    }

    async fn follow(
        &mut self,
        mut reports: Streaming<Report>,
        drain: Drain,
        expiry: Instant,
    ) -> Result<(), Gone> {
        let mut published = self.mesh.subscribe();
        let mut waiting: Option<Waiting> = None;
        let latest = published.borrow_and_update().clone();
        self.add_wanted(&latest).await?;
        // What is not in the snapshot is released on it.
        let leaving = self.captured_and_unwanted(&latest);
        if !leaving.is_empty() {
            proxies_know(&self.clients, latest.generation).await;
        }
        self.send(Payload::SnapshotSent(SnapshotSent {})).await?;
        for uid in leaving {
            self.mesh.set_enrolment(&uid, Enrolment::Released(None));
        }
        let mut ended = self.stream.ended();
        loop {
            let latest = published.borrow_and_update().clone();
            self.add_wanted(&latest).await?;
            if waiting.is_none() {
                waiting = self.wait_for_proxies(&latest);
            }
            tokio::select! {
                () = drain.started() => return Ok(()),
                report = reports.message() => match report {
                    Ok(Some(report)) => self.heard(report),
                    Ok(None) | Err(_) => return Ok(()),
                },
                () = sleep_until(expiry) => {
                    // The proxy comes back with a token that is valid now; what it was told stays.
                    let expired = Status::unauthenticated("token has expired");
                    let _told = timeout(SEND_DEADLINE, self.commands.send(Err(expired))).await;
                    return Ok(());
                }
                // A newer stream has ended: this one may have to go on. The sender lives as long as this stream.
                _ = ended.changed() => {}
                changed = published.changed() => if changed.is_err() {
                    return Ok(());
                },
                (leaving, generation) = settled(&mut waiting) => {
                    waiting = None;
                    let latest = published.borrow().clone();
                    self.release(leaving, generation, &latest).await?;
                }
            }
        }
    }

    async fn send(&self, payload: Payload) -> Result<(), Gone> {
        let command = WorkloadRequest {
            payload: Some(payload),
        };
        match timeout(SEND_DEADLINE, self.commands.send(Ok(command))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }

    async fn add_wanted(&mut self, published: &Published) -> Result<(), Gone> {
        if !self.stream.is_newest() {
            return Ok(());
        }
        for (uid, pod) in published
            .translation
            .wanted
            .get(&self.node)
            .into_iter()
            .flatten()
        {
            // Another pod under the same name is told like a new one: the node finds that its namespace or its account is
            // another. Releasing it first would leave a moment without capture.
            if self.told.get(uid) == Some(pod) {
                continue;
            }
            let name = &pod.name;
            debug!(pod = %name, "pod is to be captured");
            let info = WorkloadInfo {
                name: name.name.to_string(),
                namespace: name.namespace.to_string(),
                service_account: name.service_account.to_string(),
            };
            self.send(Payload::Add(AddWorkload {
                uid: uid.clone(),
                workload_info: Some(info),
                exempt: Some(pod.exempt),
                reroute_interfaces: pod.reroute.iter().map(ToString::to_string).collect(),
            }))
            .await?;
            self.told.insert(uid.clone(), pod.clone());
        }
        Ok(())
    }

    fn captured_and_unwanted(&self, published: &Published) -> Vec<String> {
        let (captured, _) = self.mesh.enrolments();
        let ours = |uid: &String| {
            published
                .translation
                .pod_nodes
                .get(uid)
                .is_some_and(|node| *node == self.node)
        };
        captured
            .into_keys()
            .filter(|uid| ours(uid) && !self.told.contains_key(uid))
            .collect()
    }

    fn leaving(&self, published: &Published) -> BTreeSet<String> {
        let wanted = published.translation.wanted.get(&self.node);
        let stays = |uid: &&String| wanted.is_some_and(|wanted| wanted.contains_key(*uid));
        self.told
            .keys()
            .filter(|uid| !stays(uid))
            .cloned()
            .collect()
    }

    /// `published` already says that the leaving pods are not reachable over HBONE.
    fn wait_for_proxies(&self, published: &Published) -> Option<Waiting> {
        let leaving = self.leaving(published);
        if leaving.is_empty() {
            return None;
        }
        let (clients, generation) = (self.clients.clone(), published.generation);
        Some(Box::pin(async move {
            proxies_know(&clients, generation).await;
            (leaving, generation)
        }))
    }

    async fn release(
        &mut self,
        leaving: BTreeSet<String>,
        known: u64,
        published: &Published,
    ) -> Result<(), Gone> {
        let still = self.leaving(published);
        for uid in leaving.intersection(&still) {
            // It may have been wanted again in between, which the proxies learnt, too.
            let since = published.unwanted_since.get(uid);
            if since.is_none_or(|since| *since <= known) {
                self.release_one(uid).await?;
            }
        }
        Ok(())
    }

    async fn release_one(&mut self, uid: &str) -> Result<(), Gone> {
        debug!(uid, "pod is to be released");
        // From here on it must not be published as captured again until the node says so. A pod of that name that another
        // node captured meanwhile is not meant.
        if let Some(pod) = self.told.remove(uid) {
            self.mesh
                .set_enrolment(uid, Enrolment::Released(Some(pod.instance)));
        }
        self.send(Payload::Del(DelWorkload {
            uid: uid.to_owned(),
        }))
        .await
    }

    fn heard(&self, report: Report) {
        let Some(report::Kind::Outcome(Outcome { uid, error, state })) = report.kind else {
            debug!("report without an outcome");
            return;
        };
        if !self.stream.is_newest() {
            debug!(uid, "outcome of a proxy that has been replaced");
            return;
        }
        let told = self.told.get(&uid);
        if !error.is_empty() {
            warn!(uid, error, "node could not do as told");
            if told.is_some() {
                let error = bounded(error);
                self.mesh.set_enrolment(&uid, Enrolment::Failed(error));
            }
            return;
        }
        match (State::try_from(state), told) {
            (Ok(State::Enrolled), Some(pod)) => {
                info!(uid, "pod is captured");
                let captured = Enrolment::Captured(pod.instance.clone());
                self.mesh.set_enrolment(&uid, captured);
            }
            (Ok(State::Released), _) if self.is_ours(&uid) => {
                info!(uid, "pod is released");
                self.mesh.set_enrolment(&uid, Enrolment::Released(None));
            }
            (Ok(State::Enrolled | State::Released), _) => {
                debug!(uid, "outcome for a pod that is not of this node")
            }
            (Ok(State::Unspecified) | Err(_), _) => warn!(uid, state, "outcome without a state"),
        }
    }

    /// A node speaks for its own pods only.
    fn is_ours(&self, uid: &str) -> bool {
        let published = self.mesh.published();
        published
            .translation
            .pod_nodes
            .get(uid)
            .is_some_and(|node| *node == self.node)
    }
}

async fn proxies_know(clients: &Clients, generation: u64) {
    if timeout(RELEASE_PATIENCE, clients.acknowledged(generation))
        .await
        .is_err()
    {
        warn!("not every proxy has acknowledged in time that pods leave");
    }
}

/// The pods that may now be told to leave. Cancel safe: the future stays in its place.
async fn settled(waiting: &mut Option<Waiting>) -> (BTreeSet<String>, u64) {
    match waiting {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
