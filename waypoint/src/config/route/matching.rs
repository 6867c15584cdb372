//! When a route applies.

use envoy_types::pb::envoy::{
    config::route::v3::{
        RouteMatch as Proto, query_parameter_matcher::QueryParameterMatchSpecifier,
        route_match::PathSpecifier,
    },
    r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
};
use leyline_authz::{HeaderMatch, MetadataMatch, RequestHead, TextMatch};
use serde_json::{Map, Value, json};

use crate::config::{
    error::{At, Compiled, Unsupported},
    rbac::metadata_match,
    text::{header, pattern_of, text},
};

/// All of it must hold.
#[derive(Debug)]
pub(crate) struct RouteMatch {
    pub(crate) path: PathMatch,
    headers: Vec<HeaderMatch>,
    query: Vec<QueryMatch>,
    /// On claims of a token; the second is whether they must not hold.
    metadata: Vec<(MetadataMatch, bool)>,
    /// Only this share of requests.
    fraction: Option<Fraction>,
}

/// On the path without its query.
#[derive(Debug)]
pub(crate) enum PathMatch {
    /// Any text that starts so.
    Prefix(String),
    /// The same with upper and lower case alike.
    PrefixIgnoringCase(String),
    /// The path itself, or whatever is below it: `/v2` is not a prefix of `/v2example`.
    Segments(String),
    Text(TextMatch),
}

#[derive(Debug)]
struct QueryMatch {
    name: String,
    /// On the first value; `None` is presence.
    value: Option<TextMatch>,
}

/// A share of requests, by a random number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fraction {
    numerator: u32,
    denominator: u32,
}

impl Fraction {
    /// Every request.
    pub(crate) const ALL: Self = Self {
        numerator: 1,
        denominator: 1,
    };

    pub(crate) fn compile(proto: &FractionalPercent) -> Compiled<Self> {
        let denominator = match DenominatorType::try_from(proto.denominator) {
            Ok(DenominatorType::Hundred) => 100,
            Ok(DenominatorType::TenThousand) => 10_000,
            Ok(DenominatorType::Million) => 1_000_000,
            Err(_) => return Err(Unsupported::new("denominator")),
        };
        Ok(Self {
            numerator: proto.numerator,
            denominator,
        })
    }

    /// Whether all requests are of the share.
    pub(crate) fn is_whole(self) -> bool {
        self.numerator >= self.denominator
    }

    /// Whether a request with this random number is of the share.
    pub(crate) fn takes(self, random: u64) -> bool {
        random % u64::from(self.denominator) < u64::from(self.numerator)
    }
}

impl RouteMatch {
    pub(crate) fn compile(proto: &Proto) -> Compiled<Self> {
        if !proto.cookies.is_empty()
            || !proto.filter_state.is_empty()
            || proto.tls_context.is_some()
        {
            return Err(Unsupported::new("cookies, filter_state or tls_context"));
        }
        let mut headers: Vec<HeaderMatch> = Vec::with_capacity(proto.headers.len());
        for matcher in &proto.headers {
            headers.push(header(matcher)?);
        }
        if proto.grpc.is_some() {
            headers.push(grpc()?);
        }
        let mut query = Vec::with_capacity(proto.query_parameters.len());
        for parameter in &proto.query_parameters {
            let value = match &parameter.query_parameter_match_specifier {
                Some(QueryParameterMatchSpecifier::StringMatch(matcher)) => Some(text(matcher)?),
                Some(QueryParameterMatchSpecifier::PresentMatch(true)) | None => None,
                Some(QueryParameterMatchSpecifier::PresentMatch(false)) => {
                    return Err(Unsupported::new("query parameter that must be absent"));
                }
            };
            query.push(QueryMatch {
                name: parameter.name.clone(),
                value,
            });
        }
        let metadata = proto.dynamic_metadata.iter();
        let metadata = metadata.map(|matcher| Ok((metadata_match(matcher)?, matcher.invert)));
        let fraction = proto.runtime_fraction.as_ref();
        let fraction = fraction.and_then(|fraction| fraction.default_value.as_ref());
        Ok(Self {
            path: PathMatch::compile(proto).at("path")?,
            headers,
            query,
            metadata: metadata.collect::<Compiled<_>>().at("dynamic_metadata")?,
            fraction: fraction.map(Fraction::compile).transpose()?,
        })
    }

