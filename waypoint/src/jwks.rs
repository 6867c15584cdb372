//! Fetches the keys of token issuers, for as long as filters name them: one task for all. Requests find the keys where
//! `http::filters::jwt::remote` keeps them.

use std::{pin::pin, sync::Arc};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use http::{HeaderValue, Request, StatusCode, header::ACCEPT};
use metrics::counter;
use rand::RngExt;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use crate::{
    app::Shared,
    config::listener::Chain,
    http::{
        body::Body,
        filters::jwt::remote::{FetchedKeys, RemoteKeys, RemoteSource},
    },
    upstream::call::{self, CallFailure},
};

/// Issuers that are asked at once.
const AT_ONCE: usize = 16;

type Fetch = BoxFuture<'static, ()>;

/// Runs until the drain.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut fetching: FuturesUnordered<Fetch> = FuturesUnordered::new();
    loop {
        let mut changed = pin!(shared.config.changed());
        changed.as_mut().enable();
        let known = follow(&shared);
        let now = Instant::now();
        for keys in &known {
            if fetching.len() < AT_ONCE && keys.due(now).is_some_and(|due| due <= now) {
                keys.begin();
                fetching.push(Box::pin(fetch(shared.clone(), keys.clone())));
            }
        }
        let next = known.iter().filter_map(|keys| keys.due(now)).min();
        let has_room = fetching.len() < AT_ONCE;
        tokio::select! {
            () = changed => {}
            () = shared.keys.asked.notified() => {}
            () = sleep_until(next.unwrap_or(now)), if next.is_some() && has_room => {}
            _ended = fetching.next(), if !fetching.is_empty() => {}
            () = shared.drain.started() => return,
        }
    }
}

/// The sources that the configuration names.
fn follow(shared: &Shared) -> Vec<Arc<RemoteKeys>> {
    let config = shared.config.load();
    let chains = config.main.chains.values();
    let sources = chains.flat_map(|known| {
        match &*known.chain {
            Chain::Http(chain) => Some(chain.filters.security.key_sources()),
            Chain::Tcp(_) | Chain::Refused(_) => None,
        }
        .into_iter()
        .flatten()
    });
    shared.keys.follow(sources)
}

async fn fetch(shared: Arc<Shared>, keys: Arc<RemoteKeys>) {
    let RemoteSource { target, retry, .. } = &keys.source;
    let mut tries = 0;
    let fetched = loop {
        match once(&shared, &keys.source).await {
            Ok(fetched) => break Some(fetched),
            Err(error) if tries < retry.retries => {
                let cluster = target.cluster.as_str();
                debug!(cluster, %error, "keys of a token issuer were not fetched; trying again");
                let most = retry.base.saturating_mul(1 << tries).min(retry.max);
                let pause = most.mul_f64(rand::rng().random_range(0.5..1.0));
                sleep(pause).await;
                tries += 1;
            }
            Err(error) => {
                let (issuer, cluster) = (target.authority.as_str(), target.cluster.as_str());
                warn!(issuer, cluster, %error, "keys of a token issuer were not fetched");
                break None;
            }
        }
    };
    let result = if fetched.is_some() {
        info!(issuer = target.authority, "keys of a token issuer fetched");
        "ok"
    } else {
        "failed"
    };
    counter!("leyline_waypoint_jwks_fetches_total", "result" => result).increment(1);
    keys.end(fetched);
}

async fn once(shared: &Arc<Shared>, source: &RemoteSource) -> Result<FetchedKeys, CallFailure> {
    let config = shared.config.load_full();
    let mut request = Request::new(Body::empty());
    request
        .headers_mut()
        .insert(ACCEPT, HeaderValue::from_static("application/json"));
    let asked = call::http(shared, &config, &source.target, &source.path, request);
    let answer = Box::pin(asked).await?;
    if answer.status() != StatusCode::OK {
        return Err(CallFailure::Http(answer.status()));
    }
    let none = || CallFailure::Answer("no usable key in it".to_owned());
    FetchedKeys::parse(answer.body()).ok_or_else(none)
}
