//! Flow-control windows of one tunnel: how they shrink as streams become more, so that streams whose readers stand still
//! can never use up the window of the tunnel and stop the others.
//!
//! A stream's window halves each time that the number of streams doubles, down to a floor, and the tunnel's window has
//! room for what all can hold, each with the window that it found when it came. One stream alone has a quarter of the
//! base; the base is enough for 32 streams, and 200 need less than three times as much.
//!
//! This is a promise to well-behaved peers; one that does not acknowledge the smaller windows fills its own tunnel's
//! window and stops itself. Called by the task of the tunnel.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::HboneConfig;

/// One stream alone gets this part of the base.
const LARGEST_PART: u32 = 4;
/// The smallest window is this part of the base: 128 KiB of 16 MiB, 1 Gbit/s at a round trip of 1 ms.
const SMALLEST_PART: u32 = 128;
/// No window is smaller than a usual frame's quarter, however small the base is.
const SMALLEST: u32 = 4 << 10;
/// Windows grow again when there have been fewer streams for this long: each change is a frame and its answer.
const REST: Duration = Duration::from_secs(1);
/// RFC 9113, 6.9.1.
const LARGEST: u32 = (1 << 31) - 1;

/// The sizes of one tunnel.
#[derive(Debug)]
pub(crate) struct Windows {
    /// Of one stream alone.
    largest: u32,
    smallest: u32,
    /// How many streams the present sizes are for: a power of two.
    step: u32,
    /// The tunnel's window only grows: what a peer was once allowed to send may be on its way.
    tunnel: u32,
    changed: Instant,
}

/// What to tell the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// The window of each stream.
    pub(crate) stream: u32,
    /// The window of the tunnel.
    pub(crate) tunnel: u32,
    step: u32,
}

impl Windows {
    pub(crate) fn new(cfg: &HboneConfig) -> Self {
        Self {
            largest: cfg.largest_window(),
            smallest: cfg.smallest_window(),
            step: 1,
            tunnel: cfg.connection_window,
            changed: Instant::now(),
        }
    }

    /// Tells the peer of new sizes, if so many streams need them. Says whether h2 has something to send for it.
    pub(crate) fn follow(
        &mut self,
        streams: usize,
        tell: impl FnOnce(Sizes) -> Result<(), h2::Error>,
    ) -> bool {
        let Some(sizes) = self.wanted(streams) else {
            return false;
        };
        // An error: the answer to an earlier change is not here yet; with it the tunnel's task runs again.
        let told = tell(sizes).is_ok();
        if told {
            self.told(sizes);
        }
        told
    }

    /// New sizes, if so many streams need them; to be confirmed with [`Self::told`].
    fn wanted(&self, streams: usize) -> Option<Sizes> {
        let streams = u32::try_from(streams).ok()?.checked_next_power_of_two()?;
        if streams > self.step {
            return Some(self.sizes(streams));
        }
        // One that comes and goes changes nothing, and a tunnel without streams rests.
        let fewer = streams <= self.step / 4;
        (fewer && self.changed.elapsed() > REST).then(|| self.sizes(streams * 2))
    }

    /// The peer is being told.
    fn told(&mut self, sizes: Sizes) {
        self.step = sizes.step;
        self.tunnel = sizes.tunnel;
        self.changed = Instant::now();
    }

    fn sizes(&self, step: u32) -> Sizes {
        let room = self.room(step).min(u64::from(LARGEST));
        Sizes {
            stream: self.stream(step),
            tunnel: u32::try_from(room).unwrap_or(LARGEST).max(self.tunnel),
            step,
        }
    }

    fn stream(&self, step: u32) -> u32 {
        (self.largest / step).max(self.smallest)
    }

    /// What so many streams can hold, each with the window that it found when it came, and one window more.
    fn room(&self, step: u32) -> u64 {
        let mut held = u64::from(self.largest);
        let mut came = 1;
        while came < step {
            held += u64::from(came) * u64::from(self.stream(came * 2));
            came *= 2;
        }
        held + u64::from(self.stream(step))
    }
}

impl HboneConfig {
    /// The window of a stream that is alone in its tunnel.
    pub(crate) fn largest_window(&self) -> u32 {
        let share = (self.connection_window / LARGEST_PART).max(SMALLEST);
        self.stream_window.min(share)
    }

    /// That of a stream among very many.
    pub(crate) fn smallest_window(&self) -> u32 {
        let share = (self.connection_window / SMALLEST_PART).max(SMALLEST);
        share.min(self.largest_window())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(base: u32) -> Windows {
        Windows::new(&HboneConfig {
            connection_window: base,
            ..HboneConfig::default()
        })
    }

    /// Streams come one by one, each fills the window that it finds, and none is read.
    #[tokio::test]
    async fn streams_that_are_not_read_never_hold_the_whole_tunnel() {
        for base in [64 << 10, 1 << 20, 16 << 20] {
            let mut windows = windows(base);
            let (mut held, mut stream) = (0_u32, windows.largest);
            for streams in 1..=200 {
                if let Some(sizes) = windows.wanted(streams) {
                    stream = sizes.stream;
                    windows.told(sizes);
                }
                held += stream;
                let left = windows.tunnel.checked_sub(held);
                assert!(
                    left.is_some_and(|left| left >= stream),
                    "{base}: {streams} hold {held}"
                );
            }
            assert!(windows.tunnel < base.max(1 << 20) * 3, "{}", windows.tunnel);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn windows_grow_again_after_a_rest() {
        let mut windows = windows(16 << 20);
        assert_eq!(windows.wanted(0), None);
        assert_eq!(windows.wanted(1), None);
        let sizes = windows.wanted(100).unwrap();
        assert_eq!(sizes.stream, 128 << 10);
        windows.told(sizes);
        assert_eq!(windows.wanted(60), None);
        assert_eq!(windows.wanted(1), None, "at once");
        tokio::time::advance(REST * 2).await;
        assert_eq!(windows.wanted(100), None);
        let sizes = windows.wanted(1).unwrap();
        assert_eq!(sizes.stream, 2 << 20);
        windows.told(sizes);
        tokio::time::advance(REST * 2).await;
        assert_eq!(windows.wanted(1), None);
    }
}
