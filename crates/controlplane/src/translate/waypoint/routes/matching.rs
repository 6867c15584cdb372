//! When a route applies, as Envoy's matchers.

use envoy_types::pb::envoy::{
    config::route::v3::{
        HeaderMatcher, QueryParameterMatcher, RouteMatch, header_matcher::HeaderMatchSpecifier,
        query_parameter_matcher::QueryParameterMatchSpecifier, route_match::PathSpecifier,
    },
    r#type::matcher::v3::{
        ListMatcher, MetadataMatcher, OrMatcher, ValueMatcher, list_matcher,
        metadata_matcher::{PathSegment, path_segment},
        value_matcher::MatchPattern as ValuePattern,
    },
};

use super::super::{
    pb,
    rule::{Case, ClaimMatch, NamedMatch, PathMatch, RequestMatch, Sense},
};

/// Where the JWT filter leaves claims.
const JWT: &str = "envoy.filters.http.jwt_authn";
const PAYLOAD: &str = "payload";

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
    let in_list = ValueMatcher {
        match_pattern: Some(ValuePattern::ListMatch(Box::new(ListMatcher {
            match_pattern: Some(list_matcher::MatchPattern::OneOf(Box::new(text.clone()))),
        }))),
    };
    let path = std::iter::once(PAYLOAD).chain(matched.path.iter().map(String::as_str));
    MetadataMatcher {
        filter: JWT.to_owned(),
        path: path
            .map(|key| PathSegment {
                segment: Some(path_segment::Segment::Key(key.to_owned())),
            })
            .collect(),
        value: Some(ValueMatcher {
            match_pattern: Some(ValuePattern::OrMatch(OrMatcher {
                value_matchers: vec![text, in_list],
            })),
        }),
        invert: matched.sense == Sense::Fails,
    }
}
