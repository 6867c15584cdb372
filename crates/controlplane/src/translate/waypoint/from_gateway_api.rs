//! Routes of the Gateway API to rules, with its own semantics: whole segments, precedence by how much a match says
//! (Gateway API, HTTPRouteRule `matches`).

use std::time::Duration;

use super::rule::{
    Action, Backend, Changes, Cors, HeaderChanges, HttpRule, Mirror, NamedMatch, PathMatch,
    PathRewrite, Redirect, RedirectPort, RequestMatch, Retry, RetryHosts, RetryLocalities,
    RetryPolicy, Rewrite, Sense, Share, Target, TextMatch, UnmatchedPreflights,
};
use crate::objects::{duration, l7::gateway_route as api};

/// Finds what a route names; objects of other namespaces only where a ReferenceGrant lets it.
pub(super) trait Backends {
    fn target(&self, reference: &Reference<'_>) -> Target;
}

/// What is named.
pub(super) struct Reference<'a> {
    pub(super) group: &'a str,
    pub(super) kind: &'a str,
    pub(super) namespace: Option<&'a str>,
    pub(super) name: &'a str,
    pub(super) port: Option<u16>,
}

/// A rule with the rank of its one match, so that the rules of several routes can be put in order.
pub(super) struct Ranked {
    pub(super) rank: Rank,
    pub(super) rule: HttpRule,
}

/// Greater comes first: exact path, longer prefix, regular expression; a method; more headers; more parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    path: (u8, usize),
    method: bool,
    headers: usize,
    query: usize,
}

/// The rules of an HTTPRoute, one for each match.
pub(super) fn http_rules(
    name: &str,
    rules: &[api::HttpRule],
    backends: &impl Backends,
) -> Vec<Ranked> {
    let mut ranked = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        let everything = [api::HttpMatch::default()];
        let matches = if rule.matches.is_empty() {
            &everything[..]
        } else {
            &rule.matches
        };
        let lowered = HttpRule {
            name: rule
                .name
                .clone()
                .unwrap_or_else(|| format!("{name}.{index}")),
            timeout: rule
                .timeouts
                .as_ref()
                .and_then(|times| time(times.request.as_ref())),
            retry: retry(rule),
            ..with_filters(&rule.filters, backends)
        };
        let lowered = HttpRule {
            action: match lowered.action {
                Action::Forward(_) => Action::Forward(destinations(&rule.backend_refs, backends)),
                other @ (Action::Redirect(_) | Action::Respond { .. }) => other,
            },
            ..lowered
        };
        for matched in matches {
            ranked.push(Ranked {
                rank: rank(matched),
                rule: HttpRule {
                    matches: vec![request_match(matched)],
                    ..lowered.clone()
                },
            });
        }
    }
    ranked
}

/// The rules of a GRPCRoute: a method is a path (gRPC over HTTP/2, Requests).
pub(super) fn grpc_rules(
    name: &str,
    rules: &[api::GrpcRule],
    backends: &impl Backends,
) -> Vec<Ranked> {
    let as_http = rules.iter().map(|rule| api::HttpRule {
        name: rule.name.clone(),
        matches: rule.matches.iter().map(grpc_match).collect(),
        filters: rule.filters.clone(),
        backend_refs: rule.backend_refs.clone(),
        ..api::HttpRule::default()
    });
    let as_http: Vec<api::HttpRule> = as_http.collect();
    http_rules(name, &as_http, backends)
}

fn grpc_match(matched: &api::GrpcMatch) -> api::HttpMatch {
    let path = matched.method.as_ref().map(|method| {
        let by_regex = method.kind.as_deref() == Some("RegularExpression");
        let (kind, value) = match (&method.service, &method.method, by_regex) {
            (Some(service), Some(method), false) => ("Exact", format!("/{service}/{method}")),
            (Some(service), None, false) => ("PathPrefix", format!("/{service}")),
            (None, Some(method), false) => {
                let method = regex::escape(method);
                ("RegularExpression", format!("/[^/]+/{method}"))
            }
            (service, method, _) => {
                let any = || "[^/]+".to_owned();
                let service = service.clone().unwrap_or_else(any);
                let method = method.clone().unwrap_or_else(any);
                ("RegularExpression", format!("/{service}/{method}"))
            }
        };
        api::PathMatch {
            kind: Some(kind.to_owned()),
            value: Some(value),
        }
    });
    api::HttpMatch {
        path,
        headers: matched.headers.clone(),
        ..api::HttpMatch::default()
    }
}

