//! VirtualService: what Istio's admission refuses.

use super::{
    Invalid,
    http::{self, Presence, each, one_of, time},
    metadata_of, push,
};
use crate::objects::{
    field::Field,
    key::Kind,
    l7::virtual_service::{
        CorsPolicy, Destination, DirectResponse, Fault, HeaderOperations, Headers, HttpDestination,
        HttpMatch, HttpRoute, Mirror, Redirect, Retry, Rewrite, TcpDestination, TcpRoute, TlsRoute,
        VirtualService,
    },
};

/// Istio's claim matches are written as headers.
const CLAIM: &str = "@request.auth.claims";
/// What HTTP/2 calls pseudo headers can be matched by these names too.
const PSEUDO_HEADERS: [&str; 4] = [":authority", ":method", ":path", ":scheme"];

/// VirtualService.
pub(crate) fn virtual_service(object: &VirtualService, found: &mut Vec<Invalid>) {
    metadata_of(Kind::VirtualService, &object.metadata, found);
    let field = Field::of("spec");
    let spec = &object.spec;
    // A delegate, which another one splices in, has no hosts.
    each(
        &field.key("hosts"),
        &spec.hosts,
        found,
        |field, host, found| {
            if host.parse::<std::net::IpAddr>().is_err() {
                http::host(field, host, found);
            }
        },
    );
    if spec.http.is_empty() && spec.tcp.is_empty() && spec.tls.is_empty() {
        push(found, field.clone(), "needs a route: http, tls or tcp");
    }
    if spec.hosts.is_empty() && !(spec.tcp.is_empty() && spec.tls.is_empty()) {
        let reason = "is needed; only a delegate of http routes goes without";
        push(found, field.key("hosts"), reason);
    }
    each(&field.key("http"), &spec.http, found, http_route);
    each(&field.key("tls"), &spec.tls, found, tls_route);
    each(&field.key("tcp"), &spec.tcp, found, tcp_route);
}

fn http_route(field: &Field, route: &HttpRoute, found: &mut Vec<Invalid>) {
    each(&field.key("match"), &route.matches, found, http_match);
    let ways = [
        !route.route.is_empty(),
        route.redirect.is_some(),
        route.direct_response.is_some(),
        route.delegate.is_some(),
    ];
    if ways.into_iter().filter(|way| *way).count() != 1 {
        let reason = "needs one of route, redirect, directResponse and delegate";
        push(found, field.clone(), reason);
    }
    let to = field.key("route");
    each(&to, &route.route, found, http_destination);
    let weights: Vec<i64> = route.route.iter().map(|to| to.weight.into()).collect();
    http::weights(&to, &weights, found);
    if let Some(redirect) = &route.redirect {
        check_redirect(&field.key("redirect"), redirect, found);
    }
    if let Some(answer) = &route.direct_response {
        check_direct_response(&field.key("directResponse"), answer, found);
    }
    if let Some(rewrite) = &route.rewrite {
        check_rewrite(&field.key("rewrite"), rewrite, found);
    }
    time(&field.key("timeout"), route.timeout.as_ref(), found);
    if let Some(retry) = &route.retries {
        check_retry(&field.key("retries"), retry, found);
    }
    if let Some(fault) = &route.fault {
        check_fault(&field.key("fault"), fault, found);
    }
    if let Some(to) = &route.mirror {
        destination(&field.key("mirror"), to, found);
    }
    http::percent(
        &field.key("mirrorPercentage"),
        route.mirror_percentage,
        found,
    );
    each(&field.key("mirrors"), &route.mirrors, found, mirror);
    if let Some(cors) = &route.cors_policy {
        check_cors(&field.key("corsPolicy"), cors, found);
    }
    if let Some(changes) = &route.headers {
        headers(&field.key("headers"), changes, found);
    }
}

fn http_match(field: &Field, matches: &HttpMatch, found: &mut Vec<Invalid>) {
    for (name, text) in [
        ("uri", &matches.uri),
        ("scheme", &matches.scheme),
        ("method", &matches.method),
        ("authority", &matches.authority),
    ] {
        if let Some(text) = text {
            http::string_match(&field.key(name), text, Presence::Refused, found);
        }
    }
    for (part, all) in [
        ("headers", &matches.headers),
        ("withoutHeaders", &matches.without_headers),
    ] {
        for (name, text) in all {
            let field = field.key(part).key(name);
            if !name.starts_with(CLAIM) && !PSEUDO_HEADERS.contains(&name.as_str()) {
                http::header_name(&field, name, found);
            }
            http::string_match(&field, text, Presence::Allowed, found);
        }
    }
    for (name, text) in &matches.query_params {
        let field = field.key("queryParams").key(name);
        http::string_match(&field, text, Presence::Allowed, found);
    }
    if let Some(port) = matches.port {
        http::port(&field.key("port"), port.into(), found);
    }
}

