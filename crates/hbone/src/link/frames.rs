//! Reads along in the frames of one direction for those that h2 sends and takes by itself and tells nobody of: GOAWAY, and
//! RST_STREAM with REFUSED_STREAM, by which a stream is refused before anybody has looked at it. For heads of messages:
//! h2 answers a request whose header list is too large with 431 in our place, see [`super::answers`]. And for the peer's
//! answers to our SETTINGS, see [`crate::credits`].
//!
//! Payloads are stepped over, so that it costs a few instructions for each frame. Bytes that are no HTTP/2 are counted as
//! whatever they look like; h2 ends the tunnel for them.

use metrics::counter;

/// RFC 9113, 3.4.
const PREFACE: usize = 24;
/// RFC 9113, 4.1: length, type, flags, stream.
const HEAD: usize = 9;
/// A head, and what of a GOAWAY is of interest: the last stream, and the error code.
const MOST: usize = HEAD + 8;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const ACK: u8 = 1;
const GOAWAY: u8 = 7;
const REFUSED_STREAM: u32 = 7;

/// Where a tunnel's bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Sent,
    Received,
}

/// A frame of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Head { stream: u32 },
    Reset { stream: u32, code: u32 },
    GoAway { code: u32 },
    SettingsAck,
}

/// What has been seen of a direction.
#[derive(Debug)]
pub(crate) struct Frames {
    /// Bytes before the next frame.
    skip: usize,
    /// The beginning of a frame, as far as it is here.
    start: [u8; MOST],
    here: usize,
}

impl Frames {
    /// The direction in which the client speaks: the preface comes before the first frame.
    pub(crate) fn of_client() -> Self {
        Self {
            skip: PREFACE,
            ..Self::of_server()
        }
    }

    /// The direction in which the server speaks.
    pub(crate) fn of_server() -> Self {
        Self {
            skip: 0,
            start: [0; MOST],
            here: 0,
        }
    }

    /// Reads on.
    pub(crate) fn follow(&mut self, mut bytes: &[u8], mut tell: impl FnMut(Seen)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let missing = self.needed().saturating_sub(self.here);
            let taken = missing.min(bytes.len());
            let (from, rest) = bytes.split_at(taken);
            let room = self.start.iter_mut().skip(self.here);
            room.zip(from).for_each(|(to, byte)| *to = *byte);
            self.here += taken;
            bytes = rest;
            // With its head complete a frame may need more of its payload.
            if self.here >= HEAD && self.here == self.needed() {
                if let Some(seen) = self.seen() {
                    tell(seen);
                }
                self.skip = (HEAD + self.length()).saturating_sub(self.here);
                self.here = 0;
            }
        }
    }

    fn needed(&self) -> usize {
        if self.here < HEAD {
            return HEAD;
        }
        let [_, _, _, kind, ..] = self.start;
        HEAD + match (kind, self.length()) {
            (RST_STREAM, 4) => 4,
            (GOAWAY, 8..) => 8,
            _ => 0,
        }
    }

    fn length(&self) -> usize {
        let [high, middle, low, ..] = self.start;
        let length = u32::from_be_bytes([0, high, middle, low]);
        usize::try_from(length).unwrap_or(usize::MAX)
    }

    fn seen(&self) -> Option<Seen> {
        let [_, _, _, kind, flags, s, t, r, e, payload @ ..] = self.start;
        let [a, b, c, d, e1, f, g, h] = payload;
        let (first, second) = (
            u32::from_be_bytes([a, b, c, d]),
            u32::from_be_bytes([e1, f, g, h]),
        );
        // The first bit is reserved.
        let stream = u32::from_be_bytes([s & 0x7f, t, r, e]);
        match (kind, self.here - HEAD) {
            (HEADERS, _) => Some(Seen::Head { stream }),
            (SETTINGS, _) if flags & ACK != 0 => Some(Seen::SettingsAck),
            (RST_STREAM, 4) => Some(Seen::Reset {
                stream,
                code: first,
            }),
            (GOAWAY, 8) => Some(Seen::GoAway { code: second }),
            _ => None,
        }
    }
}

/// Counts what says no.
pub(crate) fn count(direction: Direction, seen: Seen) {
    let direction = match direction {
        Direction::Sent => "sent",
        Direction::Received => "received",
    };
    match seen {
        Seen::GoAway { code } => {
            let code = name_of(code);
            counter!("leyline_hbone_goaways_total", "direction" => direction, "code" => code)
        }
        Seen::Reset {
            code: REFUSED_STREAM,
            ..
        } => {
            counter!("leyline_hbone_streams_refused_total", "direction" => direction)
        }
        Seen::Head { .. } | Seen::Reset { .. } | Seen::SettingsAck => return,
    }
    .increment(1);
}

/// RFC 9113, 7. A peer can send any number.
fn name_of(code: u32) -> &'static str {
    match code {
        0 => "no_error",
        1 => "protocol_error",
        2 => "internal_error",
        3 => "flow_control_error",
        6 => "frame_size_error",
        9 => "compression_error",
        11 => "enhance_your_calm",
        12 => "inadequate_security",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, 0, 0, 0, 0, 1], payload].concat()
    }

    fn seen(mut frames: Frames, pieces: &[&[u8]]) -> Vec<Seen> {
        let mut all = Vec::new();
        for piece in pieces {
            frames.follow(piece, |one| all.push(one));
        }
        all
    }

    fn conversation() -> Vec<u8> {
        let go_away = |code: u32| [&[0, 0, 0, 9], &code.to_be_bytes()[..], b"why"].concat();
        [
            // Payload that looks like a GOAWAY.
            frame(0, &frame(GOAWAY, &go_away(1))),
            frame(SETTINGS, &[]),
            [0, 0, 0, SETTINGS, ACK, 0, 0, 0, 0].to_vec(),
            frame(RST_STREAM, &[0, 0, 0, 8]),
            frame(HEADERS, &[0x88]),
            frame(RST_STREAM, &[0, 0, 0, 7]),
            frame(GOAWAY, &go_away(0)),
            // Too short to be one.
            frame(GOAWAY, &[0, 0, 0, 9]),
            frame(RST_STREAM, &[0, 0, 0, 7, 0]),
            frame(GOAWAY, &go_away(11)),
            frame(0, b"the end"),
        ]
        .concat()
    }

    const ALL: [Seen; 6] = [
        Seen::SettingsAck,
        Seen::Reset { stream: 1, code: 8 },
        Seen::Head { stream: 1 },
        Seen::Reset { stream: 1, code: 7 },
        Seen::GoAway { code: 0 },
        Seen::GoAway { code: 11 },
    ];

    #[test]
    fn frames_that_say_no_are_seen_however_they_are_cut() {
        let all = conversation();
        for size in 1..=all.len() {
            let pieces: Vec<&[u8]> = all.chunks(size).collect();
            assert_eq!(seen(Frames::of_server(), &pieces), ALL, "pieces of {size}");
        }
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        assert_eq!(seen(Frames::of_client(), &[preface, &all]), ALL);
        let cut = preface.split_at(5);
        assert_eq!(seen(Frames::of_client(), &[cut.0, cut.1, &all]), ALL);
    }

    #[test]
    fn codes_have_few_names() {
        for (code, name) in [(0, "no_error"), (11, "enhance_your_calm"), (8, "other")] {
            assert_eq!(name_of(code), name);
        }
        assert_eq!(name_of(u32::MAX), "other");
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..9)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let whole = pieces.concat();
            prop_assert_eq!(seen(Frames::of_client(), &pieces), seen(Frames::of_client(), &[&whole]));
        }
    }
}
