//! The beginning of a request's body, looked at before the request is sent on with all of it.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::body::{Body, BodyError};

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) bytes: Bytes,
    /// The body has more.
    pub(crate) is_partial: bool,
}

/// When enough was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// There are so many bytes; whether there are more is not waited for.
    Enough,
    /// There is one more, so that it is known that the body is too long, or the end.
    TooMany,
}

/// Reads at most `most` bytes, and what came in one piece with them. The body is whole again afterwards.
///
/// # Errors
/// The client broke off. Not cancel safe: the body of a dropped call is not whole.
pub(crate) async fn sample(
    body: &mut Body,
    most: usize,
    until: Until,
) -> Result<Sample, BodyError> {
    let mut seen = BytesMut::new();
    let mut kept = VecDeque::new();
    let mut has_ended = body.is_end_stream();
    let is_enough = |seen: usize| match until {
        Until::Enough => seen >= most,
        Until::TooMany => seen > most,
    };
    while !has_ended && !is_enough(seen.len()) {
        let Some(frame) = body.frame().await else {
            has_ended = true;
            break;
        };
        let frame = frame?;
        if let Some(data) = frame.data_ref() {
            seen.extend_from_slice(data);
        }
        kept.push_back(frame);
        has_ended = body.is_end_stream();
    }
    let is_partial = !has_ended || seen.len() > most;
    seen.truncate(most);
    let rest = std::mem::replace(body, Body::empty());
    *body = Body::new(Again { kept, rest });
    Ok(Sample {
        bytes: seen.freeze(),
        is_partial,
    })
}

/// What was read already, then the rest.
struct Again {
    kept: VecDeque<Frame<Bytes>>,
    rest: Body,
}

impl Again {
    fn kept_bytes(&self) -> u64 {
        let data = self.kept.iter().filter_map(Frame::data_ref);
        data.map(|data| data.len() as u64).sum()
    }
}

impl HttpBody for Again {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.kept.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.kept.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (kept, rest) = (self.kept_bytes(), self.rest.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + kept);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + kept);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use http_body_util::StreamBody;

    use super::*;

    #[tokio::test]
    async fn the_beginning_is_seen_and_the_body_stays_whole() {
        for (most, until, seen, is_partial) in [
            (0, Until::Enough, "", true),
            (2, Until::Enough, "ab", true),
            (4, Until::TooMany, "abcd", true),
            (6, Until::TooMany, "abcdef", false),
            (100, Until::Enough, "abcdef", false),
        ] {
            let pieces =
                ["abc", "de", "f"].map(|piece| Ok::<_, BodyError>(Frame::data(piece.into())));
            let mut body = Body::new(StreamBody::new(stream::iter(pieces)));
            let found = sample(&mut body, most, until).await.unwrap();
            assert_eq!(found.bytes, seen.as_bytes());
            assert_eq!(found.is_partial, is_partial, "{most}");
            let all = body.collect().await.unwrap().to_bytes();
            assert_eq!(all, "abcdef".as_bytes(), "{most}");
        }
    }
}
