//! VirtualServices to rules (facts A.7).

use base64::{Engine, prelude::BASE64_STANDARD};

use super::{
    names::full_host,
    rule::{
        Abort, Action, Backend, Case, Changes, ClaimMatch, Cors, Fault, HeaderChanges, HttpRule,
        Mirror, NamedMatch, PathMatch, PathRewrite, Redirect, RedirectPort, RequestMatch, Retry,
        RetryHosts, RetryLocalities, RetryPolicy, Rewrite, Sense, Share, Target, TextMatch,
        UnmatchedPreflights,
    },
};
use crate::objects::{
    duration, grpc_status,
    l7::{StringMatch, virtual_service as vs},
};

/// Istio's form of a claim in place of a header's name.
const CLAIM: &str = "@request.auth.claims";
/// The gateway that means "inside the mesh".
const MESH: &str = "mesh";
/// Istio's conditions where the user names none.
const RETRY_ON: &str =
    "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";

/// Where rules are for.
pub(super) struct Place<'a> {
    /// Of the VirtualService.
    pub(super) namespace: &'a str,
    pub(super) cluster_domain: &'a str,
    /// Port of the service.
    pub(super) port: u16,
}

/// Parts of a route that a waypoint cannot know, so that the match is left out (facts E.1: `sourceLabels`).
pub(super) fn unknowable(matched: &vs::HttpMatch) -> Option<&'static str> {
    if !matched.source_labels.is_empty() {
        Some("sourceLabels")
    } else if matched.source_namespace.is_some() {
        Some("sourceNamespace")
    } else {
        None
    }
}

/// One route; `None` when none of its matches can hold here.
pub(super) fn http_rule(route: &vs::HttpRoute, place: &Place<'_>) -> Option<HttpRule> {
    let matches: Vec<RequestMatch> = route
        .matches
        .iter()
        .filter(|matched| applies(matched, place.port))
        .map(request_match)
        .collect();
    if matches.is_empty() && !route.matches.is_empty() {
        return None;
    }
    let named = || {
        route
            .matches
            .iter()
            .find_map(|matched| matched.name.clone())
    };
    Some(HttpRule {
        name: route.name.clone().or_else(named).unwrap_or_default(),
        matches,
        action: action(route, place),
        rewrite: rewrite(route),
        headers: header_changes(route.headers.as_ref()),
        timeout: time(route.timeout.as_ref()).filter(|timeout| !timeout.is_zero()),
        retry: retry(route.retries.as_ref()),
        fault: fault(route.fault.as_ref()),
        mirrors: mirrors(route, place),
        cors: route.cors_policy.as_ref().map(cors),
    })
}

fn applies(matched: &vs::HttpMatch, port: u16) -> bool {
    let gateways = matched.gateways.is_empty() || matched.gateways.iter().any(|name| name == MESH);
    let port = matched.port.is_none_or(|wanted| wanted == u32::from(port));
    gateways && port && unknowable(matched).is_none()
}

fn request_match(matched: &vs::HttpMatch) -> RequestMatch {
    let case = if matched.ignore_uri_case {
        Case::Ignored
    } else {
        Case::Told
    };
    let mut all = RequestMatch {
        path: matched
            .uri
            .as_ref()
            .map(|uri| path(uri, case))
            .unwrap_or_default(),
        ..RequestMatch::default()
    };
    for (name, value) in [
        (":scheme", &matched.scheme),
        (":method", &matched.method),
        (":authority", &matched.authority),
    ] {
        if let Some(value) = value {
            add(&mut all, name, text(value), Sense::Holds);
        }
    }
    for (name, value) in &matched.headers {
        add(&mut all, name, text(value), Sense::Holds);
    }
    for (name, value) in &matched.without_headers {
        add(&mut all, name, text(value), Sense::Fails);
    }
    for (name, value) in &matched.query_params {
        all.query.push(NamedMatch {
            name: name.clone(),
            text: text(value),
            sense: Sense::Holds,
        });
    }
    all
}

/// A header, or a claim that is written as one.
fn add(all: &mut RequestMatch, name: &str, text: TextMatch, sense: Sense) {
    match name.strip_prefix(CLAIM) {
        Some(claim) => all.claims.push(ClaimMatch {
            path: claim_path(claim),
            text,
            sense,
        }),
        None => all.headers.push(NamedMatch {
            name: name.to_ascii_lowercase(),
            text,
            sense,
        }),
    }
}

