//! Connections on which nothing happens any more: an application that has closed its side and whose peer never does, or
//! that has been silent for longer than its operator wants to carry it.
//!
//! A watch looks a few times per limit at what was moved; a byte costs it nothing.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bytes::Bytes;
use leyline_net::copy::Reader;
use leyline_telemetry::idle::Reaped;
use tokio::time::sleep;

/// Looks per limit: a connection is closed at most a quarter later than it could be.
const LOOKS: u32 = 4;

/// How long a connection may move nothing; unset is for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdleLimits {
    /// Once one of the directions has ended.
    pub(crate) half_closed: Option<Duration>,
    /// Any connection.
    pub(crate) open: Option<Duration>,
}

/// A connection that was silent for this long.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(super) enum Idle {
    #[error("connection closed because one direction had ended and the other was silent for {0:?}")]
    HalfClosed(Duration),
    #[error("connection closed because it was silent for {0:?}")]
    Open(Duration),
}

impl Idle {
    pub(super) fn counted_as(self) -> Reaped {
        match self {
            Self::HalfClosed(_) => Reaped::HalfClosed,
            Self::Open(_) => Reaped::Idle,
        }
    }
}

/// Of one connection.
pub(super) struct Watch {
    limits: IdleLimits,
    half_closed: AtomicBool,
}

impl Watch {
    pub(super) fn new(limits: IdleLimits) -> Self {
        Self {
            limits,
            half_closed: AtomicBool::new(false),
        }
    }

    /// The same reader, whose end is noted.
    pub(super) fn over<R: Reader>(&self, reader: R) -> Watched<'_, R> {
        Watched {
            reader,
            watch: self,
        }
    }

    /// Returns when the connection is to be closed. `moved` is all that was moved so far. Cancel safe.
    pub(super) async fn idle(&self, moved: impl Fn() -> u64) -> Idle {
        let Some(shortest) = self.shortest() else {
            return std::future::pending().await;
        };
        let pause = shortest / LOOKS;
        let mut last = (moved(), false);
        let mut silent = Duration::ZERO;
        loop {
            sleep(pause).await;
            let now = (moved(), self.half_closed.load(Ordering::Relaxed));
            if now == last {
                silent += pause;
            } else {
                (last, silent) = (now, Duration::ZERO);
            }
            match (now.1, self.limits) {
                (
                    true,
                    IdleLimits {
                        half_closed: Some(limit),
                        ..
                    },
                ) if silent >= limit => {
                    return Idle::HalfClosed(limit);
                }
                (
                    _,
                    IdleLimits {
                        open: Some(limit), ..
                    },
                ) if silent >= limit => {
                    return Idle::Open(limit);
                }
                _ => {}
            }
        }
    }

    fn shortest(&self) -> Option<Duration> {
        let IdleLimits { half_closed, open } = self.limits;
        half_closed.into_iter().chain(open).min()
    }
}

/// A reader whose end its watch knows.
pub(super) struct Watched<'a, R> {
    reader: R,
    watch: &'a Watch,
}

impl<R: Reader> Reader for Watched<'_, R> {
    async fn read(&mut self) -> io::Result<Option<Bytes>> {
        let chunk = self.reader.read().await?;
        if chunk.is_none() {
            self.watch.half_closed.store(true, Ordering::Relaxed);
        }
        Ok(chunk)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use tokio::time::{Instant, timeout};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const HALF: IdleLimits = IdleLimits {
        half_closed: Some(MINUTE),
        open: None,
    };

    /// How long a silent connection lives.
    async fn life(limits: IdleLimits, half_closed: bool) -> Option<(Idle, Duration)> {
        let watch = Watch::new(limits);
        watch.half_closed.store(half_closed, Ordering::Relaxed);
        let start = Instant::now();
        let idle = timeout(100 * MINUTE, watch.idle(|| 7)).await.ok()?;
        Some((idle, start.elapsed()))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_silent_for_its_limit_is_closed() {
        assert!(life(HALF, false).await.is_none());
        let (idle, after) = life(HALF, true).await.unwrap();
        assert!(matches!(idle, Idle::HalfClosed(MINUTE)), "{idle:?}");
        assert!((MINUTE..=MINUTE * 5 / 4).contains(&after), "{after:?}");
        let both = IdleLimits {
            half_closed: Some(MINUTE),
            open: Some(2 * MINUTE),
        };
        let (idle, after) = life(both, false).await.unwrap();
        assert!(matches!(idle, Idle::Open(_)), "{idle:?}");
        assert!((2 * MINUTE..=MINUTE * 5 / 2).contains(&after), "{after:?}");
        let none = IdleLimits {
            half_closed: None,
            open: None,
        };
        assert!(life(none, true).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_moves_stays() {
        let watch = Watch::new(HALF);
        watch.half_closed.store(true, Ordering::Relaxed);
        let moved = AtomicU64::new(0);
        let talk = async {
            for _ in 0..20 {
                sleep(MINUTE / 2).await;
                moved.fetch_add(1, Ordering::Relaxed);
            }
        };
        tokio::select! {
            () = talk => {}
            idle = watch.idle(|| moved.load(Ordering::Relaxed)) => panic!("{idle}"),
        }
    }
}
