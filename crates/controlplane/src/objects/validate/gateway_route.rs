//! Routes of the Gateway API: what its CRDs and their validation refuse.

use super::{
    Invalid,
    http::{self, each, one_of, time},
    metadata_of, push,
};
use crate::objects::{
    field::Field,
    key::Kind,
    l7::gateway_route::{
        BackendRef, GrpcRoute, GrpcRule, HeaderModifier, HttpFilter, HttpMatch, HttpRoute,
        HttpRule, NameValue, NamedMatch, ParentRef, PathModifier, ReferenceGrant, RequestMirror,
        RequestRedirect, RouteSpec, StreamRule, TcpRoute, TlsRoute,
    },
};

/// HTTPRoute.
pub(crate) fn http_route(object: &HttpRoute, found: &mut Vec<Invalid>) {
    metadata_of(Kind::HttpRoute, &object.metadata, found);
    spec(&object.spec, found, http_rule);
}

/// GRPCRoute.
pub(crate) fn grpc_route(object: &GrpcRoute, found: &mut Vec<Invalid>) {
    metadata_of(Kind::GrpcRoute, &object.metadata, found);
    spec(&object.spec, found, grpc_rule);
}

/// TCPRoute.
pub(crate) fn tcp_route(object: &TcpRoute, found: &mut Vec<Invalid>) {
    metadata_of(Kind::TcpRoute, &object.metadata, found);
    spec(&object.spec, found, stream_rule);
}

/// TLSRoute.
pub(crate) fn tls_route(object: &TlsRoute, found: &mut Vec<Invalid>) {
    metadata_of(Kind::TlsRoute, &object.metadata, found);
    spec(&object.spec, found, stream_rule);
}

/// ReferenceGrant.
pub(crate) fn reference_grant(object: &ReferenceGrant, found: &mut Vec<Invalid>) {
    metadata_of(Kind::ReferenceGrant, &object.metadata, found);
    let field = Field::of("spec");
    for (name, empty) in [
        ("from", object.spec.from.is_empty()),
        ("to", object.spec.to.is_empty()),
    ] {
        if empty {
            push(found, field.key(name), "needs at least one entry");
        }
    }
}

fn spec<Rule>(
    spec: &RouteSpec<Rule>,
    found: &mut Vec<Invalid>,
    rule: impl FnMut(&Field, &Rule, &mut Vec<Invalid>),
) {
    let field = Field::of("spec");
    each(&field.key("parentRefs"), &spec.parent_refs, found, parent);
    each(
        &field.key("hostnames"),
        &spec.hostnames,
        found,
        |field, name, found| {
            http::host(field, name, found);
        },
    );
    each(&field.key("rules"), &spec.rules, found, rule);
}

fn parent(field: &Field, parent: &ParentRef, found: &mut Vec<Invalid>) {
    if parent.name.is_empty() {
        push(found, field.key("name"), "is needed");
    }
    if let Some(port) = parent.port {
        http::port(&field.key("port"), port, found);
    }
}

fn http_rule(field: &Field, rule: &HttpRule, found: &mut Vec<Invalid>) {
    each(&field.key("matches"), &rule.matches, found, http_match);
    filters(field, &rule.filters, found);
    backends(field, &rule.backend_refs, found);
    each(
        &field.key("backendRefs"),
        &rule.backend_refs,
        found,
        |field, backend, found| {
            filters(field, &backend.filters, found);
        },
    );
    let redirects = rule
        .filters
        .iter()
        .any(|filter| filter.request_redirect.is_some());
    if redirects && !rule.backend_refs.is_empty() {
        push(
            found,
            field.key("backendRefs"),
            "must be empty beside a RequestRedirect",
        );
    }
    if let Some(timeouts) = &rule.timeouts {
        let field = field.key("timeouts");
        time(&field.key("request"), timeouts.request.as_ref(), found);
        time(
            &field.key("backendRequest"),
            timeouts.backend_request.as_ref(),
            found,
        );
    }
    if let Some(retry) = &rule.retry {
        let field = field.key("retry");
        time(&field.key("backoff"), retry.backoff.as_ref(), found);
        each(
            &field.key("codes"),
            &retry.codes,
            found,
            |field, code, found| {
                if !(400..600).contains(code) {
                    push(
                        found,
                        field.clone(),
                        format!("{code} is not between 400 and 599"),
                    );
                }
            },
        );
    }
}