/// `.a.b` or `[a][b.c]`.
fn claim_path(claim: &str) -> Vec<String> {
    let parts: Vec<&str> = if claim.starts_with('[') {
        claim.split(['[', ']']).collect()
    } else {
        claim.split('.').collect()
    };
    parts
        .into_iter()
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

fn path(uri: &StringMatch, case: Case) -> PathMatch {
    match text(uri) {
        TextMatch::Exact(exact) => PathMatch::Exact(exact, case),
        TextMatch::Prefix(prefix) => PathMatch::Prefix(prefix, case),
        TextMatch::Regex(pattern) => PathMatch::Regex(pattern),
        TextMatch::Present => PathMatch::Any,
    }
}

/// A match that is empty means presence, and so does the pattern for anything.
fn text(matched: &StringMatch) -> TextMatch {
    match (&matched.exact, &matched.prefix, &matched.regex) {
        (Some(exact), _, _) => TextMatch::Exact(exact.clone()),
        (None, Some(prefix), _) => TextMatch::Prefix(prefix.clone()),
        (None, None, Some(pattern)) if pattern == ".*" => TextMatch::Present,
        (None, None, Some(pattern)) => TextMatch::Regex(pattern.clone()),
        (None, None, None) => TextMatch::Present,
    }
}

fn action(route: &vs::HttpRoute, place: &Place<'_>) -> Action {
    if let Some(redirect) = &route.redirect {
        return Action::Redirect(to_redirect(redirect, place.port));
    }
    if let Some(answer) = &route.direct_response {
        let body = answer.body.as_ref().map(body).unwrap_or_default();
        return Action::Respond {
            status: answer.status,
            body,
        };
    }
    let only = route.route.len() == 1;
    let backends = route.route.iter().map(|to| Backend {
        target: target(&to.destination, place),
        weight: if only && to.weight == 0 {
            1
        } else {
            u32::try_from(to.weight).unwrap_or_default()
        },
        headers: header_changes(to.headers.as_ref()),
        host: host_of(to.headers.as_ref()),
    });
    Action::Forward(backends.collect())
}

fn body(body: &vs::Body) -> Vec<u8> {
    match (&body.string, &body.bytes) {
        (Some(text), _) => text.clone().into_bytes(),
        (None, Some(bytes)) => BASE64_STANDARD.decode(bytes).unwrap_or_default(),
        (None, None) => Vec::new(),
    }
}

fn target(to: &vs::Destination, place: &Place<'_>) -> Target {
    Target::Service {
        host: full_host(&to.host, place.namespace, place.cluster_domain),
        port: to
            .port
            .as_ref()
            .and_then(|port| u16::try_from(port.number).ok()),
        subset: to.subset.clone().filter(|subset| !subset.is_empty()),
    }
}

fn to_redirect(redirect: &vs::Redirect, port: u16) -> Redirect {
    let derived = redirect.derive_port.as_deref();
    Redirect {
        scheme: redirect.scheme.clone(),
        host: redirect.authority.clone(),
        port: match redirect.port.and_then(|port| u16::try_from(port).ok()) {
            Some(port) => RedirectPort::Number(port),
            None if derived == Some("FROM_PROTOCOL_DEFAULT") => RedirectPort::OfScheme,
            None if derived == Some("FROM_REQUEST_PORT") => RedirectPort::Number(port),
            None => RedirectPort::Kept,
        },
        path: match (&redirect.uri, &redirect.prefix_rewrite) {
            (Some(uri), _) => PathRewrite::Full(uri.clone()),
            (None, Some(prefix)) => PathRewrite::Matched(prefix.clone()),
            (None, None) => PathRewrite::None,
        },
        code: redirect.redirect_code.unwrap_or(301),
    }
}

fn rewrite(route: &vs::HttpRoute) -> Rewrite {
    let given = route.rewrite.as_ref();
    let by_regex = given.and_then(|rewrite| rewrite.uri_regex_rewrite.as_ref());
    let path = match (given.and_then(|rewrite| rewrite.uri.clone()), by_regex) {
        (Some(uri), _) => PathRewrite::Matched(uri),
        (None, Some(regex)) => PathRewrite::Regex {
            pattern: regex.pattern.clone(),
            substitution: regex.rewrite.clone(),
        },
        (None, None) => PathRewrite::None,
    };
    Rewrite {
        path,
        host: given
            .and_then(|rewrite| rewrite.authority.clone())
            .or_else(|| host_of(route.headers.as_ref())),
    }
}

/// The host is set under these names, and is no header.
fn is_host(name: &str) -> bool {
    name == ":authority" || name.eq_ignore_ascii_case("host")
}

fn host_of(headers: Option<&vs::Headers>) -> Option<String> {
    let set = &headers?.request.as_ref()?.set;
    set.iter()
        .find(|(name, _)| is_host(name))
        .map(|(_, value)| value.clone())
}

fn header_changes(headers: Option<&vs::Headers>) -> HeaderChanges {
    let changes = |operations: Option<&vs::HeaderOperations>| {
        let operations = operations.cloned().unwrap_or_default();
        let without_host = |headers: std::collections::BTreeMap<String, String>| {
            headers
                .into_iter()
                .filter(|(name, _)| !is_host(name))
                .collect()
        };
        Changes {
            remove: operations.remove,
            set: without_host(operations.set),
            add: without_host(operations.add),
        }
    };
    HeaderChanges {
        request: changes(headers.and_then(|headers| headers.request.as_ref())),
        response: changes(headers.and_then(|headers| headers.response.as_ref())),
    }
}

/// Validation has read it before.
fn time(text: Option<&String>) -> Option<std::time::Duration> {
    duration::parse(text?).ok()
}

/// Also of MeshConfig.
pub(super) fn retry(retry: Option<&vs::Retry>) -> Retry {
    let Some(retry) = retry else {
        return Retry::Default;
    };
    let attempts = u32::try_from(retry.attempts).unwrap_or_default();
    if attempts == 0 {
        return Retry::Never;
    }
    let conditions = retry
        .retry_on
        .as_deref()
        .filter(|text| !text.trim().is_empty());
    let (mut on, mut codes) = (Vec::new(), Vec::new());
    for condition in conditions.unwrap_or(RETRY_ON).split(',').map(str::trim) {
        match condition.parse() {
            Ok(code) => codes.push(code),
            Err(_) if condition.is_empty() => {}
            Err(_) => on.push(condition.to_owned()),
        }
    }
    let by_code = "retriable-status-codes";
    if !codes.is_empty() && !on.iter().any(|condition| condition == by_code) {
        on.push(by_code.to_owned());
    }
    Retry::Custom(RetryPolicy {
        attempts,
        on,
        codes,
        per_try: time(retry.per_try_timeout.as_ref()).filter(|time| !time.is_zero()),
        backoff: time(retry.backoff.as_ref()),
        hosts: if retry.retry_ignore_previous_hosts == Some(false) {
            RetryHosts::Any
        } else {
            RetryHosts::Others
        },
        localities: if retry.retry_remote_localities == Some(true) {
            RetryLocalities::Others
        } else {
            RetryLocalities::Any
        },
    })
}

fn share(percentage: Option<crate::objects::l7::Percent>, whole: Option<f64>) -> Share {
    let percent = percentage.map(|share| share.value).or(whole);
    percent.map_or(Share::ALL, Share::of_percent)
}

fn fault(fault: Option<&vs::Fault>) -> Fault {
    let Some(fault) = fault else {
        return Fault::default();
    };
    let delay = fault.delay.as_ref().and_then(|delay| {
        let fixed = time(delay.fixed_delay.as_ref())?;
        Some((share(delay.percentage, delay.percent.map(f64::from)), fixed))
    });
    let abort = fault.abort.as_ref().and_then(|abort| {
        let with = match (abort.http_status, abort.grpc_status.as_deref()) {
            (Some(status), _) => Abort::Http(status),
            (None, name) => Abort::Grpc(grpc_status(name?)?),
        };
        Some((share(abort.percentage, None), with))
    });
    Fault { delay, abort }
}

fn mirrors(route: &vs::HttpRoute, place: &Place<'_>) -> Vec<Mirror> {
    let older = route.mirror.as_ref().map(|to| Mirror {
        target: target(to, place),
        share: share(route.mirror_percentage, route.mirror_percent.map(f64::from)),
    });
    let listed = route.mirrors.iter().map(|mirror| Mirror {
        target: target(&mirror.destination, place),
        share: share(mirror.percentage, None),
    });
    older.into_iter().chain(listed).collect()
}

fn cors(cors: &vs::CorsPolicy) -> Cors {
    let by_equality = cors
        .allow_origin
        .iter()
        .map(|origin| match origin.as_str() {
            "*" => TextMatch::Regex(".*".to_owned()),
            origin => TextMatch::Exact(origin.to_owned()),
        });
    let matched = cors.allow_origins.iter().map(|origin| match text(origin) {
        TextMatch::Present => TextMatch::Regex(".*".to_owned()),
        given => given,
    });
    Cors {
        origins: by_equality.chain(matched).collect(),
        methods: cors.allow_methods.clone(),
        headers: cors.allow_headers.clone(),
        expose: cors.expose_headers.clone(),
        max_age: time(cors.max_age.as_ref()),
        credentials: cors.allow_credentials == Some(true),
        unmatched: if cors.unmatched_preflights.as_deref() == Some("IGNORE") {
            UnmatchedPreflights::Ignored
        } else {
            UnmatchedPreflights::Forwarded
        },
    }
}
