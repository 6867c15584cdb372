//! Conditions on the claims of a token: where the JWT filter leaves them, for policies and routes.

use envoy_types::pb::envoy::r#type::matcher::v3::{
    ListMatcher, MetadataMatcher, ValueMatcher, list_matcher,
    metadata_matcher::{PathSegment, path_segment},
    value_matcher::MatchPattern,
};

/// The filter.
pub(super) const JWT_FILTER: &str = "envoy.filters.http.jwt_authn";
/// Its key for the claims.
pub(super) const PAYLOAD: &str = "payload";

/// A condition on one claim, by its path from the outside in.
pub(super) fn matcher<'p>(
    path: impl Iterator<Item = &'p str>,
    value: ValueMatcher,
) -> MetadataMatcher {
    let path = std::iter::once(PAYLOAD).chain(path);
    MetadataMatcher {
        filter: JWT_FILTER.to_owned(),
        path: path
            .map(|key| PathSegment {
                segment: Some(path_segment::Segment::Key(key.to_owned())),
            })
            .collect(),
        value: Some(value),
        invert: false,
    }
}

/// A claim that is a list with such an item.
pub(super) fn in_list(item: ValueMatcher) -> ValueMatcher {
    ValueMatcher {
        match_pattern: Some(MatchPattern::ListMatch(Box::new(ListMatcher {
            match_pattern: Some(list_matcher::MatchPattern::OneOf(Box::new(item))),
        }))),
    }
}