fn http_match(field: &Field, matches: &HttpMatch, found: &mut Vec<Invalid>) {
    if let Some(path) = &matches.path {
        let field = field.key("path");
        let kind = path.kind.as_deref().unwrap_or("PathPrefix");
        one_of(
            &field.key("type"),
            kind,
            &["PathPrefix", "Exact", "RegularExpression"],
            found,
        );
        let value = path.value.as_deref().unwrap_or("/");
        if kind == "RegularExpression" {
            if let Err(reason) = http::regex(value) {
                push(found, field.key("value"), reason);
            }
        } else if !value.starts_with('/') {
            push(
                found,
                field.key("value"),
                format!("`{value}` does not start with /"),
            );
        }
    }
    each(
        &field.key("headers"),
        &matches.headers,
        found,
        |field, header, found| {
            http::header_name(&field.key("name"), &header.name, found);
            named_match(field, header, found);
        },
    );
    each(
        &field.key("queryParams"),
        &matches.query_params,
        found,
        named_match,
    );
    if let Some(method) = &matches.method
        && ::http::Method::from_bytes(method.as_bytes()).is_err()
    {
        push(
            found,
            field.key("method"),
            format!("`{method}` is not a method"),
        );
    }
}

fn named_match(field: &Field, matches: &NamedMatch, found: &mut Vec<Invalid>) {
    if matches.name.is_empty() {
        push(found, field.key("name"), "is needed");
    }
    let kind = matches.kind.as_deref().unwrap_or("Exact");
    one_of(
        &field.key("type"),
        kind,
        &["Exact", "RegularExpression"],
        found,
    );
    if kind == "RegularExpression"
        && let Err(reason) = http::regex(&matches.value)
    {
        push(found, field.key("value"), reason);
    }
}

fn filters(field: &Field, all: &[HttpFilter], found: &mut Vec<Invalid>) {
    each(&field.key("filters"), all, found, filter);
}

fn filter(field: &Field, filter: &HttpFilter, found: &mut Vec<Invalid>) {
    let parts = [
        (
            "RequestHeaderModifier",
            filter.request_header_modifier.is_some(),
        ),
        (
            "ResponseHeaderModifier",
            filter.response_header_modifier.is_some(),
        ),
        ("RequestMirror", filter.request_mirror.is_some()),
        ("RequestRedirect", filter.request_redirect.is_some()),
        ("URLRewrite", filter.url_rewrite.is_some()),
        ("CORS", filter.cors.is_some()),
        ("ExternalAuth", filter.external_auth.is_some()),
        ("ExtensionRef", filter.extension_ref.is_some()),
    ];
    let names: Vec<&str> = parts.iter().map(|(name, _)| *name).collect();
    one_of(&field.key("type"), &filter.kind, &names, found);
    for (name, set) in parts {
        if set != (name == filter.kind) {
            let reason = format!(
                "type is {} and {name} is {}",
                filter.kind,
                if set { "set" } else { "not" }
            );
            push(found, field.clone(), reason);
        }
    }
    let modifiers = [
        &filter.request_header_modifier,
        &filter.response_header_modifier,
    ];
    for modifier in modifiers.into_iter().flatten() {
        header_modifier(field, modifier, found);
    }
    if let Some(mirror) = &filter.request_mirror {
        request_mirror(&field.key("requestMirror"), mirror, found);
    }
    if let Some(redirect) = &filter.request_redirect {
        request_redirect(&field.key("requestRedirect"), redirect, found);
    }
    if let Some(rewrite) = &filter.url_rewrite {
        path_modifier(&field.key("urlRewrite"), rewrite.path.as_ref(), found);
    }
}

fn header_modifier(field: &Field, modifier: &HeaderModifier, found: &mut Vec<Invalid>) {
    let mut header = |field: &Field, header: &NameValue, found: &mut Vec<Invalid>| {
        http::header_name(&field.key("name"), &header.name, found);
        http::header_value(&field.key("value"), &header.value, found);
    };
    each(&field.key("set"), &modifier.set, found, &mut header);
    each(&field.key("add"), &modifier.add, found, &mut header);
    each(
        &field.key("remove"),
        &modifier.remove,
        found,
        |field, name, found| {
            http::header_name(field, name, found);
        },
    );
}

