//! The table of contents of L7: what happens to a request, in one written order, each step with its reason.
//!
//! The configuration is loaded once per request; a change takes effect with the next request of a connection.

use std::{net::IpAddr, sync::Arc};

use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Version,
    header::{COOKIE, HOST},
};
use hyper::body::Incoming;
use leyline_authz::{RequestFacts, RequestHead};
use rand::RngExt;
use serde_json::{Map, Value};

use super::{
    body::Body,
    filters::{
        cors, fault,
        grpc_web::{Encoding, Malformed},
        local_ratelimit::Quota,
        ratelimit::RouteLimits,
    },
    forward::{self, Forwarding},
    path::{Normalized, normalize},
    reply::{Flag, Form, Reply},
    request_log::RequestLog,
    rewrite,
    server::HttpConnection,
    warm,
};
use crate::{
    config::{
        Config,
        http::{ClientIdentity, HostPort, HttpChain, RequestId, ServerHeader},
        listener::Chain,
        route::{self, Route, RouteTable, VirtualHost, action::Action, headers::HeaderChanges},
    },
    spans,
};

const REQUEST_ID: &str = "x-request-id";
/// Who the client is, as proxies say.
const XFCC: &str = "x-forwarded-client-cert";

/// A request on its way through the filters.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) head: http::request::Parts,
    /// What the client called, from `:authority` or `Host`.
    pub(crate) authority: String,
    /// Path and query, normalised.
    pub(crate) path: String,
    /// One number for all decisions by chance, so that a request is of a share or not.
    pub(crate) random: u64,
    /// What filters found out, by the name of the filter.
    pub(crate) metadata: Map<String, Value>,
    /// Where the body may turn out to be malformed.
    pub(crate) malformed: Option<Malformed>,
}

/// Answers one request. Its log line is written when the last byte of the answer has passed.
pub(crate) async fn handle(
    conn: Arc<HttpConnection>,
    request: Request<Incoming>,
) -> Response<Body> {
    let mut log = RequestLog::begin(&conn, &request);
    let form = Form::of(request.headers());
    let mut additions = Additions::default();
    let answered = Box::pin(answer(&conn, request, &mut log, &mut additions)).await;
    let mut response = answered.unwrap_or_else(|reply| {
        log.replied(&reply);
        reply.into_response(form)
    });
    let web = additions.web;
    additions.apply(response.headers_mut());
    match web {
        None => log.attach(response),
        Some(encoding) => Box::pin(encoding.answer(response, log)).await,
    }
}

/// What filters have the client told, whoever answers.
#[derive(Debug, Default)]
struct Additions {
    authorizer: HeaderChanges,
    quota: Quota,
    /// Set last: no upstream says which pages may read its answers.
    cors: HeaderMap,
    server: Option<ServerHeader>,
    /// How a client of gRPC-Web reads.
    web: Option<Encoding>,
    closes: Connection,
}

/// Whether the client may go on with its HTTP/1.1 connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Connection {
    #[default]
    Stays,
    /// The service is not served here any more.
    Closes,
}

impl Additions {
    fn apply(self, headers: &mut HeaderMap) {
        self.quota.apply(headers);
        for (name, value) in &self.cors {
            headers.insert(name.clone(), value.clone());
        }
        self.authorizer.apply(headers);
        if let Some(server) = &self.server {
            set_server(server, headers);
        }
        if self.closes == Connection::Closes {
            let close = HeaderValue::from_static("close");
            headers.insert(http::header::CONNECTION, close);
        }
    }
}

/// The steps. A reply ends them early.
async fn answer(
    conn: &Arc<HttpConnection>,
    request: Request<Incoming>,
    log: &mut RequestLog,
    additions: &mut Additions,
) -> Result<Response<Body>, Reply> {
    let config = serving(conn, request.version(), additions);
    let chain = config.chain(conn.chain.as_str()).cloned();
    let chain = http_chain(chain.as_deref())?;
    log.served_by(&chain.telemetry, request.headers());
    additions.server = Some(chain.server_header.clone());
    let (mut exchange, mut body) = Exchange::new(request, chain)?;
    begin(chain, &mut exchange, conn, log);

    let config = warm::with_routes(conn, config, &chain.routes).await;
    let table = config.routes(&chain.routes);
    let table = table.map_err(|reason| Reply::unsupported(reason.as_str()))?;

    // Authentication and authorization before everything that costs something or has an effect. A refusal wins over a
    // missing route: who may not ask learns nothing.
    let (security, told) = (&chain.filters.security, &mut additions.authorizer);
    let checked = (security.check(&mut exchange, &mut body, (&config, conn), told)).await;
    log.found(&exchange.metadata);
    let permit = checked?;

    // After authentication, because routes may ask for claims of the token.
    let (host, route) = select(&table, &exchange).ok_or_else(Reply::no_route)?;
    log.routed(route);
    // They have seen what the client sent. From here on it is gRPC, and so are its refusals.
    additions.web = chain.filters.grpc_web.begin(&mut exchange, &mut body, log);

    // Who is refused must not use up the limits of others.
    let (filters, limits) = (&chain.filters, RouteLimits::of(host, route));
    let quota = limits.check(filters, &config, &mut exchange, conn);
    additions.quota = quota.await?;

    // After authorization, so that nobody is delayed for something that he may not do.
    fault::inject(route.overrides.fault.as_ref(), &exchange, log).await?;

    // The application has no part in what a browser asks before it asks.
    let cors = cors::check(route.overrides.cors.as_ref(), &exchange)?;
    cors.apply(&mut additions.cors);
    match &route.action {
        Action::Redirect(action) => Err(rewrite::redirect(&exchange, &route.matching.path, action)),
        Action::Direct { status, body } => Err(Reply::direct(*status, body.clone())),
        Action::Forward(action) => {
            put_headers(&mut exchange, &table, host, route);
            let config = warm::awaited(conn, &config, action, exchange.random).await;
            let forwarding = Forwarding {
                conn,
                config: &config,
                chain,
                route,
                action,
            };
            let response = forward::forward(permit, forwarding, exchange, body, log).await?;
            Ok(with_headers(response, &table, host, route))
        }
    }
}

