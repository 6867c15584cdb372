//! The body of a request in base64. Clients encode piece by piece, so that padding may stand after each group of four
//! characters, and pieces of the body may be cut anywhere.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};

use super::Malformed;
use crate::http::body::{Body, BodyError};

/// Characters that stand for up to three bytes.
const GROUP: usize = 4;

/// The request says to be base64, and is not. What has been sent of it is broken off.
#[derive(Debug, thiserror::Error)]
#[error("the body of a gRPC-Web request is no base64")]
struct NoBase64;

/// The bytes that the text stands for.
pub(super) fn decode(body: Body, malformed: Malformed) -> Body {
    if body.is_end_stream() {
        return body;
    }
    Body::new(Decoded {
        body,
        groups: Groups::default(),
        malformed,
        ended: false,
    })
}

struct Decoded {
    body: Body,
    groups: Groups,
    malformed: Malformed,
    ended: bool,
}

/// The beginning of a group that is not complete.
#[derive(Debug, Default)]
struct Groups {
    kept: [u8; GROUP],
    filled: usize,
}

impl Groups {
    /// The bytes of all groups that are complete now.
    fn decode(&mut self, mut text: &[u8]) -> Result<Vec<u8>, NoBase64> {
        let mut bytes = Vec::with_capacity((self.filled + text.len()) / GROUP * 3);
        if self.filled > 0 {
            text = self.fill(text);
            if self.filled < GROUP {
                return Ok(bytes);
            }
            append(&self.kept, &mut bytes)?;
            self.filled = 0;
        }
        let whole = text.len() / GROUP * GROUP;
        let (mut whole, rest) = text.split_at(whole);
        while !whole.is_empty() {
            // Up to the first group with padding: what comes after it begins anew.
            let padding = whole.iter().position(|byte| *byte == b'=');
            let end = padding.map_or(whole.len(), |at| at / GROUP * GROUP + GROUP);
            let (one, others) = whole.split_at(end);
            append(one, &mut bytes)?;
            whole = others;
        }
        self.fill(rest);
        Ok(bytes)
    }

    /// Takes what is missing of a group; the rest.
    fn fill<'a>(&mut self, text: &'a [u8]) -> &'a [u8] {
        let missing = (GROUP - self.filled).min(text.len());
        let (taken, rest) = text.split_at(missing);
        for (place, byte) in self.kept.iter_mut().skip(self.filled).zip(taken) {
            *place = *byte;
        }
        self.filled += missing;
        rest
    }

    fn finish(&self) -> Result<(), NoBase64> {
        match self.filled {
            0 => Ok(()),
            _ => Err(NoBase64),
        }
    }
}

fn append(text: &[u8], bytes: &mut Vec<u8>) -> Result<(), NoBase64> {
    let decoded = BASE64_STANDARD.decode_vec(text, bytes);
    decoded.map_err(|_where| NoBase64)
}

impl Decoded {
    fn broken(&mut self, why: NoBase64) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.ended = true;
        self.malformed.tell();
        Poll::Ready(Some(Err(why.into())))
    }
}

impl HttpBody for Decoded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        while !this.ended {
            let frame = ready!(Pin::new(&mut this.body).poll_frame(cx)).transpose()?;
            let Some(frame) = frame else {
                this.ended = true;
                return match this.groups.finish() {
                    Ok(()) => Poll::Ready(None),
                    Err(why) => this.broken(why),
                };
            };
            let Ok(text) = frame.into_data() else {
                // A client cannot send trailers in gRPC-Web.
                continue;
            };
            match this.groups.decode(&text) {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes.into())))),
                Err(why) => return this.broken(why),
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.ended || (self.groups.filled == 0 && self.body.is_end_stream())
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};
    use tokio::time::{Duration, timeout};

    use super::*;

    /// The body in pieces of this size.
    async fn decoded(text: &'static str, size: usize) -> (Option<Vec<u8>>, bool) {
        let pieces = text.as_bytes().chunks(size);
        let frames = pieces.map(|piece| Ok::<_, BodyError>(Frame::data(Bytes::from_static(piece))));
        let body = Body::new(StreamBody::new(futures::stream::iter(frames)));
        let malformed = Malformed::default();
        let body = decode(body, malformed.clone()).collect().await;
        let told = timeout(Duration::ZERO, malformed.told()).await.is_ok();
        (body.ok().map(|body| body.to_bytes().to_vec()), told)
    }

    #[tokio::test]
    async fn text_is_decoded_however_it_is_padded_and_cut() {
        for (text, expected) in [
            ("", ""),
            ("aGVsbG8=", "hello"),
            // Each piece padded by itself.
            ("aA==ZWw=bG8=", "hello"),
            ("aGVsbG8haGVsbG8h", "hello!hello!"),
        ] {
            for size in [1, 2, 3, 4, 5, 7, 100] {
                let found = decoded(text, size).await;
                let expected = (Some(expected.as_bytes().to_vec()), false);
                assert_eq!(found, expected, "{text} {size}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_base64_is_told() {
        for text in [
            "aGVsbG8",    // no padding
            "aGVs!G8=",   // another alphabet
            "aGVs\nbG8=", // a line
            "a===",       // too much padding
            "=aGV",       // padding before
            "aB==",       // bits that stand for nothing
        ] {
            for size in [1, 3, 100] {
                assert_eq!(decoded(text, size).await, (None, true), "{text} {size}");
            }
        }
    }
}
