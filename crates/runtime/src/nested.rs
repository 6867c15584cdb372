//! Futures that run within one task: the connections of a tunnel, the requests of an HTTP/2 connection. In tasks of their
//! own they would be woken on any core and take turns with the tunnel at its lock; here what one read brought is worked on
//! together, and what comes of it leaves in one write.
//!
//! The task calls [`Nested::poll_turn`] for all that it does. Invariant: nothing that was woken waits for the scheduler of
//! the runtime, as long as it is the task's turn.

use std::{
    fmt,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures::{FutureExt, StreamExt, stream::FuturesUnordered, task::AtomicWaker};
use parking_lot::Mutex;
use tracing::Span;

use crate::{Drain, spawn};

/// Rounds of one turn. Each brings forward what the one before it woke. A stream that is never short of data moves half a
/// megabyte in each, so that others of the thread wait a few milliseconds at most.
const ROUNDS: usize = 8;

type Boxed = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Knows whether a future has more to do than its neighbours should have to wait for.
pub trait Outgrows: Send + Unpin {
    /// Asked each time that the future waits. Once there is a drain, the future goes on as a task of it.
    fn outgrown(&self) -> Option<&Drain>;
}

impl<O: Outgrows + Sync> Outgrows for Arc<O> {
    fn outgrown(&self) -> Option<&Drain> {
        O::outgrown(self)
    }
}

/// Of futures that never leave the task.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stays;

impl Outgrows for Stays {
    fn outgrown(&self) -> Option<&Drain> {
        None
    }
}

/// What runs beside a task's own work, in its turns.
#[derive(Debug)]
pub struct Nested<O> {
    running: FuturesUnordered<Nestling<O>>,
    turn: Arc<Turn<O>>,
    waker: Waker,
}

/// Where others begin futures in the task.
#[derive(Debug)]
pub struct Beside<O>(Arc<Turn<O>>);

impl<O> Clone for Beside<O> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<O: Outgrows + 'static> Default for Nested<O> {
    fn default() -> Self {
        let turn = Arc::new(Turn {
            is_on: AtomicBool::new(false),
            woken: AtomicBool::new(false),
            task: AtomicWaker::new(),
            begun: Mutex::new(Some(Vec::new())),
        });
        Self {
            running: FuturesUnordered::new(),
            waker: Waker::from(turn.clone()),
            turn,
        }
    }
}

impl<O: Outgrows + 'static> Nested<O> {
    /// For others.
    pub fn beside(&self) -> Beside<O> {
        Beside(self.turn.clone())
    }

    /// Begins `future` at the next round. One that panics ends alone, as it would in a task of its own.
    pub fn push(&self, future: impl Future<Output = ()> + Send + 'static, outgrows: O) {
        self.running.push(Nestling::new(future, outgrows));
    }

    /// One turn of the task: rounds of `work` and of what it and the world have woken, until there is a result or nothing more
    /// to do now.
    pub fn poll_turn<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut work: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let Self {
            running,
            turn,
            waker,
        } = self;
        turn.task.register(cx.waker());
        let mut inner = Context::from_waker(waker);
        for _ in 0..ROUNDS {
            turn.start();
            let result = work(&mut inner);
            if result.is_ready() {
                // Whoever called comes again, whatever was woken.
                turn.stop();
                return result;
            }
            turn.advance(running, &mut inner);
            if !turn.stop() {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Resolves when all have ended, also those that they begin; then no more are taken.
    pub async fn finish(&mut self) {
        std::future::poll_fn(|cx| {
            self.turn.task.register(cx.waker());
            self.turn.advance(&mut self.running, cx);
            if !self.running.is_empty() {
                return Poll::Pending;
            }
            let mut begun = self.turn.begun.lock();
            if begun.as_ref().is_none_or(Vec::is_empty) {
                *begun = None;
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

impl<O> Drop for Nested<O> {
    /// What was never polled may itself hold a [`Beside`].
    fn drop(&mut self) {
        let _begun = self.turn.begun.lock().take();
    }
}

impl<O: Outgrows> Beside<O> {
    /// Begins `future` in the task.
    ///
    /// # Errors
    /// The future itself, when the task takes no more.
    pub fn push<F>(&self, future: F, outgrows: O) -> Result<(), F>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        match &mut *self.0.begun.lock() {
            Some(begun) => begun.push(Nestling::new(future, outgrows)),
            None => return Err(future),
        }
        self.0.notify();
        Ok(())
    }
}

/// One future; resolves when it has ended or left.
struct Nestling<O> {
    /// None once it has left.
    future: Option<Boxed>,
    outgrows: O,
}

impl<O> Nestling<O> {
    fn new(future: impl Future<Output = ()> + Send + 'static, outgrows: O) -> Self {
        let alone = AssertUnwindSafe(future).catch_unwind().map(drop);
        Self {
            future: Some(Box::pin(alone)),
            outgrows,
        }
    }
}

impl<O> fmt::Debug for Nestling<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nestling").finish_non_exhaustive()
    }
}

impl<O: Outgrows> Future for Nestling<O> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let Some(future) = &mut this.future else {
            return Poll::Ready(());
        };
        if future.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some(drain) = this.outgrows.outgrown() else {
            return Poll::Pending;
        };
        if let Some(future) = this.future.take() {
            // Tracked by the drain; nobody waits for it.
            drop(spawn("outgrown", Span::none(), drain, future));
        }
        Poll::Ready(())
    }
}

/// Collects what is woken in a turn; between turns it wakes the task.
struct Turn<O> {
    is_on: AtomicBool,
    woken: AtomicBool,
    task: AtomicWaker,
    /// What others began since the last round; none when no more are taken. Locked to put in and to take out.
    begun: Mutex<Option<Vec<Nestling<O>>>>,
}

impl<O> fmt::Debug for Turn<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turn").finish_non_exhaustive()
    }
}

