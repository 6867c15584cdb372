//! The router: picks the cluster and the endpoint, sends, tries again where that is allowed, and keeps the deadlines.

use std::sync::Arc;

use http::{Request, Response, StatusCode, Version, header::HeaderName, header::HeaderValue};
use hyper::body::Body as HttpBody;
use leyline_authz::Permit;
use metrics::counter;
use rand::RngExt;
use tokio::time::{Duration, Instant, sleep, timeout_at};
use tracing::debug;

use super::{
    affinity::Affinity,
    body::Body,
    filters::grpc_web,
    grpc_timeout, mirror, named_host,
    pipeline::Exchange,
    replay::Replay,
    reply::{Flag, Reply},
    request_log::RequestLog,
    rewrite,
    server::HttpConnection,
    stream_idle::{self, Activity},
    upgrade,
};
use crate::{
    config::{
        Config,
        cluster::Cluster,
        endpoints::{Endpoint, EndpointAddress},
        header_case::HeaderCase,
        http::HttpChain,
        route::{
            Route,
            action::{Forward, HostRewrite, Target},
            retry::RetryPolicy,
        },
    },
    upstream::{
        balance::Wanted,
        dynamic::Host,
        outlier::{self, Showed},
        pending,
        pool::Client,
        send::{SendFailure, send},
        state::{Place, Resource},
    },
};

/// Bytes of a request that are kept for retries: Envoy's default buffer.
const REPLAY_BYTES: usize = 1 << 20;

/// Headers that are between two hops and do not travel on (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 5] = [
    http::header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    http::header::TRANSFER_ENCODING,
    http::header::UPGRADE,
];

/// What a request is forwarded with.
#[derive(Clone, Copy)]
pub(crate) struct Forwarding<'a> {
    pub(crate) conn: &'a Arc<HttpConnection>,
    pub(crate) config: &'a Config,
    pub(crate) chain: &'a HttpChain,
    pub(crate) route: &'a Route,
    pub(crate) action: &'a Forward,
}

/// Forwards the request. The permit is the proof that policies were asked.
pub(crate) async fn forward(
    _permit: Permit,
    forwarding: Forwarding<'_>,
    mut exchange: Exchange,
    body: Body,
    log: &mut RequestLog,
) -> Result<Response<Body>, Reply> {
    let Forwarding {
        config,
        chain,
        action,
        ..
    } = forwarding;
    let target = action.clusters.pick(exchange.random);
    let target = target.ok_or_else(|| unknown_cluster(action, ""))?;
    let cluster = config.clusters.get(&target.cluster);
    let cluster = cluster.ok_or_else(|| unknown_cluster(action, target.cluster.as_str()))?;
    log.cluster(cluster);

    let upgrade = upgrade::requested(&mut exchange, &chain.upgrades)?;
    // As the client names it, before anything is rewritten.
    let host = named_host::of(forwarding, cluster, &exchange).await?;
    prepare(&mut exchange, forwarding, target)?;
    if let Some(upgrade) = &upgrade {
        upgrade.ask(&mut exchange.head.headers);
    }
    let timeout = grpc_timeout::of(action, &exchange.head.headers);
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let keeps = action.retry.as_ref().map_or(0, |_policy| REPLAY_BYTES);
    let budget = &forwarding.conn.shared.kept;
    let activity = Activity::within(action.stream_idle.unwrap_or(chain.stream_idle));
    let body = stream_idle::watch(log.count_request(body), activity.as_ref());
    let body = Replay::new(body, keeps, budget);
    mirror::copy(forwarding, &exchange, || body.is_empty().then(Body::empty));
    let affinity = affinity(cluster, forwarding, &exchange);
    let attempts = Attempts {
        forwarding,
        cluster,
        exchange: &exchange,
        host,
        hash: affinity.hash,
        body,
        deadline,
    };
    let attempts = Box::pin(attempts.run(log));
    let attempts = grpc_web::wait(exchange.malformed.as_ref(), attempts);
    let mut response = stream_idle::wait(attempts, activity.as_ref()).await?;
    target.headers.response.apply(response.headers_mut());
    affinity.mark(response.headers_mut());
    match upgrade {
        Some(upgrade) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            upgrade.join(&forwarding.conn.shared, &mut response);
        }
        Some(_) | None => HOP_BY_HOP
            .iter()
            .for_each(|name| drop(response.headers_mut().remove(name))),
    }
    Ok(within(deadline, stream_idle::limit(response, activity)))
}

