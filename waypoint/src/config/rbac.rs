//! Envoy's RBAC rules as conditions of `leyline-authz`. A condition that is not known refuses the chain: a policy without
//! one of its conditions would say something else.

use std::net::IpAddr;

use envoy_types::pb::envoy::{
    config::{
        core::v3::CidrRange,
        rbac::v3::{self as proto, permission::Rule, principal::Identifier, rbac::Action},
    },
    extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig,
    r#type::matcher::v3::{
        FilterStateMatcher, MetadataMatcher, PathMatcher, StringMatcher, ValueMatcher,
        filter_state_matcher, list_matcher, metadata_matcher::path_segment::Segment, path_matcher,
        value_matcher::MatchPattern,
    },
};
use ipnet::IpNet;
use leyline_authz::{
    Condition, MetadataMatch, RequestPolicy, RequestRules, RuleAction, TextMatch, ValueMatch,
};

use super::{
    any::decode,
    error::{At, Compiled, Unsupported},
    text::{header, text},
};

/// The filter state that holds the peer's identity of a waypoint's connection.
const PEER_PRINCIPAL: &str = "io.istio.peer_principal";

/// Compiles one list of policies; they are ordered by name, as Envoy orders them.
pub(crate) fn rules(rbac: &proto::Rbac) -> Compiled<RequestRules> {
    let action = match Action::try_from(rbac.action) {
        Ok(Action::Allow) => RuleAction::Allow,
        Ok(Action::Deny) => RuleAction::Deny,
        Ok(Action::Log) => RuleAction::Log,
        Err(_) => return Err(Unsupported::new("action")),
    };
    let mut policies = Vec::with_capacity(rbac.policies.len());
    for (id, policy) in &rbac.policies {
        policies.push(compile_policy(id, policy).at(format!("policy {id}"))?);
    }
    policies.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(RequestRules { action, policies })
}

fn compile_policy(id: &str, policy: &proto::Policy) -> Compiled<RequestPolicy> {
    if policy.condition.is_some() || policy.checked_condition.is_some() {
        return Err(Unsupported::new("condition in CEL"));
    }
    Ok(RequestPolicy {
        id: id.into(),
        permission: any_of(&policy.permissions, permission)?,
        principal: any_of(&policy.principals, principal)?,
    })
}

fn any_of<T>(items: &[T], compile: fn(&T) -> Compiled<Condition>) -> Compiled<Condition> {
    items
        .iter()
        .map(compile)
        .collect::<Compiled<_>>()
        .map(Condition::Or)
}

fn all_of<T>(items: &[T], compile: fn(&T) -> Compiled<Condition>) -> Compiled<Condition> {
    items
        .iter()
        .map(compile)
        .collect::<Compiled<_>>()
        .map(Condition::And)
}

fn not(condition: Condition) -> Condition {
    Condition::Not(Box::new(condition))
}

#[expect(deprecated, reason = "istiod sends them")]
fn permission(permission: &proto::Permission) -> Compiled<Condition> {
    let rule = permission.rule.as_ref();
    match rule.ok_or_else(|| Unsupported::missing("permission rule"))? {
        Rule::AndRules(set) => all_of(&set.rules, self::permission),
        Rule::OrRules(set) => any_of(&set.rules, self::permission),
        Rule::NotRule(inner) => self::permission(inner).map(not),
        Rule::Any(true) => Ok(Condition::Any),
        Rule::Any(false) => Err(Unsupported::new("any: false")),
        Rule::Header(matcher) => header(matcher).map(Condition::Header),
        Rule::UrlPath(matcher) => path(matcher),
        Rule::DestinationIp(cidr) => block(cidr).map(Condition::DestinationIp),
        Rule::DestinationPort(number) => {
            let number = port(i64::from(*number))?;
            Ok(Condition::DestinationPort(number, number))
        }
        // The end is not part of it.
        Rule::DestinationPortRange(range) => Ok(Condition::DestinationPort(
            port(range.start.into())?,
            port(i64::from(range.end) - 1)?,
        )),
        Rule::Metadata(matcher) => metadata(matcher),
        Rule::UriTemplate(extension) => {
            let any = extension.typed_config.as_ref();
            let any = any.ok_or_else(|| Unsupported::missing("typed_config"))?;
            let template: UriTemplateMatchConfig = decode(any).at("uri_template")?;
            path_template(&template.path_template).map(Condition::Path)
        }
        Rule::RequestedServerName(_) | Rule::Matcher(_) | Rule::SourcedMetadata(_) => Err(
            Unsupported::new("requested_server_name, matcher or sourced_metadata"),
        ),
    }
}

#[expect(deprecated, reason = "istiod sends them")]
fn principal(principal: &proto::Principal) -> Compiled<Condition> {
    let identifier = principal.identifier.as_ref();
    match identifier.ok_or_else(|| Unsupported::missing("principal identifier"))? {
        Identifier::AndIds(set) => all_of(&set.ids, self::principal),
        Identifier::OrIds(set) => any_of(&set.ids, self::principal),
        Identifier::NotId(inner) => self::principal(inner).map(not),
        Identifier::Any(true) => Ok(Condition::Any),
        Identifier::Any(false) => Err(Unsupported::new("any: false")),
        Identifier::Authenticated(authenticated) => match &authenticated.principal_name {
            Some(matcher) => text(matcher).map(Condition::Peer),
            None => Ok(Condition::Peer(TextMatch::Prefix("spiffe://".to_owned()))),
        },
        Identifier::FilterState(matcher) => filter_state(matcher),
        Identifier::DirectRemoteIp(cidr) | Identifier::SourceIp(cidr) => {
            block(cidr).map(Condition::SourceIp)
        }
        Identifier::RemoteIp(cidr) => block(cidr).map(Condition::RemoteIp),
        Identifier::Header(matcher) => header(matcher).map(Condition::Header),
        Identifier::UrlPath(matcher) => path(matcher),
        Identifier::Metadata(matcher) => metadata(matcher),
        Identifier::SourcedMetadata(_) | Identifier::Custom(_) => {
            Err(Unsupported::new("sourced_metadata or custom"))
        }
    }
}

