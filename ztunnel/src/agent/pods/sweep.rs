//! Capture that an earlier ztunnel left, on pods that are gone or no longer wanted.

use std::collections::HashSet;

use leyline_net::NetNs;
use tracing::{info, warn};

use super::{PodManager, file_name};
use crate::{config::PodSource, proxy::listeners};

impl PodManager {
    /// Takes capture off pods that an earlier ztunnel captured and that are gone or no longer wanted.
    pub(super) async fn sweep(&self) {
        let Some(capture) = &self.capture else {
            return;
        };
        match capture.collect_garbage() {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => info!(pods = gone.len(), "removed capture of pods that are gone"),
            Err(error) => warn!(%error, "cannot remove capture of pods that are gone"),
        }
        let pinned = match capture.pinned_pods() {
            Ok(pinned) => pinned,
            Err(error) => return warn!(%error, "cannot list captured pods"),
        };
        for netns in self.unwanted_namespaces() {
            if !pinned.contains(&netns.cookie()) {
                continue;
            }
            listeners::release(&netns);
            match capture.release(&netns).await {
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
        if matches!(self.config.source, PodSource::Zds(_)) {
            // Only istio-cni knows where they are; those that it does not name stay refused until they are gone.
            return Vec::new();
        }
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
}