/// The rest of the response has no more time than its beginning.
fn within(deadline: Option<Instant>, response: Response<Body>) -> Response<Body> {
    match deadline {
        Some(deadline) => response.map(|body| super::deadline::limit(body, deadline)),
        None => response,
    }
}

/// What ties the request to an endpoint.
fn affinity(cluster: &Cluster, forwarding: Forwarding<'_>, exchange: &Exchange) -> Affinity {
    let Forwarding { conn, action, .. } = forwarding;
    if cluster.balancing.policy.is_by_hash() {
        Affinity::of(&action.hash, exchange, conn.client.addr.ip())
    } else {
        Affinity::default()
    }
}

fn unknown_cluster(action: &Forward, name: &str) -> Reply {
    let details = format!("cluster_not_found{{{name}}}");
    Reply::new(action.unknown_cluster, Flag::NoCluster, details, "")
}

/// Headers, path and host as the upstream shall see them.
fn prepare(
    exchange: &mut Exchange,
    forwarding: Forwarding<'_>,
    target: &Target,
) -> Result<(), Reply> {
    let Forwarding { route, action, .. } = forwarding;
    let headers = &mut exchange.head.headers;
    target.headers.request.apply(headers);
    let wants_trailers = headers
        .get(http::header::TE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    HOP_BY_HOP
        .iter()
        .for_each(|name| drop(headers.remove(name)));
    if !wants_trailers {
        headers.remove(http::header::TE);
    }
    if let Some(rewrite) = &action.path {
        if let Ok(original) = HeaderValue::try_from(exchange.path.as_str()) {
            headers.insert("x-envoy-original-path", original);
        }
        exchange.path = rewrite::path(&exchange.path, &route.matching.path, rewrite);
    }
    let set = [&target.headers.authority, &route.headers.authority];
    let rewritten = [&target.host, &action.host]
        .into_iter()
        .find_map(|rewrite| match rewrite {
            HostRewrite::Literal(host) => Some(host),
            HostRewrite::Keep => None,
        });
    if let Some(host) = rewritten.or_else(|| set.into_iter().flatten().next()) {
        exchange.authority.clone_from(host);
    }
    Ok(())
}

/// All attempts of one request.
struct Attempts<'a> {
    forwarding: Forwarding<'a>,
    cluster: &'a Arc<Cluster>,
    exchange: &'a Exchange,
    /// Where the request names its endpoint.
    host: Option<Host>,
    hash: Option<u64>,
    body: Replay,
    deadline: Option<Instant>,
}

/// What one attempt brought.
enum Outcome {
    Response(Response<Body>),
    Failed(SendFailure),
    /// No answer before the deadline of the attempt.
    TooLate,
    /// No answer before the deadline of the route.
    Ended,
}

