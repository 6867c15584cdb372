//! The state of the mesh as it is published: objects and enrolment in, resources out, one generation after the other.
//!
//! Changes only mark the state as dirty; one task recomputes, so that a thousand changes at once cost a few
//! recomputations. Subscribers see the latest generation and never a queue of them.

mod stored;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use leyline_runtime::Drain;
use leyline_types::Identity;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::{
    objects::{GoodDocument, Issue, Loaded, Objects, Severity},
    state_dir::StateDir,
    translate::{MeshSettings, Translation, pods_on_node_with, translate},
};
use stored::Stored;

/// Which pods were captured: without it, a restarted control plane would publish captured pods as reachable in plaintext
/// until their nodes have reported again.
const ENROLLED_FILE: &str = "enrolled.json";
/// The last good version of each document: without it, a restart would drop the policy in a document that is broken just
/// then.
const DOCUMENTS_FILE: &str = "last-good.json";

/// What an earlier process knew to be good; nothing if that cannot be read.
pub(crate) fn last_good_documents(state_dir: &StateDir) -> Vec<GoodDocument> {
    let stored: Stored<Vec<GoodDocument>> = Stored::new(DOCUMENTS_FILE, state_dir.clone());
    stored.load()
}

/// One state of the mesh.
#[derive(Debug)]
pub(crate) struct Published {
    /// Counts up.
    pub(crate) generation: u64,
    pub(crate) objects: Arc<Objects>,
    pub(crate) translation: Translation,
    /// Of reading and of translating.
    pub(crate) issues: BTreeSet<Issue>,
}

impl Published {
    /// Whether a live pod on the node has this namespace and service account.
    pub(crate) fn runs_on(&self, node: &str, identity: &Identity) -> bool {
        pods_on_node_with(&self.objects, node, identity)
    }
}

/// What a node said about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Enrolment {
    Captured,
    Released,
    /// Tried and not done, with the reason; what was known before stays.
    Failed(String),
}

struct State {
    loaded: Loaded,
    enrolled: BTreeSet<String>,
    failures: BTreeMap<String, String>,
}

/// The mesh.
pub(crate) struct Mesh {
    settings: MeshSettings,
    state: Mutex<State>,
    dirty: Notify,
    published: watch::Sender<Arc<Published>>,
    enrolled_file: Stored<BTreeSet<String>>,
    documents_file: Stored<Arc<[GoodDocument]>>,
}

impl Mesh {
    /// Publishes a first generation at once.
    pub(crate) fn new(settings: MeshSettings, loaded: Loaded, state_dir: &StateDir) -> Self {
        let enrolled_file = Stored::new(ENROLLED_FILE, state_dir.clone());
        let enrolled = enrolled_file.load();
        let documents_file = Stored::new(DOCUMENTS_FILE, state_dir.clone());
        documents_file.store(&loaded.documents);
        let first = compute(1, &settings, &loaded, &enrolled);
        report(&BTreeSet::new(), &first.issues);
        Self {
            settings,
            state: Mutex::new(State {
                loaded,
                enrolled,
                failures: BTreeMap::new(),
            }),
            dirty: Notify::new(),
            published: watch::Sender::new(Arc::new(first)),
            enrolled_file,
            documents_file,
        }
    }

    pub(crate) fn settings(&self) -> &MeshSettings {
        &self.settings
    }

    /// The latest generation.
    pub(crate) fn published(&self) -> Arc<Published> {
        self.published.borrow().clone()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Published>> {
        self.published.subscribe()
    }

    /// Takes a new reading of the objects.
    pub(crate) fn set_objects(&self, loaded: Loaded) {
        self.state.lock().loaded = loaded;
        self.dirty.notify_one();
    }

    /// Takes what a node said.
    pub(crate) fn set_enrolment(&self, uid: &str, enrolment: Enrolment) {
        let mut state = self.state.lock();
        let changed = match enrolment {
            Enrolment::Captured => {
                state.failures.remove(uid);
                state.enrolled.insert(uid.to_owned())
            }
            Enrolment::Released => {
                state.failures.remove(uid);
                state.enrolled.remove(uid)
            }
            Enrolment::Failed(reason) => {
                state.failures.insert(uid.to_owned(), reason);
                false
            }
        };
        drop(state);
        if changed {
            self.dirty.notify_one();
        }
    }

    /// Uids of captured pods, and why others could not be.
    pub(crate) fn enrolments(&self) -> (BTreeSet<String>, BTreeMap<String, String>) {
        let state = self.state.lock();
        (state.enrolled.clone(), state.failures.clone())
    }

    /// Recomputes and publishes until the drain starts.
    pub(crate) async fn run(self: Arc<Self>, drain: Drain) {
        loop {
            tokio::select! {
                () = drain.started() => return,
                () = self.dirty.notified() => {}
            }
            let mesh = Arc::clone(&self);
            // Milliseconds of computing for a large mesh, which must not hold up the streams.
            if let Err(error) = tokio::task::spawn_blocking(move || mesh.publish()).await {
                warn!(%error, "computing the mesh was cut, the last state stays in force");
            }
        }
    }

    fn publish(&self) {
        let before = self.published();
        let (loaded, enrolled) = {
            let state = self.state.lock();
            (state.loaded.clone(), state.enrolled.clone())
        };
        let next = compute(before.generation + 1, &self.settings, &loaded, &enrolled);
        report(&before.issues, &next.issues);
        metrics::gauge!("leyline_controlplane_issues")
            .set(u32::try_from(next.issues.len()).unwrap_or(u32::MAX));
        let live = self.forget_gone(&next.translation.pod_nodes);
        self.published.send_replace(Arc::new(next));
        self.enrolled_file.store(&live);
        self.documents_file.store(&loaded.documents);
    }

    /// Drops what is known of pods that are gone; a later pod of the same name starts anew.
    fn forget_gone(&self, pods: &BTreeMap<String, String>) -> BTreeSet<String> {
        let mut state = self.state.lock();
        state.enrolled.retain(|uid| pods.contains_key(uid));
        state.failures.retain(|uid, _| pods.contains_key(uid));
        state.enrolled.clone()
    }
}

fn compute(
    generation: u64,
    settings: &MeshSettings,
    loaded: &Loaded,
    enrolled: &BTreeSet<String>,
) -> Published {
    let translation = translate(&loaded.objects, enrolled, settings);
    let mut issues: BTreeSet<Issue> = loaded.issues.iter().cloned().collect();
    issues.extend(translation.advice.iter().filter_map(|advice| {
        let origin = loaded.origins.get(&advice.object)?;
        Some(origin.warning(&advice.field, advice.reason.clone()))
    }));
    Published {
        generation,
        objects: Arc::clone(&loaded.objects),
        translation,
        issues,
    }
}

/// Each issue is logged once, when it appears, and once more when it is gone.
fn report(before: &BTreeSet<Issue>, now: &BTreeSet<Issue>) {
    for issue in now.difference(before) {
        let Issue {
            file,
            document,
            line,
            object,
            field,
            reason,
            severity,
        } = issue;
        let text = match severity {
            Severity::Rejected => "document rejected, the last good version stays in force",
            Severity::Warning => "document used with a limitation",
        };
        warn!(file = %file.display(), document, line, object, field, reason, "{text}");
    }
    let gone = before.difference(now).count();
    if gone > 0 {
        info!(
            gone,
            remaining = now.len(),
            "issues with documents are resolved"
        );
    }
}

#[cfg(test)]
mod tests;