fn http_destination(field: &Field, to: &HttpDestination, found: &mut Vec<Invalid>) {
    destination(&field.key("destination"), &to.destination, found);
    if let Some(changes) = &to.headers {
        headers(&field.key("headers"), changes, found);
    }
}

fn destination(field: &Field, to: &Destination, found: &mut Vec<Invalid>) {
    if to.host.is_empty() {
        push(found, field.key("host"), "is needed");
    } else if to.host.contains('*') {
        push(
            found,
            field.key("host"),
            "a destination cannot be a wildcard",
        );
    } else {
        http::host(&field.key("host"), &to.host, found);
    }
    if let Some(port) = &to.port {
        http::port(&field.key("port").key("number"), port.number.into(), found);
    }
}

fn status(field: &Field, code: u32, least: u32, found: &mut Vec<Invalid>) {
    if !(least..=599).contains(&code) {
        let reason = format!("{code} is not an HTTP status between {least} and 599");
        push(found, field.clone(), reason);
    }
}

fn check_redirect(field: &Field, redirect: &Redirect, found: &mut Vec<Invalid>) {
    if let Some(code) = redirect.redirect_code
        && ![301, 302, 303, 307, 308].contains(&code)
    {
        let reason = format!("{code} is none of 301, 302, 303, 307, 308");
        push(found, field.key("redirectCode"), reason);
    }
    if let Some(scheme) = &redirect.scheme {
        one_of(&field.key("scheme"), scheme, &["http", "https"], found);
    }
    if let Some(derived) = &redirect.derive_port {
        let allowed = ["FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"];
        one_of(&field.key("derivePort"), derived, &allowed, found);
    }
    if redirect.uri.is_some() && redirect.prefix_rewrite.is_some() {
        let reason = "cannot be combined with uri";
        push(found, field.key("prefixRewrite"), reason);
    }
    if redirect.port.is_some() && redirect.derive_port.is_some() {
        push(
            found,
            field.key("derivePort"),
            "cannot be combined with port",
        );
    }
    if let Some(port) = redirect.port {
        http::port(&field.key("port"), port.into(), found);
    }
}

fn check_direct_response(field: &Field, answer: &DirectResponse, found: &mut Vec<Invalid>) {
    status(&field.key("status"), answer.status, 200, found);
    let forms = answer
        .body
        .iter()
        .flat_map(|body| [&body.string, &body.bytes]);
    if answer.body.is_some() && forms.flatten().count() != 1 {
        push(found, field.key("body"), "needs one of string and bytes");
    }
}

fn check_rewrite(field: &Field, rewrite: &Rewrite, found: &mut Vec<Invalid>) {
    if let Some(by_regex) = &rewrite.uri_regex_rewrite {
        let field = field.key("uriRegexRewrite");
        if rewrite.uri.is_some() {
            push(found, field.clone(), "cannot be combined with uri");
        }
        if let Err(reason) = http::regex(&by_regex.pattern) {
            push(found, field.key("match"), reason);
        }
    }
    let nothing =
        rewrite.uri.is_none() && rewrite.authority.is_none() && rewrite.uri_regex_rewrite.is_none();
    if nothing {
        push(found, field.clone(), "changes nothing");
    }
}

/// Conditions of Envoy's `retry_on` and `retry_grpc_on` (its router documentation) that Istio lets pass.
const RETRY_ON: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

pub(super) fn check_retry(field: &Field, retry: &Retry, found: &mut Vec<Invalid>) {
    if retry.attempts < 0 {
        push(found, field.key("attempts"), "must not be negative");
    }
    let times = [
        ("perTryTimeout", &retry.per_try_timeout),
        ("backoff", &retry.backoff),
    ];
    for (name, text) in times {
        time(&field.key(name), text.as_ref(), found);
    }
    let conditions = retry.retry_on.as_deref().unwrap_or_default();
    for condition in conditions
        .split(',')
        .map(str::trim)
        .filter(|one| !one.is_empty())
    {
        if condition
            .parse::<u32>()
            .is_ok_and(|code| (100..600).contains(&code))
        {
            continue;
        }
        one_of(&field.key("retryOn"), condition, &RETRY_ON, found);
    }
}