impl Attempts<'_> {
    async fn run(&self, log: &mut RequestLog) -> Result<Response<Body>, Reply> {
        let work = self.attempts(log);
        let Some(deadline) = self.deadline else {
            return work.await;
        };
        match timeout_at(deadline, work).await {
            Ok(result) => result,
            Err(_elapsed) => Err(response_timeout()),
        }
    }

    async fn attempts(&self, log: &mut RequestLog) -> Result<Response<Body>, Reply> {
        let policy = self.forwarding.action.retry.as_ref();
        let mut tried: Vec<EndpointAddress> = Vec::new();
        let mut retries = 0;
        // Held until the next retry, or the end.
        let mut retrying = None;
        loop {
            let avoid = if policy.is_some_and(|policy| policy.other_hosts) {
                tried.as_slice()
            } else {
                &[]
            };
            let others = policy.and_then(|policy| policy.other_priorities);
            let beyond = others.map_or(0, |frequency| tried.len() / frequency * frequency);
            let beyond = tried.get(..beyond).unwrap_or_default();
            let endpoint = self.pick(avoid, beyond)?;
            tried.push(endpoint.address);
            log.upstream(endpoint.address);
            let outcome = self.attempt(&endpoint, policy).await?;
            drop(retrying.take());
            let again = policy.filter(|policy| {
                retries < policy.retries
                    && self.body.can_begin_again()
                    && is_retriable(policy, &outcome, self.exchange)
            });
            let place = again.and_then(|_policy| self.enter_retry());
            if again.is_some() && place.is_none() {
                log.flag(Flag::UpstreamOverflow);
                return finish(outcome, false, log);
            }
            let Some(policy) = again else {
                let exhausted = policy.is_some_and(|policy| {
                    policy.retries > 0
                        && retries == policy.retries
                        && is_retriable(policy, &outcome, self.exchange)
                });
                return finish(outcome, exhausted, log);
            };
            retries += 1;
            counter!("leyline_waypoint_retries_total").increment(1);
            if let Outcome::Failed(failure) = &outcome {
                debug!(error = %failure, retries, "attempt failed, trying again");
            }
            drop(outcome);
            retrying = place;
            sleep(pause(policy, retries)).await;
        }
    }

    /// Room for one more retry.
    fn enter_retry(&self) -> Option<Place> {
        let (state, limits) = (&self.cluster.state, &self.cluster.limits);
        let active = state.in_use(Resource::Requests) + state.in_use(Resource::Pending);
        // The request that is tried again counts as well.
        let place = state.enter(Resource::Retries, limits.retries(active + 1));
        if place.is_none() {
            Resource::Retries.overflow();
        }
        place
    }

    fn pick(
        &self,
        avoid: &[EndpointAddress],
        beyond: &[EndpointAddress],
    ) -> Result<Arc<Endpoint>, Reply> {
        let Forwarding { config, conn, .. } = self.forwarding;
        let found = match &self.host {
            Some(host) => host.endpoint(self.cluster, avoid),
            None => {
                let wanted = Wanted {
                    tried: avoid,
                    beyond,
                    hash: self.hash,
                };
                let destination = conn.destination.address();
                pending::endpoint_for(&conn.shared, config, self.cluster, wanted, destination)
            }
        };
        found.ok_or_else(|| {
            let (status, flag) = (StatusCode::SERVICE_UNAVAILABLE, Flag::NoHealthyUpstream);
            Reply::new(status, flag, "no_healthy_upstream", "no healthy upstream")
        })
    }

    async fn attempt(
        &self,
        endpoint: &Arc<Endpoint>,
        policy: Option<&RetryPolicy>,
    ) -> Result<Outcome, Reply> {
        let request = self.request()?;
        let shared = &self.forwarding.conn.shared;
        let version = self.exchange.head.version;
        let sent = send(shared, self.cluster, endpoint, version, request);
        let per_try = policy.and_then(|policy| policy.per_try);
        let per_try = per_try.map(|per_try| Instant::now() + per_try);
        let sent = match per_try.into_iter().chain(self.deadline).min() {
            None => sent.await,
            Some(limit) => match timeout_at(limit, sent).await {
                Ok(sent) => sent,
                Err(_elapsed) => {
                    outlier::report(self.cluster, endpoint, Showed::Late);
                    return Ok(if self.deadline == Some(limit) {
                        Outcome::Ended
                    } else {
                        Outcome::TooLate
                    });
                }
            },
        };
        Ok(match sent {
            Ok(response) => Outcome::Response(response),
            Err(failure) => Outcome::Failed(failure),
        })
    }

    fn request(&self) -> Result<Request<Body>, Reply> {
        let Exchange {
            head,
            authority,
            path,
            ..
        } = self.exchange;
        let body = self.body.attempt();
        let mut request = Request::new(());
        *request.method_mut() = head.method.clone();
        *request.headers_mut() = head.headers.clone();
        let (mut parts, ()) = request.into_parts();
        parts.version = upstream_version(self.cluster, head.version);
        if self.forwarding.conn.header_case == HeaderCase::Preserved {
            // The names as the client wrote them are among these; hyper alone knows as what.
            parts.extensions = head.extensions.clone();
        }
        parts
            .extensions
            .insert(Client(self.forwarding.conn.client.addr));
        rewrite::set_target(&mut parts, authority, path)?;
        if parts.version != Version::HTTP_2 && body.is_end_stream() {
            parts.headers.remove(http::header::TRANSFER_ENCODING);
        }
        Ok(Request::from_parts(parts, body))
    }
}

fn response_timeout() -> Reply {
    let (status, flag) = (StatusCode::GATEWAY_TIMEOUT, Flag::UpstreamTimeout);
    Reply::new(status, flag, "response_timeout", "upstream request timeout")
}

pub(crate) fn upstream_version(cluster: &Cluster, downstream: Version) -> Version {
    use crate::config::cluster::UpstreamHttp;
    match cluster.http {
        UpstreamHttp::Http2 => Version::HTTP_2,
        UpstreamHttp::Downstream if downstream == Version::HTTP_2 => Version::HTTP_2,
        UpstreamHttp::Http1 | UpstreamHttp::Downstream => Version::HTTP_11,
    }
}

