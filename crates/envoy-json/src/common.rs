//! Small messages that others are made of.

use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            GrpcService, HeaderValue, HeaderValueOption, RuntimeFractionalPercent,
            grpc_service::{EnvoyGrpc, TargetSpecifier},
            header_value_option::HeaderAppendAction,
        },
        config::route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier},
        r#type::{
            matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern},
            v3::{FractionalPercent, HttpStatus, TokenBucket, fractional_percent::DenominatorType},
        },
    },
    google::protobuf::{BoolValue, Duration, UInt32Value},
};
use serde::Deserialize;
use serde_json::Value;

use crate::JsonError;

/// The value of an enum: its name, or its number.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(untagged)]
pub(crate) enum Word {
    #[default]
    None,
    Number(i32),
    Name(String),
}

impl Word {
    /// The number; `known` gives that of a name.
    pub(crate) fn number(
        &self,
        path: &str,
        known: impl Fn(&str) -> Option<i32>,
    ) -> Result<i32, JsonError> {
        match self {
            Self::None => Ok(0),
            Self::Number(number) => Ok(*number),
            Self::Name(name) => {
                known(name).ok_or_else(|| JsonError::new(path, format!("`{name}` is not known")))
            }
        }
    }
}

pub(crate) fn flag(value: Option<bool>) -> Option<BoolValue> {
    value.map(|value| BoolValue { value })
}

pub(crate) fn number(value: Option<u32>) -> Option<UInt32Value> {
    value.map(|value| UInt32Value { value })
}

