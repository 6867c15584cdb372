//! Peers of an alias of the mesh's trust domain: trusted only as long as the control plane names the alias.

use leyline_telemetry::traffic::{Direction, Refusal, early_failure};
use leyline_types::TrustDomain;

use super::{Pod, Tunnel};

/// Resolves when the peer's trust domain is none of the mesh any more, which is told then; never for a peer of the pod's
/// own. Cancel safe.
pub(super) async fn withdrawn(tunnel: &Tunnel) {
    let of_peer = tunnel.identity.trust_domain();
    if of_peer == tunnel.own_identity.trust_domain() {
        return std::future::pending().await;
    }
    let mut changed = tunnel.pod.shared.changed.subscribe();
    while is_alias(&tunnel.pod, of_peer) {
        if changed.changed().await.is_err() {
            // No more changes: the process ends.
            return std::future::pending().await;
        }
    }
    let error = format_args!(
        "tunnel cut: {of_peer} of peer {} is no alias of the trust domain any more",
        tunnel.identity
    );
    early_failure(
        Direction::Inbound,
        tunnel.peer,
        tunnel.local,
        Refusal::TlsTrustDomain,
        error,
    );
}

/// A pod that is gone from the control plane's view has no aliases: what is not known is not trusted.
fn is_alias(pod: &Pod, name: &TrustDomain) -> bool {
    let snapshot = pod.shared.store.snapshot();
    let workload = snapshot.local_workload(&pod.name);
    workload.is_some_and(|workload| workload.trust_domain_aliases.contains(name))
}
