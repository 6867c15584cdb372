//! Token buckets without a lock, and a bounded set of them for keys that come with requests.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use envoy_types::pb::envoy::r#type::v3::TokenBucket;
use metrics::counter;
use parking_lot::Mutex;
use tokio::time::{Duration, Instant};

use crate::config::{
    any::duration,
    error::{At, Compiled, Unsupported},
};

/// How many tokens, and how they come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rate {
    max: u64,
    /// Nanoseconds from one token to the next.
    interval: u64,
}

impl Rate {
    pub(crate) fn compile(proto: &TokenBucket) -> Compiled<Self> {
        let interval = proto.fill_interval.as_ref();
        let interval = interval.ok_or_else(|| Unsupported::missing("fill_interval"))?;
        let interval = duration(interval).at("fill_interval")?;
        let per_fill = proto.tokens_per_fill.map_or(1, |it| it.value).max(1);
        let nanos = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX / 2);
        if nanos == 0 {
            return Err(Unsupported::new("fill_interval of 0"));
        }
        Ok(Self {
            max: proto.max_tokens.into(),
            interval: (nanos / u64::from(per_fill)).max(1),
        })
    }

    pub(crate) fn max(self) -> u64 {
        self.max
    }

    pub(crate) fn interval(self) -> u64 {
        self.interval
    }

    fn full(self) -> u64 {
        self.max.saturating_mul(self.interval)
    }
}

/// What was found when a token was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) is_allowed: bool,
    pub(crate) limit: u64,
    pub(crate) remaining: u64,
    /// Until the next token comes.
    pub(crate) wait: Duration,
}

/// A bucket as one number: the time at which it will be full again (the generic cell rate algorithm). Taking a token moves
/// it; a compare and swap keeps two requests from taking the same one.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    full_at: AtomicU64,
}

impl Bucket {
    /// Takes a token if there is one. `now` counts nanoseconds from any fixed time.
    pub(crate) fn take(&self, rate: Rate, now: u64) -> Taken {
        let mut known = self.full_at.load(Ordering::Relaxed);
        loop {
            let full_at = known.max(now);
            // What is missing, in time.
            let missing = full_at - now;
            let after = missing.saturating_add(rate.interval);
            if after > rate.full() {
                let wait = after.saturating_sub(rate.full());
                return Taken {
                    is_allowed: false,
                    limit: rate.max,
                    remaining: 0,
                    wait: Duration::from_nanos(wait),
                };
            }
            let swapped = self.full_at.compare_exchange_weak(
                known,
                full_at.saturating_add(rate.interval),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            match swapped {
                Ok(_) => {
                    let to_next = after % rate.interval;
                    return Taken {
                        is_allowed: true,
                        limit: rate.max,
                        remaining: (rate.full() - after) / rate.interval,
                        wait: Duration::from_nanos(if to_next == 0 {
                            rate.interval
                        } else {
                            to_next
                        }),
                    };
                }
                Err(other) => known = other,
            }
        }
    }
}

/// Buckets by key. Of two generations, the older is dropped when the newer is full, so that it is bounded without a list
/// of uses; what is asked for moves to the newer one. Keys are kept as hashes with a secret of this process: they come
/// from clients and may be long.
#[derive(Debug)]
pub(crate) struct Keyed {
    hasher: RandomState,
    capacity: usize,
    generations: Mutex<[HashMap<u64, Arc<Bucket>>; 2]>,
}

impl Keyed {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            hasher: RandomState::new(),
            capacity: capacity.max(2),
            generations: Mutex::default(),
        }
    }

    pub(crate) fn bucket(&self, key: &[(String, String)]) -> Arc<Bucket> {
        let key = self.hasher.hash_one(key);
        let mut generations = self.generations.lock();
        let [newer, older] = &mut *generations;
        if let Some(bucket) = newer.get(&key) {
            return bucket.clone();
        }
        let bucket = older.remove(&key).unwrap_or_default();
        if newer.len() >= self.capacity / 2 {
            let dropped = std::mem::replace(older, std::mem::take(newer));
            if !dropped.is_empty() {
                counter!("leyline_waypoint_rate_limit_keys_evicted_total")
                    .increment(dropped.len() as u64);
            }
        }
        newer.insert(key, bucket.clone());
        bucket
    }
}

/// A clock for buckets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Default for Clock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock {
    pub(crate) fn now(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rate(max: u32, per_fill: u32, seconds: i64) -> Rate {
        Rate::compile(&TokenBucket {
            max_tokens: max,
            tokens_per_fill: Some(envoy_types::pb::google::protobuf::UInt32Value {
                value: per_fill,
            }),
            fill_interval: Some(envoy_types::pb::google::protobuf::Duration { seconds, nanos: 0 }),
        })
        .unwrap()
    }

    #[test]
    fn a_full_bucket_gives_all_its_tokens_and_then_one_for_each_interval() {
        let (bucket, rate) = (Bucket::default(), rate(3, 60, 60));
        let now = 5 * SECOND;
        let remaining: Vec<u64> = (0..3).map(|_| bucket.take(rate, now).remaining).collect();
        assert_eq!(remaining, [2, 1, 0]);
        let refused = bucket.take(rate, now);
        assert!(!refused.is_allowed);
        assert_eq!(refused.wait, Duration::from_secs(1));
        assert!(bucket.take(rate, now + SECOND).is_allowed);
        assert!(!bucket.take(rate, now + SECOND).is_allowed);
        // Never more than full, however long nobody asked.
        let later = now + 1000 * SECOND;
        let allowed = (0..10).filter(|_| bucket.take(rate, later).is_allowed);
        assert_eq!(allowed.count(), 3);
    }

    #[test]
    fn a_bucket_without_tokens_refuses_all() {
        assert!(!Bucket::default().take(rate(0, 1, 1), 9 * SECOND).is_allowed);
    }

    #[test]
    fn many_takers_at_once_get_no_token_twice() {
        let (bucket, rate) = (Arc::new(Bucket::default()), rate(1000, 1, 3600));
        let takers = (0..4).map(|_| {
            let bucket = bucket.clone();
            std::thread::spawn(move || {
                (0..1000)
                    .filter(|_| bucket.take(rate, SECOND).is_allowed)
                    .count()
            })
        });
        let takers: Vec<_> = takers.collect();
        let taken: usize = takers.into_iter().map(|taker| taker.join().unwrap()).sum();
        assert_eq!(taken, 1000);
    }

    #[test]
    fn keys_are_told_apart_and_bounded() {
        let keyed = Keyed::new(10);
        let key = |number: u32| vec![("client".to_owned(), number.to_string())];
        let first = keyed.bucket(&key(1));
        assert!(Arc::ptr_eq(&first, &keyed.bucket(&key(1))));
        assert!(!Arc::ptr_eq(&first, &keyed.bucket(&key(2))));
        for number in 0..1000 {
            keyed.bucket(&key(number));
            // Used all the time, it stays.
            assert!(Arc::ptr_eq(&first, &keyed.bucket(&key(1))));
        }
        let kept: usize = keyed.generations.lock().iter().map(HashMap::len).sum();
        assert!(kept <= 10, "{kept}");
    }
}
