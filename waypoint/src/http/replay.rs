//! A request's body that can be sent again. What has passed is kept, up to a bound; beyond it the request is not retried.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;

use super::body::{Body, BodyError};

/// The body, shared by the attempts. At most one of them is read at a time.
#[derive(Clone, Debug)]
pub(crate) struct Replay {
    source: Arc<Mutex<Source>>,
}

#[derive(Debug)]
struct Source {
    body: Body,
    /// What has passed, unless it was too much.
    kept: Vec<Bytes>,
    bytes: usize,
    most: usize,
    trailers: Option<HeaderMap>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Everything so far is kept.
    Whole,
    /// Too much has passed to begin again.
    Gone,
    /// The client broke off.
    Broken,
}

/// The body of one attempt.
#[derive(Debug)]
pub(crate) struct Attempt {
    source: Arc<Mutex<Source>>,
    /// How many of the kept pieces it has given.
    given: usize,
    ended: bool,
}

impl Replay {
    /// Keeps at most `most` bytes.
    pub(crate) fn new(body: Body, most: usize) -> Self {
        Self {
            source: Arc::new(Mutex::new(Source {
                body,
                kept: Vec::new(),
                bytes: 0,
                most,
                trailers: None,
                state: State::Whole,
            })),
        }
    }

    /// Whether there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.source.lock().body.is_end_stream()
    }

    /// Whether another attempt could send all of the body.
    pub(crate) fn can_begin_again(&self) -> bool {
        self.source.lock().state == State::Whole
    }

    /// The body from its beginning.
    pub(crate) fn attempt(&self) -> Body {
        Body::new(Attempt {
            source: self.source.clone(),
            given: 0,
            ended: false,
        })
    }
}

impl Source {
    /// The next frame of the client, kept if there is room.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    self.keep(data.clone());
                } else if let Some(trailers) = frame.trailers_ref() {
                    self.trailers = Some(trailers.clone());
                }
            }
            Poll::Ready(Some(Err(_))) => self.state = State::Broken,
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }

    fn keep(&mut self, data: Bytes) {
        self.bytes += data.len();
        if self.bytes > self.most {
            self.kept.clear();
            self.state = State::Gone;
        } else if self.state == State::Whole {
            self.kept.push(data);
        }
    }
}

impl HttpBody for Attempt {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let mut source = this.source.lock();
        if source.state == State::Whole
            && let Some(data) = source.kept.get(this.given)
        {
            this.given += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        if let Some(trailers) = &source.trailers {
            this.ended = true;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers.clone()))));
        }
        let polled = source.poll_next(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) if frame.is_data() => this.given += 1,
            Poll::Ready(Some(Ok(_)) | None) => this.ended = true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let source = self.source.lock();
        let all_given = source.state != State::Whole || self.given == source.kept.len();
        self.ended || (all_given && source.trailers.is_none() && source.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let source = self.source.lock();
        let left: usize = source.kept.iter().skip(self.given).map(Bytes::len).sum();
        let rest = source.body.size_hint();
        let left = u64::try_from(left).unwrap_or(u64::MAX);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(left));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(left));
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn read(body: Body) -> Vec<u8> {
        body.collect().await.unwrap().to_bytes().to_vec()
    }

    #[tokio::test]
    async fn a_small_body_is_sent_as_often_as_needed() {
        let replay = Replay::new(Body::full("hello"), 10);
        let mut first = replay.attempt();
        assert!(first.frame().await.unwrap().unwrap().is_data());
        drop(first);
        assert!(replay.can_begin_again());
        assert_eq!(replay.attempt().size_hint().exact(), Some(5));
        assert_eq!(read(replay.attempt()).await, b"hello");
        assert_eq!(read(replay.attempt()).await, b"hello");
    }

    #[tokio::test]
    async fn a_large_body_is_sent_once() {
        let replay = Replay::new(Body::full("hello"), 4);
        assert!(replay.can_begin_again());
        assert_eq!(read(replay.attempt()).await, b"hello");
        assert!(!replay.can_begin_again());
    }

    #[tokio::test]
    async fn no_body_ends_at_once() {
        let replay = Replay::new(Body::empty(), 4);
        assert!(replay.attempt().is_end_stream());
    }
}
