//! The parts of which RBAC policies are made: one value of the user's policy to one matcher of Envoy's.

use envoy_types::pb::envoy::{
    config::{
        core::v3::CidrRange,
        rbac::v3::{
            Permission, Principal, permission, permission::Rule as PermissionRule, principal,
            principal::Identifier,
        },
        route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier},
    },
    r#type::matcher::v3::{
        FilterStateMatcher, PathMatcher, StringMatcher, ValueMatcher, filter_state_matcher,
        path_matcher, string_matcher::MatchPattern, value_matcher::MatchPattern as ValuePattern,
    },
};

use super::super::{claims, pb};
use crate::objects::parse_block;

/// Where the client's identity is.
const PEER: &str = "io.istio.peer_principal";

/// `*`, `*suffix`, `prefix*`, or the whole; `before` stands before what is not a suffix.
pub(super) fn pattern(value: &str, before: &str) -> StringMatcher {
    let pattern = if value == "*" {
        MatchPattern::SafeRegex(pb::regex(".+"))
    } else if let Some(suffix) = value.strip_prefix('*') {
        MatchPattern::Suffix(suffix.to_owned())
    } else if let Some(prefix) = value.strip_suffix('*') {
        MatchPattern::Prefix(format!("{before}{prefix}"))
    } else {
        MatchPattern::Exact(format!("{before}{value}"))
    };
    StringMatcher {
        match_pattern: Some(pattern),
        ..StringMatcher::default()
    }
}

pub(super) fn matching(pattern: String) -> StringMatcher {
    StringMatcher {
        match_pattern: Some(MatchPattern::SafeRegex(pb::regex(&pattern))),
        ..StringMatcher::default()
    }
}

pub(super) fn id(identifier: Identifier) -> Principal {
    Principal {
        identifier: Some(identifier),
    }
}

pub(super) fn any_id() -> Principal {
    id(Identifier::Any(true))
}

pub(super) fn all_ids(ids: Vec<Principal>) -> Principal {
    if ids.is_empty() {
        return any_id();
    }
    id(Identifier::AndIds(principal::Set { ids }))
}

/// One of `values`, and none of `not`.
pub(super) fn either<T>(
    values: &[String],
    not: &[String],
    one: impl Fn(&str) -> T,
    any: impl Fn(Vec<T>) -> T,
    none: impl Fn(T) -> T,
) -> Vec<T> {
    let mut all = Vec::new();
    if !values.is_empty() {
        all.push(any(values.iter().map(|value| one(value)).collect()));
    }
    if !not.is_empty() {
        all.push(none(any(not.iter().map(|value| one(value)).collect())));
    }
    all
}

pub(super) fn either_id(
    values: &[String],
    not: &[String],
    one: impl Fn(&str) -> Principal,
) -> Vec<Principal> {
    let any = |ids| id(Identifier::OrIds(principal::Set { ids }));
    let none = |one| id(Identifier::NotId(Box::new(one)));
    either(values, not, one, any, none)
}

pub(super) fn either_rule(
    values: &[String],
    not: &[String],
    one: impl Fn(&str) -> Permission,
) -> Vec<Permission> {
    let any = |rules| rule(PermissionRule::OrRules(permission::Set { rules }));
    let none = |one| rule(PermissionRule::NotRule(Box::new(one)));
    either(values, not, one, any, none)
}

pub(super) fn peer(matcher: StringMatcher) -> Principal {
    id(Identifier::FilterState(FilterStateMatcher {
        key: PEER.to_owned(),
        matcher: Some(filter_state_matcher::Matcher::StringMatch(matcher)),
    }))
}

pub(super) fn of_principal(value: &str) -> Principal {
    peer(pattern(value, "spiffe://"))
}

pub(super) fn of_namespace(value: &str) -> Principal {
    let name = regex::escape(value).replace("\\*", ".*");
    peer(matching(format!(".*/ns/{name}/.*")))
}

/// `account`, of the policy's own namespace, or `namespace/account`.
pub(super) fn of_account(value: &str) -> Principal {
    let (namespace, account) = value.split_once('/').unwrap_or(("[^/]+", value));
    let namespace = if namespace == "[^/]+" {
        namespace.to_owned()
    } else {
        regex::escape(namespace)
    };
    let account = regex::escape(account);
    peer(matching(format!(
        "spiffe://[^/]+/ns/{namespace}/sa/{account}"
    )))
}

pub(super) fn of_trust_domain(value: &str) -> Principal {
    let name = regex::escape(value).replace("\\*", ".*");
    peer(matching(format!("spiffe://{name}/.*")))
}

pub(super) fn block(value: &str) -> CidrRange {
    // Validation has read it before; what is no block is nobody's.
    match parse_block(value) {
        Ok(block) => CidrRange {
            address_prefix: block.addr().to_string(),
            prefix_len: pb::uint32(block.prefix_len().into()),
        },
        Err(_) => CidrRange {
            address_prefix: "255.255.255.255".to_owned(),
            prefix_len: pb::uint32(32),
        },
    }
}

/// `issuer/subject`; a wildcard stands on one of its ends.
pub(super) fn request_principal(value: &str) -> Principal {
    let (issuer, subject) = match value {
        "*" => ("*", "*"),
        value => value.rsplit_once('/').unwrap_or((value, "*")),
    };
    let parts = [("iss", issuer), ("sub", subject)];
    all_ids(parts.map(|(name, value)| claim(&[name], value)).into())
}

/// A claim is a text, or a list with the text in it.
#[expect(
    deprecated,
    reason = "istiod writes claims so, and Envoy's newer form is the same with one more level"
)]
pub(super) fn claim(path: &[&str], value: &str) -> Principal {
    let text = ValueMatcher {
        match_pattern: Some(ValuePattern::StringMatch(pattern(value, ""))),
    };
    let in_list = claims::in_list(text.clone());
    let ids = [text, in_list].map(|value| {
        let matcher = claims::matcher(path.iter().copied(), value);
        id(Identifier::Metadata(matcher))
    });
    id(Identifier::OrIds(principal::Set { ids: ids.into() }))
}

pub(super) fn bracketed<'a>(key: &'a str, word: &str) -> Option<&'a str> {
    key.strip_prefix(word)?.strip_prefix('[')?.strip_suffix(']')
}

pub(super) fn header(name: &str, matcher: StringMatcher) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_ascii_lowercase(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(matcher)),
        ..HeaderMatcher::default()
    }
}

pub(super) fn rule(rule: PermissionRule) -> Permission {
    Permission { rule: Some(rule) }
}

pub(super) fn any_rule() -> Permission {
    rule(PermissionRule::Any(true))
}

pub(super) fn all_rules(rules: Vec<Permission>) -> Permission {
    if rules.is_empty() {
        return any_rule();
    }
    rule(PermissionRule::AndRules(permission::Set { rules }))
}

pub(super) fn of_port(value: &str) -> Permission {
    // Validation has read it before; no port is 0.
    rule(PermissionRule::DestinationPort(value.parse().unwrap_or(0)))
}

/// A path, a wildcard at one of its ends, or a template with `{*}` for one segment and `{**}` for any.
pub(super) fn of_path(value: &str) -> Permission {
    let matcher = if value.contains("{*") {
        let quoted = regex::escape(value);
        let pattern = quoted
            .replace("\\{\\*\\*\\}", ".*")
            .replace("\\{\\*\\}", "[^/]+");
        matching(pattern)
    } else {
        pattern(value, "")
    };
    rule(PermissionRule::UrlPath(PathMatcher {
        rule: Some(path_matcher::Rule::Path(matcher)),
    }))
}
