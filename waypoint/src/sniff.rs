//! Which protocol a client speaks, by the first bytes it sends. For ports whose protocol is not declared.

use std::io;

use bytes::Bytes;
use leyline_hbone::HboneIo;
use tokio::{
    io::AsyncReadExt,
    time::{Duration, timeout},
};

/// What HTTP/2 begins with (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Enough for a method and the start of a target.
const ENOUGH: usize = 32;
/// Longest method that is taken for one (RFC 9110 and WebDAV: UNSUBSCRIBE has 11).
const LONGEST_METHOD: usize = 16;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    Other,
}

/// Reads until it is clear, or until the deadline: a client that waits for its server to begin does not speak HTTP. What
/// was read is put back.
pub(crate) async fn sniff(io: &mut HboneIo, deadline: Duration) -> io::Result<Protocol> {
    let mut seen = Vec::with_capacity(ENOUGH);
    let read = async {
        loop {
            if let Some(protocol) = decide(&seen) {
                return Ok(protocol);
            }
            if io.read_buf(&mut seen).await? == 0 {
                return Ok(Protocol::Other);
            }
        }
    };
    // `read_buf` is cancel safe: what it has read is in `seen`.
    let protocol = timeout(deadline, read).await.unwrap_or(Ok(Protocol::Other));
    io.unread(Bytes::from(seen));
    protocol
}

/// `None` while more bytes could make it HTTP or not.
fn decide(seen: &[u8]) -> Option<Protocol> {
    let preface = seen.len().min(PREFACE.len());
    if seen.get(..preface) == PREFACE.get(..preface) {
        return (preface == PREFACE.len()).then_some(Protocol::Http);
    }
    let method = seen
        .iter()
        .take_while(|byte| byte.is_ascii_uppercase() || **byte == b'-')
        .count();
    match seen.get(method) {
        None if method <= LONGEST_METHOD => None,
        Some(b' ') if method > 0 && method <= LONGEST_METHOD => match seen.get(method + 1) {
            None => None,
            // The forms of a target: origin, absolute, authority, asterisk.
            Some(byte) if byte.is_ascii_graphic() => Some(Protocol::Http),
            Some(_) => Some(Protocol::Other),
        },
        Some(_) | None => Some(Protocol::Other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell() {
        let check = |seen: &[u8], expected| {
            assert_eq!(decide(seen), expected, "{}", seen.escape_ascii());
        };
        check(b"", None);
        check(b"GE", None);
        check(b"GET ", None);
        check(b"GET /", Some(Protocol::Http));
        check(b"OPTIONS * HTTP/1.1", Some(Protocol::Http));
        check(b"PRI * HT", None);
        check(PREFACE, Some(Protocol::Http));
        check(b"SSH-2.0-OpenSSH", Some(Protocol::Other));
        check(b"\x16\x03\x01\x02", Some(Protocol::Other));
        check(b"get /", Some(Protocol::Other));
        check(b"AAAAAAAAAAAAAAAAAAAAAAAA", Some(Protocol::Other));
        check(b" /", Some(Protocol::Other));
    }
}