fn check_fault(field: &Field, fault: &Fault, found: &mut Vec<Invalid>) {
    if let Some(delay) = &fault.delay {
        let field = field.key("delay");
        http::percent(&field.key("percentage"), delay.percentage, found);
        if delay.exponential_delay.is_some() {
            push(found, field.key("exponentialDelay"), "is not supported");
        } else if delay.fixed_delay.is_none() {
            push(found, field.key("fixedDelay"), "is needed");
        }
        time(&field.key("fixedDelay"), delay.fixed_delay.as_ref(), found);
    }
    if let Some(abort) = &fault.abort {
        let field = field.key("abort");
        http::percent(&field.key("percentage"), abort.percentage, found);
        if abort.http2_error.is_some() {
            push(found, field.key("http2Error"), "is not supported");
        }
        match (abort.http_status, &abort.grpc_status) {
            (Some(code), None) => status(&field.key("httpStatus"), code, 200, found),
            (None, Some(name)) => {
                one_of(&field.key("grpcStatus"), name, &GRPC_STATUS, found);
            }
            (None, None) | (Some(_), Some(_)) => {
                push(found, field, "needs one of httpStatus and grpcStatus");
            }
        }
    }
    if fault.delay.is_none() && fault.abort.is_none() {
        push(found, field.clone(), "needs delay, abort or both");
    }
}

/// The names of gRPC's status codes, 0 first (the gRPC document on status codes).
const GRPC_STATUS: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The number of a gRPC status.
pub(crate) fn grpc_status(name: &str) -> Option<u32> {
    let number = GRPC_STATUS.iter().position(|known| *known == name)?;
    u32::try_from(number).ok()
}

fn mirror(field: &Field, mirror: &Mirror, found: &mut Vec<Invalid>) {
    destination(&field.key("destination"), &mirror.destination, found);
    http::percent(&field.key("percentage"), mirror.percentage, found);
}

fn check_cors(field: &Field, cors: &CorsPolicy, found: &mut Vec<Invalid>) {
    each(
        &field.key("allowOrigins"),
        &cors.allow_origins,
        found,
        |field, text, found| {
            http::string_match(field, text, Presence::Refused, found);
        },
    );
    time(&field.key("maxAge"), cors.max_age.as_ref(), found);
    if let Some(unmatched) = &cors.unmatched_preflights {
        let allowed = ["UNSPECIFIED", "FORWARD", "IGNORE"];
        one_of(
            &field.key("unmatchedPreflights"),
            unmatched,
            &allowed,
            found,
        );
    }
}

fn headers(field: &Field, changes: &Headers, found: &mut Vec<Invalid>) {
    for (name, operations) in [
        ("request", &changes.request),
        ("response", &changes.response),
    ] {
        if let Some(operations) = operations {
            header_operations(&field.key(name), operations, found);
        }
    }
}

fn header_operations(field: &Field, operations: &HeaderOperations, found: &mut Vec<Invalid>) {
    for (part, all) in [("set", &operations.set), ("add", &operations.add)] {
        for (name, value) in all {
            let field = field.key(part).key(name);
            // The authority is changed under this name.
            if name != ":authority" {
                http::header_name(&field, name, found);
            }
            http::header_value(&field, value, found);
        }
    }
    each(
        &field.key("remove"),
        &operations.remove,
        found,
        |field, name, found| {
            http::header_name(field, name, found);
        },
    );
}

fn tls_route(field: &Field, route: &TlsRoute, found: &mut Vec<Invalid>) {
    if route.matches.is_empty() {
        push(found, field.key("match"), "a TLS route needs a match");
    }
    each(
        &field.key("match"),
        &route.matches,
        found,
        |field, matches, found| {
            if matches.sni_hosts.is_empty() {
                push(found, field.key("sniHosts"), "is needed");
            }
            each(
                &field.key("sniHosts"),
                &matches.sni_hosts,
                found,
                |field, host, found| {
                    http::host(field, host, found);
                },
            );
        },
    );
    stream_destinations(field, &route.route, found);
}

fn tcp_route(field: &Field, route: &TcpRoute, found: &mut Vec<Invalid>) {
    stream_destinations(field, &route.route, found);
}

fn stream_destinations(field: &Field, all: &[TcpDestination], found: &mut Vec<Invalid>) {
    let field = field.key("route");
    if all.is_empty() {
        push(found, field.clone(), "needs a destination");
    }
    each(&field, all, found, |field, to, found| {
        destination(&field.key("destination"), &to.destination, found);
    });
    let weights: Vec<i64> = all.iter().map(|to| to.weight.into()).collect();
    http::weights(&field, &weights, found);
}
