//! What hyper starts beside an HTTP/2 connection, each request above all, runs in the connection's own task. Tasks of their
//! own would be woken on any core and take turns with the connection at its lock; here the requests that one read brought
//! are worked on together, and their answers leave in one write.

use std::{
    fmt,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use hyper::rt::Executor;
use parking_lot::Mutex;

type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What hyper has begun and nobody has polled.
#[derive(Clone, Default)]
pub(crate) struct Begun(Arc<Mutex<Vec<Stream>>>);

impl fmt::Debug for Begun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Begun").finish_non_exhaustive()
    }
}

impl<F> Executor<F> for Begun
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, future: F) {
        // A request that panics ends alone, as it would in a task of its own.
        let stream = AssertUnwindSafe(future).catch_unwind().map(drop);
        self.0.lock().push(Box::pin(stream));
    }
}

/// The requests of one connection, of a server or of a client.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    begun: Begun,
    running: FuturesUnordered<Stream>,
}

impl Streams {
    /// Where hyper starts them: a few for each stream that the connection allows.
    pub(crate) fn executor(&self) -> Begun {
        self.begun.clone()
    }

    /// Runs the connection and its requests until the connection ends. Requests that are then still under way have nobody to
    /// answer to, and are dropped with this.
    pub(crate) async fn drive<C: Future>(&mut self, mut connection: Pin<&mut C>) -> C::Output {
        std::future::poll_fn(|cx| self.poll(connection.as_mut(), cx)).await
    }

    /// Resolves when nothing is under way. A client's connection takes no more requests before it has its last answers.
    pub(crate) async fn finish(&mut self) {
        std::future::poll_fn(|cx| {
            self.advance(cx);
            if self.running.is_empty() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Polls the connection once, after the requests, so that what they have to say goes out with it.
    fn poll<C: Future>(
        &mut self,
        connection: Pin<&mut C>,
        cx: &mut Context<'_>,
    ) -> Poll<C::Output> {
        self.advance(cx);
        if let Poll::Ready(output) = connection.poll(cx) {
            return Poll::Ready(output);
        }
        // New ones begin at once. If they have an answer already, then h2 wakes the connection.
        self.advance(cx);
        Poll::Pending
    }

    /// Polls what was woken and what is new.
    fn advance(&mut self, cx: &mut Context<'_>) {
        loop {
            let begun = std::mem::take(&mut *self.begun.0.lock());
            self.running.extend(begun);
            while let Poll::Ready(Some(())) = self.running.poll_next_unpin(cx) {}
            // A request of the CONNECT method begins another future when it is answered.
            if self.begun.0.lock().is_empty() {
                return;
            }
        }
    }
}

impl Drop for Streams {
    /// What was never polled may itself hold the executor.
    fn drop(&mut self) {
        let _begun = std::mem::take(&mut *self.begun.0.lock());
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::pin};

    use tokio::sync::{Notify, oneshot};

    use super::*;

    #[tokio::test]
    async fn requests_run_while_their_connection_does() {
        let mut streams = Streams::default();
        let executor = streams.executor();
        let (answer, answered) = oneshot::channel();
        let connection = pin!(async move {
            let inner = executor.clone();
            // One that begins another, as upgrades do.
            executor.execute(async move {
                inner.execute(async move { answer.send(7).unwrap() });
            });
            answered.await.unwrap()
        });
        assert_eq!(streams.drive(connection).await, 7);
    }

    #[tokio::test]
    async fn one_that_panics_ends_alone() {
        let mut streams = Streams::default();
        let executor = streams.executor();
        let (answer, answered) = oneshot::channel();
        let connection = pin!(async move {
            executor.execute(async { panic!("as a test") });
            executor.execute(async move { answer.send(()).unwrap() });
            answered.await
        });
        assert_eq!(streams.drive(connection).await, Ok(()));
    }

    #[tokio::test]
    async fn what_is_under_way_has_its_end() {
        let mut streams = Streams::default();
        let executor = streams.executor();
        let go_on = Arc::new(Notify::new());
        let waits = go_on.clone();
        let connection = pin!(async { executor.execute(async move { waits.notified().await }) });
        streams.drive(connection).await;
        {
            let mut finish = pin!(streams.finish());
            let first = poll_fn(|cx| Poll::Ready(finish.as_mut().poll(cx))).await;
            assert!(first.is_pending());
            go_on.notify_one();
            finish.await;
        }
        assert!(streams.running.is_empty());
    }

    #[tokio::test]
    async fn what_was_never_polled_is_dropped() {
        let streams = Streams::default();
        let executor = streams.executor();
        let (held, dropped) = oneshot::channel::<()>();
        let inner = executor.clone();
        executor.execute(async move {
            let _both = (held, inner);
            std::future::pending::<()>().await;
        });
        drop((streams, executor));
        assert!(dropped.await.is_err());
    }
}
