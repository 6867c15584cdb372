//! Connections of what is nested in a pod (virtual machines, containers with a namespace of their own), which come in by
//! the interfaces that the pod names (`istio.io/reroute-virtual-interfaces`). In the mesh they are the pod's: its identity
//! and its source address. The access log shows the guest's own address.

use std::sync::Arc;

use leyline_net::{Accepted, orig_dst};
use leyline_telemetry::traffic::{Direction, Refusal, early_failure};

use super::{Pod, dns::DnsProxy, limits::Place, local::has_own_address, outbound};

/// Where resolvers listen.
const DNS_PORT: u16 = 53;

/// One connection, from accept to end. `own_port` is that of the listener: what names it and the pod came from outside,
/// where the pod takes connections directly, and there is nowhere to bring it.
pub(super) async fn handle(
    pod: Arc<Pod>,
    accepted: Accepted,
    place: Place,
    own_port: u16,
    names: Option<Arc<DnsProxy>>,
) {
    let asked = orig_dst::of(&accepted.stream).ok();
    let port = asked.map(|asked| asked.addr().port());
    match (names, asked) {
        (Some(names), _) if port == Some(DNS_PORT) => {
            Box::pin(names.serve_guest(accepted.stream)).await;
            drop(place);
        }
        (_, Some(asked)) if port == Some(own_port) && has_own_address(&pod, asked.ip()) => {
            let (from, to) = (accepted.peer.addr(), asked.addr());
            let error = format_args!("{to} is the proxy itself");
            early_failure(Direction::Outbound, from, to, Refusal::SelfCall, error);
        }
        _ => outbound::handle(pod, accepted, place).await,
    }
}
