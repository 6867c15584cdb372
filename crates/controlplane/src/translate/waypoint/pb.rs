//! Envoy's small messages, short to write.

use std::time::Duration;

use envoy_types::pb::{
    envoy::{
        config::core::v3::RuntimeFractionalPercent,
        r#type::{
            matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern},
            v3::{FractionalPercent, fractional_percent::DenominatorType},
        },
    },
    google::protobuf::{
        Any, BoolValue, Duration as ProtoDuration, ListValue, Struct, UInt32Value, UInt64Value,
        Value, value::Kind,
    },
};
use prost::{Message, Name};

use super::rule::{Case, Share, TextMatch};

pub(super) fn any<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

pub(super) fn uint32(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

pub(super) fn uint64(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

pub(super) fn boolean(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}

pub(super) fn duration(duration: Duration) -> Option<ProtoDuration> {
    Some(ProtoDuration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        // Less than 10^9.
        nanos: duration.subsec_nanos() as i32,
    })
}

pub(super) fn regex(pattern: &str) -> RegexMatcher {
    RegexMatcher {
        regex: pattern.to_owned(),
        engine_type: None,
    }
}

/// `None` for presence, which Envoy has no text matcher for.
pub(super) fn string_matcher(text: &TextMatch, case: Case) -> Option<StringMatcher> {
    let pattern = match text {
        TextMatch::Exact(exact) => MatchPattern::Exact(exact.clone()),
        TextMatch::Prefix(prefix) => MatchPattern::Prefix(prefix.clone()),
        TextMatch::Regex(pattern) => MatchPattern::SafeRegex(regex(pattern)),
        TextMatch::Present => return None,
    };
    Some(StringMatcher {
        ignore_case: case == Case::Ignored,
        match_pattern: Some(pattern),
    })
}

pub(super) fn fraction(share: Share) -> FractionalPercent {
    FractionalPercent {
        numerator: share.per_million(),
        denominator: DenominatorType::Million.into(),
    }
}

pub(super) fn runtime_fraction(share: Share) -> Option<RuntimeFractionalPercent> {
    Some(RuntimeFractionalPercent {
        default_value: Some(fraction(share)),
        runtime_key: String::new(),
    })
}

pub(super) fn text(text: impl Into<String>) -> Value {
    Value {
        kind: Some(Kind::StringValue(text.into())),
    }
}

pub(super) fn number(number: f64) -> Value {
    Value {
        kind: Some(Kind::NumberValue(number)),
    }
}

pub(super) fn list(values: Vec<Value>) -> Value {
    Value {
        kind: Some(Kind::ListValue(ListValue { values })),
    }
}

pub(super) fn fields<const N: usize>(fields: [(&str, Value); N]) -> Struct {
    let fields = fields.map(|(name, value)| (name.to_owned(), value));
    Struct {
        fields: fields.into_iter().collect(),
    }
}

pub(super) fn object(fields: Struct) -> Value {
    Value {
        kind: Some(Kind::StructValue(fields)),
    }
}
