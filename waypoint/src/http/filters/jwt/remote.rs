//! Keys that are fetched from their issuer (Envoy's `remote_jwks`), ahead of the requests that need them: `jwks` keeps them
//! fresh in the background, one copy for all services with the same source, and over changes of the configuration.
//!
//! Keys that have expired are not used: who cannot be asked vouches for nobody. With `async_fetch` they are used until there
//! are newer ones, as Envoy does.

use std::sync::Arc;

use envoy_types::pb::envoy::{
    config::core::v3::http_uri::HttpUpstreamType,
    extensions::filters::http::jwt_authn::v3::RemoteJwks,
};
use futures::future::join_all;
use http::Uri;
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Duration, Instant, timeout},
};

use super::keys::Keys;
use crate::{
    config::{
        any::duration,
        error::{At, Compiled, Unsupported},
    },
    upstream::call::Target,
};

/// Envoy's defaults.
const LIFE: Duration = Duration::from_secs(600);
const AGAIN: Duration = Duration::from_secs(1);
const BACK_OFF: Duration = Duration::from_secs(1);
/// For one answer, where nothing is said.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Retries of one fetch; more would be a fetch of its own.
const MAX_RETRIES: u32 = 10;
/// However short the times in the configuration are, an issuer is not asked more often.
const MIN_PAUSE: Duration = Duration::from_millis(500);
/// A token with an unknown key makes nobody ask the issuer more often.
const UNKNOWN_KEY: Duration = Duration::from_secs(5);
/// An issuer that does not answer is asked less and less often, down to this.
const MAX_AGAIN: Duration = Duration::from_secs(30);
/// A request waits no longer for keys.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// Where keys come from, and for how long they are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteSource {
    pub(crate) target: Target,
    pub(crate) path: String,
    pub(crate) retry: Retry,
    life: Duration,
    /// After a fetch that failed.
    again: Duration,
    /// Whether keys are used for longer than their life while there are no newer ones.
    keeps: bool,
}

/// Further tries within one fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retry {
    pub(crate) retries: u32,
    pub(crate) base: Duration,
    pub(crate) max: Duration,
}

impl RemoteSource {
    pub(super) fn compile(proto: &RemoteJwks) -> Compiled<Self> {
        let http = proto.http_uri.as_ref();
        let http = http.ok_or_else(|| Unsupported::missing("http_uri"))?;
        let bad = || Unsupported::new(format!("http_uri `{}`", http.uri));
        let uri: Uri = http.uri.parse().map_err(|_not_a_uri| bad())?;
        let authority = uri.authority().ok_or_else(bad)?;
        let Some(HttpUpstreamType::Cluster(cluster)) = &http.http_upstream_type else {
            return Err(Unsupported::missing("http_uri.cluster"));
        };
        let time = |value: Option<&_>, default| value.map_or(Ok(default), duration);
        let retry = proto.retry_policy.as_ref();
        let back_off = retry.and_then(|retry| retry.retry_back_off.as_ref());
        let base = back_off.and_then(|back_off| back_off.base_interval.as_ref());
        let base = time(base, BACK_OFF).at("retry_back_off")?;
        let max = back_off.and_then(|back_off| back_off.max_interval.as_ref());
        let async_fetch = proto.async_fetch.as_ref();
        let again = async_fetch.and_then(|fetch| fetch.failed_refetch_duration.as_ref());
        Ok(Self {
            target: Target {
                cluster: cluster.clone(),
                authority: authority.as_str().to_owned(),
                timeout: time(http.timeout.as_ref(), TIMEOUT).at("http_uri.timeout")?,
                metadata: Vec::new(),
            },
            path: uri
                .path_and_query()
                .map_or("/", |path| path.as_str())
                .to_owned(),
            retry: Retry {
                retries: retry.map_or(0, |retry| {
                    let retries = retry.num_retries.as_ref();
                    retries.map_or(1, |retries| retries.value).min(MAX_RETRIES)
                }),
                base,
                max: time(max, base.saturating_mul(10)).at("retry_back_off")?,
            },
            life: time(proto.cache_duration.as_ref(), LIFE)
                .at("cache_duration")?
                .max(MIN_PAUSE),
            again: time(again, AGAIN)
                .at("failed_refetch_duration")?
                .max(MIN_PAUSE),
            keeps: async_fetch.is_some(),
        })
    }
}

/// The keys of all sources.
#[derive(Debug, Default)]
pub(crate) struct KeyStore {
    known: Mutex<Vec<Arc<RemoteKeys>>>,
    /// Somebody waits for keys.
    pub(crate) asked: Notify,
}

/// The keys of one source.
#[derive(Debug)]
pub(crate) struct RemoteKeys {
    pub(crate) source: RemoteSource,
    state: Mutex<State>,
    /// Told after each fetch.
    fetched: Notify,
}