/// The configuration that has the service, now or until a moment ago.
fn serving(conn: &HttpConnection, version: Version, additions: &mut Additions) -> Arc<Config> {
    let store = &conn.shared.config;
    let has_service = |config: &Config| config.chain(conn.chain.as_str()).is_some();
    if version != Version::HTTP_2 && !has_service(&store.load()) {
        additions.closes = Connection::Closes;
    }
    store.serving(has_service)
}

/// First of all: what a client says of itself is nothing to go by.
fn tell_client(chain: &HttpChain, exchange: &mut Exchange, conn: &HttpConnection) {
    let headers = &mut exchange.head.headers;
    if chain.client_identity == ClientIdentity::Removed {
        headers.remove(XFCC);
    }
    chain.filters.mutations.apply(headers, conn);
}

/// Before anybody is told of the request, so that all of them see who sends it, and its trace.
fn begin(chain: &HttpChain, exchange: &mut Exchange, conn: &HttpConnection, log: &mut RequestLog) {
    tell_client(chain, exchange, conn);
    if let Some(tracing) = &chain.telemetry.tracing {
        log.traced(spans::begin(tracing, &mut exchange.head.headers));
    }
    log.prepared(exchange);
}

/// A connection outlives changes of the configuration; its service may have become another kind or none.
fn http_chain(chain: Option<&Chain>) -> Result<&HttpChain, Reply> {
    match chain {
        Some(Chain::Http(chain)) => Ok(chain),
        Some(Chain::Refused(reason)) => Err(Reply::unsupported(reason)),
        Some(Chain::Tcp(_)) => Err(Reply::unsupported("the port is no longer HTTP")),
        None => Err(Reply::no_route()),
    }
}

/// The first route of the host that applies.
fn select<'a>(table: &'a RouteTable, exchange: &Exchange) -> Option<(&'a VirtualHost, &'a Route)> {
    let host = table.host(&exchange.authority)?;
    let head = exchange.request_head();
    let route = host.routes.iter().find(|route| {
        let matching = &route.matching;
        matching.matches(&head, exchange.random, &exchange.metadata)
    })?;
    Some((host, route))
}

fn put_headers(exchange: &mut Exchange, table: &RouteTable, host: &VirtualHost, route: &Route) {
    for level in [&route.headers, &host.headers, &table.headers] {
        level.request.apply(&mut exchange.head.headers);
    }
}

fn with_headers(
    mut response: Response<Body>,
    table: &RouteTable,
    host: &VirtualHost,
    route: &Route,
) -> Response<Body> {
    for level in [&route.headers, &host.headers, &table.headers] {
        level.response.apply(response.headers_mut());
    }
    response
}

fn set_server(how: &ServerHeader, headers: &mut HeaderMap) {
    let (name, overwrite) = match how {
        ServerHeader::Overwrite(name) => (name, true),
        ServerHeader::AppendIfAbsent(name) => (name, false),
        ServerHeader::PassThrough => return,
    };
    if (overwrite || !headers.contains_key(http::header::SERVER))
        && let Ok(value) = HeaderValue::from_str(name.as_str())
    {
        headers.insert(http::header::SERVER, value);
    }
}

impl Exchange {
    fn new(request: Request<Incoming>, chain: &HttpChain) -> Result<(Self, Body), Reply> {
        let (mut head, body) = request.into_parts();
        let mut authority = authority(&head)?;
        if chain.host_port == HostPort::Removed {
            let end = route::without_port(&authority).len();
            authority.truncate(end);
        }
        let original = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let path = match normalize(original, chain.paths) {
            Normalized::Path(path) => path,
            Normalized::Redirect(path) => {
                let status = StatusCode::TEMPORARY_REDIRECT;
                let mut reply = Reply::new(status, Flag::None, "path_normalization_failed", "");
                if let Ok(path) = HeaderValue::try_from(path) {
                    reply.headers.push((http::header::LOCATION, path));
                }
                return Err(reply);
            }
            Normalized::Bad => {
                let details = "path_normalization_failed";
                return Err(Reply::new(StatusCode::BAD_REQUEST, Flag::None, details, ""));
            }
        };
        join_cookies(&mut head);
        if chain.request_id == RequestId::Generate && !head.headers.contains_key(REQUEST_ID) {
            head.headers.insert(REQUEST_ID, request_id());
        }
        head.headers
            .entry("x-forwarded-proto")
            .or_insert(HeaderValue::from_static("http"));
        let exchange = Self {
            head,
            authority,
            path,
            random: rand::rng().random(),
            metadata: Map::new(),
            malformed: None,
        };
        Ok((exchange, Body::incoming(body)))
    }