fn rank(matched: &api::HttpMatch) -> Rank {
    let path = matched.path.as_ref();
    let value = path.and_then(|path| path.value.as_deref()).unwrap_or("/");
    let path = match path.and_then(|path| path.kind.as_deref()) {
        Some("Exact") => (2, value.len()),
        Some("RegularExpression") => (0, value.len()),
        Some(_) | None => (1, value.trim_end_matches('/').len()),
    };
    Rank {
        path,
        method: matched.method.is_some(),
        headers: matched.headers.len(),
        query: matched.query_params.len(),
    }
}

fn request_match(matched: &api::HttpMatch) -> RequestMatch {
    let value = |path: &api::PathMatch| path.value.clone().unwrap_or_else(|| "/".to_owned());
    let path = match &matched.path {
        None => PathMatch::Any,
        Some(path) => match path.kind.as_deref() {
            Some("Exact") => PathMatch::Exact(value(path), super::rule::Case::Told),
            Some("RegularExpression") => PathMatch::Regex(value(path)),
            Some(_) | None => PathMatch::Segments(value(path)),
        },
    };
    let method = matched.method.iter().map(|method| NamedMatch {
        name: ":method".to_owned(),
        text: TextMatch::Exact(method.clone()),
        sense: Sense::Holds,
    });
    let headers = matched.headers.iter().map(|header| NamedMatch {
        name: header.name.to_ascii_lowercase(),
        ..named_match(header)
    });
    RequestMatch {
        path,
        headers: method.chain(headers).collect(),
        query: matched.query_params.iter().map(named_match).collect(),
        claims: Vec::new(),
    }
}

fn named_match(matched: &api::NamedMatch) -> NamedMatch {
    NamedMatch {
        name: matched.name.clone(),
        text: match matched.kind.as_deref() {
            Some("RegularExpression") => TextMatch::Regex(matched.value.clone()),
            Some(_) | None => TextMatch::Exact(matched.value.clone()),
        },
        sense: Sense::Holds,
    }
}

/// What the filters of a rule say; a redirect becomes its action.
fn with_filters(filters: &[api::HttpFilter], backends: &impl Backends) -> HttpRule {
    let mut rule = HttpRule {
        headers: header_changes(filters),
        rewrite: rewrite(filters),
        ..HttpRule::default()
    };
    for filter in filters {
        if let Some(redirect) = &filter.request_redirect {
            rule.action = Action::Redirect(to_redirect(redirect));
        }
        if let Some(mirror) = &filter.request_mirror {
            rule.mirrors.push(to_mirror(mirror, backends));
        }
        if let Some(cors) = &filter.cors {
            rule.cors = Some(to_cors(cors));
        }
    }
    if filters.iter().any(is_unknown) {
        rule.action = Action::Respond {
            status: 500,
            body: Vec::new(),
        };
    }
    rule
}

/// What might check requests and is not there: without it they must not be sent on (Gateway API, HTTPRouteFilter).
fn is_unknown(filter: &api::HttpFilter) -> bool {
    filter.external_auth.is_some() || filter.extension_ref.is_some()
}

fn header_changes(filters: &[api::HttpFilter]) -> HeaderChanges {
    let mut changes = HeaderChanges::default();
    for filter in filters {
        if let Some(modifier) = &filter.request_header_modifier {
            changes.request = to_changes(modifier);
        }
        if let Some(modifier) = &filter.response_header_modifier {
            changes.response = to_changes(modifier);
        }
    }
    changes
}

fn to_changes(modifier: &api::HeaderModifier) -> Changes {
    let pairs = |headers: &[api::NameValue]| {
        let pair = |header: &api::NameValue| (header.name.clone(), header.value.clone());
        headers.iter().map(pair).collect()
    };
    Changes {
        remove: modifier.remove.clone(),
        set: pairs(&modifier.set),
        add: pairs(&modifier.add),
    }
}

fn rewrite(filters: &[api::HttpFilter]) -> Rewrite {
    let rewrite = filters
        .iter()
        .find_map(|filter| filter.url_rewrite.as_ref());
    Rewrite {
        path: path_rewrite(rewrite.and_then(|rewrite| rewrite.path.as_ref())),
        host: rewrite.and_then(|rewrite| rewrite.hostname.clone()),
    }
}

fn path_rewrite(path: Option<&api::PathModifier>) -> PathRewrite {
    let Some(path) = path else {
        return PathRewrite::None;
    };
    match (&path.replace_full_path, &path.replace_prefix_match) {
        (Some(full), _) => PathRewrite::Full(full.clone()),
        (None, Some(prefix)) => PathRewrite::Segments(prefix.clone()),
        (None, None) => PathRewrite::None,
    }
}

