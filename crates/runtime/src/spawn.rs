//! The one way to start a task: named, traced, tracked by a [`Drain`] and cut at its deadline.

use futures::{FutureExt, future::Abortable};
use tokio::task::JoinHandle;
use tracing::{Instrument, Span};

use crate::drain::Drain;

/// Starts `fut` as a task of `drain`, inside `span`. The handle may be dropped: the task stays tracked.
///
/// The output is `None` when the drain's deadline cut the task; its future is dropped (so its guards have run)
/// before the drain counts it as ended.
pub fn spawn<F>(
    name: &'static str,
    span: Span,
    drain: &Drain,
    fut: F,
) -> JoinHandle<Option<F::Output>>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let (tracked, registration) = drain.track();
    let task = Abortable::new(fut.instrument(span), registration).map(move |output| {
        // `map` has dropped the future by now.
        drop(tracked);
        if output.is_err() {
            tracing::debug!(task = name, "cut at the drain deadline");
        }
        output.ok()
    });
    #[expect(
        clippy::disallowed_methods,
        reason = "the place that makes spawning tracked"
    )]
    tokio::spawn(task)
}

/// Runs `fut` in the caller's task as if it were a task of `drain` too: the drain waits for it, and at the drain's
/// deadline it is cut, which makes the output `None`. For work that belongs to two drains.
pub async fn within<F: Future>(drain: &Drain, fut: F) -> Option<F::Output> {
    let (tracked, registration) = drain.track();
    let output = Abortable::new(fut, registration).await;
    drop(tracked);
    output.ok()
}
