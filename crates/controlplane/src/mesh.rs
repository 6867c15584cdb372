//! The state of the mesh as it is published: objects and enrolment in, resources out, one generation after the other.
//!
//! Changes only mark the state as dirty; one task recomputes, so that a thousand changes at once cost a few
//! recomputations. Subscribers see the latest generation and never a queue of them. What must survive a restart is written
//! by another task, after the change is published.

mod stored;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use leyline_runtime::Drain;
use leyline_types::Identity;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};
use tracing::{info, warn};

use crate::{
    objects::{DOCUMENTS_FILE, GoodDocument, Issue, Loaded, ObjectKey, Objects, Origin, Severity},
    state_dir::StateDir,
    translate::{Captured, KeySets, MeshSettings, Resources, Translation, translate},
    xds::AddressIndex,
};
use stored::Stored;

/// Which pods were captured: without it, a restarted control plane would publish captured pods as reachable in plaintext
/// until their nodes have reported again.
const ENROLLED_FILE: &str = "enrolled.json";

/// Keys of token issuers: without them, a restarted control plane would have all tokens refused until it has fetched
/// them again.
const KEYS_FILE: &str = "token-keys.json";

/// Between a change and its writing, so that a row of edits is written once and does not wait for writing.
const STORE_PAUSE: Duration = Duration::from_millis(300);

/// What an earlier process knew to be good; nothing if that cannot be read.
pub(crate) fn last_good_documents(state_dir: &StateDir) -> Vec<GoodDocument> {
    let stored: Stored<Vec<GoodDocument>> = Stored::new(DOCUMENTS_FILE, state_dir.clone());
    stored.load()
}

/// What differs between two states of the resources of a type.
#[derive(Debug)]
pub(crate) struct Changes {
    /// The earlier state.
    pub(crate) from: Arc<Resources>,
    pub(crate) changed: Vec<String>,
    pub(crate) removed: Vec<String>,
}

impl Changes {
    fn between(from: &Arc<Resources>, to: &Resources) -> Self {
        let differs = |(name, resource): &(&String, &crate::translate::Resource)| {
            from.get(*name)
                .is_none_or(|known| known.version != resource.version)
        };
        Self {
            from: Arc::clone(from),
            changed: to
                .iter()
                .filter(differs)
                .map(|(name, _)| name.clone())
                .collect(),
            removed: from
                .keys()
                .filter(|name| !to.contains_key(*name))
                .cloned()
                .collect(),
        }
    }

    fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }
}

/// One state of the mesh.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// Counts up.
    pub(crate) generation: u64,
    pub(crate) objects: Arc<Objects>,
    /// Where each object was read.
    pub(crate) origins: Arc<BTreeMap<ObjectKey, Origin>>,
    pub(crate) translation: Translation,
    /// Since the generation before, so that each of many proxies need not look for them.
    pub(crate) address_changes: Option<Changes>,
    /// For proxies that ask for addresses by name; made for the first of them.
    pub(crate) address_index: OnceLock<AddressIndex>,
    /// Pods that are not to be captured, by uid, with the generation since which.
    pub(crate) unwanted_since: BTreeMap<String, u64>,
    /// Of reading and of translating.
    pub(crate) issues: BTreeSet<Issue>,
}

impl Published {
    pub(crate) fn address_index(&self) -> &AddressIndex {
        let addresses = &self.translation.addresses;
        self.address_index
            .get_or_init(|| AddressIndex::of(addresses))
    }

    /// Whether a live pod on the node has this namespace and service account.
    pub(crate) fn runs_on(&self, node: &str, identity: &Identity) -> bool {
        self.translation.runs_on(node, identity)
    }
}

/// What a node said about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Enrolment {
    /// The pod of this instance.
    Captured(String),
    /// The pod of this instance, or whichever it is.
    Released(Option<String>),
    /// Tried and not done, with the reason; what was known before stays.
    Failed(String),
}

struct State {
    loaded: Loaded,
    enrolled: Captured,
    failures: BTreeMap<String, String>,
    keys: KeySets,
}

/// The mesh.
pub(crate) struct Mesh {
    settings: MeshSettings,
    state: Mutex<State>,
    dirty: Notify,
    /// Something to be stored was published.
    unstored: Notify,
    published: watch::Sender<Arc<Published>>,
    enrolled_file: Stored<Captured>,
    documents_file: Stored<Arc<[GoodDocument]>>,
    keys_file: Stored<KeySets>,
}