#[derive(Debug, Default)]
struct State {
    keys: Option<Arc<Keys>>,
    /// End of the life of the keys.
    until: Option<Instant>,
    /// End of the last fetch.
    last: Option<Instant>,
    /// Fetches that failed since the last good one.
    failures: u32,
    is_fetching: bool,
    is_asked: bool,
}

impl KeyStore {
    /// The keys of a source; they may have to be fetched yet.
    pub(super) fn of(&self, source: &RemoteSource) -> Arc<RemoteKeys> {
        let mut known = self.known.lock();
        if let Some(keys) = known.iter().find(|keys| keys.source == *source) {
            return keys.clone();
        }
        let keys = Arc::new(RemoteKeys {
            source: source.clone(),
            state: Mutex::default(),
            fetched: Notify::new(),
        });
        known.push(keys.clone());
        keys
    }

    /// The keys of these sources, and of no others any more.
    pub(crate) fn follow<'a>(
        &self,
        sources: impl Iterator<Item = &'a RemoteSource>,
    ) -> Vec<Arc<RemoteKeys>> {
        let mut wanted: Vec<Arc<RemoteKeys>> = Vec::new();
        for source in sources {
            if !wanted.iter().any(|keys| keys.source == *source) {
                wanted.push(self.of(source));
            }
        }
        self.known.lock().clone_from(&wanted);
        wanted
    }

    /// Has the keys fetched again and waits for it, where that may bring news. Whether anything was fetched.
    pub(super) async fn renew(&self, sources: impl Iterator<Item = &RemoteSource>) -> bool {
        let now = Instant::now();
        let keys: Vec<Arc<RemoteKeys>> = sources
            .map(|source| self.of(source))
            .filter(|keys| keys.may_have_news(now))
            .collect();
        // Before the fetch is asked for, so that its end is not missed.
        let ends = keys.iter().map(|keys| {
            let mut end = Box::pin(keys.fetched.notified());
            end.as_mut().enable();
            let mut state = keys.state.lock();
            state.is_asked |= !state.is_fetching;
            drop(state);
            end
        });
        let ends: Vec<_> = ends.collect();
        if ends.is_empty() {
            return false;
        }
        self.asked.notify_one();
        // Whoever has answered by then has.
        timeout(MAX_WAIT, join_all(ends)).await.ok();
        true
    }
}

impl RemoteKeys {
    /// The keys, if they are known and still good.
    pub(super) fn current(&self) -> Option<Arc<Keys>> {
        let state = self.state.lock();
        let is_good = self.source.keeps || state.until.is_some_and(|until| Instant::now() < until);
        state.keys.clone().filter(|_keys| is_good)
    }

    /// Whether a fetch is worth its while: there are no good keys, or those that there are have been there for some time.
    fn may_have_news(&self, now: Instant) -> bool {
        let state = self.state.lock();
        if state.is_fetching {
            return true;
        }
        let since = state.last.map(|last| now.saturating_duration_since(last));
        let pause = if state.failures > 0 {
            self.source.again
        } else {
            UNKNOWN_KEY
        };
        since.is_none_or(|since| since >= pause)
    }

    /// When they are to be fetched next; `None` while they are.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let state = self.state.lock();
        if state.is_fetching {
            return None;
        }
        let Some(last) = state.last.filter(|_last| !state.is_asked) else {
            return Some(now);
        };
        if state.failures > 0 {
            let factor = 1u32 << (state.failures - 1).min(16);
            let pause = self.source.again.saturating_mul(factor);
            return Some(last + pause.min(MAX_AGAIN.max(self.source.again)));
        }
        // Before they expire, so that no request has to wait.
        Some(last + self.source.life.mul_f64(0.8))
    }

    pub(crate) fn begin(&self) {
        let mut state = self.state.lock();
        state.is_fetching = true;
        state.is_asked = false;
    }

    /// What a fetch brought. Whether these are other keys than before is not looked at: they live anew.
    pub(crate) fn end(&self, keys: Option<FetchedKeys>) {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.is_fetching = false;
        state.last = Some(now);
        match keys {
            Some(FetchedKeys(keys)) => {
                state.keys = Some(Arc::new(keys));
                state.until = Some(now + self.source.life);
                state.failures = 0;
            }
            None => state.failures = state.failures.saturating_add(1),
        }
        drop(state);
        self.fetched.notify_waiters();
    }
}

/// A key set of an issuer, with at least one key in it.
#[derive(Debug)]
pub(crate) struct FetchedKeys(Keys);

impl FetchedKeys {
    /// `None`: it has no key that is of use.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let keys = Keys::usable(&String::from_utf8_lossy(text));
        (!keys.is_empty()).then_some(Self(keys))
    }
}

#[cfg(test)]
mod tests;
