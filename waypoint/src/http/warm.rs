//! Routes of a new chain, and endpoints of a new cluster, that are on their way: control planes send them in one order or the other,
//! and a request may come in between. It waits for them; what there is none of, and is told so, is not waited for.

use std::sync::Arc;

use metrics::counter;
use tokio::time::{Duration, Instant, timeout_at};

use super::server::HttpConnection;
use crate::config::{Config, cluster::EndpointSource, http::RouteSource, route::action::Forward};

/// Envoy waits up to 15 s for the endpoints of a new cluster before it uses it; a request has not that long.
const PATIENCE: Duration = Duration::from_secs(5);

/// The configuration to forward a request with: the one it began with, or, where that lacks the endpoints, the first that has
/// them.
pub(super) async fn awaited(
    conn: &HttpConnection,
    config: &Arc<Config>,
    action: &Forward,
    random: u64,
) -> Arc<Config> {
    let Some(target) = action.clusters.pick(random) else {
        return config.clone();
    };
    // `None`: there is no such cluster.
    let is_warm = |config: &Config| {
        let cluster = config.clusters.get(&target.cluster)?;
        let by_name = matches!(cluster.endpoints, EndpointSource::Eds(_));
        Some(!by_name || config.endpoints(cluster).is_some())
    };
    if is_warm(config) != Some(false) {
        return config.clone();
    }
    let arrived = later(conn, "endpoints", |now| is_warm(now) != Some(false)).await;
    // A cluster that has gone meanwhile is no better than one without endpoints.
    let arrived = arrived.filter(|now| is_warm(now).is_some());
    arrived.unwrap_or_else(|| config.clone())
}

/// The same with the routes of a chain.
pub(super) async fn with_routes(
    conn: &HttpConnection,
    config: Arc<Config>,
    routes: &RouteSource,
) -> Arc<Config> {
    let has_routes = |config: &Config| match routes {
        RouteSource::Inline(_) => true,
        RouteSource::Named(name) => config.routes.contains_key(name),
    };
    if has_routes(&config) {
        return config;
    }
    let arrived = later(conn, "routes", has_routes).await;
    arrived.unwrap_or(config)
}

/// The first configuration in which this holds, if there is one soon.
async fn later(
    conn: &HttpConnection,
    what: &'static str,
    holds: impl Fn(&Config) -> bool,
) -> Option<Arc<Config>> {
    counter!("leyline_waypoint_awaited_total", "what" => what).increment(1);
    let store = &conn.shared.config;
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Before the look, so that no change is missed.
        let changed = store.changed();
        let now = store.load_full();
        if holds(&now) {
            return Some(now);
        }
        timeout_at(deadline, changed).await.ok()?;
    }
}
