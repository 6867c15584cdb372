//! What telemetry says of the source of a tunnelled connection. Nobody can forge it: it comes from the identity that the
//! peer has proven and from what the control plane says of the workload at its address.
//!
//! Only where a connection came through the gateway of our own network, the workload may be in another one, of which the
//! control plane need not tell; then `baggage` is believed for what the identity does not say.

use std::sync::Arc;

use leyline_hbone::server::Request;
use leyline_state::{Snapshot, Workload};
use leyline_telemetry::traffic::WorkloadLabels;
use leyline_types::Identity;

use super::Tunnel;
use crate::proxy::labels;

/// The labels of the source.
pub(super) fn labels_of(
    tunnel: &Tunnel,
    snapshot: &Snapshot,
    local: &Workload,
    request: &Request,
) -> Arc<WorkloadLabels> {
    let (ip, identity) = (tunnel.peer.ip(), &tunnel.identity);
    if let Some(source) = snapshot.source_workload(ip, Some(identity)) {
        return tunnel.pod.shared.labels.workload(source);
    }
    if is_elsewhere(snapshot, request)
        && snapshot.is_from_network_gateway(local, ip)
        && let Ok(Some(baggage)) = request.baggage()
        && baggage.namespace == *identity.namespace()
    {
        return Arc::new(labels::of_baggage(baggage));
    }
    Arc::new(of_identity(identity))
}

/// Whether the source says that it is in another network (HB-12).
fn is_elsewhere(snapshot: &Snapshot, request: &Request) -> bool {
    let network = request.forwarded_network();
    let ours = snapshot.network().as_str();
    network.is_ok_and(|network| {
        network.is_some_and(|network| !network.as_str().eq_ignore_ascii_case(ours))
    })
}

fn of_identity(identity: &Identity) -> WorkloadLabels {
    WorkloadLabels {
        namespace: identity.namespace().clone(),
        ..WorkloadLabels::default()
    }
}
