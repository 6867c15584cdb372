//! The head of a request and conditions on it; routes use the same ones.

use std::{borrow::Cow, str::FromStr};

use http::{HeaderMap, Method};
use regex::{Regex, RegexBuilder};

/// Bytes that a compiled pattern may take. Patterns of routes take some kilobytes; one that would take a megabyte is a
/// mistake or an attack.
const MAX_PATTERN: usize = 1 << 20;

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// Method.
    pub method: &'a Method,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// `:authority` or `Host`.
    pub authority: &'a str,
    /// Path and query, normalised.
    pub path: &'a str,
    /// Headers.
    pub headers: &'a HeaderMap,
}

impl RequestHead<'_> {
    /// The path without its query and fragment.
    pub fn path_only(&self) -> &str {
        let end = self.path.find(['?', '#']).unwrap_or(self.path.len());
        self.path.get(..end).unwrap_or(self.path)
    }

    /// The query, without its question mark.
    pub fn query(&self) -> Option<&str> {
        self.path.split_once('?').map(|(_, query)| query)
    }
}

/// Names a header, or what HTTP/2 calls a pseudo header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderName {
    /// `:method`.
    Method,
    /// `:scheme`.
    Scheme,
    /// `:authority`, which is also what `host` means.
    Authority,
    /// `:path`.
    Path,
    /// Any other.
    Field(http::HeaderName),
}

impl FromStr for HeaderName {
    type Err = http::header::InvalidHeaderName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.to_ascii_lowercase().as_str() {
            ":method" => Self::Method,
            ":scheme" => Self::Scheme,
            ":authority" | "host" => Self::Authority,
            ":path" => Self::Path,
            other => Self::Field(other.parse()?),
        })
    }
}

impl HeaderName {
    /// The value in a request; several are joined by commas, as Envoy does.
    pub fn value<'a>(&self, head: &RequestHead<'a>) -> Option<Cow<'a, str>> {
        let field = match self {
            Self::Method => return Some(head.method.as_str().into()),
            Self::Scheme => return Some(head.scheme.into()),
            Self::Authority => return Some(head.authority.into()),
            Self::Path => return Some(head.path.into()),
            Self::Field(field) => field,
        };
        let mut values = head.headers.get_all(field).iter();
        let first = String::from_utf8_lossy(values.next()?.as_bytes());
        let Some(second) = values.next() else {
            return Some(first);
        };
        let mut joined = first.into_owned();
        for value in std::iter::once(second).chain(values) {
            joined.push(',');
            joined.push_str(&String::from_utf8_lossy(value.as_bytes()));
        }
        Some(joined.into())
    }
}

/// A condition on a header.
#[derive(Clone, Debug)]
pub struct HeaderMatch {
    /// Which.
    pub name: HeaderName,
    /// Its value; `None` is presence alone.
    pub value: Option<TextMatch>,
    /// The condition must not hold. A header that is missing then fits, unless it counts as empty.
    pub invert: bool,
    /// A header that is missing is treated as an empty one.
    pub missing_is_empty: bool,
}

impl HeaderMatch {
    /// Whether the request fits.
    pub fn matches(&self, head: &RequestHead<'_>) -> bool {
        let found = self.name.value(head);
        let Some(text) = &self.value else {
            return found.is_some() != self.invert;
        };
        let found = match found {
            Some(found) => found,
            None if self.missing_is_empty => Cow::Borrowed(""),
            None => return self.invert,
        };
        text.matches(&found) != self.invert
    }
}

/// A pattern over a text.
#[derive(Clone, Debug)]
pub enum TextMatch {
    /// The same.
    Exact(String),
    /// The same but for upper and lower case of ASCII.
    ExactIgnoringCase(String),
    /// It starts so.
    Prefix(String),
    /// It ends so.
    Suffix(String),
    /// It has this in it.
    Contains(String),
    /// All of it fits.
    Pattern(Regex),
}

/// A pattern that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pattern `{pattern}`: {reason}")]
pub struct PatternError {
    pattern: String,
    reason: String,
}

impl TextMatch {
    /// A pattern in RE2's syntax that all of the text must fit. It takes time linear in the text.
    ///
    /// # Errors
    /// When the pattern is not valid or too large.
    pub fn pattern(pattern: &str) -> Result<Self, PatternError> {
        RegexBuilder::new(&format!("^(?:{pattern})$"))
            .size_limit(MAX_PATTERN)
            .build()
            .map(Self::Pattern)
            .map_err(|error| PatternError {
                pattern: pattern.to_owned(),
                reason: error.to_string(),
            })
    }

    /// The same condition without regard to upper and lower case.
    ///
    /// # Errors
    /// When the text is too long for a pattern.
    pub fn ignoring_case(self) -> Result<Self, PatternError> {
        let pattern = |before: &str, text: &str, after: &str| {
            Self::pattern(&format!("(?i){before}{}{after}", regex::escape(text)))
        };
        match self {
            Self::Exact(text) => Ok(Self::ExactIgnoringCase(text)),
            Self::Prefix(text) => pattern("", &text, "(?s:.*)"),
            Self::Suffix(text) => pattern("(?s:.*)", &text, ""),
            Self::Contains(text) => pattern("(?s:.*)", &text, "(?s:.*)"),
            Self::ExactIgnoringCase(_) | Self::Pattern(_) => Ok(self),
        }
    }

    /// Whether the text fits.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == exact,
            Self::ExactIgnoringCase(exact) => text.eq_ignore_ascii_case(exact),
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => text.ends_with(suffix.as_str()),
            Self::Contains(part) => text.contains(part.as_str()),
            Self::Pattern(pattern) => pattern.is_match(text),
        }
    }
}
