//! Who uses a tunnel: streams open in it, and since when there are none. Shared by the pool or server, the streams
//! (as guards) and the tunnel's task.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{credits::Credits, link::Traffic};

/// The clock of the guards counts milliseconds; looking sooner would spin.
const SHORTEST_LOOK: Duration = Duration::from_millis(1);

/// A burst shorter than this is no load.
const LOAD_SPAN: Duration = Duration::from_millis(50);

/// Streams of one tunnel.
#[derive(Debug)]
pub(crate) struct Usage {
    start: Instant,
    streams: AtomicUsize,
    /// Streams since the start.
    total: AtomicU64,
    /// Milliseconds from `start` to the moment the last stream ended.
    unused_since: AtomicU64,
    pub(crate) credits: Credits,
}

/// One stream; counted until dropped.
#[derive(Debug)]
pub(crate) struct StreamGuard(Arc<Usage>);

impl Usage {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            streams: AtomicUsize::new(0),
            total: AtomicU64::new(0),
            unused_since: AtomicU64::new(0),
            credits: Credits::default(),
        })
    }

    /// Counts one more stream if there are fewer than `limit`.
    pub(crate) fn enter(self: &Arc<Self>, limit: usize) -> Option<StreamGuard> {
        self.streams
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |streams| {
                (streams < limit).then(|| streams + 1)
            })
            .ok()?;
        self.total.fetch_add(1, Ordering::Relaxed);
        Some(StreamGuard(self.clone()))
    }

    pub(crate) fn streams(&self) -> usize {
        self.streams.load(Ordering::Acquire)
    }

    pub(crate) fn was_used(&self) -> bool {
        self.total.load(Ordering::Relaxed) > 0
    }

    /// How long there has been no stream; zero while there is one.
    pub(crate) fn unused_for(&self) -> Duration {
        if self.streams() > 0 {
            return Duration::ZERO;
        }
        let since = self.start + Duration::from_millis(self.unused_since.load(Ordering::Relaxed));
        Instant::now().saturating_duration_since(since)
    }

    /// Waits until there has been no stream for `limit(self)`. Looks again only when that could be.
    pub(crate) async fn unused(&self, limit: impl Fn(&Self) -> Duration) {
        loop {
            let limit = limit(self);
            let unused = self.unused_for();
            if self.streams() == 0 && unused >= limit {
                return;
            }
            tokio::time::sleep(limit.saturating_sub(unused).max(SHORTEST_LOOK)).await;
        }
    }
}

impl StreamGuard {
    pub(crate) fn credits(&self) -> &Credits {
        &self.0.credits
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let usage = &self.0;
        let now = u64::try_from(usage.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        usage.unused_since.store(now, Ordering::Relaxed);
        usage.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How much data a tunnel moves.
#[derive(Debug)]
pub(crate) struct Load {
    traffic: Arc<Traffic>,
    busy_bytes_per_second: u64,
    /// When the bytes were last looked at, and how many they were. Locked for one look, under the pool's lock anyway.
    seen: Mutex<(Instant, u64)>,
}

impl Load {
    pub(crate) fn new(traffic: Arc<Traffic>, busy_bytes_per_second: u64) -> Self {
        let seen = Mutex::new((Instant::now(), traffic.both()));
        Self {
            traffic,
            busy_bytes_per_second,
            seen,
        }
    }

    /// Whether the tunnel was busy since the last look; a look soon after another sees nothing.
    pub(crate) fn is_busy(&self) -> bool {
        let bytes = self.traffic.both();
        let mut seen = self.seen.lock();
        let (at, before) = *seen;
        let span = at.elapsed();
        if span < LOAD_SPAN {
            return false;
        }
        *seen = (Instant::now(), bytes);
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        bytes.saturating_sub(before) / millis.max(1) > self.busy_bytes_per_second / 1000
    }
}
