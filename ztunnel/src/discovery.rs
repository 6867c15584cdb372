//! From an xDS update to a new snapshot, and to all that follows from it: path (d) of ARCHITECTURE.md.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use leyline_authz::{Action, Clause, Match, Policy, Rule, Scope};
use leyline_hbone::CloseMode;
use leyline_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    istio::security::{self, Authorization},
};
use leyline_state::{Applied, Change, Snapshot, convert};
use leyline_telemetry::mesh;
use leyline_types::{NamespacedName, WorkloadName};
use leyline_xds::{
    client::Observed,
    session::{Rejection, Resource, Update},
};
use prost::Message;
use tracing::{debug, info, warn};

use crate::{
    agent::pods::PodSet,
    config::CertificatesFor,
    proxy::{Shared, on_demand::Said},
};

/// Applies updates; owned by the xDS client's task.
pub(crate) struct Discovery {
    shared: Arc<Shared>,
    pods: Arc<PodSet>,
}

impl Discovery {
    pub(crate) fn new(shared: Arc<Shared>, pods: Arc<PodSet>) -> Self {
        Self { shared, pods }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Converts off the store, publishes once, then lets certificates and live connections follow. What cannot be
    /// converted is rejected alone, and its last good version stays.
    pub(crate) fn apply(&self, update: Update) -> Vec<Rejection> {
        let said = self.shared.on_demand.as_ref().map(|_| Said::of(&update));
        let mut rejections = Vec::new();
        let mut changes = Vec::with_capacity(update.resources.len() + update.removed.len());
        for name in update.removed {
            match removal(update.type_url, &name) {
                Ok(change) => changes.push(change),
                Err(error) => debug!(name, error, "removal of an unknown name"),
            }
        }
        for resource in update.resources {
            match convert_resource(update.type_url, &resource) {
                Ok(change) => changes.push(change),
                Err(reason) => {
                    warn!(name = resource.name, reason, "resource rejected");
                    changes.extend(self.placeholder(update.type_url, &resource, &reason));
                    rejections.push(Rejection {
                        name: resource.name,
                        reason,
                    });
                }
            }
        }
        let before = self.shared.store.snapshot();
        let applied = self.shared.store.apply(changes);
        if let (Some(on_demand), Some(said)) = (&self.shared.on_demand, said) {
            on_demand.answered(&said, &self.shared.store.snapshot());
        }
        self.shared.changed.send_modify(|version| *version += 1);
        self.follow(&before, &applied);
        rejections
    }

    /// From here on an unknown destination is known to be none of the mesh's.
    pub(crate) fn mark_synced(&self) {
        if self.shared.store.mark_synced() {
            self.shared.changed.send_modify(|version| *version += 1);
        }
    }

    /// Stands for a policy that cannot be read and that no older version is known of: nobody can say what it forbids,
    /// so it forbids everything in its reach.
    fn placeholder(&self, type_url: &str, resource: &Resource, reason: &str) -> Option<Change> {
        let key: NamespacedName = resource.name.parse().ok()?;
        if type_url != AUTHORIZATION_TYPE || self.shared.store.snapshot().policy(&key).is_some() {
            return None;
        }
        let unreadable = Match {
            malformed: vec![reason.to_owned()],
            ..Match::default()
        };
        Some(Change::Policy(Arc::new(Policy {
            key,
            scope: reach(&resource.body)?,
            action: Action::Deny,
            rules: vec![Rule {
                clauses: vec![Clause {
                    matches: vec![unreadable],
                }],
            }],
            dry_run: false,
        })))
    }

    fn follow(&self, before: &Snapshot, applied: &Applied) {
        let snapshot = self.shared.store.snapshot();
        for identity in &applied.identities_released {
            self.shared.certificates.forget(identity);
        }
        if self.shared.config.certificates_for == CertificatesFor::AllLocal {
            for identity in &applied.identities_needed {
                self.shared.certificates.prefetch(identity.clone());
            }
        }
        for uid in &applied.workloads {
            // It may be another one behind the same name, or have become ready again.
            self.shared.endpoints.forgive(uid);
        }
        let left = left_addresses(before, &snapshot, applied);
        for pod in &self.pods.now().served {
            if !left.is_empty() {
                pod.pool
                    .close_where(CloseMode::Graceful, |key| left.contains(&key.target.ip()));
            }
            if applied.policies.is_empty() && !has_changed(before, &snapshot, applied, &pod.name) {
                continue;
            }
            let policies = self.shared.policies_of(&snapshot, &pod.name);
            let revoked = pod.connections.recheck(&policies);
            if revoked > 0 {
                info!(pod = %pod.name, revoked, "connections closed because they are no longer allowed");
            }
        }
    }
}

/// Whether the workload of a pod has changed. By name: istio-cni's uid of a pod is not that of its workload.
fn has_changed(before: &Snapshot, now: &Snapshot, applied: &Applied, pod: &WorkloadName) -> bool {
    [before, now].into_iter().any(|snapshot| {
        let workload = snapshot.local_workload(pod);
        workload.is_some_and(|workload| applied.workloads.contains(&workload.uid))
    })
}

/// Addresses that a workload had and has no more. Who has them next is another one, and the tunnels there lead nowhere.
fn left_addresses(before: &Snapshot, now: &Snapshot, applied: &Applied) -> HashSet<IpAddr> {
    let mut left = HashSet::new();
    for uid in &applied.workloads {
        let Some(old) = before.workload_by_uid(uid) else {
            continue;
        };
        let new = now.workload_by_uid(uid);
        let stays = |ip: &&IpAddr| new.is_some_and(|new| new.addresses.contains(ip));
        left.extend(old.addresses.iter().filter(|ip| !stays(ip)));
    }
    left
}

/// How far a policy reaches that cannot be read as a whole. None for one that workloads name: they are denied anyway, as
/// it is missing.
fn reach(body: &[u8]) -> Option<Scope> {
    let Ok(policy) = Authorization::decode(body) else {
        return Some(Scope::Namespace);
    };
    match security::Scope::try_from(policy.scope) {
        Ok(security::Scope::Global) => Some(Scope::Global),
        Ok(security::Scope::WorkloadSelector) => None,
        Ok(security::Scope::Namespace) | Err(_) => Some(Scope::Namespace),
    }
}

fn removal(type_url: &str, name: &str) -> Result<Change, String> {
    match type_url {
        AUTHORIZATION_TYPE => {
            convert::removed_authorization(name).map_err(|error| error.to_string())
        }
        _ => Ok(convert::removed_address(name)),
    }
}

fn convert_resource(type_url: &str, resource: &Resource) -> Result<Change, String> {
    let converted = match type_url {
        ADDRESS_TYPE => convert::address(&resource.name, &resource.body),
        AUTHORIZATION_TYPE => convert::authorization(&resource.name, &resource.body),
        other => return Err(format!("type {other} was not asked for")),
    };
    converted.map_err(|error| error.to_string())
}

/// Counts and logs what the xDS client sees.
pub(crate) fn observe(observed: &Observed<'_>) {
    match observed {
        Observed::Connected => info!("xDS stream open"),
        Observed::Message { type_url, bytes } => mesh::xds_message(type_url, *bytes as u64),
        Observed::NotSubscribed { type_url } => warn!(type_url, "xDS type was not asked for"),
        Observed::Nack {
            type_url,
            rejections,
        } => {
            mesh::xds_rejected(type_url, rejections.len() as u64);
        }
        Observed::Synced => info!("xDS state complete"),
        Observed::Disconnected {
            reason,
            error,
            retry_in,
        } => {
            mesh::xds_terminated(reason.as_str());
            let error = error.map(|error| error as &dyn std::error::Error);
            warn!(
                reason = reason.as_str(),
                error,
                ?retry_in,
                "xDS stream ended; serving what is known"
            );
        }
    }
}

#[cfg(test)]
mod tests;
