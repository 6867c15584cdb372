//! Copies of requests to another cluster; their answers are thrown away.

use std::sync::Arc;

use http::Request;
use http_body_util::BodyExt;
use leyline_runtime::spawn;
use metrics::counter;
use tokio::time::{Duration, timeout};
use tracing::{Span, debug};

use super::{body::Body, forward::Forwarding, pipeline::Exchange, rewrite};
use crate::{
    app::Shared,
    config::{cluster::Cluster, endpoints::Endpoint, route::action::Mirror},
    upstream::{balance::Wanted, pending, send::send},
};

/// A copy whose answer takes longer is given up: nobody waits for it.
const DEADLINE: Duration = Duration::from_secs(15);

/// Starts the copies of a request. `body` gives each its own body.
pub(crate) fn copy(
    forwarding: Forwarding<'_>,
    exchange: &Exchange,
    body: impl Fn() -> Option<Body>,
) {
    for mirror in &forwarding.action.mirrors {
        if mirror
            .fraction
            .is_some_and(|fraction| !fraction.takes(rand::random()))
        {
            continue;
        }
        let Some(body) = body() else {
            counter!("leyline_waypoint_mirrors_total", "result" => "body").increment(1);
            continue;
        };
        if start(forwarding, exchange, mirror, body).is_none() {
            counter!("leyline_waypoint_mirrors_total", "result" => "not_sent").increment(1);
        }
    }
}

fn start(
    forwarding: Forwarding<'_>,
    exchange: &Exchange,
    mirror: &Mirror,
    body: Body,
) -> Option<()> {
    let config = forwarding.config;
    let cluster = config.clusters.get(&mirror.cluster)?.clone();
    let shared = &forwarding.conn.shared;
    let endpoint = pending::endpoint_for(shared, config, &cluster, Wanted::default(), None)?;
    let mut request = Request::new(body);
    *request.method_mut() = exchange.head.method.clone();
    *request.headers_mut() = exchange.head.headers.clone();
    let (mut parts, body) = request.into_parts();
    parts.version = super::forward::upstream_version(&cluster, exchange.head.version);
    let host = match exchange.authority.rsplit_once(':') {
        _ if !mirror.mark_host => exchange.authority.clone(),
        Some((host, port)) => format!("{host}-shadow:{port}"),
        None => format!("{}-shadow", exchange.authority),
    };
    rewrite::set_target(&mut parts, &host, &exchange.path).ok()?;
    let request = Request::from_parts(parts, body);
    let shared = forwarding.conn.shared.clone();
    let sending = exchange_once(shared, cluster, endpoint, request);
    let drain = &forwarding.conn.shared.drain;
    drop(spawn("mirror", Span::current(), drain, sending));
    Some(())
}

async fn exchange_once(
    shared: Arc<Shared>,
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    request: Request<Body>,
) {
    let version = request.version();
    let exchange = async {
        let response = send(&shared, &cluster, &endpoint, version, request).await?;
        let mut body = response.into_body();
        while let Some(Ok(_frame)) = body.frame().await {}
        Ok::<_, crate::upstream::send::SendFailure>(())
    };
    let result = match timeout(DEADLINE, Box::pin(exchange)).await {
        Ok(Ok(())) => "ok",
        Ok(Err(error)) => {
            debug!(%error, "mirrored request failed");
            "failed"
        }
        Err(_elapsed) => "deadline",
    };
    counter!("leyline_waypoint_mirrors_total", "result" => result).increment(1);
}
