//! What hyper starts beside an HTTP/2 connection, each request above all, runs in the connection's own task. Tasks of their
//! own would be woken on any core and take turns with the connection at its lock; here the requests that one read brought
//! are worked on together, and their answers leave in one write.

use std::{future::poll_fn, pin::Pin};

use futures::FutureExt;
use hyper::rt::Executor;
use leyline_runtime::{Beside, Nested, Stays};

/// Where hyper starts what it has begun: a few futures for each stream that the connection allows.
#[derive(Clone, Debug)]
pub(crate) struct Begun(Beside<Stays>);

impl<F> Executor<F> for Begun
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, future: F) {
        // What begins after the end has nobody to answer to.
        drop(self.0.push(future.map(drop), Stays));
    }
}

/// The requests of one connection, of a server or of a client.
#[derive(Debug, Default)]
pub(crate) struct Streams(Nested<Stays>);

impl Streams {
    /// For hyper.
    pub(crate) fn executor(&self) -> Begun {
        Begun(self.0.beside())
    }

    /// Runs the connection and its requests until the connection ends. Requests that are then still under way have nobody to
    /// answer to, and are dropped with this.
    pub(crate) async fn drive<C: Future>(&mut self, mut connection: Pin<&mut C>) -> C::Output {
        let Self(nested) = self;
        poll_fn(|cx| nested.poll_turn(cx, |cx| connection.as_mut().poll(cx))).await
    }

    /// Resolves when nothing is under way. A client's connection takes no more requests before it has its last answers.
    pub(crate) async fn finish(&mut self) {
        self.0.finish().await;
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, sync::Arc, task::Poll};

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
