//! Messages inside messages: `Any`, `TypedStruct`, and the small wrappers that Envoy's protos use everywhere.

use std::{borrow::Cow, time::Duration};

use envoy_types::pb::google::protobuf::{Any, Duration as ProtoDuration, Struct, value::Kind};
use prost::{Message, Name};

use super::error::{Compiled, Unsupported};

/// Two names of the same message.
const TYPED_STRUCTS: [&str; 2] = [
    "type.googleapis.com/udpa.type.v1.TypedStruct",
    "type.googleapis.com/xds.type.v3.TypedStruct",
];

/// The crate `envoy-types` has no `TypedStruct`.
#[derive(Clone, PartialEq, Message)]
struct TypedStruct {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Struct>,
}

/// The message of the expected type.
pub(crate) fn decode<M: Message + Name + Default>(any: &Any) -> Compiled<M> {
    if any.type_url != M::type_url() {
        return Err(Unsupported::new(format!(
            "type {} where {} is expected",
            any.type_url,
            M::full_name()
        )));
    }
    decode_bytes(&any.value)
}

/// The message of bytes whose type is known.
pub(crate) fn decode_bytes<M: Message + Default>(bytes: &[u8]) -> Compiled<M> {
    M::decode(bytes).map_err(|error| Unsupported::new(format!("not readable: {error}")))
}

/// An extension's type and how it is configured.
pub(crate) enum Extension<'a> {
    /// By a message of this type, or by a struct that became one.
    Message(Cow<'a, Any>),
    /// By a struct, for the type of this URL.
    Struct(String, Struct),
}

impl Extension<'_> {
    pub(crate) fn type_url(&self) -> &str {
        match self {
            Self::Message(any) => &any.type_url,
            Self::Struct(type_url, _) => type_url,
        }
    }
}

/// Looks through a `TypedStruct`.
pub(crate) fn extension(any: &Any) -> Compiled<Extension<'_>> {
    if !TYPED_STRUCTS.contains(&any.type_url.as_str()) {
        return Ok(Extension::Message(Cow::Borrowed(any)));
    }
    let TypedStruct { type_url, value } = decode_bytes(&any.value)?;
    let value = value.unwrap_or_default();
    // Users write these into EnvoyFilters.
    match leyline_envoy_json::to_any(&type_url, &leyline_envoy_json::from_struct(&value)) {
        Some(Ok(any)) => Ok(Extension::Message(Cow::Owned(any))),
        Some(Err(error)) => Err(Unsupported::new(error.to_string())),
        None => Ok(Extension::Struct(type_url, value)),
    }
}

/// A text field of a struct.
pub(crate) fn text<'a>(fields: &'a Struct, name: &str) -> Option<&'a str> {
    match fields.fields.get(name)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        Kind::NullValue(_)
        | Kind::NumberValue(_)
        | Kind::BoolValue(_)
        | Kind::StructValue(_)
        | Kind::ListValue(_) => None,
    }
}

/// A duration that is not negative.
pub(crate) fn duration(value: &ProtoDuration) -> Compiled<Duration> {
    let seconds = u64::try_from(value.seconds);
    let nanos = u32::try_from(value.nanos);
    match (seconds, nanos) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos)),
        _ => Err(Unsupported::new("negative duration")),
    }
}

/// A duration where 0 and none both mean "no limit".
pub(crate) fn limit(value: Option<&ProtoDuration>) -> Compiled<Option<Duration>> {
    let value = value.map(duration).transpose()?;
    Ok(value.filter(|duration| !duration.is_zero()))
}