impl Mesh {
    /// Publishes a first generation at once.
    pub(crate) fn new(settings: MeshSettings, loaded: Loaded, state_dir: &StateDir) -> Self {
        let enrolled_file = Stored::new(ENROLLED_FILE, state_dir.clone());
        let enrolled = enrolled_file.load();
        let documents_file = Stored::new(DOCUMENTS_FILE, state_dir.clone());
        documents_file.store(&loaded.documents);
        let keys_file = Stored::new(KEYS_FILE, state_dir.clone());
        let keys = keys_file.load();
        let first = compute(
            &Published::default(),
            &settings,
            (&loaded, &enrolled, &keys),
        );
        report(&BTreeSet::new(), &first.issues);
        Self {
            settings,
            state: Mutex::new(State {
                loaded,
                enrolled,
                failures: BTreeMap::new(),
                keys,
            }),
            dirty: Notify::new(),
            unstored: Notify::new(),
            published: watch::Sender::new(Arc::new(first)),
            enrolled_file,
            documents_file,
            keys_file,
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
            Enrolment::Captured(instance) => {
                state.failures.remove(uid);
                let before = state.enrolled.insert(uid.to_owned(), instance.clone());
                before != Some(instance)
            }
            Enrolment::Released(instance) => {
                let known = state.enrolled.get(uid);
                // A pod of the same name that is captured elsewhere is another.
                let other = instance.is_some() && known.is_some() && known != instance.as_ref();
                if other {
                    return;
                }
                state.failures.remove(uid);
                state.enrolled.remove(uid).is_some()
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

    /// Keys of token issuers, as last fetched.
    pub(crate) fn keys(&self) -> KeySets {
        self.state.lock().keys.clone()
    }

    /// Takes the keys of all token issuers.
    pub(crate) fn set_keys(&self, keys: KeySets) {
        let mut state = self.state.lock();
        if state.keys != keys {
            state.keys = keys;
            drop(state);
            self.dirty.notify_one();
        }
    }

    /// Uids of captured pods, and why others could not be.
    pub(crate) fn enrolments(&self) -> (Captured, BTreeMap<String, String>) {
        let state = self.state.lock();
        (state.enrolled.clone(), state.failures.clone())
    }

    /// Writes what was published until the drain starts, and then what is left.
    pub(crate) async fn keep(self: Arc<Self>, drain: Drain) {
        loop {
            let mut draining = tokio::select! {
                () = drain.started() => true,
                () = self.unstored.notified() => false,
            };
            if !draining {
                // Megabytes for a large mesh, and mostly the same after the next edit.
                draining = tokio::select! {
                    () = drain.started() => true,
                    () = sleep(STORE_PAUSE) => false,
                };
            }
            let mesh = Arc::clone(&self);
            if let Err(error) = tokio::task::spawn_blocking(move || mesh.store()).await {
                warn!(%error, "storing was cut");
            }
            if draining {
                return;
            }
        }
    }

    fn store(&self) {
        let (enrolled, documents, keys) = {
            let state = self.state.lock();
            let documents = Arc::clone(&state.loaded.documents);
            (state.enrolled.clone(), documents, state.keys.clone())
        };
        self.enrolled_file.store(&enrolled);
        self.documents_file.store(&documents);
        self.keys_file.store(&keys);
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
        let (loaded, enrolled, keys) = {
            let state = self.state.lock();
            let keys = state.keys.clone();
            (state.loaded.clone(), state.enrolled.clone(), keys)
        };
        let start = Instant::now();
        let next = compute(&before, &self.settings, (&loaded, &enrolled, &keys));
        report(&before.issues, &next.issues);
        metrics::gauge!("leyline_controlplane_issues")
            .set(u32::try_from(next.issues.len()).unwrap_or(u32::MAX));
        self.forget_gone(&next.translation.pod_nodes);
        self.published.send_replace(Arc::new(next));
        metrics::histogram!("leyline_controlplane_publish_seconds")
            .record(start.elapsed().as_secs_f64());
        self.unstored.notify_one();
    }

    /// Drops what is known of pods that are gone; a later pod of the same name starts anew.
    fn forget_gone(&self, pods: &BTreeMap<String, String>) {
        let mut state = self.state.lock();
        state.enrolled.retain(|uid, _| pods.contains_key(uid));
        state.failures.retain(|uid, _| pods.contains_key(uid));
    }
}

fn compute(
    before: &Published,
    settings: &MeshSettings,
    (loaded, enrolled, keys): (&Loaded, &Captured, &KeySets),
) -> Published {
    let generation = before.generation + 1;
    let known = &before.translation.waypoints;
    let mut translation = translate(&loaded.objects, enrolled, settings, keys, known);
    // The same state stays the same in memory: by that a stream sees that there is nothing to do.
    let changes = Changes::between(&before.translation.addresses, &translation.addresses);
    if changes.is_empty() {
        translation.addresses = Arc::clone(&before.translation.addresses);
    }
    if before.translation.authorizations == translation.authorizations {
        translation.authorizations = Arc::clone(&before.translation.authorizations);
    }
    let mut issues: BTreeSet<Issue> = loaded.issues.iter().cloned().collect();
    let found = translation.findings.iter().map(|finding| &finding.advice);
    issues.extend(translation.advice.iter().chain(found).filter_map(|advice| {
        let origin = loaded.origins.get(&advice.object)?;
        Some(origin.warning(&advice.field, advice.reason.clone()))
    }));
    Published {
        address_index: OnceLock::new(),
        generation,
        objects: Arc::clone(&loaded.objects),
        origins: Arc::clone(&loaded.origins),
        address_changes: (!changes.is_empty()).then_some(changes),
        unwanted_since: unwanted_since(before, &translation, generation),
        translation,
        issues,
    }
}

fn unwanted_since(
    before: &Published,
    translation: &Translation,
    generation: u64,
) -> BTreeMap<String, u64> {
    let unwanted = translation.pod_nodes.iter().filter(|(uid, node)| {
        let wanted = translation.wanted.get(*node);
        !wanted.is_some_and(|pods| pods.contains_key(*uid))
    });
    unwanted
        .map(|(uid, _)| {
            let since = before.unwanted_since.get(uid).copied();
            (uid.clone(), since.unwrap_or(generation))
        })
        .collect()
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
