//! When a request is tried again.

use std::time::Duration;

use envoy_types::pb::envoy::{
    config::route::v3::{RetryPolicy as Proto, retry_policy},
    extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig,
};
use http::StatusCode;
use leyline_authz::HeaderMatch;

use crate::config::{
    any::{decode, duration, limit},
    error::{At, Compiled, Unsupported},
    text::header,
};

/// Envoy's and Istio's base interval.
const BASE_INTERVAL: Duration = Duration::from_millis(25);
/// Envoy's longest interval, in base intervals.
const MAX_INTERVALS: u32 = 10;

/// How often, when, and after which pause.
#[derive(Clone, Debug)]
pub(crate) struct RetryPolicy {
    pub(crate) retries: u32,
    pub(crate) on: RetryOn,
    pub(crate) status_codes: Vec<StatusCode>,
    pub(crate) headers: Vec<HeaderMatch>,
    pub(crate) per_try: Option<Duration>,
    pub(crate) base_interval: Duration,
    pub(crate) max_interval: Duration,
    /// Endpoints that have failed are not asked again while there are others.
    pub(crate) other_hosts: bool,
    /// After each so many tries, priorities whose endpoints have failed are not asked again while there are others.
    pub(crate) other_priorities: Option<usize>,
}

/// What is worth another try: the comma list `retry_on`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RetryOn {
    pub(crate) server_error: bool,
    pub(crate) gateway_error: bool,
    pub(crate) reset: bool,
    pub(crate) reset_before_request: bool,
    pub(crate) connect_failure: bool,
    pub(crate) rate_limited: bool,
    pub(crate) retriable_4xx: bool,
    pub(crate) refused_stream: bool,
    pub(crate) status_codes: bool,
    pub(crate) headers: bool,
    /// Bits of gRPC status numbers.
    pub(crate) grpc: u32,
}

impl RetryOn {
    /// Words that Envoy knows and that are not listed here never apply: HTTP/3.
    fn parse(text: &str) -> Compiled<Self> {
        let mut on = Self::default();
        for word in text
            .split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty())
        {
            match word {
                "5xx" => on.server_error = true,
                "gateway-error" => on.gateway_error = true,
                "reset" => on.reset = true,
                "reset-before-request" => on.reset_before_request = true,
                "connect-failure" => on.connect_failure = true,
                "envoy-ratelimited" => on.rate_limited = true,
                "retriable-4xx" => on.retriable_4xx = true,
                "refused-stream" => on.refused_stream = true,
                "retriable-status-codes" => on.status_codes = true,
                "retriable-headers" => on.headers = true,
                "http3-post-connect-failure" => {}
                "cancelled" => on.grpc |= 1 << 1,
                "deadline-exceeded" => on.grpc |= 1 << 4,
                "resource-exhausted" => on.grpc |= 1 << 8,
                "internal" => on.grpc |= 1 << 13,
                "unavailable" => on.grpc |= 1 << 14,
                word => return Err(Unsupported::new(format!("retry_on `{word}`"))),
            }
        }
        Ok(on)
    }
}

impl RetryPolicy {
    pub(crate) fn compile(proto: &Proto) -> Compiled<Self> {
        let mut status_codes = Vec::new();
        for code in &proto.retriable_status_codes {
            let code = u16::try_from(*code)
                .ok()
                .and_then(|code| StatusCode::from_u16(code).ok());
            status_codes.push(code.ok_or_else(|| Unsupported::new("retriable_status_codes"))?);
        }
        let mut headers = Vec::new();
        for matcher in &proto.retriable_headers {
            headers.push(header(matcher)?);
        }
        let back_off = proto.retry_back_off.as_ref();
        let base = back_off.and_then(|back_off| back_off.base_interval.as_ref());
        let base_interval = base.map(duration).transpose()?.unwrap_or(BASE_INTERVAL);
        let max = back_off.and_then(|back_off| back_off.max_interval.as_ref());
        let max_interval = max.map(duration).transpose()?;
        let previous_hosts = |name: &str| name.contains("previous_hosts");
        Ok(Self {
            retries: proto.num_retries.as_ref().map_or(1, |number| number.value),
            on: RetryOn::parse(&proto.retry_on)?,
            status_codes,
            headers,
            per_try: limit(proto.per_try_timeout.as_ref()).at("per_try_timeout")?,
            base_interval,
            max_interval: max_interval.unwrap_or(base_interval * MAX_INTERVALS),
            other_priorities: other_priorities(proto).at("retry_priority")?,
            other_hosts: proto
                .retry_host_predicate
                .iter()
                .any(|predicate| previous_hosts(&predicate.name)),
        })
    }
}

/// `previous_priorities`, the only one there is.
fn other_priorities(proto: &Proto) -> Compiled<Option<usize>> {
    use retry_policy::retry_priority::ConfigType;
    let Some(priority) = &proto.retry_priority else {
        return Ok(None);
    };
    let Some(ConfigType::TypedConfig(any)) = &priority.config_type else {
        return Err(Unsupported::missing("typed_config"));
    };
    let config: PreviousPrioritiesConfig = decode(any)?;
    match usize::try_from(config.update_frequency) {
        Ok(frequency) if frequency > 0 => Ok(Some(frequency)),
        Ok(_) | Err(_) => Err(Unsupported::new("update_frequency")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_understood_and_no_other() {
        let on = RetryOn::parse("connect-failure, refused-stream,unavailable,cancelled").unwrap();
        assert!(on.connect_failure && on.refused_stream && !on.reset);
        assert_eq!(on.grpc, 1 << 14 | 1 << 1);
        assert!(RetryOn::parse("sometimes").is_err());
    }
}
