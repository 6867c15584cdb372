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
use leyline_types::WorkloadName;
use tokio::{sync::mpsc, time::timeout};
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use super::NewestStreams;
use crate::{
    clients::Clients,
    mesh::{Enrolment, Mesh, Published},
};

/// How long proxies may take to learn that a pod leaves; the edit itself is to arrive within a second.
const RELEASE_PATIENCE: Duration = Duration::from_secs(1);
/// The transport must take a command within this time.
const SEND_DEADLINE: Duration = Duration::from_secs(10);

/// Ends when every proxy knows that some pods leave, with their uids.
type Waiting = Pin<Box<dyn Future<Output = BTreeSet<String>> + Send>>;

/// The node is gone or does not read.
struct Gone;

pub(super) struct NodeStream {
    node: String,
    stream: u64,
    newest: NewestStreams,
    mesh: Arc<Mesh>,
    clients: Clients,
    commands: mpsc::Sender<Result<WorkloadRequest, Status>>,
    /// What the node was told to capture and not to release.
    told: BTreeMap<String, WorkloadName>,
}

impl NodeStream {
    pub(super) fn new(
        node: String,
        stream: u64,
        newest: NewestStreams,
        mesh: Arc<Mesh>,
        clients: Clients,
        commands: mpsc::Sender<Result<WorkloadRequest, Status>>,
    ) -> Self {
        Self {
            node,
            stream,
            newest,
            mesh,
            clients,
            commands,
            told: BTreeMap::new(),
        }
    }

    pub(super) async fn run(mut self, reports: Streaming<Report>, drain: Drain) {
        info!("node follows");
        if self.follow(reports, drain).await.is_err() {
            warn!("node does not take its commands");
        }
        info!("node no longer follows, its pods stay as they are");
    }

    async fn follow(&mut self, mut reports: Streaming<Report>, drain: Drain) -> Result<(), Gone> {
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
            self.mesh.set_enrolment(&uid, Enrolment::Released);
        }
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
                changed = published.changed() => if changed.is_err() {
                    return Ok(());
                },
                leaving = settled(&mut waiting) => {
                    waiting = None;
                    let latest = published.borrow().clone();
                    self.release(leaving, &latest).await?;
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
        for (uid, workload) in published
            .translation
            .wanted
            .get(&self.node)
            .into_iter()
            .flatten()
        {
            match self.told.get(uid) {
                Some(told) if told == workload => continue,
                // Another service account under the same name: another pod.
                Some(_) => self.release_one(uid).await?,
                None => {}
            }
            debug!(pod = %workload, "pod is to be captured");
            let info = WorkloadInfo {
                name: workload.name.to_string(),
                namespace: workload.namespace.to_string(),
                service_account: workload.service_account.to_string(),
            };
            self.send(Payload::Add(AddWorkload {
                uid: uid.clone(),
                workload_info: Some(info),
            }))
            .await?;
            self.told.insert(uid.clone(), workload.clone());
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
            .into_iter()
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
            leaving
        }))
    }

    async fn release(
        &mut self,
        leaving: BTreeSet<String>,
        published: &Published,
    ) -> Result<(), Gone> {
        let still = self.leaving(published);
        for uid in leaving.intersection(&still) {
            self.release_one(uid).await?;
        }
        Ok(())
    }

    async fn release_one(&mut self, uid: &str) -> Result<(), Gone> {
        debug!(uid, "pod is to be released");
        self.told.remove(uid);
        // From here on it must not be published as captured again until the node says so.
        self.mesh.set_enrolment(uid, Enrolment::Released);
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
        if !self.newest.is_newest(&self.node, self.stream) {
            debug!(uid, "outcome of a proxy that has been replaced");
            return;
        }
        let known = self.told.contains_key(&uid);
        if !error.is_empty() {
            warn!(uid, error, "node could not do as told");
            if known {
                self.mesh.set_enrolment(&uid, Enrolment::Failed(error));
            }
            return;
        }
        match State::try_from(state) {
            Ok(State::Enrolled) if known => {
                info!(uid, "pod is captured");
                self.mesh.set_enrolment(&uid, Enrolment::Captured);
            }
            Ok(State::Released) if self.is_ours(&uid) => {
                info!(uid, "pod is released");
                self.mesh.set_enrolment(&uid, Enrolment::Released);
            }
            Ok(State::Enrolled | State::Released) => {
                debug!(uid, "outcome for a pod that is not of this node")
            }
            Ok(State::Unspecified) | Err(_) => warn!(uid, state, "outcome without a state"),
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
async fn settled(waiting: &mut Option<Waiting>) -> BTreeSet<String> {
    match waiting {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
