//! `traceparent` (W3C Trace Context): a fresh one per connection, never the application's.

use std::fmt;

use super::{HeaderError, text};

/// Identifies one tunnelled connection in the logs of both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Traceparent {
    /// Trace id, not zero.
    pub trace: u128,
    /// Span id, not zero.
    pub span: u64,
    /// Flags; zero is not sampled.
    pub flags: u8,
}

/// A later version may add a part; none is known that needs more.
const MAX_LENGTH: usize = 128;

impl Traceparent {
    /// A random one, not sampled.
    pub fn random() -> Self {
        Self {
            trace: rand::random::<u128>().max(1),
            span: rand::random::<u64>().max(1),
            flags: 0,
        }
    }

    /// Reads a header value.
    ///
    /// # Errors
    /// When it is not of the form that W3C says.
    pub fn parse(value: &[u8]) -> Result<Self, HeaderError> {
        let mut parts = text(value, MAX_LENGTH)?.split('-');
        let mut part = |length| hex(parts.next(), length);
        let version = part(2)?;
        let (trace, span, flags) = (part(32)?, part(16)?, part(2)?);
        let more = parts.next().is_some();
        let span = u64::try_from(span).map_err(|_too_long| HeaderError::Malformed)?;
        let flags = u8::try_from(flags).map_err(|_too_long| HeaderError::Malformed)?;
        if version == 0xff || (version == 0 && more) || trace == 0 || span == 0 {
            return Err(HeaderError::Malformed);
        }
        Ok(Self { trace, span, flags })
    }
}

/// Exactly `length` lower-case digits.
fn hex(part: Option<&str>, length: usize) -> Result<u128, HeaderError> {
    let part = part.ok_or(HeaderError::Malformed)?;
    let digits = part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if part.len() != length || !digits {
        return Err(HeaderError::Malformed);
    }
    u128::from_str_radix(part, 16).map_err(|_not_hex| HeaderError::Malformed)
}

impl fmt::Display for Traceparent {
    /// The header value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.trace, self.span, self.flags
        )
    }
}
