//! Where the heads of HTTP/1.1 requests are in a stream of bytes (RFC 9112), without I/O.

use metrics::counter;

/// A head that is longer is refused by hyper.
const MAX_HEAD: usize = super::super::server::MAX_HEAD;
/// Bytes of a chunk's size with its extensions, or of a trailer field; hyper's limit is of this order.
const MAX_LINE: usize = 16 << 10;
/// Takes the place of the first byte of a field's name, and is none that a name may have (RFC 9110, 5.1).
const SPOILT: u8 = b'\0';

/// What became of a request for another protocol (RFC 9110, 7.8 and 9.3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Answer {
    /// What follows is no HTTP/1.1.
    Switched,
    Stays,
}

/// What comes next.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    next: Next,
    /// The message that is being followed asks for another protocol.
    asks: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// A head, of which so many bytes were looked through for its end.
    Head { searched: usize },
    /// The rest of a body, or of a chunk with its line end.
    Body { left: u64, then: Then },
    /// The line before a chunk: its size so far, its length, and whether the size is over.
    ChunkSize {
        size: u64,
        length: usize,
        is_over: bool,
    },
    /// Trailer fields up to an empty line; the length of this one so far.
    Trailers { length: usize },
    /// What the answer to a request for another protocol makes of it: that protocol, or the next head.
    Answer,
    /// Nothing that could be followed.
    Anything,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Head,
    Chunk,
}

impl Default for Next {
    fn default() -> Self {
        HEAD
    }
}

const HEAD: Next = Next::Head { searched: 0 };
const CHUNK: Next = Next::ChunkSize {
    size: 0,
    length: 0,
    is_over: false,
};

/// What a head says of what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follows {
    Length(u64),
    Chunks,
    Unknown,
}

impl Scanner {
    /// How many of these bytes may be handed on: all but a head at their end that is not complete, and what follows a request
    /// for another protocol until [`Self::answered`]. The next call begins with that again, and goes on with more.
    pub(super) fn clear(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        while let Some(rest) = bytes.get_mut(at..)
            && !rest.is_empty()
        {
            let Some(taken) = self.step(rest) else {
                return at;
            };
            at += taken;
        }
        at
    }

    /// Whether it takes an answer to go on.
    pub(super) fn awaits_answer(&self) -> bool {
        self.next == Next::Answer
    }

    /// The request for another protocol was answered.
    pub(super) fn answered(&mut self, answer: Answer) {
        self.next = match answer {
            Answer::Switched => Next::Anything,
            Answer::Stays => HEAD,
        };
    }

    /// Takes some of these bytes, at least one. `None`: a head is not complete, or an answer is awaited.
    fn step(&mut self, bytes: &mut [u8]) -> Option<usize> {
        let taken = self.follow(bytes)?;
        // Where a head comes next, a message is over.
        if self.next == HEAD && std::mem::take(&mut self.asks) {
            self.next = Next::Answer;
        }
        Some(taken)
    }

    fn follow(&mut self, bytes: &mut [u8]) -> Option<usize> {
        match &mut self.next {
            Next::Head { searched } => {
                if *searched == 0
                    && let Some(b'\r' | b'\n') = bytes.first()
                {
                    // Empty lines before a request (RFC 9112, 2.2).
                    return Some(1);
                }
                let Some(end) = end_of_head(bytes, *searched) else {
                    if bytes.len() > MAX_HEAD {
                        self.next = Next::Anything;
                        return Some(bytes.len());
                    }
                    *searched = bytes.len();
                    return None;
                };
                let head = bytes.get_mut(..end).unwrap_or_default();
                let (follows, asks) = look(head);
                self.asks = asks;
                self.next = match follows {
                    Follows::Length(0) => HEAD,
                    Follows::Length(left) => Next::Body {
                        left,
                        then: Then::Head,
                    },
                    Follows::Chunks => CHUNK,
                    Follows::Unknown => Next::Anything,
                };
                Some(end)
            }
            Next::Body { left, then } => {
                let most = usize::try_from(*left).unwrap_or(usize::MAX);
                let taken = bytes.len().min(most);
                *left -= taken as u64;
                if *left == 0 {
                    self.next = match then {
                        Then::Head => HEAD,
                        Then::Chunk => CHUNK,
                    };
                }
                Some(taken)
            }
            Next::ChunkSize { .. } | Next::Trailers { .. } => {
                let byte = bytes.first().copied().unwrap_or_default();
                self.next = self.next.after(byte);
                Some(1)
            }
            Next::Answer => None,
            Next::Anything => Some(bytes.len()),
        }
    }
}

