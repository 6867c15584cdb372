//! Ejection by rates: once an interval, endpoints that succeed much less often than the others do, or fail too often (Envoy's
//! documents on outlier detection, "Success Rate" and "Failure Percentage"). Nothing runs for it: the first attempt after the end of
//! an interval has the counts looked at.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tokio::time::{Duration, Instant};

use super::{Reason, Showed};
use crate::config::cluster::outlier::{FailureRate, OutlierDetection, SuccessRate};

/// What one endpoint did in the interval.
#[derive(Debug, Default)]
pub(super) struct Counts {
    external: Attempts,
    /// Apart from the others only where they are `split`.
    local: Attempts,
}

#[derive(Debug, Default)]
struct Attempts {
    all: AtomicU32,
    good: AtomicU32,
}

/// The attempts of one endpoint in a whole interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    all: u32,
    good: u32,
}

/// Where the attempts failed that are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    External,
    Local,
}

impl Attempts {
    fn add(&self, is_good: bool) {
        self.all.fetch_add(1, Ordering::Relaxed);
        self.good.fetch_add(u32::from(is_good), Ordering::Relaxed);
    }

    fn take(&self) -> Taken {
        let good = self.good.swap(0, Ordering::Relaxed);
        // An attempt between the two swaps is good and not counted, or the other way round.
        let all = self.all.swap(0, Ordering::Relaxed).max(good);
        Taken { all, good }
    }
}

impl Counts {
    pub(super) fn add(&self, policy: &OutlierDetection, showed: Showed) {
        match showed {
            Showed::Status(status) => {
                self.external.add(status < 500);
                if policy.split {
                    self.local.add(true);
                }
            }
            Showed::Broken | Showed::Late if policy.split => self.local.add(false),
            Showed::Broken | Showed::Late => self.external.add(false),
        }
    }

    pub(super) fn take(&self, origin: Origin) -> Taken {
        match origin {
            Origin::External => self.external.take(),
            Origin::Local => self.local.take(),
        }
    }
}

/// When a cluster is looked at next.
#[derive(Debug)]
pub(crate) struct Clock {
    began: Instant,
    /// Milliseconds since then.
    next: AtomicU64,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            next: AtomicU64::new(0),
        }
    }
}

impl Clock {
    /// Ends the interval.
    #[cfg(test)]
    pub(super) fn ring(&self) {
        self.next.store(1, Ordering::Relaxed);
    }

    /// Whether an interval is over; only one of those who ask at the same time is told so. The first begins when
    /// the cluster is used first.
    pub(super) fn has_rung(&self, interval: Duration, now: Instant) -> bool {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        // Never 0, which is nobody's time.
        let now = millis(now.saturating_duration_since(self.began)).saturating_add(1);
        let next = self.next.load(Ordering::Relaxed);
        if now < next {
            return false;
        }
        let after = now.saturating_add(millis(interval).max(1));
        let taken = self
            .next
            .compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed);
        taken.is_ok() && next != 0
    }
}

/// Which endpoints succeed too seldom: by more than some standard deviations below the mean of all that were used enough.
pub(super) fn below_the_others(taken: &[Taken], rate: &SuccessRate) -> Vec<usize> {
    let rates: Vec<(usize, f64)> = taken
        .iter()
        .enumerate()
        .filter(|(_, one)| one.all > 0 && one.all >= rate.volume)
        .map(|(index, one)| (index, f64::from(one.good) * 100.0 / f64::from(one.all)))
        .collect();
    let Ok(count) = u32::try_from(rates.len()) else {
        return Vec::new();
    };
    if count == 0 || count < rate.min_hosts {
        return Vec::new();
    }
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / f64::from(count);
    let variance = rates
        .iter()
        .map(|(_, rate)| (rate - mean).powi(2))
        .sum::<f64>();
    let deviation = (variance / f64::from(count)).sqrt();
    let least = mean - deviation * f64::from(rate.factor) / 1000.0;
    let low = rates.into_iter().filter(|(_, rate)| *rate < least);
    low.map(|(index, _)| index).collect()
}