fn filter_state(matcher: &FilterStateMatcher) -> Compiled<Condition> {
    match &matcher.matcher {
        Some(filter_state_matcher::Matcher::StringMatch(matched))
            if matcher.key == PEER_PRINCIPAL =>
        {
            text(matched).map(Condition::Peer)
        }
        _ => Err(Unsupported::new(format!("filter state {}", matcher.key))),
    }
}

fn path(matcher: &PathMatcher) -> Compiled<Condition> {
    let Some(path_matcher::Rule::Path(matcher)) = &matcher.rule else {
        return Err(Unsupported::missing("path"));
    };
    compile_path(matcher)
}

fn compile_path(matcher: &StringMatcher) -> Compiled<Condition> {
    text(matcher).map(Condition::Path)
}

/// `{*}` is one segment of at least one character, `{**}` any number of them.
fn path_template(template: &str) -> Compiled<TextMatch> {
    let mut pattern = String::new();
    let mut rest = template;
    while let Some(start) = rest.find('{') {
        let (before, variable) = rest.split_at(start);
        pattern.push_str(&regex::escape(before));
        let (variable, after) = variable
            .split_once('}')
            .ok_or_else(|| Unsupported::new(format!("path template `{template}`")))?;
        match variable {
            "{*" => pattern.push_str("[^/]+"),
            "{**" => pattern.push_str(".*"),
            _ => return Err(Unsupported::new(format!("path template `{template}`"))),
        }
        rest = after;
    }
    pattern.push_str(&regex::escape(rest));
    Ok(TextMatch::pattern(&pattern)?)
}

fn metadata(matcher: &MetadataMatcher) -> Compiled<Condition> {
    let condition = Condition::Metadata(metadata_match(matcher)?);
    Ok(if matcher.invert {
        not(condition)
    } else {
        condition
    })
}

/// Without its `invert`.
pub(crate) fn metadata_match(matcher: &MetadataMatcher) -> Compiled<MetadataMatch> {
    let mut path = vec![matcher.filter.clone()];
    for segment in &matcher.path {
        match &segment.segment {
            Some(Segment::Key(key)) => path.push(key.clone()),
            None => return Err(Unsupported::missing("metadata key")),
        }
    }
    let matched = matcher.value.as_ref();
    let value = value(matched.ok_or_else(|| Unsupported::missing("metadata value"))?)?;
    Ok(MetadataMatch { path, value })
}

fn value(matcher: &ValueMatcher) -> Compiled<ValueMatch> {
    let pattern = matcher.match_pattern.as_ref();
    match pattern.ok_or_else(|| Unsupported::missing("match_pattern"))? {
        MatchPattern::StringMatch(matcher) => text(matcher).map(ValueMatch::Text),
        MatchPattern::BoolMatch(wanted) => Ok(ValueMatch::Bool(*wanted)),
        MatchPattern::PresentMatch(true) => Ok(ValueMatch::Present),
        MatchPattern::ListMatch(list) => match &list.match_pattern {
            Some(list_matcher::MatchPattern::OneOf(item)) => {
                Ok(ValueMatch::AnyOf(Box::new(value(item)?)))
            }
            None => Err(Unsupported::missing("list_match")),
        },
        MatchPattern::OrMatch(any) => {
            let any: Compiled<Vec<ValueMatch>> = any.value_matchers.iter().map(value).collect();
            Ok(ValueMatch::Or(any?))
        }
        MatchPattern::NullMatch(_)
        | MatchPattern::DoubleMatch(_)
        | MatchPattern::PresentMatch(false) => Err(Unsupported::new("value matcher")),
    }
}

fn block(cidr: &CidrRange) -> Compiled<IpNet> {
    let bad = || Unsupported::new(format!("address block `{}`", cidr.address_prefix));
    let address: IpAddr = cidr
        .address_prefix
        .parse()
        .map_err(|_not_an_address| bad())?;
    let length = cidr.prefix_len.as_ref().map_or(0, |length| length.value);
    let length = u8::try_from(length).map_err(|_too_long| bad())?;
    IpNet::new(address, length).map_err(|_too_long| bad())
}

fn port(number: i64) -> Compiled<u16> {
    u16::try_from(number).map_err(|_not_a_port| Unsupported::new(format!("port {number}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_templates() {
        let check = |template: &str, path: &str, expected: bool| {
            let text = path_template(template).unwrap();
            assert_eq!(text.matches(path), expected, "{template} {path}");
        };
        check("/foo/{*}", "/foo/bar", true);
        check("/foo/{*}", "/foo/", false);
        check("/foo/{*}", "/foo/bar/baz", false);
        check("/foo/{**}/end", "/foo/bar/baz/end", true);
        check("/a.b/{*}", "/aXb/c", false);
        assert!(path_template("/foo/{name}").is_err());
        assert!(path_template("/foo/{*").is_err());
    }
}