fn to_redirect(redirect: &api::RequestRedirect) -> Redirect {
    let port = redirect.port.and_then(|port| u16::try_from(port).ok());
    Redirect {
        scheme: redirect.scheme.clone(),
        host: redirect.hostname.clone(),
        port: match port {
            Some(port) => RedirectPort::Number(port),
            None if redirect.scheme.is_some() => RedirectPort::OfScheme,
            None => RedirectPort::Kept,
        },
        path: path_rewrite(redirect.path.as_ref()),
        code: redirect.status_code.unwrap_or(302),
    }
}

fn to_mirror(mirror: &api::RequestMirror, backends: &impl Backends) -> Mirror {
    let reference = &mirror.backend_ref;
    let share = match (&mirror.fraction, mirror.percent) {
        (Some(fraction), _) => {
            let below = f64::from(fraction.denominator.unwrap_or(100).max(1));
            Share::of_percent(f64::from(fraction.numerator) * 100.0 / below)
        }
        (None, Some(percent)) => Share::of_percent(f64::from(percent)),
        (None, None) => Share::ALL,
    };
    Mirror {
        target: backends.target(&Reference {
            group: reference.group.as_deref().unwrap_or_default(),
            kind: reference.kind.as_deref().unwrap_or("Service"),
            namespace: reference.namespace.as_deref(),
            name: &reference.name,
            port: reference.port.and_then(|port| u16::try_from(port).ok()),
        }),
        share,
    }
}

fn to_cors(cors: &api::Cors) -> Cors {
    let origin = |origin: &String| match origin.split_once('*') {
        None => TextMatch::Exact(origin.clone()),
        // A wildcard stands for anything in its place.
        Some((before, after)) => TextMatch::Regex(format!(
            "{}.*{}",
            regex::escape(before),
            regex::escape(after)
        )),
    };
    Cors {
        origins: cors.allow_origins.iter().map(origin).collect(),
        methods: cors.allow_methods.clone(),
        headers: cors.allow_headers.clone(),
        expose: cors.expose_headers.clone(),
        max_age: Some(Duration::from_secs(
            cors.max_age
                .and_then(|age| u64::try_from(age).ok())
                .unwrap_or(5),
        )),
        credentials: cors.allow_credentials == Some(true),
        unmatched: UnmatchedPreflights::Forwarded,
    }
}

fn destinations(
    all: &[api::BackendRef<api::HttpFilter>],
    backends: &impl Backends,
) -> Vec<Backend> {
    let destination = |one: &api::BackendRef<api::HttpFilter>| Backend {
        target: match one.filters.iter().any(is_unknown) {
            true => Target::Unknown,
            false => backends.target(&Reference {
                group: one.group.as_deref().unwrap_or_default(),
                kind: one.kind.as_deref().unwrap_or("Service"),
                namespace: one.namespace.as_deref(),
                name: &one.name,
                port: one.port.and_then(|port| u16::try_from(port).ok()),
            }),
        },
        weight: one
            .weight
            .and_then(|weight| u32::try_from(weight).ok())
            .unwrap_or(1),
        headers: header_changes(&one.filters),
        host: rewrite(&one.filters).host,
    };
    all.iter().map(destination).collect()
}

fn retry(rule: &api::HttpRule) -> Retry {
    let per_try = rule
        .timeouts
        .as_ref()
        .and_then(|times| time(times.backend_request.as_ref()));
    let Some(retry) = &rule.retry else {
        return match per_try {
            // Istio's own tries, each with its time.
            Some(per_try) => Retry::Custom(RetryPolicy {
                attempts: 2,
                on: [
                    "connect-failure",
                    "refused-stream",
                    "unavailable",
                    "cancelled",
                ]
                .map(str::to_owned)
                .into(),
                codes: Vec::new(),
                per_try: Some(per_try),
                backoff: None,
                hosts: RetryHosts::Others,
                localities: RetryLocalities::Any,
            }),
            None => Retry::Default,
        };
    };
    let attempts = retry
        .attempts
        .map_or(1, |attempts| u32::try_from(attempts).unwrap_or_default());
    if attempts == 0 {
        return Retry::Never;
    }
    let mut on = ["connect-failure", "refused-stream", "reset"]
        .map(str::to_owned)
        .to_vec();
    if !retry.codes.is_empty() {
        on.push("retriable-status-codes".to_owned());
    }
    Retry::Custom(RetryPolicy {
        attempts,
        on,
        codes: retry.codes.clone(),
        per_try,
        backoff: time(retry.backoff.as_ref()),
        hosts: RetryHosts::Others,
        localities: RetryLocalities::Any,
    })
}

/// Validation has read it before; 0 means none.
fn time(text: Option<&String>) -> Option<Duration> {
    duration::parse(text?).ok().filter(|time| !time.is_zero())
}
