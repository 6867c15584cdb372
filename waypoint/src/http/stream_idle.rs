//! Requests on which nothing moves: neither a byte of the request nor one of the response (Envoy, `stream_idle_timeout` of a
//! connection manager, `idle_timeout` of a route).

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use http::{Response, StatusCode};
use hyper::body::Body as HttpBody;
use tokio::time::{Duration, Instant, Sleep, sleep_until};

use super::{
    body::Body,
    passing::{Polled, Watch},
    reply::{Flag, Reply},
};

/// The response stood still for too long; the stream is cut, so that nobody takes a part for the whole.
#[derive(Debug, thiserror::Error)]
#[error("nothing has moved on the stream for {0:?}")]
pub(crate) struct StreamIdle(Duration);

/// When something moved last.
#[derive(Debug)]
pub(crate) struct Activity {
    limit: Duration,
    begun: Instant,
    /// In milliseconds since then.
    last: AtomicU64,
}

impl Activity {
    /// None where there is no limit.
    pub(crate) fn within(limit: Option<Duration>) -> Option<Arc<Self>> {
        let limit = limit?;
        Some(Arc::new(Self {
            limit,
            begun: Instant::now(),
            last: AtomicU64::new(0),
        }))
    }

    fn moved(&self) {
        let since = u64::try_from(self.begun.elapsed().as_millis());
        // The two directions race; both say about the same.
        self.last
            .store(since.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn ends_at(&self) -> Instant {
        self.begun + Duration::from_millis(self.last.load(Ordering::Relaxed)) + self.limit
    }

    /// Resolves when nothing has moved for too long.
    async fn idle(&self) -> Reply {
        while Instant::now() < self.ends_at() {
            sleep_until(self.ends_at()).await;
        }
        let (status, flag) = (StatusCode::GATEWAY_TIMEOUT, Flag::IdleTimeout);
        Reply::new(status, flag, "stream_idle_timeout", "stream timeout")
    }
}

/// Takes notice of each part of a request's body.
pub(crate) fn watch(body: Body, activity: Option<&Arc<Activity>>) -> Body {
    let Some(activity) = activity.filter(|_| !body.is_end_stream()) else {
        return body;
    };
    body.watched(Watched {
        activity: activity.clone(),
        cut: None,
    })
}

/// Waits for the head of a response for as long as something moves. Cancel safe if the work is.
pub(crate) async fn wait(
    work: impl Future<Output = Result<Response<Body>, Reply>>,
    activity: Option<&Arc<Activity>>,
) -> Result<Response<Body>, Reply> {
    let Some(activity) = activity else {
        return work.await;
    };
    // Dropping the work gives up the attempt, as a deadline does.
    tokio::select! {
        response = work => response,
        idle = activity.idle() => Err(idle),
    }
}

/// Cuts the body of a response when nothing moves. A connection that has become another protocol's is left alone.
pub(crate) fn limit(response: Response<Body>, activity: Option<Arc<Activity>>) -> Response<Body> {
    match activity {
        Some(activity) if response.status() != StatusCode::SWITCHING_PROTOCOLS => {
            response.map(|body| limit_body(body, activity))
        }
        Some(_) | None => response,
    }
}

fn limit_body(body: Body, activity: Arc<Activity>) -> Body {
    activity.moved();
    if body.is_end_stream() {
        return body;
    }
    let cut = Box::pin(sleep_until(activity.ends_at()));
    body.watched(Watched {
        activity,
        cut: Some(cut),
    })
}

struct Watched {
    activity: Arc<Activity>,
    cut: Option<Pin<Box<Sleep>>>,
}

impl Watch for Watched {
    fn seen(&mut self, _body: &Body, polled: Polled, cx: &mut Context<'_>) -> Polled {
        if polled.is_ready() {
            self.activity.moved();
            return polled;
        }
        let Some(cut) = &mut self.cut else {
            return Poll::Pending;
        };
        while cut.as_mut().poll(cx).is_ready() {
            let end = self.activity.ends_at();
            if end <= Instant::now() {
                let idle = StreamIdle(self.activity.limit);
                return Poll::Ready(Some(Err(idle.into())));
            }
            // The other direction has moved meanwhile.
            cut.as_mut().reset(end);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::BodyExt;
    use hyper::body::Frame;

    use super::*;
    use crate::http::body::BodyError;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Says one part after this time, and then nothing.
    struct Slow {
        until: Option<Pin<Box<Sleep>>>,
    }

    impl HttpBody for Slow {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            let Some(until) = &mut self.until else {
                return Poll::Pending;
            };
            if until.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.until = None;
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"part")))))
        }
    }

    fn activity() -> Arc<Activity> {
        Activity::within(Some(LIMIT)).unwrap()
    }

    fn slow(after: Duration) -> Body {
        let until = Some(Box::pin(sleep_until(Instant::now() + after)));
        Body::new(Slow { until })
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_stands_still_is_cut() {
        let start = Instant::now();
        let mut body = limit_body(slow(Duration::from_secs(6)), activity());
        assert!(body.frame().await.unwrap().is_ok());
        assert!(body.frame().await.unwrap().is_err());
        assert_eq!(start.elapsed().as_secs(), 16);
    }

    #[tokio::test(start_paused = true)]
    async fn what_moves_in_the_other_direction_counts() {
        let start = Instant::now();
        let activity = activity();
        let mut request = watch(slow(Duration::from_secs(9)), Some(&activity));
        let mut response = limit_body(slow(Duration::from_secs(100)), activity);
        let asked = async {
            let part = request.frame().await.unwrap();
            assert!(part.is_ok());
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = asked => {}
            cut = response.frame() => assert!(cut.unwrap().is_err()),
        }
        assert_eq!(start.elapsed().as_secs(), 19);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_the_head_ends_too() {
        let start = Instant::now();
        let reply = activity().idle().await;
        assert_eq!(reply.status, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(start.elapsed().as_secs(), 10);
    }
}