/// Which endpoints fail too often, whatever the others do.
pub(super) fn above_the_threshold(taken: &[Taken], rate: &FailureRate) -> Vec<usize> {
    let used: Vec<(usize, Taken)> = taken
        .iter()
        .copied()
        .enumerate()
        .filter(|(_, one)| one.all > 0 && one.all >= rate.volume)
        .collect();
    if used.len() < usize::try_from(rate.min_hosts).unwrap_or(usize::MAX) {
        return Vec::new();
    }
    let fails = |one: Taken| {
        let failed = u64::from(one.all - one.good);
        failed * 100 >= u64::from(rate.threshold) * u64::from(one.all)
    };
    let used = used.into_iter().filter(|(_, one)| fails(*one));
    used.map(|(index, _)| index).collect()
}

impl Origin {
    /// What ejects by the success of attempts, where anything does.
    pub(super) fn success(self, policy: &OutlierDetection) -> Option<(Reason, &SuccessRate)> {
        match self {
            Self::External => {
                let rate = policy.success_rate.as_ref()?;
                Some((Reason::SuccessRate, rate))
            }
            Self::Local => {
                let rate = policy.local_success_rate.as_ref()?;
                Some((Reason::LocalSuccessRate, rate))
            }
        }
    }

    pub(super) fn failure(self, policy: &OutlierDetection) -> Option<(Reason, &FailureRate)> {
        match self {
            Self::External => {
                let rate = policy.failure_rate.as_ref()?;
                Some((Reason::FailureRate, rate))
            }
            Self::Local => {
                let rate = policy.local_failure_rate.as_ref()?;
                Some((Reason::LocalFailureRate, rate))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn taken(of_a_hundred: &[u32]) -> Vec<Taken> {
        let one = |good: &u32| Taken {
            all: 100,
            good: *good,
        };
        of_a_hundred.iter().map(one).collect()
    }

    #[test]
    fn the_success_of_the_others_is_the_measure() {
        let rate = SuccessRate {
            min_hosts: 5,
            volume: 100,
            factor: 1900,
            enforced: 100,
        };
        for (good, expected) in [
            (&[100, 100, 100, 100, 50][..], &[4][..]),
            (&[100, 100, 100, 100, 100], &[]),
            // All are bad alike.
            (&[10, 10, 10, 10, 10], &[]),
            // Too few to say.
            (&[100, 100, 100, 50], &[]),
            (&[100, 99, 98, 97, 96], &[]),
            (&[0, 100, 100, 100, 100, 100, 100, 100, 100, 0], &[0, 9]),
        ] {
            assert_eq!(below_the_others(&taken(good), &rate), expected, "{good:?}");
        }
        let mut few = taken(&[100, 100, 100, 100, 50]);
        few[0].all = 99;
        few[0].good = 99;
        assert!(
            below_the_others(&few, &rate).is_empty(),
            "four were used enough"
        );
        assert!(below_the_others(&[], &rate).is_empty());
        let none = SuccessRate {
            min_hosts: 0,
            volume: 0,
            ..rate
        };
        assert!(below_the_others(&[Taken::default()], &none).is_empty());
    }

    #[test]
    fn a_share_of_failures_is_enough_where_it_is_the_measure() {
        let rate = FailureRate {
            threshold: 85,
            min_hosts: 3,
            volume: 50,
            enforced: 100,
        };
        for (good, expected) in [
            (&[100, 15, 16][..], &[1][..]),
            (&[0, 0, 0], &[0, 1, 2]),
            (&[0, 0], &[]),
            (&[100, 100, 100], &[]),
        ] {
            let found = above_the_threshold(&taken(good), &rate);
            assert_eq!(found, expected, "{good:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_interval_ends_once() {
        let clock = Clock::default();
        let interval = Duration::from_secs(10);
        let rings = || clock.has_rung(interval, Instant::now());
        assert!(!rings(), "it begins");
        advance(Duration::from_secs(9)).await;
        assert!(!rings());
        advance(Duration::from_secs(1)).await;
        assert!(rings() && !rings());
        advance(Duration::from_secs(100)).await;
        assert!(rings() && !rings());
    }
}