/// The last attempt decides.
fn finish(
    outcome: Outcome,
    exhausted: bool,
    log: &mut RequestLog,
) -> Result<Response<Body>, Reply> {
    if exhausted {
        log.flag(Flag::RetryLimit);
    }
    let unavailable = |flag, details: String, body: String| {
        Reply::new(StatusCode::SERVICE_UNAVAILABLE, flag, details, body)
    };
    match outcome {
        Outcome::Response(response) => {
            Ok(response)
        }
        Outcome::TooLate => Err(Reply::new(
            StatusCode::GATEWAY_TIMEOUT,
            Flag::UpstreamTimeout,
            "upstream_per_try_timeout",
            "upstream request timeout",
        )),
        Outcome::Ended => Err(response_timeout()),
        Outcome::Failed(SendFailure::Overflow(_)) => {
            let mut reply = unavailable(
                Flag::UpstreamOverflow,
                "upstream_reset_before_response_started{overflow}".to_owned(),
                "upstream connect error or disconnect/reset before headers. reset reason: overflow".to_owned(),
            );
            let overloaded = HeaderName::from_static("x-envoy-overloaded");
            reply.headers.push((overloaded, HeaderValue::from_static("true")));
            Err(reply)
        }
        Outcome::Failed(failure @ SendFailure::Connect(_)) => Err(unavailable(
            Flag::UpstreamConnect,
            format!("upstream_reset_before_response_started{{connection_failure|{failure}}}"),
            "upstream connect error or disconnect/reset before headers. reset reason: connection failure".to_owned(),
        )),
        Outcome::Failed(failure) => Err(unavailable(
            Flag::UpstreamReset,
            format!("upstream_reset_before_response_started{{{failure}}}"),
            "upstream connect error or disconnect/reset before headers. reset reason: connection termination".to_owned(),
        )),
    }
}

fn is_retriable(policy: &RetryPolicy, outcome: &Outcome, exchange: &Exchange) -> bool {
    let on = policy.on;
    match outcome {
        Outcome::Failed(SendFailure::Connect(_)) => {
            on.connect_failure
                || on.reset
                || on.reset_before_request
                || on.server_error
                || on.gateway_error
        }
        Outcome::Failed(SendFailure::Refused(_)) => {
            on.refused_stream
                || on.reset
                || on.reset_before_request
                || on.server_error
                || on.gateway_error
        }
        Outcome::Failed(SendFailure::Reset(_)) => on.reset || on.server_error || on.gateway_error,
        Outcome::TooLate => on.server_error || on.gateway_error || on.reset,
        // Another try would only add to what is too much, or come too late.
        Outcome::Failed(SendFailure::Overflow(_)) | Outcome::Ended => false,
        Outcome::Response(response) => is_retriable_response(policy, response, exchange),
    }
}

fn is_retriable_response(
    policy: &RetryPolicy,
    response: &Response<Body>,
    exchange: &Exchange,
) -> bool {
    let (on, status) = (policy.on, response.status());
    let rate_limited = response.headers().contains_key("x-envoy-ratelimited");
    if rate_limited && !on.rate_limited {
        return false;
    }
    let gateway = matches!(status.as_u16(), 502..=504);
    let grpc = response.headers().get("grpc-status");
    let grpc: Option<u32> = grpc.and_then(|value| value.to_str().ok()?.parse().ok());
    let head = leyline_authz::RequestHead {
        headers: response.headers(),
        ..exchange.request_head()
    };
    (on.server_error && status.is_server_error())
        || (on.gateway_error && gateway)
        || (on.rate_limited && rate_limited)
        || (on.retriable_4xx && status == StatusCode::CONFLICT)
        || (on.status_codes && policy.status_codes.contains(&status))
        || (on.headers && policy.headers.iter().any(|header| header.matches(&head)))
        || grpc.is_some_and(|grpc| grpc < 32 && on.grpc & (1 << grpc) != 0)
}

/// Full jitter over an interval that doubles.
fn pause(policy: &RetryPolicy, retries: u32) -> Duration {
    let factor = 1u32 << retries.saturating_sub(1).min(16);
    let longest = policy
        .base_interval
        .saturating_mul(factor)
        .min(policy.max_interval);
    longest.mul_f64(rand::rng().random_range(0.0..1.0))
}
