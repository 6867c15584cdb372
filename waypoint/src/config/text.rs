//! Matching of texts and headers, as routes, policies and filters all configure it.

use envoy_types::pb::envoy::{
    config::route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier},
    r#type::matcher::v3::{
        ListStringMatcher, RegexMatcher, StringMatcher, string_matcher::MatchPattern,
    },
};
use leyline_authz::{HeaderMatch, PatternError, TextMatch};
use regex::{Regex, RegexBuilder};

use super::error::{At, Compiled, Unsupported};

/// Bytes that the pattern of a substitution may take; as for other patterns.
const MAX_PATTERN: usize = 1 << 20;

impl From<PatternError> for Unsupported {
    fn from(error: PatternError) -> Self {
        Self::new(error.to_string())
    }
}

/// A matcher of texts.
pub(crate) fn text(matcher: &StringMatcher) -> Compiled<TextMatch> {
    let pattern = matcher.match_pattern.as_ref();
    let text = match pattern.ok_or_else(|| Unsupported::missing("match_pattern"))? {
        MatchPattern::Exact(text) => TextMatch::Exact(text.clone()),
        MatchPattern::Prefix(text) => TextMatch::Prefix(text.clone()),
        MatchPattern::Suffix(text) => TextMatch::Suffix(text.clone()),
        MatchPattern::Contains(text) => TextMatch::Contains(text.clone()),
        MatchPattern::SafeRegex(regex) => pattern_of(regex)?,
        MatchPattern::Custom(_) => return Err(Unsupported::new("custom string matcher")),
    };
    if matcher.ignore_case {
        return Ok(text.ignoring_case()?);
    }
    Ok(text)
}

/// One of several.
pub(crate) fn texts(matcher: &ListStringMatcher) -> Compiled<Vec<TextMatch>> {
    matcher.patterns.iter().map(text).collect()
}

/// A pattern that the whole text must fit.
pub(crate) fn pattern_of(matcher: &RegexMatcher) -> Compiled<TextMatch> {
    Ok(TextMatch::pattern(&matcher.regex)?)
}

/// A pattern that may fit anywhere; for substitutions.
pub(crate) fn substitution(pattern: &str) -> Compiled<Regex> {
    RegexBuilder::new(pattern)
        .size_limit(MAX_PATTERN)
        .build()
        .map_err(|error| Unsupported::new(format!("pattern `{pattern}`: {error}")))
}

/// A matcher of headers.
pub(crate) fn header(matcher: &HeaderMatcher) -> Compiled<HeaderMatch> {
    compile_header(matcher).at(format!("header {}", matcher.name))
}

#[expect(deprecated, reason = "older control planes send them")]
fn compile_header(matcher: &HeaderMatcher) -> Compiled<HeaderMatch> {
    let name = matcher
        .name
        .parse()
        .map_err(|_not_a_name| Unsupported::new("not the name of a header"))?;
    let mut invert = matcher.invert_match;
    let value = match &matcher.header_match_specifier {
        None => None,
        Some(HeaderMatchSpecifier::PresentMatch(present)) => {
            invert ^= !present;
            None
        }
        Some(HeaderMatchSpecifier::StringMatch(matcher)) => Some(text(matcher)?),
        Some(HeaderMatchSpecifier::ExactMatch(text)) => Some(TextMatch::Exact(text.clone())),
        Some(HeaderMatchSpecifier::PrefixMatch(text)) => Some(TextMatch::Prefix(text.clone())),
        Some(HeaderMatchSpecifier::SuffixMatch(text)) => Some(TextMatch::Suffix(text.clone())),
        Some(HeaderMatchSpecifier::ContainsMatch(text)) => Some(TextMatch::Contains(text.clone())),
        Some(HeaderMatchSpecifier::SafeRegexMatch(regex)) => Some(pattern_of(regex)?),
        Some(HeaderMatchSpecifier::RangeMatch(_)) => return Err(Unsupported::new("range_match")),
    };
    Ok(HeaderMatch {
        name,
        value,
        invert,
        missing_is_empty: matcher.treat_missing_header_as_empty,
    })
}
