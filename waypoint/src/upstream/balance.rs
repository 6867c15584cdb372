//! Which endpoint gets the next request. Requests are balanced, and not connections: every request is a draw of its own.
//!
//! What depends on the endpoints alone (levels, weights, tables for hashes) is made once for each change of them, by the
//! one who brings the change, or with the first request after a change of health.

mod levels;
mod pool;
mod table;

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwapOption;
use rand::Rng;
use tokio::time::Instant;

use self::levels::Balancer;
use crate::config::{
    Config,
    cluster::{Cluster, EndpointSource},
    endpoints::{Endpoint, EndpointAddress, EndpointSet},
};

/// The balancer of a cluster, as of the newest endpoints.
#[derive(Debug, Default)]
pub(crate) struct BalancerCell(ArcSwapOption<Balancer>);

impl BalancerCell {
    /// The endpoints that are balanced now.
    pub(super) fn set(&self) -> Option<Arc<EndpointSet>> {
        Some(self.0.load().as_ref()?.set().clone())
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted<'a> {
    /// Not one of these if there are others.
    pub(crate) tried: &'a [EndpointAddress],
    /// Not of the priorities of these if there are others.
    pub(crate) beyond: &'a [EndpointAddress],
    /// Of the request, where it is to reach the same endpoint as others of this hash.
    pub(crate) hash: Option<u64>,
}

/// Picks an endpoint for a request.
fn pick(
    cluster: &Cluster,
    set: &Arc<EndpointSet>,
    wanted: Wanted<'_>,
    rng: &mut impl Rng,
) -> Option<Arc<Endpoint>> {
    let now = Instant::now();
    current(cluster, set, now).pick(&cluster.balancing, wanted, rng, now)
}

/// The endpoint for a request or connection that wants to go to `destination`, which counts where the cluster leaves the
/// choice to clients.
pub(super) fn endpoint_for(
    config: &Config,
    cluster: &Cluster,
    wanted: Wanted<'_>,
    destination: Option<SocketAddr>,
) -> Option<Arc<Endpoint>> {
    if let EndpointSource::Client { port } = cluster.endpoints {
        let mut addr = destination?;
        addr.set_port(port.unwrap_or_else(|| addr.port()));
        return Some(cluster.state.direct.endpoint(addr, None));
    }
    pick(
        cluster,
        config.endpoints(cluster)?,
        wanted,
        &mut rand::rng(),
    )
}

/// Makes the balancer of a set ahead of the first request.
pub(crate) fn prepare(cluster: &Cluster, set: &Arc<EndpointSet>) {
    current(cluster, set, Instant::now());
}

/// The balancer for `set` or for a newer one: a request that began before an update may use the endpoints after it.
fn current(cluster: &Cluster, set: &Arc<EndpointSet>, now: Instant) -> Arc<Balancer> {
    let generation = cluster.state.generation();
    let known = cluster.balancer.0.load_full();
    if let Some(known) = &known
        && known.is_current(set, generation, now)
    {
        return known.clone();
    }
    // What came after `set` is not thrown away by a request that still knows `set`.
    let newest = match &known {
        Some(known) if known.set().version > set.version => known.set(),
        _ => set,
    };
    let made = Balancer::new(
        &cluster.balancing,
        newest,
        generation,
        now,
        known.as_deref(),
    );
    let made = Arc::new(made);
    cluster.balancer.0.store(Some(made.clone()));
    made
}

#[cfg(test)]
mod tests;