impl<O: Outgrows> Turn<O> {
    /// Begins what others have begun, and polls what was woken.
    fn advance(&self, running: &mut FuturesUnordered<Nestling<O>>, cx: &mut Context<'_>) {
        let begun = self.begun.lock().as_mut().map(std::mem::take);
        running.extend(begun.into_iter().flatten());
        while let Poll::Ready(Some(())) = running.poll_next_unpin(cx) {}
    }
}

impl<O> Turn<O> {
    fn start(&self) {
        self.is_on.store(true, Ordering::SeqCst);
        self.woken.store(false, Ordering::SeqCst);
    }

    /// Whether something was woken since the start.
    fn stop(&self) -> bool {
        // In this order: who wakes sees the stop or is seen.
        self.is_on.store(false, Ordering::SeqCst);
        self.woken.load(Ordering::SeqCst)
    }

    fn notify(&self) {
        self.woken.store(true, Ordering::SeqCst);
        if !self.is_on.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

impl<O: Send> Wake for Turn<O> {
    fn wake(self: Arc<Self>) {
        self.notify();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.notify();
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};

    use tokio::sync::{Notify, oneshot};

    use super::*;

    /// Outgrows the task when it is told.
    #[derive(Clone, Default)]
    struct Told(Arc<AtomicBool>, Drain);

    impl Outgrows for Told {
        fn outgrown(&self) -> Option<&Drain> {
            self.0.load(Ordering::Relaxed).then_some(&self.1)
        }
    }

    /// Lets the task have its turns until `done`.
    async fn drive(nested: &mut Nested<Stays>, mut done: oneshot::Receiver<()>) {
        poll_fn(|cx| nested.poll_turn(cx, |cx| Pin::new(&mut done).poll(cx)))
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn futures_run_while_the_task_works() {
        let mut nested = Nested::default();
        let (say, done) = oneshot::channel();
        let beside = nested.beside();
        let inner = beside.clone();
        // One that begins another, which wakes the task's own work.
        let begun = beside.push(
            async move {
                let last = async move { say.send(()).unwrap() };
                assert!(inner.push(last, Stays).is_ok());
            },
            Stays,
        );
        assert!(begun.is_ok());
        drive(&mut nested, done).await;
    }

    /// Ten hand the word on, each to the next, within one turn: the task is never woken for it.
    #[tokio::test]
    async fn what_wakes_each_other_needs_no_scheduler() {
        let mut nested = Nested::default();
        let links: Vec<Arc<Notify>> = (0..=10).map(|_| Arc::default()).collect();
        for pair in links.windows(2) {
            let (mine, next) = (pair[0].clone(), pair[1].clone());
            let link = async move {
                mine.notified().await;
                next.notify_one();
            };
            nested.push(link, Stays);
        }
        let (count, waker) = counting_waker();
        let mut cx = Context::from_waker(&waker);
        let poll = |nested: &mut Nested<_>, cx: &mut Context<'_>| {
            nested.poll_turn(cx, |_| Poll::<()>::Pending)
        };
        assert!(poll(&mut nested, &mut cx).is_pending());
        assert_eq!(count.load(Ordering::Relaxed), 0);
        links[0].notify_one();
        assert_eq!(count.load(Ordering::Relaxed), 1, "the world wakes the task");
        assert!(poll(&mut nested, &mut cx).is_pending());
        assert_eq!(count.load(Ordering::Relaxed), 1, "and nothing else does");
        links[10].notified().await;
    }

    #[tokio::test]
    async fn one_that_panics_ends_alone() {
        let mut nested = Nested::default();
        let (say, done) = oneshot::channel();
        nested.push(async { panic!("as a test") }, Stays);
        nested.push(async move { say.send(()).unwrap() }, Stays);
        drive(&mut nested, done).await;
    }

    #[tokio::test]
    async fn one_that_outgrows_the_task_goes_on_without_it() {
        let (mut nested, told) = (Nested::default(), Told::default());
        let (say, heard) = oneshot::channel();
        let go_on = Arc::new(Notify::new());
        let waits = go_on.clone();
        let future = async move {
            waits.notified().await;
            say.send(()).unwrap();
        };
        nested.push(future, told.clone());
        told.0.store(true, Ordering::Relaxed);
        let turn = poll_fn(|cx| Poll::Ready(nested.poll_turn(cx, |_| Poll::<()>::Pending)));
        assert!(turn.await.is_pending());
        drop(nested);
        go_on.notify_one();
        heard.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_under_way_has_its_end_and_nothing_begins_after_it() {
        let mut nested = Nested::default();
        let (say, heard) = oneshot::channel();
        let beside = nested.beside();
        assert!(
            beside
                .push(async move { say.send(()).unwrap() }, Stays)
                .is_ok()
        );
        nested.finish().await;
        heard.await.unwrap();
        assert!(beside.push(pending(), Stays).is_err());
    }

    /// Futures that are always woken leave the thread to others now and then.
    #[tokio::test]
    async fn a_turn_ends() {
        let mut nested = Nested::default();
        let restless = poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        nested.push(restless, Stays);
        let (count, waker) = counting_waker();
        let mut cx = Context::from_waker(&waker);
        assert!(
            nested
                .poll_turn(&mut cx, |_| Poll::<()>::Pending)
                .is_pending()
        );
        assert_eq!(count.load(Ordering::Relaxed), 1, "it comes again");
    }

    fn counting_waker() -> (Arc<std::sync::atomic::AtomicUsize>, Waker) {
        struct Count(Arc<std::sync::atomic::AtomicUsize>);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        (count.clone(), Waker::from(Arc::new(Count(count))))
    }
}
