//! `forwarded` (RFC 7239): the client's address, and the service that it called.

use std::{fmt, net::SocketAddr};

use leyline_types::{Str, canonical};

use super::{HeaderError, text};

/// A host name of 253 characters, an address, and room for what others add.
const MAX_LENGTH: usize = 1024;
/// The standard knows four parameters.
const MAX_PARAMETERS: usize = 8;

/// One hop, as HBONE sends it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Forwarded {
    /// Who connected.
    pub client: SocketAddr,
    /// The service's host name, if a service was called.
    pub host: Option<Str>,
}

impl fmt::Display for Forwarded {
    /// The header value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for=\"{}\"", self.client)?;
        match &self.host {
            Some(host) => write!(f, ";host={host}"),
            None => Ok(()),
        }
    }
}

impl Forwarded {
    /// Reads a header value of one hop. `by`, `proto` and unknown parameters are ignored.
    ///
    /// # Errors
    /// When it is malformed, has several hops, or does not tell the client's address and port.
    pub fn parse(value: &[u8]) -> Result<Self, HeaderError> {
        let mut rest = text(value, MAX_LENGTH)?;
        let mut client = None;
        let mut host = None;
        for _ in 0..MAX_PARAMETERS {
            let (name, value, after) = parameter(rest)?;
            if name.eq_ignore_ascii_case("for") {
                let addr = value
                    .parse()
                    .map_err(|_not_an_address| HeaderError::Malformed)?;
                if client.replace(canonical(addr)).is_some() {
                    return Err(HeaderError::Repeated);
                }
            } else if name.eq_ignore_ascii_case("host") {
                let host_name = host_name(&value)?;
                if host.replace(host_name).is_some() {
                    return Err(HeaderError::Repeated);
                }
            }
            match after.strip_prefix(';') {
                Some(after) => rest = after,
                None if after.is_empty() => {
                    let client = client.ok_or(HeaderError::Malformed)?;
                    return Ok(Self { client, host });
                }
                None => return Err(HeaderError::Malformed),
            }
        }
        Err(HeaderError::TooLong)
    }
}

/// `name=value` at the start of `text`, and what follows it.
fn parameter(text: &str) -> Result<(&str, String, &str), HeaderError> {
    let (name, after) = text
        .trim_start_matches(' ')
        .split_once('=')
        .ok_or(HeaderError::Malformed)?;
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(HeaderError::Malformed);
    }
    if let Some(quoted) = after.strip_prefix('"') {
        let (value, after) = unquote(quoted)?;
        return Ok((name, value, after));
    }
    let end = after.find([';', ',', ' ']).unwrap_or(after.len());
    let (value, after) = after.split_at_checked(end).ok_or(HeaderError::Malformed)?;
    // Istio does not quote `host:port`, so a colon is let pass.
    if value.is_empty() || !value.bytes().all(|b| is_token(b) || b == b':') {
        return Err(HeaderError::Malformed);
    }
    Ok((name, value.to_owned(), after))
}

/// The rest of a quoted string and what follows it (RFC 9110, 5.6.4).
fn unquote(text: &str) -> Result<(String, &str), HeaderError> {
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next().ok_or(HeaderError::Malformed)? {
            '"' => return Ok((value, chars.as_str())),
            '\\' => value.push(chars.next().ok_or(HeaderError::Malformed)?),
            other => value.push(other),
        }
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A host name, perhaps with a port, in lower case.
fn host_name(value: &str) -> Result<Str, HeaderError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
    if value.is_empty() || value.len() > 260 || !value.bytes().all(allowed) {
        return Err(HeaderError::Malformed);
    }
    Ok(value.to_ascii_lowercase().into())
}
