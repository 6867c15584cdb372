//! A body that somebody looks at as it passes. All that do so here see the same of it, and leave its end and its length alone.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::body::{Body, BodyError};

/// What a body says when it is asked for more.
pub(crate) type Polled = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

/// Somebody who looks at a body.
pub(crate) trait Watch: Send + 'static {
    /// Sees what `body` has just said; what of it is passed on.
    fn seen(&mut self, body: &Body, polled: Polled, cx: &mut Context<'_>) -> Polled;
}

impl Body {
    /// The same body, looked at. Who looks is dropped with it.
    pub(crate) fn watched(self, watch: impl Watch) -> Self {
        Self::new(Passing { body: self, watch })
    }
}

struct Passing<W> {
    body: Body,
    watch: W,
}

// Nothing in it is pinned.
impl<W> Unpin for Passing<W> {}

impl<W: Watch> HttpBody for Passing<W> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        this.watch.seen(&this.body, polled, cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