/// `1.5s`.
pub(crate) fn duration(path: &str, text: &str) -> Result<Duration, JsonError> {
    let seconds = text.strip_suffix('s').and_then(|text| text.parse().ok());
    let seconds: f64 = seconds
        .filter(|seconds: &f64| (0.0..3.0e11).contains(seconds))
        .ok_or_else(|| {
            JsonError::new(path, format!("`{text}` is no duration such as 60s or 0.1s"))
        })?;
    let whole = std::time::Duration::from_secs_f64(seconds);
    Ok(Duration {
        // Both are in range: checked above, and less than 10^9.
        seconds: whole.as_secs() as i64,
        nanos: whole.subsec_nanos() as i32,
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Fraction {
    default_value: Percent,
    runtime_key: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Percent {
    numerator: u32,
    denominator: Word,
}

impl Fraction {
    pub(crate) fn message(&self, path: &str) -> Result<RuntimeFractionalPercent, JsonError> {
        let known = |name: &str| DenominatorType::from_str_name(name).map(i32::from);
        let denominator = self.default_value.denominator.number(path, known)?;
        Ok(RuntimeFractionalPercent {
            default_value: Some(FractionalPercent {
                numerator: self.default_value.numerator,
                denominator,
            }),
            runtime_key: self.runtime_key.clone(),
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Bucket {
    max_tokens: u32,
    tokens_per_fill: Option<u32>,
    fill_interval: Option<String>,
}

impl Bucket {
    pub(crate) fn message(&self, path: &str) -> Result<TokenBucket, JsonError> {
        let interval = self.fill_interval.as_deref();
        let interval = interval.ok_or_else(|| JsonError::new(path, "fill_interval is missing"))?;
        Ok(TokenBucket {
            max_tokens: self.max_tokens,
            tokens_per_fill: number(self.tokens_per_fill),
            fill_interval: Some(duration(&format!("{path}.fill_interval"), interval)?),
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Status {
    code: Word,
}

impl Status {
    pub(crate) fn message(&self, path: &str) -> Result<HttpStatus, JsonError> {
        use envoy_types::pb::envoy::r#type::v3::StatusCode;
        let known = |name: &str| StatusCode::from_str_name(name).map(i32::from);
        Ok(HttpStatus {
            code: self.code.number(path, known)?,
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AddedHeader {
    header: Header,
    append: Option<bool>,
    append_action: Word,
    keep_empty_value: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Header {
    key: String,
    value: String,
}

impl AddedHeader {
    #[expect(
        deprecated,
        reason = "the examples that users copy still say `append: false`"
    )]
    pub(crate) fn message(&self, path: &str) -> Result<HeaderValueOption, JsonError> {
        let known = |name: &str| HeaderAppendAction::from_str_name(name).map(i32::from);
        Ok(HeaderValueOption {
            header: Some(HeaderValue {
                key: self.header.key.clone(),
                value: self.header.value.clone(),
                raw_value: Vec::new(),
            }),
            append: flag(self.append),
            append_action: self.append_action.number(path, known)?,
            keep_empty_value: self.keep_empty_value,
        })
    }
}

/// A list of them, each with its place in errors.
pub(crate) fn each<T, M>(
    path: &str,
    items: &[T],
    message: impl Fn(&T, &str) -> Result<M, JsonError>,
) -> Result<Vec<M>, JsonError> {
    let items = items.iter().enumerate();
    items
        .map(|(index, item)| message(item, &format!("{path}[{index}]")))
        .collect()
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HeaderTest {
    name: String,
    invert_match: bool,
    exact_match: Option<String>,
    prefix_match: Option<String>,
    suffix_match: Option<String>,
    contains_match: Option<String>,
    present_match: Option<bool>,
    safe_regex_match: Option<Regex>,
    string_match: Option<TextTest>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TextTest {
    exact: Option<String>,
    prefix: Option<String>,
    suffix: Option<String>,
    contains: Option<String>,
    safe_regex: Option<Regex>,
    ignore_case: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Regex {
    regex: String,
    /// RE2 is the only engine; named so that it is not unknown.
    #[serde(rename = "google_re2")]
    _google_re2: Option<Value>,
}

impl Regex {
    fn message(&self) -> RegexMatcher {
        RegexMatcher {
            regex: self.regex.clone(),
            engine_type: None,
        }
    }
}

impl TextTest {
    pub(crate) fn message(&self, path: &str) -> Result<StringMatcher, JsonError> {
        let forms = [
            self.exact.clone().map(MatchPattern::Exact),
            self.prefix.clone().map(MatchPattern::Prefix),
            self.suffix.clone().map(MatchPattern::Suffix),
            self.contains.clone().map(MatchPattern::Contains),
            self.safe_regex
                .as_ref()
                .map(|regex| MatchPattern::SafeRegex(regex.message())),
        ];
        Ok(StringMatcher {
            match_pattern: Some(only_one(path, forms)?),
            ignore_case: self.ignore_case,
        })
    }
}

impl HeaderTest {
    /// Older forms become the newer one, which means the same.
    pub(crate) fn message(&self, path: &str) -> Result<HeaderMatcher, JsonError> {
        let text = |pattern| {
            HeaderMatchSpecifier::StringMatch(StringMatcher {
                match_pattern: Some(pattern),
                ignore_case: false,
            })
        };
        let string_match = self.string_match.as_ref();
        let string_match = string_match.map(|test| test.message(path)).transpose()?;
        let regex = self.safe_regex_match.as_ref().map(Regex::message);
        let forms = [
            self.exact_match
                .clone()
                .map(|it| text(MatchPattern::Exact(it))),
            self.prefix_match
                .clone()
                .map(|it| text(MatchPattern::Prefix(it))),
            self.suffix_match
                .clone()
                .map(|it| text(MatchPattern::Suffix(it))),
            self.contains_match
                .clone()
                .map(|it| text(MatchPattern::Contains(it))),
            regex.map(|it| text(MatchPattern::SafeRegex(it))),
            self.present_match.map(HeaderMatchSpecifier::PresentMatch),
            string_match.map(HeaderMatchSpecifier::StringMatch),
        ];
        if self.name.is_empty() {
            return Err(JsonError::new(path, "name is missing"));
        }
        let specifier = if forms.iter().all(Option::is_none) {
            HeaderMatchSpecifier::PresentMatch(true)
        } else {
            only_one(path, forms)?
        };
        Ok(HeaderMatcher {
            name: self.name.clone(),
            invert_match: self.invert_match,
            header_match_specifier: Some(specifier),
            ..HeaderMatcher::default()
        })
    }
}

/// Exactly one of a oneof.
pub(crate) fn only_one<T, const N: usize>(
    path: &str,
    forms: [Option<T>; N],
) -> Result<T, JsonError> {
    let mut set = forms.into_iter().flatten();
    match (set.next(), set.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(JsonError::new(path, "nothing that is known is set")),
        (Some(_), Some(_)) => Err(JsonError::new(path, "more than one form is set")),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Grpc {
    envoy_grpc: EnvoyCluster,
    timeout: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct EnvoyCluster {
    cluster_name: String,
    authority: String,
}

impl Grpc {
    pub(crate) fn message(&self, path: &str) -> Result<GrpcService, JsonError> {
        let timeout = self.timeout.as_deref();
        if self.envoy_grpc.cluster_name.is_empty() {
            return Err(JsonError::new(
                path,
                "envoy_grpc.cluster_name is missing (google_grpc is not supported)",
            ));
        }
        Ok(GrpcService {
            timeout: timeout.map(|text| duration(path, text)).transpose()?,
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                cluster_name: self.envoy_grpc.cluster_name.clone(),
                authority: self.envoy_grpc.authority.clone(),
                ..EnvoyGrpc::default()
            })),
            ..GrpcService::default()
        })
    }
}
