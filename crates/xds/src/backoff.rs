//! How long to wait before the next connection. Pure; the driver brings what happened and the jitter.

use std::time::Duration;

use crate::client::Termination;

/// First delay after a failure: a restarted control plane is found again at once.
const FIRST: Duration = Duration::from_millis(20);
/// Last delay: a control plane that comes back is found within 15 s by every node, as with Istio's ztunnel.
const LAST: Duration = Duration::from_secs(15);
/// Delay after a stream that served well and was ended on purpose, for instance by the maximum connection age.
const RENEW: Duration = Duration::from_millis(10);

/// Whether a stream had served well before it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// It brought messages and lasted; the server is fine.
    Stable,
    /// It failed to open, or ended soon; a server in that state must not be hammered.
    Brief,
}

/// Doubling delays that start again after a stable stream.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: FIRST }
    }

    /// The delay now; `jitter` in 0..=1 takes up to a fifth off, so that nodes do not come back in step.
    pub(crate) fn delay(&mut self, reason: Termination, stream: Stream, jitter: f64) -> Duration {
        if stream == Stream::Stable {
            self.next = FIRST;
            if matches!(reason, Termination::Complete | Termination::Reconnect) {
                return RENEW;
            }
        }
        let delay = self.next;
        self.next = (delay * 2).min(LAST);
        delay.mul_f64(1.0 - 0.2 * jitter.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_limit() {
        let mut backoff = Backoff::new();
        let delays: Vec<u128> = (0..12)
            .map(|_| {
                backoff
                    .delay(Termination::ConnectionError, Stream::Brief, 0.0)
                    .as_millis()
            })
            .collect();
        let expected = [
            20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 15000, 15000,
        ];
        assert_eq!(delays, expected);
    }

    #[test]
    fn stable_stream_starts_again() {
        let mut backoff = Backoff::new();
        for _ in 0..5 {
            backoff.delay(Termination::Error, Stream::Brief, 0.0);
        }
        assert_eq!(
            backoff.delay(Termination::Complete, Stream::Stable, 0.0),
            RENEW
        );
        assert_eq!(backoff.delay(Termination::Error, Stream::Brief, 0.0), FIRST);
        assert_eq!(
            backoff.delay(Termination::Error, Stream::Stable, 0.0),
            FIRST
        );
    }

    #[test]
    fn server_that_ends_every_stream_soon_is_not_hammered() {
        let mut backoff = Backoff::new();
        backoff.delay(Termination::Complete, Stream::Brief, 0.0);
        let second = backoff.delay(Termination::Complete, Stream::Brief, 0.0);
        assert_eq!(second, FIRST * 2);
    }

    #[test]
    fn jitter_shortens_by_a_fifth_at_most() {
        let mut backoff = Backoff::new();
        let delay = backoff.delay(Termination::Error, Stream::Brief, 1.0);
        assert_eq!(delay, Duration::from_millis(16));
    }
}