    /// What routes and policies look at.
    pub(crate) fn request_head(&self) -> RequestHead<'_> {
        RequestHead {
            method: &self.head.method,
            scheme: "http",
            authority: &self.authority,
            path: &self.path,
            headers: &self.head.headers,
        }
    }

    /// What policies look at besides.
    pub(crate) fn facts<'a>(&'a self, conn: &'a HttpConnection) -> RequestFacts<'a> {
        RequestFacts {
            head: self.request_head(),
            peer: Some(&conn.client.principal),
            source_ip: conn.client.addr.ip(),
            remote_ip: self.remote_ip(conn),
            destination: conn.destination.address(),
            destination_port: conn.destination.port(),
            metadata: &self.metadata,
        }
    }

    /// The client as the request says.
    pub(crate) fn remote_ip(&self, conn: &HttpConnection) -> IpAddr {
        self.forwarded_for()
            .unwrap_or_else(|| conn.client.addr.ip())
    }

    /// The last address of `x-forwarded-for`: who the previous proxy saw (Envoy without trusted hops).
    fn forwarded_for(&self) -> Option<IpAddr> {
        let last = self
            .head
            .headers
            .get_all("x-forwarded-for")
            .iter()
            .next_back()?;
        last.to_str().ok()?.rsplit(',').next()?.trim().parse().ok()
    }
}

/// Whether a browser asks what it may ask for (Fetch standard, "CORS-preflight request").
pub(crate) fn is_preflight(head: &http::request::Parts) -> bool {
    head.method == http::Method::OPTIONS
        && head.headers.contains_key(http::header::ORIGIN)
        && head
            .headers
            .contains_key(http::header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// HTTP/2 lets a client send each cookie in a field of its own; for everybody here and for HTTP/1.1 they are one
/// (RFC 9113, 8.2.3).
fn join_cookies(head: &mut http::request::Parts) {
    if head.version != Version::HTTP_2 {
        return;
    }
    let mut fields = head.headers.get_all(COOKIE).iter();
    let (Some(first), Some(_)) = (fields.next(), fields.next()) else {
        return;
    };
    let mut joined = first.as_bytes().to_vec();
    for field in head.headers.get_all(COOKIE).iter().skip(1) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(field.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        head.headers.insert(COOKIE, joined);
    }
}

/// HTTP/1.0 may come without a host.
fn authority(head: &http::request::Parts) -> Result<String, Reply> {
    if let Some(authority) = head.uri.authority() {
        return Ok(authority.as_str().to_owned());
    }
    let missing = |details: &str| Reply::new(StatusCode::BAD_REQUEST, Flag::None, details, "");
    let mut hosts = head.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => match host.to_str() {
            Ok(host) => Ok(host.to_owned()),
            Err(_) => Err(missing("host_invalid")),
        },
        (None, _) if head.version == Version::HTTP_10 => Ok(String::new()),
        (None, _) => Err(missing("missing_host_header")),
        // Two hosts are two meanings (request smuggling).
        (Some(_), Some(_)) => Err(missing("more_than_one_host_header")),
    }
}

/// A UUID of version 4.
fn request_id() -> HeaderValue {
    let random: u128 = rand::rng().random();
    let id = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{id:032x}");
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default();
    let text = [
        part(0..8),
        part(8..12),
        part(12..16),
        part(16..20),
        part(20..32),
    ]
    .join("-");
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_of_http2_are_one_field() {
        for (version, expected) in [(Version::HTTP_2, 1), (Version::HTTP_11, 2)] {
            let request = Request::builder().version(version);
            let request = request.header(COOKIE, "a=1").header(COOKIE, "b=2; c=3");
            let (mut head, ()) = request.body(()).unwrap().into_parts();
            join_cookies(&mut head);
            let fields: Vec<_> = head.headers.get_all(COOKIE).iter().collect();
            assert_eq!(fields.len(), expected);
            assert!(expected == 2 || fields[0] == "a=1; b=2; c=3", "{fields:?}");
        }
    }

    #[test]
    fn request_ids_are_uuids_of_version_4() {
        let id = request_id();
        let parts: Vec<&str> = id.to_str().unwrap().split('-').collect();
        assert_eq!(
            parts.iter().map(|part| part.len()).collect::<Vec<_>>(),
            [8, 4, 4, 4, 12]
        );
        assert!(parts[2].starts_with('4') && "89ab".contains(&parts[3][..1]));
    }
}
