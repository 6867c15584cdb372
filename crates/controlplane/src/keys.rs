//! Keys of token issuers: fetched from where RequestAuthentications say, again and again, and published with the mesh.
//!
//! A waypoint never fetches by itself: the keys are part of its configuration, so that no request waits for an issuer and
//! every waypoint has the same ones. While an issuer does not answer, its last keys stay; without any, its tokens are
//! refused.

mod fetch;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream};
use leyline_runtime::Drain;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::{
    mesh::Mesh,
    translate::keys::{KeySets, KeySource, wanted},
};

/// Between two fetches of the same keys; Istio's. Issuers publish new keys long before they use them.
const REFRESH: Duration = Duration::from_secs(20 * 60);
/// After a failure, doubled with each more.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// Whatever an object says: a fetch that takes longer holds up the others of its round.
const MOST_TIME: Duration = Duration::from_secs(30);
/// Fetches at once.
const AT_ONCE: usize = 16;
/// Issuers of one mesh; more are left out, and their tokens refused.
const MAX_SOURCES: usize = 1024;

/// One set of keys that is wanted.
struct Entry {
    timeout: Duration,
    due: Instant,
    failures: u32,
}

/// Fetches until the drain starts.
pub(crate) async fn run(mesh: Arc<Mesh>, drain: Drain) {
    let mut published = mesh.subscribe();
    let mut entries: BTreeMap<KeySource, Entry> = BTreeMap::new();
    loop {
        let objects = published.borrow_and_update().objects.clone();
        follow(&mut entries, wanted(&objects));
        let mut keys = mesh.keys();
        keys.retain(|source, _| entries.contains_key(source));
        let round = async { fetch_due(&mut entries, &mut keys).await };
        tokio::select! {
            () = round => {}
            () = drain.started() => return,
        }
        mesh.set_keys(keys);
        let next = entries.values().map(|entry| entry.due).min();
        let due = async {
            match next {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            changed = published.changed() => if changed.is_err() { return },
            () = drain.started() => return,
        }
    }
}

/// What is new is due at once.
fn follow(entries: &mut BTreeMap<KeySource, Entry>, wanted: BTreeMap<KeySource, Duration>) {
    if wanted.len() > MAX_SOURCES {
        warn!(
            issuers = wanted.len(),
            limit = MAX_SOURCES,
            "keys of too many issuers are wanted: those of the rest are not fetched"
        );
    }
    let wanted: BTreeMap<_, _> = wanted.into_iter().take(MAX_SOURCES).collect();
    let gone: BTreeSet<_> = entries
        .keys()
        .filter(|source| !wanted.contains_key(*source))
        .cloned()
        .collect();
    for source in gone {
        entries.remove(&source);
    }
    for (source, timeout) in wanted {
        let timeout = timeout.min(MOST_TIME);
        let entry = entries.entry(source).or_insert_with(|| Entry {
            timeout,
            due: Instant::now(),
            failures: 0,
        });
        entry.timeout = timeout;
    }
}

async fn fetch_due(entries: &mut BTreeMap<KeySource, Entry>, keys: &mut KeySets) {
    let now = Instant::now();
    let due = entries.iter().filter(|(_, entry)| entry.due <= now);
    let due: Vec<(KeySource, Duration)> = due
        .map(|(source, entry)| (source.clone(), entry.timeout))
        .collect();
    let fetched = stream::iter(due).map(|(source, timeout)| async move {
        let result = fetch::keys(&source, timeout).await;
        (source, result)
    });
    let fetched: Vec<_> = fetched.buffer_unordered(AT_ONCE).collect().await;
    for (source, result) in fetched {
        let Some(entry) = entries.get_mut(&source) else {
            continue;
        };
        let result = match result {
            Ok(text) => {
                entry.failures = 0;
                entry.due = Instant::now() + REFRESH;
                if keys.get(&source).is_none_or(|known| **known != *text) {
                    info!(%source, "keys of a token issuer fetched");
                    keys.insert(source, text.into());
                }
                "ok"
            }
            Err(error) => {
                let pause = FIRST_RETRY * 2_u32.saturating_pow(entry.failures.min(16));
                entry.failures = entry.failures.saturating_add(1);
                entry.due = Instant::now() + pause.min(LAST_RETRY);
                let known = keys.contains_key(&source);
                warn!(%source, error, known, "keys of a token issuer could not be fetched");
                "failed"
            }
        };
        metrics::counter!("leyline_controlplane_key_fetches_total", "result" => result)
            .increment(1);
    }
}
