//! A body that must end in time: the route's deadline covers all of the response.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use hyper::body::Body as HttpBody;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    body::Body,
    passing::{Polled, Watch},
};

/// The response took longer than its route allows; the stream is cut, so that nobody takes a part for the whole.
#[derive(Debug, thiserror::Error)]
#[error("the response did not end within the timeout of its route")]
pub(crate) struct ResponseTimeout;

/// Cuts the body at the deadline.
pub(crate) fn limit(body: Body, deadline: Instant) -> Body {
    if body.is_end_stream() {
        return body;
    }
    body.watched(Limited {
        sleep: Box::pin(sleep_until(deadline)),
    })
}

struct Limited {
    sleep: Pin<Box<Sleep>>,
}

impl Watch for Limited {
    fn seen(&mut self, _body: &Body, polled: Polled, cx: &mut Context<'_>) -> Polled {
        if polled.is_pending() && self.sleep.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(ResponseTimeout.into())));
        }
        polled
    }
}
