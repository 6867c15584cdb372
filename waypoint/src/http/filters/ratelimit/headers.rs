//! `x-ratelimit-*` (draft-polli-ratelimit-headers-03, as Envoy sends them) and `retry-after`.

use http::{HeaderName, HeaderValue};
use tokio::time::Duration;

/// gRPC's RESOURCE_EXHAUSTED.
pub(crate) const RESOURCE_EXHAUSTED: u16 = 8;

/// Whole seconds, rounded up: who comes back then finds a token.
pub(crate) fn seconds(wait: Duration) -> HeaderValue {
    let whole = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    HeaderValue::from(whole.max(1))
}

/// Limit, what remains of it, and when more comes.
pub(crate) fn quota(limit: u64, remaining: u64, reset: Duration) -> [(HeaderName, HeaderValue); 3] {
    [
        ("x-ratelimit-limit", HeaderValue::from(limit)),
        ("x-ratelimit-remaining", HeaderValue::from(remaining)),
        ("x-ratelimit-reset", seconds(reset)),
    ]
    .map(|(name, value)| (HeaderName::from_static(name), value))
}
