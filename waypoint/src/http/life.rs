//! How long an HTTP connection of a client lives: it is ended in order when it is old, so that its next requests may find
//! another waypoint, and when nothing was asked on it for long.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Context,
};

use parking_lot::Mutex;
use rand::RngExt;
use tokio::time::{Duration, Instant, sleep, sleep_until};

use super::{
    body::Body,
    passing::{Polled, Watch},
};

/// What a connection is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LifeLimits {
    pub(crate) age: Option<Duration>,
    /// Without a request.
    pub(crate) idle: Option<Duration>,
}

/// The requests of one connection.
#[derive(Debug)]
pub(crate) struct Life {
    active: AtomicUsize,
    idle_since: Mutex<Instant>,
}

/// One request, until the end of its response.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Life>);

impl Default for Life {
    fn default() -> Self {
        Self {
            active: AtomicUsize::new(0),
            idle_since: Mutex::new(Instant::now()),
        }
    }
}

impl Life {
    pub(crate) fn enter(self: &Arc<Self>) -> Busy {
        self.active.fetch_add(1, Ordering::AcqRel);
        Busy(self.clone())
    }

    /// Resolves when the connection has reached one of its limits.
    pub(crate) async fn over(&self, limits: LifeLimits) -> &'static str {
        let aged = async {
            match limits.age {
                Some(age) => sleep(spread(age)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = aged => "age",
            () = self.idle(limits.idle) => "idle",
        }
    }

    async fn idle(&self, limit: Option<Duration>) {
        let Some(limit) = limit else {
            return std::future::pending().await;
        };
        loop {
            let now = Instant::now();
            let since = *self.idle_since.lock();
            let until = match self.active.load(Ordering::Acquire) {
                0 => since + limit,
                _ => now + limit,
            };
            if until <= now {
                return;
            }
            sleep_until(until).await;
        }
    }
}

impl Busy {
    /// Goes with the response.
    pub(crate) fn until_end_of(self, body: Body) -> Body {
        body.watched(self)
    }
}

impl Watch for Busy {
    fn seen(&mut self, _body: &Body, polled: Polled, _cx: &mut Context<'_>) -> Polled {
        polled
    }
}

/// Up to a tenth less, so that connections that were made together do not all end together.
pub(crate) fn spread(age: Duration) -> Duration {
    age.mul_f64(rand::rng().random_range(0.9..1.0))
}

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.idle_since.lock() = Instant::now();
        self.0.active.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ended_after(life: &Life, limits: LifeLimits) -> (u64, &'static str) {
        let start = Instant::now();
        let why = life.over(limits).await;
        (start.elapsed().as_secs(), why)
    }

    #[tokio::test(start_paused = true)]
    async fn connections_end_when_they_are_old_or_unused() {
        let secs = |secs: u64| Some(Duration::from_secs(secs));
        let life = Arc::new(Life::default());
        let limits = LifeLimits {
            age: secs(1000),
            idle: secs(10),
        };
        assert_eq!(ended_after(&life, limits).await, (10, "idle"));
        let busy = life.enter();
        let (after, why) = ended_after(&life, limits).await;
        assert!(
            (900..=1000).contains(&after) && why == "age",
            "{after} {why}"
        );
        drop(busy);
        assert_eq!(ended_after(&life, limits).await, (10, "idle"));
    }
}