impl Next {
    /// After one more byte of a line of a chunked body.
    fn after(self, byte: u8) -> Self {
        match self {
            Self::ChunkSize {
                size: 0,
                length,
                is_over: _,
            } if byte == b'\n' && length > 0 => Self::Trailers { length: 0 },
            // With the line end behind the chunk.
            Self::ChunkSize {
                size,
                length,
                is_over: _,
            } if byte == b'\n' && length > 0 => match size.checked_add(2) {
                Some(left) => Self::Body {
                    left,
                    then: Then::Chunk,
                },
                None => Self::Anything,
            },
            Self::ChunkSize {
                size,
                length,
                is_over,
            } if length < MAX_LINE => {
                let digit = char::from(byte).to_digit(16).filter(|_| !is_over);
                let size = match digit {
                    Some(digit) => size.checked_mul(16).map(|size| size + u64::from(digit)),
                    // A size has a digit, and then extensions.
                    None if length > 0 => Some(size),
                    None => None,
                };
                size.map_or(Self::Anything, |size| Self::ChunkSize {
                    size,
                    length: length + 1,
                    is_over: digit.is_none(),
                })
            }
            Self::Trailers { length: 0 } if byte == b'\n' => HEAD,
            Self::Trailers { length: _ } if byte == b'\n' => Self::Trailers { length: 0 },
            Self::Trailers { length } if byte == b'\r' => Self::Trailers { length },
            Self::Trailers { length } if length < MAX_LINE => Self::Trailers { length: length + 1 },
            Self::ChunkSize { .. }
            | Self::Trailers { .. }
            | Self::Head { .. }
            | Self::Body { .. }
            | Self::Answer
            | Self::Anything => Self::Anything,
        }
    }
}

/// Behind the first empty line, if there is one; the first `searched` bytes have none. hyper takes a line feed alone for the
/// end of a line, too.
fn end_of_head(bytes: &[u8], searched: usize) -> Option<usize> {
    // An empty line may have begun in what was searched.
    let from = searched.saturating_sub(2);
    let rest = bytes.get(from..)?;
    let mut feeds = rest.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    feeds.find_map(|(at, _)| match rest.get(at + 1..)? {
        [b'\n', ..] => Some(from + at + 2),
        [b'\r', b'\n', ..] => Some(from + at + 3),
        _ => None,
    })
}

/// Reads a complete head, and spoils it if it has two lengths. With whether it asks for another protocol.
fn look(head: &mut [u8]) -> (Follows, bool) {
    let mut length = None;
    let mut coding = None;
    let mut at = 0;
    let method_end = head.iter().position(|byte| *byte == b' ');
    let method = head.get(..method_end.unwrap_or(0)).unwrap_or_default();
    // The preface of HTTP/2, or nothing known.
    let is_other = matches!(method, b"PRI" | b"");
    let mut asks = method == b"CONNECT";
    for line in head.split_inclusive(|byte| *byte == b'\n') {
        let begins = at;
        at += line.len();
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let (name, value) = line.split_at(colon);
        // The request line has no such name: its first space is before any colon of it.
        match name.len() {
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                length = Some(value.get(1..).unwrap_or_default().trim_ascii());
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => coding = Some(begins),
            7 if name.eq_ignore_ascii_case(b"upgrade") => asks = true,
            _ => {}
        }
    }
    let follows = match (length, coding) {
        (Some(_), Some(coding)) => {
            if let Some(byte) = head.get_mut(coding) {
                *byte = SPOILT;
            }
            counter!("leyline_waypoint_requests_with_two_lengths_total").increment(1);
            Follows::Unknown
        }
        _ if is_other => Follows::Unknown,
        // hyper refuses any other than chunked.
        (None, Some(_)) => Follows::Chunks,
        (Some(length), None) => std::str::from_utf8(length)
            .ok()
            .and_then(|length| length.parse().ok())
            .map_or(Follows::Unknown, Follows::Length),
        (None, None) => Follows::Length(0),
    };
    (follows, asks)
}

#[cfg(test)]
mod tests;
