//! From an xDS update to a new configuration or a new view of the mesh: path (d) of ARCHITECTURE.md.

use std::sync::Arc;

use leyline_proto::ADDRESS_TYPE;
use leyline_state::{Change, convert};
use leyline_telemetry::mesh;
use leyline_xds::{
    client::Observed,
    session::{Rejection, Resource, Update},
};
use tracing::{info, warn};

use crate::app::Shared;

/// Applies one update.
pub(crate) fn apply(shared: &Arc<Shared>, update: Update) -> Vec<Rejection> {
    if update.type_url != ADDRESS_TYPE {
        return shared.config.apply(&update);
    }
    let mut rejections = Vec::new();
    let removed = update
        .removed
        .iter()
        .map(|name| convert::removed_address(name));
    let mut changes: Vec<Change> = removed.collect();
    for Resource { name, body, .. } in &update.resources {
        match convert::address(name, body) {
            Ok(change) => changes.push(change),
            Err(error) => {
                let reason = error.to_string();
                warn!(name, reason, "resource rejected");
                rejections.push(Rejection {
                    name: name.clone(),
                    reason,
                });
            }
        }
    }
    shared.mesh.apply(changes);
    shared.mesh_changed.notify_waiters();
    rejections
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
        } => mesh::xds_rejected(type_url, rejections.len() as u64),
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
