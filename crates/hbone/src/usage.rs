//! Who uses a tunnel: streams open in it, and since when there are none. Shared by the pool or server, the streams
//! (as guards) and the tunnel's task.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use leyline_runtime::{Drain, Outgrows};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{config::HboneConfig, credits::Credits, link::Traffic};

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
    busy_bytes_per_second: u64,
    drain: Drain,
    pub(crate) credits: Credits,
}

/// One stream; counted until dropped.
#[derive(Debug)]
pub(crate) struct StreamGuard {
    usage: Arc<Usage>,
    /// Bytes since `mark`.
    moved: AtomicUsize,
    /// Milliseconds from the tunnel's start.
    mark: AtomicU64,
    is_heavy: AtomicBool,
}

/// What a stream moves before its rate is looked at: more than most answers, so that one burst is no load.
const RATED: usize = 4 << 20;
/// A stream that moves this part of what makes a tunnel busy is better off with a task of its own.
const HEAVY_PART: u64 = 16;

impl Usage {
    /// Streams with much to do go on as tasks of `drain`.
    pub(crate) fn new(cfg: &HboneConfig, drain: Drain) -> Arc<Self> {
        Arc::new(Self {
            drain,
            start: Instant::now(),
            busy_bytes_per_second: cfg.busy_bytes_per_second,
            streams: AtomicUsize::new(0),
            total: AtomicU64::new(0),
            unused_since: AtomicU64::new(0),
            credits: Credits::default(),
        })
    }

    /// Counts one more stream if there are fewer than `limit`.
    pub(crate) fn enter(self: &Arc<Self>, limit: usize) -> Option<Arc<StreamGuard>> {
        self.streams
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |streams| {
                (streams < limit).then(|| streams + 1)
            })
            .ok()?;
        self.total.fetch_add(1, Ordering::Relaxed);
        Some(Arc::new(StreamGuard {
            usage: self.clone(),
            moved: AtomicUsize::new(0),
            mark: AtomicU64::new(self.now()),
            is_heavy: AtomicBool::new(false),
        }))
    }

    /// Milliseconds from the start.
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
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
        &self.usage.credits
    }

    /// So many bytes were moved, in either direction.
    pub(crate) fn moved(&self, bytes: usize) {
        let moved = self.moved.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if moved < RATED {
            return;
        }
        let now = self.usage.now();
        let millis = now.saturating_sub(self.mark.swap(now, Ordering::Relaxed));
        self.moved.store(0, Ordering::Relaxed);
        let rate = u64::try_from(moved).unwrap_or(u64::MAX) / millis.max(1);
        let heavy = rate > self.usage.busy_bytes_per_second / HEAVY_PART / 1000;
        self.is_heavy.store(heavy, Ordering::Relaxed);
    }
}

impl Outgrows for StreamGuard {
    /// A stream that moves much data, if there are others: alone it is best served where its data arrives, with others it
    /// makes them wait, and has more cores in a task of its own.
    fn outgrown(&self) -> Option<&Drain> {
        let heavy = self.is_heavy.load(Ordering::Relaxed);
        (heavy && self.usage.streams() > 1).then_some(&self.usage.drain)
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let usage = &self.usage;
        usage.unused_since.store(usage.now(), Ordering::Relaxed);
        usage.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How much a tunnel does.
#[derive(Debug)]
pub(crate) struct Load {
    traffic: Arc<Traffic>,
    busy_bytes_per_second: u64,
    /// When the tunnel was last looked at, and what it had done. Locked for one look, under the pool's lock anyway.
    seen: Mutex<(Instant, Done)>,
}

/// What a tunnel has done since its start.
#[derive(Clone, Copy, Debug)]
struct Done {
    bytes: u64,
    /// Time that its task had.
    worked: Duration,
}

/// A task that works for so much of the time, one part in this many, has no room for a burst.
const BUSY_PART: u32 = 2;

impl Load {
    pub(crate) fn new(traffic: Arc<Traffic>, busy_bytes_per_second: u64) -> Self {
        let seen = Mutex::new((Instant::now(), Done::by(&traffic)));
        Self {
            traffic,
            busy_bytes_per_second,
            seen,
        }
    }

    /// Whether the tunnel was busy since the last look; a look soon after another sees nothing.
    pub(crate) fn is_busy(&self) -> bool {
        let done = Done::by(&self.traffic);
        let mut seen = self.seen.lock();
        let (at, before) = *seen;
        let span = at.elapsed();
        if span < LOAD_SPAN {
            return false;
        }
        *seen = (Instant::now(), done);
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let rate = done.bytes.saturating_sub(before.bytes) / millis.max(1);
        rate > self.busy_bytes_per_second / 1000
            || done.worked.saturating_sub(before.worked) > span / BUSY_PART
    }
}

impl Done {
    fn by(traffic: &Traffic) -> Self {
        Self {
            bytes: traffic.both(),
            worked: traffic.worked(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Whether a stream that moves `bytes` in `time`, beside `others`, is to have a task of its own.
    async fn outgrows(bytes: usize, time: Duration, others: usize) -> bool {
        let usage = Usage::new(&HboneConfig::default(), Drain::new());
        let stream = usage.enter(usize::MAX).unwrap();
        let _others: Vec<_> = (0..others).map(|_| usage.enter(usize::MAX)).collect();
        tokio::time::advance(time).await;
        stream.moved(bytes / 2);
        stream.moved(bytes - bytes / 2);
        stream.outgrown().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn what_moves_much_beside_others_outgrows_its_tunnel() {
        for (bytes, time, others, expected) in [
            (4 << 20, SECOND / 100, 1, true),
            // Alone, it does nobody harm.
            (4 << 20, SECOND / 100, 0, false),
            // A burst.
            (2 << 20, SECOND / 1000, 1, false),
            (4 << 20, SECOND, 1, false),
        ] {
            let outgrown = outgrows(bytes, time, others).await;
            assert_eq!(outgrown, expected, "{bytes} in {time:?} beside {others}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_is_busy_by_its_bytes_or_by_its_work() {
        for (worked, expected) in [(SECOND * 2 / 3, true), (SECOND / 3, false)] {
            let traffic = Arc::<Traffic>::default();
            let load = Load::new(traffic.clone(), u64::MAX);
            let start = Instant::now();
            tokio::time::advance(worked).await;
            traffic.turn(start);
            tokio::time::advance(SECOND - worked).await;
            assert_eq!(load.is_busy(), expected, "{worked:?}");
        }
    }
}
