//! The JSON form (proto3 JSON) of the few Envoy messages that users write by hand: the rate limit filters in an
//! EnvoyFilter. Used by the control plane for EnvoyFilters and by the waypoint for what comes as a `TypedStruct`. And the way
//! back, for all messages: what a waypoint's pages show.
//!
//! What is not understood is an error with its place, never left out: half a rate limit is none.

mod common;
mod describe;
mod rate_limit;

use envoy_types::pb::google::protobuf::{Any, Struct, value::Kind};
use prost::{Message, Name};
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};

pub use describe::describe;
pub use rate_limit::{
    global_rate_limit, local_rate_limit, rate_limit_per_route, route_rate_limits,
};

/// Why something is not the message it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{reason}", if path.is_empty() { String::new() } else { format!("{path}: ") })]
pub struct JsonError {
    /// Where, in the names of the message.
    pub path: String,
    /// Why.
    pub reason: String,
}

impl JsonError {
    fn new(path: &str, reason: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}

/// The message of this type from its JSON; `None` when the type is not one of those that are known here.
pub fn to_any(type_url: &str, value: &Value) -> Option<Result<Any, JsonError>> {
    use envoy_types::pb::envoy::extensions::filters::http::{
        local_ratelimit::v3::LocalRateLimit,
        ratelimit::v3::{RateLimit, RateLimitPerRoute},
    };
    if type_url == LocalRateLimit::type_url() {
        Some(local_rate_limit(value).map(|message| any(&message)))
    } else if type_url == RateLimit::type_url() {
        Some(global_rate_limit(value).map(|message| any(&message)))
    } else if type_url == RateLimitPerRoute::type_url() {
        Some(rate_limit_per_route(value).map(|message| any(&message)))
    } else {
        None
    }
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

/// A protobuf struct as JSON.
pub fn from_struct(fields: &Struct) -> Value {
    let fields = fields.fields.iter();
    Value::Object(
        fields
            .map(|(name, value)| (name.clone(), from_value(value)))
            .collect(),
    )
}

fn from_value(value: &envoy_types::pb::google::protobuf::Value) -> Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(flag)) => Value::Bool(*flag),
        Some(Kind::StringValue(text)) => Value::String(text.clone()),
        Some(Kind::NumberValue(number)) => json_number(*number),
        Some(Kind::StructValue(fields)) => from_struct(fields),
        Some(Kind::ListValue(list)) => list.values.iter().map(from_value).collect(),
    }
}

/// Structs have only floating point numbers; whole ones are meant as integers.
fn json_number(number: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() < EXACT {
        // Whole and small enough, as just checked.
        return Value::Number(Number::from(number as i64));
    }
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

/// Decodes strictly; names may be written in both forms of proto3 JSON.
fn decode<T: DeserializeOwned>(value: &Value) -> Result<T, JsonError> {
    let value = snake_case(value);
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        JsonError::new(
            if path == "." { "" } else { &path },
            error.inner().to_string(),
        )
    })
}

/// `tokenBucket` and `token_bucket` are the same field.
fn snake_case(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let renamed: Map<String, Value> = fields
                .iter()
                .map(|(name, value)| (snake(name), snake_case(value)))
                .collect();
            Value::Object(renamed)
        }
        Value::Array(items) => items.iter().map(snake_case).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

fn snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for character in name.chars() {
        if character.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(character.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests;
