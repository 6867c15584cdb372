//! The headers of a CONNECT request and its response: who is calling, from where, and for what.
//!
//! Encoders write exactly what Istio writes. Parsers are strict and bounded, take any bytes a peer may send, and never
//! panic; what a peer says here is for telemetry only and proves nothing.

mod baggage;
mod forwarded;
mod traceparent;

pub use baggage::{Baggage, WorkloadKind};
pub use forwarded::Forwarded;
pub use traceparent::Traceparent;

use leyline_types::Network;

use http::header::{FORWARDED as FORWARDED_HEADER, HeaderName};

/// The header that carries [`Baggage`].
pub const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// The header that carries [`Forwarded`].
pub const FORWARDED: HeaderName = FORWARDED_HEADER;
/// The header that carries [`Traceparent`].
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The header that names the network of a source in another one.
pub const FORWARDED_NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");

/// Names of networks are label values; 63 characters are the most.
const MAX_NETWORK: usize = 63;

/// Reads the value of [`FORWARDED_NETWORK`].
pub(crate) fn network(value: &[u8]) -> Result<Network, HeaderError> {
    let text = text(value, MAX_NETWORK)?;
    let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if text.bytes().all(known) {
        Ok(Network::new(text))
    } else {
        Err(HeaderError::Character)
    }
}

/// Why a header was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Larger than any sensible value.
    #[error("header is too long")]
    TooLong,
    /// Not text, or a character that the grammar does not allow there.
    #[error("header has an invalid character")]
    Character,
    /// Not of the form that its standard says.
    #[error("header is malformed")]
    Malformed,
    /// Given more than once.
    #[error("header or field is repeated")]
    Repeated,
}

/// The text of a header value of at most `most` bytes.
fn text(value: &[u8], most: usize) -> Result<&str, HeaderError> {
    if value.len() > most {
        return Err(HeaderError::TooLong);
    }
    match str::from_utf8(value) {
        Ok(text) if !text.bytes().any(|b| b.is_ascii_control()) => Ok(text),
        Ok(_) | Err(_) => Err(HeaderError::Character),
    }
}

#[cfg(test)]
mod tests;