fn request_mirror(field: &Field, mirror: &RequestMirror, found: &mut Vec<Invalid>) {
    if mirror.backend_ref.name.is_empty() {
        push(found, field.key("backendRef").key("name"), "is needed");
    }
    if mirror.percent.is_some() && mirror.fraction.is_some() {
        push(
            found,
            field.clone(),
            "needs at most one of percent and fraction",
        );
    }
    if mirror
        .percent
        .is_some_and(|percent| !(0..=100).contains(&percent))
    {
        push(found, field.key("percent"), "is not between 0 and 100");
    }
    if let Some(fraction) = &mirror.fraction {
        let below = fraction.denominator.unwrap_or(100);
        if below < 1 || !(0..=below).contains(&fraction.numerator) {
            push(found, field.key("fraction"), "is not between 0 and 1");
        }
    }
}

fn request_redirect(field: &Field, redirect: &RequestRedirect, found: &mut Vec<Invalid>) {
    if let Some(scheme) = &redirect.scheme {
        one_of(&field.key("scheme"), scheme, &["http", "https"], found);
    }
    if let Some(code) = redirect.status_code
        && ![301, 302, 303, 307, 308].contains(&code)
    {
        let reason = format!("{code} is none of 301, 302, 303, 307, 308");
        push(found, field.key("statusCode"), reason);
    }
    if let Some(port) = redirect.port {
        http::port(&field.key("port"), port, found);
    }
    path_modifier(field, redirect.path.as_ref(), found);
}

fn path_modifier(field: &Field, path: Option<&PathModifier>, found: &mut Vec<Invalid>) {
    let Some(path) = path else { return };
    let field = field.key("path");
    match path.kind.as_str() {
        "ReplaceFullPath" if path.replace_full_path.is_some() => {}
        "ReplacePrefixMatch" if path.replace_prefix_match.is_some() => {}
        "ReplaceFullPath" | "ReplacePrefixMatch" => {
            push(
                found,
                field,
                format!("type is {}, and its field is not set", path.kind),
            );
        }
        other => {
            let allowed = ["ReplaceFullPath", "ReplacePrefixMatch"];
            one_of(&field.key("type"), other, &allowed, found);
        }
    }
}

fn grpc_rule(field: &Field, rule: &GrpcRule, found: &mut Vec<Invalid>) {
    each(
        &field.key("matches"),
        &rule.matches,
        found,
        |field, matches, found| {
            if let Some(method) = &matches.method {
                let field = field.key("method");
                let kind = method.kind.as_deref().unwrap_or("Exact");
                one_of(
                    &field.key("type"),
                    kind,
                    &["Exact", "RegularExpression"],
                    found,
                );
                if method.service.is_none() && method.method.is_none() {
                    push(found, field.clone(), "needs service, method or both");
                }
                for (name, text) in [("service", &method.service), ("method", &method.method)] {
                    if kind == "RegularExpression"
                        && let Some(Err(reason)) = text.as_deref().map(http::regex)
                    {
                        push(found, field.key(name), reason);
                    }
                }
            }
            each(&field.key("headers"), &matches.headers, found, named_match);
        },
    );
    filters(field, &rule.filters, found);
    backends(field, &rule.backend_refs, found);
}

fn stream_rule(field: &Field, rule: &StreamRule, found: &mut Vec<Invalid>) {
    if rule.backend_refs.is_empty() {
        push(found, field.key("backendRefs"), "needs at least one entry");
    }
    backends(field, &rule.backend_refs, found);
}

/// Weights may be 0 together: then every request gets an error, which the Gateway API says.
fn backends<Filter>(field: &Field, all: &[BackendRef<Filter>], found: &mut Vec<Invalid>) {
    each(
        &field.key("backendRefs"),
        all,
        found,
        |field, backend, found| {
            if backend.name.is_empty() {
                push(found, field.key("name"), "is needed");
            }
            let group = backend.group.as_deref().unwrap_or_default();
            let kind = backend.kind.as_deref().unwrap_or("Service");
            match backend.port {
                Some(port) => http::port(&field.key("port"), port, found),
                None if group.is_empty() && kind == "Service" => {
                    push(found, field.key("port"), "is needed for a Service");
                }
                None => {}
            }
            if backend.weight.is_some_and(|weight| weight < 0) {
                push(found, field.key("weight"), "must not be negative");
            }
        },
    );
}
