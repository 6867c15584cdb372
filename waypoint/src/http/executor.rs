//! Lets hyper's HTTP/2 start its tasks where all tasks are: tracked, and ended on drain.

use hyper::rt::Executor;
use leyline_runtime::{Drain, spawn};
use tracing::Span;

/// Spawns on a drain.
#[derive(Clone, Debug)]
pub(crate) struct DrainExecutor {
    drain: Drain,
}

impl DrainExecutor {
    pub(crate) fn new(drain: Drain) -> Self {
        Self { drain }
    }
}

impl<F> Executor<F> for DrainExecutor
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, future: F) {
        drop(spawn("http/2", Span::none(), &self.drain, future));
    }
}
