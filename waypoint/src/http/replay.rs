//! A request's body that can be sent again. What has passed is kept, up to a bound; beyond it the request is not retried.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use metrics::counter;
use parking_lot::Mutex;

use super::body::{Body, BodyError};

/// Bytes that all requests of a waypoint together may keep: hundreds of uploads at once must not cost hundreds of
/// megabytes.
const MOST_KEPT: usize = 64 << 20;

/// What is kept by all requests.
#[derive(Debug, Default)]
pub(crate) struct Budget(AtomicUsize);

/// The body, shared by the attempts. At most one of them is read at a time.
#[derive(Debug)]
pub(crate) struct Replay {
    /// `None` where there is nothing to send.
    source: Option<Arc<Mutex<Source>>>,
}

#[derive(Debug)]
struct Source {
    body: Body,
    /// What has passed, unless it was too much.
    kept: Vec<Bytes>,
    bytes: usize,
    most: usize,
    budget: Arc<Budget>,
    trailers: Option<HeaderMap>,
    state: State,
    /// Whether no other attempt will follow.
    is_last: bool,
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

impl Budget {
    /// Whether there was room.
    fn take(&self, bytes: usize) -> bool {
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |kept| {
                kept.checked_add(bytes).filter(|kept| *kept <= MOST_KEPT)
            });
        taken.is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Replay {
    /// Keeps at most `most` bytes, of the budget.
    pub(crate) fn new(body: Body, most: usize, budget: &Arc<Budget>) -> Self {
        if body.is_end_stream() {
            return Self { source: None };
        }
        let source = Source {
            body,
            kept: Vec::new(),
            bytes: 0,
            most,
            budget: budget.clone(),
            trailers: None,
            state: State::Whole,
            is_last: false,
        };
        Self {
            source: Some(Arc::new(Mutex::new(source))),
        }
    }

    /// Whether there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.source.is_none()
    }

    /// Whether another attempt could send all of the body.
    pub(crate) fn can_begin_again(&self) -> bool {
        let source = self.source.as_ref();
        source.is_none_or(|source| source.lock().state == State::Whole)
    }

    /// The body from its beginning.
    pub(crate) fn attempt(&self) -> Body {
        let Some(source) = &self.source else {
            return Body::empty();
        };
        Body::new(Attempt {
            source: source.clone(),
            given: 0,
            ended: false,
        })
    }
}

impl Drop for Replay {
    /// The attempt under way goes on without it, and is the last: a stream may go on for hours after its response began.
    fn drop(&mut self) {
        if let Some(source) = &self.source {
            source.lock().is_last = true;
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.forget();
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
        if self.state != State::Whole {
            return;
        }
        let reason = if self.is_last {
            self.give_up();
            return;
        } else if self.bytes + data.len() > self.most {
            "size"
        } else if !self.budget.take(data.len()) {
            "budget"
        } else {
            self.bytes += data.len();
            self.kept.push(data);
            return;
        };
        if self.most > 0 {
            counter!("leyline_waypoint_bodies_not_kept_total", "reason" => reason).increment(1);
        }
        self.give_up();
    }

    /// The body can be sent once only.
    fn give_up(&mut self) {
        self.forget();
        self.state = State::Gone;
    }

    fn forget(&mut self) {
        self.kept = Vec::new();
        self.budget.give_back(std::mem::take(&mut self.bytes));
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
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    async fn read(body: Body) -> Vec<u8> {
        body.collect().await.unwrap().to_bytes().to_vec()
    }

    fn replay(body: Body, most: usize) -> (Replay, Arc<Budget>) {
        let budget = Arc::default();
        (Replay::new(body, most, &budget), budget)
    }

    fn kept(budget: &Budget) -> usize {
        budget.0.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn a_small_body_is_sent_as_often_as_needed() {
        let (replay, budget) = replay(Body::full("hello"), 10);
        let mut first = replay.attempt();
        assert!(first.frame().await.unwrap().unwrap().is_data());
        drop(first);
        assert!(replay.can_begin_again());
        assert_eq!(replay.attempt().size_hint().exact(), Some(5));
        assert_eq!(read(replay.attempt()).await, b"hello");
        assert_eq!(read(replay.attempt()).await, b"hello");
        assert_eq!(kept(&budget), 5);
        drop(replay);
        assert_eq!(kept(&budget), 0);
    }

    #[tokio::test]
    async fn a_large_body_is_sent_once() {
        let (replay, budget) = replay(Body::full("hello"), 4);
        assert!(replay.can_begin_again());
        assert_eq!(read(replay.attempt()).await, b"hello");
        assert!(!replay.can_begin_again());
        assert_eq!(kept(&budget), 0);
    }

    #[tokio::test]
    async fn a_body_beyond_what_all_may_keep_is_sent_once() {
        let (replay, budget) = replay(Body::full("hello"), 10);
        assert!(budget.take(MOST_KEPT - 4));
        assert_eq!(read(replay.attempt()).await, b"hello");
        assert!(!replay.can_begin_again());
        budget.give_back(MOST_KEPT - 4);
        assert_eq!(kept(&budget), 0);
    }

    #[tokio::test]
    async fn what_comes_after_the_decision_is_not_kept() {
        let frames = ["one", "two"].map(|word| Ok::<_, BodyError>(Frame::data(word.into())));
        let body = StreamBody::new(futures::stream::iter(frames));
        let (replay, budget) = replay(Body::new(body), 10);
        let mut attempt = replay.attempt();
        let frame = attempt.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "one");
        assert_eq!(kept(&budget), 3);
        drop(replay);
        assert_eq!(read(attempt).await, b"two");
        assert_eq!(kept(&budget), 0);
    }

    #[tokio::test]
    async fn no_body_ends_at_once() {
        let (replay, _budget) = replay(Body::empty(), 4);
        assert!(replay.is_empty() && replay.can_begin_again());
        assert!(replay.attempt().is_end_stream());
    }
}
