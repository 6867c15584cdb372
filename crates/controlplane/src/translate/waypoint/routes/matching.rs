//! When a route applies, as Envoy's matchers.

use envoy_types::pb::envoy::{
    config::route::v3::{
        HeaderMatcher, QueryParameterMatcher, RouteMatch, header_matcher::HeaderMatchSpecifier,
        query_parameter_matcher::QueryParameterMatchSpecifier, route_match::PathSpecifier,
    },
    r#type::matcher::v3::{
        MetadataMatcher, OrMatcher, ValueMatcher, value_matcher::MatchPattern as ValuePattern,
    },
};

use super::super::{
    claims, pb,
    rule::{Case, ClaimMatch, NamedMatch, PathMatch, RequestMatch, Sense},
};

pub(super) fn route_match(matched: &RequestMatch) -> RouteMatch {
    let (path, case) = match &matched.path {
        PathMatch::Any => (PathSpecifier::Prefix("/".to_owned()), Case::Told),
        PathMatch::Exact(path, case) => (PathSpecifier::Path(path.clone()), *case),
        PathMatch::Prefix(prefix, case) => (PathSpecifier::Prefix(prefix.clone()), *case),
        PathMatch::Segments(prefix) => match prefix.trim_end_matches('/') {
            // Every path is below the root.
            "" => (PathSpecifier::Prefix("/".to_owned()), Case::Told),
            prefix => (
                PathSpecifier::PathSeparatedPrefix(prefix.to_owned()),
                Case::Told,
            ),
        },
        PathMatch::Regex(pattern) => (PathSpecifier::SafeRegex(pb::regex(pattern)), Case::Told),
    };
    RouteMatch {
        path_specifier: Some(path),
        case_sensitive: pb::boolean(case == Case::Told),
        headers: matched.headers.iter().map(header_matcher).collect(),
        query_parameters: matched.query.iter().map(query_matcher).collect(),
        dynamic_metadata: matched.claims.iter().map(claim_matcher).collect(),
        ..RouteMatch::default()
    }
}

fn header_matcher(matched: &NamedMatch) -> HeaderMatcher {
    let text = match pb::string_matcher(&matched.text, Case::Told) {
        Some(text) => HeaderMatchSpecifier::StringMatch(text),
        None => HeaderMatchSpecifier::PresentMatch(true),
    };
    HeaderMatcher {
        name: matched.name.clone(),
        invert_match: matched.sense == Sense::Fails,
        treat_missing_header_as_empty: false,
        header_match_specifier: Some(text),
    }
}

fn query_matcher(matched: &NamedMatch) -> QueryParameterMatcher {
    let text = match pb::string_matcher(&matched.text, Case::Told) {
        Some(text) => QueryParameterMatchSpecifier::StringMatch(text),
        None => QueryParameterMatchSpecifier::PresentMatch(true),
    };
    QueryParameterMatcher {
        name: matched.name.clone(),
        query_parameter_match_specifier: Some(text),
    }
}

/// A claim is a text, or a list with the text in it.
fn claim_matcher(matched: &ClaimMatch) -> MetadataMatcher {
    let text = match pb::string_matcher(&matched.text, Case::Told) {
        Some(text) => ValuePattern::StringMatch(text),
        None => ValuePattern::PresentMatch(true),
    };
    let text = ValueMatcher {
        match_pattern: Some(text),
    };
    let in_list = claims::in_list(text.clone());
    let either = ValueMatcher {
        match_pattern: Some(ValuePattern::OrMatch(OrMatcher {
            value_matchers: vec![text, in_list],
        })),
    };
    MetadataMatcher {
        invert: matched.sense == Sense::Fails,
        ..claims::matcher(matched.path.iter().map(String::as_str), either)
    }
}
