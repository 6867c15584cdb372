//! Endpoints that shall be captured and are not yet (`leyline.io/enrolment-pending`): as a node proxy does, a waypoint sends
//! them no plaintext. Others are preferred; where there is none, a connection waits a while, and then is refused.

use std::{net::SocketAddr, pin::pin, sync::Arc};

use leyline_state::{Enrolment, Protocol, Snapshot};
use metrics::counter;
use tokio::time::{Duration, timeout};

use super::{
    balance::{self, Wanted},
    connect::ConnectFailure,
};
use crate::{
    app::Shared,
    config::{
        Config,
        cluster::Cluster,
        endpoints::{Endpoint, EndpointAddress},
    },
};

/// As a node proxy waits; capture takes a fraction of a second.
const HOLD: Duration = Duration::from_secs(5);
/// Others that are looked for in place of one that is pending. With more than these, whoever is drawn is waited for.
const MAX_REDRAWS: usize = 64;

/// How an address is reached, by what the mesh says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Tunnel,
    Plain,
    /// In plaintext it must not be reached any more, and in a tunnel it cannot be yet.
    Pending,
}

impl Reach {
    fn of(known: &Snapshot, endpoint: EndpointAddress) -> Self {
        // What is pending is not enrolled, so that nobody was told of a tunnel to it.
        if matches!(endpoint, EndpointAddress::Hbone(_)) {
            return Self::Tunnel;
        }
        let mut reach = Self::Plain;
        for workload in known.workloads_at(endpoint.addr().ip()) {
            if workload.protocol == Protocol::Hbone {
                return Self::Tunnel;
            }
            if workload.enrolment == Enrolment::Pending {
                reach = Self::Pending;
            }
        }
        reach
    }
}

/// The endpoint for a request or connection; one that is pending only if there is no other.
pub(crate) fn endpoint_for(
    shared: &Shared,
    config: &Config,
    cluster: &Cluster,
    wanted: Wanted<'_>,
    destination: Option<SocketAddr>,
) -> Option<Arc<Endpoint>> {
    let pick = |tried: &[EndpointAddress]| {
        let wanted = Wanted { tried, ..wanted };
        balance::endpoint_for(config, cluster, wanted, destination)
    };
    let first = pick(wanted.tried)?;
    if matches!(first.address, EndpointAddress::Hbone(_)) {
        return Some(first);
    }
    let known = shared.mesh.snapshot();
    let is_pending = |one: &Endpoint| Reach::of(&known, one.address) == Reach::Pending;
    if !is_pending(&first) {
        return Some(first);
    }
    let mut tried = wanted.tried.to_vec();
    tried.push(first.address);
    for _ in 0..MAX_REDRAWS {
        let other = pick(&tried)?;
        if tried.contains(&other.address) {
            break;
        }
        if !is_pending(&other) {
            return Some(other);
        }
        tried.push(other.address);
    }
    Some(first)
}

/// Whether an address may be reached in plaintext now.
pub(super) fn is_plain(known: &Snapshot, addr: SocketAddr) -> bool {
    Reach::of(known, EndpointAddress::Plain(addr)) == Reach::Plain
}

/// Waits until an endpoint is known to be in the mesh or out of it. Whether it is reached through a tunnel, even where the
/// endpoints have not caught up with that.
///
/// # Errors
/// When it is still neither, after a part of `deadline`.
pub(super) async fn settled(
    shared: &Shared,
    endpoint: EndpointAddress,
    deadline: Duration,
) -> Result<bool, ConnectFailure> {
    let reach = || Reach::of(&shared.mesh.snapshot(), endpoint);
    let count = |result| {
        counter!("leyline_waypoint_enrolment_pending_total", "result" => result).increment(1);
    };
    let mut now = reach();
    if now == Reach::Pending {
        count("held");
        // The rest is for the connection itself.
        let hold = HOLD.min(deadline / 2);
        let work = async {
            loop {
                // Before the look, so that no change is missed between the look and the wait.
                let mut changed = pin!(shared.mesh_changed.notified());
                changed.as_mut().enable();
                let now = reach();
                if now != Reach::Pending {
                    return now;
                }
                changed.await;
            }
        };
        now = timeout(hold, work).await.unwrap_or(Reach::Pending);
    }
    if now == Reach::Pending {
        count("refused");
        return Err(ConnectFailure::EnrolmentPending(endpoint.addr()));
    }
    Ok(now == Reach::Tunnel)
}
