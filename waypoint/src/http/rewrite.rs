//! Rewrites of path and host, and redirects.

use http::{
    HeaderValue, StatusCode, Uri,
    header::{HOST, LOCATION},
    uri::{Authority, PathAndQuery},
};

use super::{
    pipeline::Exchange,
    reply::{Flag, Reply},
};
use crate::config::route::{
    action::{PathRewrite, Redirect},
    matching::PathMatch,
};

/// The path and query after a rewrite.
pub(crate) fn path(original: &str, matched: &PathMatch, rewrite: &PathRewrite) -> String {
    let (path, query) = match original.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (original, None),
    };
    let mut new = match rewrite {
        PathRewrite::Full(full) => full.clone(),
        PathRewrite::Prefix(prefix) => {
            let rest = path.get(matched.matched(path).len()..).unwrap_or_default();
            joined(prefix, rest, matched)
        }
        PathRewrite::Regex(pattern, with) => pattern.replace_all(path, with.as_str()).into_owned(),
    };
    if new.is_empty() {
        new.push('/');
    }
    if let Some(query) = query {
        new.push(if new.contains('?') { '&' } else { '?' });
        new.push_str(query);
    }
    new
}

/// A prefix of whole segments keeps exactly one slash in between (Gateway API, ReplacePrefixMatch).
fn joined(prefix: &str, rest: &str, matched: &PathMatch) -> String {
    if matches!(matched, PathMatch::Segments(_)) && rest.starts_with('/') {
        return format!("{}{rest}", prefix.trim_end_matches('/'));
    }
    format!("{prefix}{rest}")
}

/// The answer of a redirecting route.
pub(crate) fn redirect(exchange: &Exchange, matched: &PathMatch, action: &Redirect) -> Reply {
    let path_and_query = match &action.path {
        Some(rewrite) => path(&exchange.path, matched, rewrite),
        None => exchange.path.clone(),
    };
    let path_and_query = match path_and_query.split_once('?') {
        Some((path, _)) if action.strip_query => path.to_owned(),
        _ => path_and_query,
    };
    let location = format!(
        "{}://{}{path_and_query}",
        action.scheme.as_deref().unwrap_or("http"),
        host(exchange, action)
    );
    let mut reply = Reply::new(action.status, Flag::None, "direct_response", "");
    match HeaderValue::try_from(location) {
        Ok(location) => reply.headers.push((LOCATION, location)),
        // Only a host of the client's own making can be no header value.
        Err(_) => reply.status = StatusCode::BAD_REQUEST,
    }
    reply
}

/// Port: the redirect's own, else that of the request unless scheme or host changes, as Envoy does.
fn host(exchange: &Exchange, action: &Redirect) -> String {
    let (name, port) = match exchange.authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (name, Some(port)),
        _ => (exchange.authority.as_str(), None),
    };
    let host = action.host.as_deref().unwrap_or(name);
    let default = match action.scheme.as_deref() {
        Some("https") => 443,
        _ => 80,
    };
    match (action.port, port) {
        (Some(port), _) if port != default => format!("{host}:{port}"),
        (None, Some(port)) if action.scheme.is_none() && action.host.is_none() => {
            format!("{host}:{port}")
        }
        (Some(_) | None, _) => host.to_owned(),
    }
}

/// Sets path and host of a request that goes upstream. A host or path that a client or a rewrite made and that cannot be
/// sent is an error of the request.
pub(crate) fn set_target(
    head: &mut http::request::Parts,
    authority: &str,
    path: &str,
) -> Result<(), Reply> {
    let bad = |what: &str| Reply::new(StatusCode::BAD_REQUEST, Flag::None, what, "");
    let path: PathAndQuery = path.parse().map_err(|_not_a_path| bad("path_invalid"))?;
    let target: Authority = authority
        .parse()
        .map_err(|_not_a_host| bad("host_invalid"))?;
    let host = HeaderValue::try_from(authority).map_err(|_not_a_value| bad("host_invalid"))?;
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(path);
    if head.version == http::Version::HTTP_2 {
        uri.scheme = Some(http::uri::Scheme::HTTP);
        uri.authority = Some(target);
        head.headers.remove(HOST);
    } else {
        head.headers.insert(HOST, host);
    }
    head.uri = Uri::from_parts(uri).map_err(|_not_a_uri| bad("path_invalid"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_replaced_and_the_query_stays() {
        let check = |matched: PathMatch, rewrite: &str, from: &str, expected: &str| {
            let rewrite = PathRewrite::Prefix(rewrite.to_owned());
            assert_eq!(path(from, &matched, &rewrite), expected);
        };
        let segments = || PathMatch::Segments("/v1".to_owned());
        check(PathMatch::Prefix("/v1/".into()), "/", "/v1/a?b=c", "/a?b=c");
        check(segments(), "/v2", "/v1/a", "/v2/a");
        check(segments(), "/", "/v1/a", "/a");
        check(segments(), "/", "/v1", "/");
    }

    #[test]
    fn other_rewrites() {
        let all = PathMatch::Prefix("/".into());
        let full = PathRewrite::Full("/x".into());
        assert_eq!(path("/a/b?c", &all, &full), "/x?c");
        let pattern = regex::Regex::new("^/service/([^/]+)(/.*)$").unwrap();
        let regex = PathRewrite::Regex(pattern, "${2}/instance/${1}".into());
        assert_eq!(
            path("/service/foo/v1/api", &all, &regex),
            "/v1/api/instance/foo"
        );
    }
}