    /// What is looked at, for the admin page: the path, and the names of the rest.
    pub(crate) fn shown(&self) -> Value {
        let path = match &self.path {
            PathMatch::Prefix(prefix) => json!({ "prefix": prefix }),
            PathMatch::PrefixIgnoringCase(prefix) => {
                json!({ "prefix": prefix, "case_sensitive": false })
            }
            PathMatch::Segments(prefix) => json!({ "path_separated_prefix": prefix }),
            PathMatch::Text(text) => json!({ "text": format!("{text:?}") }),
        };
        let headers = self.headers.iter().map(|header| {
            let not = if header.invert { "not " } else { "" };
            format!("{not}{:?}", header.name)
        });
        let query = self.query.iter().map(|parameter| &parameter.name);
        json!({
            "path": path,
            "headers": headers.collect::<Vec<_>>(),
            "query_parameters": query.collect::<Vec<_>>(),
            "claims": self.metadata.len(),
            "fraction": self.fraction.map(|share| format!("{}/{}", share.numerator, share.denominator)),
        })
    }

    /// Whether the route applies to a request with this random number and these findings of filters.
    pub(crate) fn matches(
        &self,
        head: &RequestHead<'_>,
        random: u64,
        found: &Map<String, Value>,
    ) -> bool {
        self.path.matches(head.path_only())
            && self.headers.iter().all(|header| header.matches(head))
            && self.query.iter().all(|query| query.matches(head))
            && self
                .metadata
                .iter()
                .all(|(matched, inverted)| matched.holds(found) != *inverted)
            && self.fraction.is_none_or(|fraction| fraction.takes(random))
    }
}

/// `content-type: application/grpc`, with or without a format.
fn grpc() -> Compiled<HeaderMatch> {
    Ok(HeaderMatch {
        name: leyline_authz::HeaderName::Field(http::header::CONTENT_TYPE),
        value: Some(TextMatch::pattern(r"application/grpc(\+.*)?")?),
        invert: false,
        missing_is_empty: false,
    })
}

impl PathMatch {
    fn compile(proto: &Proto) -> Compiled<Self> {
        let ignore_case = proto.case_sensitive.is_some_and(|flag| !flag.value);
        let specifier = proto.path_specifier.as_ref();
        match specifier.ok_or_else(|| Unsupported::missing("path_specifier"))? {
            PathSpecifier::Prefix(prefix) if ignore_case => {
                Ok(Self::PrefixIgnoringCase(prefix.to_ascii_lowercase()))
            }
            PathSpecifier::Prefix(prefix) => Ok(Self::Prefix(prefix.clone())),
            PathSpecifier::Path(path) if ignore_case => {
                Ok(Self::Text(TextMatch::ExactIgnoringCase(path.clone())))
            }
            PathSpecifier::Path(path) => Ok(Self::Text(TextMatch::Exact(path.clone()))),
            PathSpecifier::SafeRegex(regex) => pattern_of(regex).map(Self::Text),
            PathSpecifier::PathSeparatedPrefix(prefix) if !ignore_case => {
                Ok(Self::Segments(prefix.clone()))
            }
            PathSpecifier::PathSeparatedPrefix(_) => {
                Err(Unsupported::new("path_separated_prefix that ignores case"))
            }
            PathSpecifier::ConnectMatcher(_) => Err(Unsupported::new("connect_matcher")),
            PathSpecifier::PathMatchPolicy(_) => Err(Unsupported::new("path_match_policy")),
        }
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Prefix(prefix) => path.starts_with(prefix.as_str()),
            Self::PrefixIgnoringCase(prefix) => path
                .as_bytes()
                .get(..prefix.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes())),
            Self::Segments(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            Self::Text(text) => text.matches(path),
        }
    }

    /// How much of a path that matches is the prefix: what a prefix rewrite replaces. All of it where it is no prefix.
    pub(crate) fn matched<'a>(&self, path: &'a str) -> &'a str {
        match self {
            Self::Prefix(prefix) | Self::PrefixIgnoringCase(prefix) | Self::Segments(prefix) => {
                path.get(..prefix.len()).unwrap_or(path)
            }
            Self::Text(_) => path,
        }
    }
}

impl QueryMatch {
    fn matches(&self, head: &RequestHead<'_>) -> bool {
        let pairs = head.query().unwrap_or_default().split('&');
        let mut values = pairs.filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name == self.name).then_some(value)
        });
        match (values.next(), &self.value) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(value), Some(text)) => text.matches(value),
        }
    }
}
