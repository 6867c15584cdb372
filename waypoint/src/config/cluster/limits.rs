//! How much a cluster may be asked at once: Envoy's circuit breakers, and what connections are good for.

use std::time::Duration;

use envoy_types::pb::{
    envoy::{
        config::cluster::v3::{self as proto, circuit_breakers::Thresholds},
        extensions::upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{
                UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
            },
        },
    },
    google::protobuf::UInt32Value,
};

use crate::config::{
    any::limit,
    error::{At, Compiled, Unsupported},
};

/// Envoy's defaults for a cluster that says nothing; istiod and our control plane say "no limit".
const CONNECTIONS: u32 = 1024;
const PENDING: u32 = 1024;
const REQUESTS: u32 = 1024;
const RETRIES: u32 = 3;
const BUDGET_PERCENT: f64 = 20.0;
const BUDGET_MIN: u32 = 3;
/// Streams of one HTTP/2 connection, where nothing is configured: the number that RFC 9113 recommends to servers as the
/// least; with more requests at once, there are more connections.
const STREAMS: u32 = 100;

/// At the same time, by this waypoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limits {
    pub(crate) connections: u32,
    /// Requests that wait for a connection.
    pub(crate) pending: u32,
    pub(crate) requests: u32,
    pub(crate) retries: u32,
    /// In place of `retries`.
    pub(crate) budget: Option<RetryBudget>,
}

/// Retries in proportion to requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RetryBudget {
    pub(crate) percent: f64,
    /// Always allowed.
    pub(crate) min: u32,
}

/// What connections are good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionUse {
    /// Then the connection is closed.
    pub(crate) max_requests: Option<u32>,
    /// Requests at once on one HTTP/2 connection.
    pub(crate) streams: u32,
    /// A connection without a request for so long is closed.
    pub(crate) idle: Option<Duration>,
    /// However busy it is, no connection takes new requests after so long.
    pub(crate) max_age: Option<Duration>,
}

impl Limits {
    pub(crate) fn compile(proto: &proto::Cluster) -> Compiled<Self> {
        let breakers = proto.circuit_breakers.as_ref();
        if breakers.is_some_and(|breakers| !breakers.per_host_thresholds.is_empty()) {
            return Err(Unsupported::new("circuit_breakers.per_host_thresholds"));
        }
        let mut thresholds = breakers
            .into_iter()
            .flat_map(|breakers| &breakers.thresholds);
        // Those of priority HIGH are for routes of that priority, which Istio has not.
        let found = thresholds.find(|thresholds| thresholds.priority == 0);
        let none = Thresholds::default();
        let thresholds = found.unwrap_or(&none);
        let budget = thresholds.retry_budget.as_ref().map(|budget| RetryBudget {
            percent: budget
                .budget_percent
                .as_ref()
                .map_or(BUDGET_PERCENT, |percent| percent.value),
            min: number(budget.min_retry_concurrency.as_ref(), BUDGET_MIN),
        });
        Ok(Self {
            connections: number(thresholds.max_connections.as_ref(), CONNECTIONS),
            pending: number(thresholds.max_pending_requests.as_ref(), PENDING),
            requests: number(thresholds.max_requests.as_ref(), REQUESTS),
            retries: number(thresholds.max_retries.as_ref(), RETRIES),
            budget,
        })
    }

    /// Retries that there may be while so many requests are under way.
    pub(crate) fn retries(&self, active: u32) -> u32 {
        match self.budget {
            None => self.retries,
            Some(budget) => {
                let share = (f64::from(active) * budget.percent / 100.0).floor();
                // Rounded down, and never more than the requests themselves.
                (share as u32).max(budget.min)
            }
        }
    }
}

impl ConnectionUse {
    pub(crate) fn compile(options: Option<&HttpProtocolOptions>) -> Compiled<Self> {
        let common = options.and_then(|options| options.common_http_protocol_options.as_ref());
        let most = common.and_then(|common| common.max_requests_per_connection.as_ref());
        let age = common.and_then(|common| common.max_connection_duration.as_ref());
        Ok(Self {
            max_requests: most.map(|most| most.value).filter(|most| *most > 0),
            streams: streams(options).unwrap_or(STREAMS),
            idle: limit(common.and_then(|common| common.idle_timeout.as_ref()))
                .at("idle_timeout")?,
            max_age: limit(age).at("max_connection_duration")?,
        })
    }
}

fn streams(options: Option<&HttpProtocolOptions>) -> Option<u32> {
    let http2 = match options?.upstream_protocol_options.as_ref()? {
        UpstreamProtocolOptions::ExplicitHttpConfig(explicit) => match &explicit.protocol_config {
            Some(ProtocolConfig::Http2ProtocolOptions(http2)) => Some(http2),
            Some(
                ProtocolConfig::HttpProtocolOptions(_) | ProtocolConfig::Http3ProtocolOptions(_),
            )
            | None => None,
        },
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(used) => {
            used.http2_protocol_options.as_ref()
        }
        UpstreamProtocolOptions::AutoConfig(auto) => auto.http2_protocol_options.as_ref(),
    };
    let streams = http2?.max_concurrent_streams.as_ref()?.value;
    Some(streams.max(1))
}

fn number(value: Option<&UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |value| value.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_share_and_never_less_than_its_minimum() {
        let limits = |budget| Limits {
            connections: 1,
            pending: 1,
            requests: 1,
            retries: 7,
            budget,
        };
        let of = |percent, min| limits(Some(RetryBudget { percent, min }));
        for (limits, active, expected) in [
            (limits(None), 1000, 7),
            (of(20.0, 3), 0, 3),
            (of(20.0, 3), 19, 3),
            (of(20.0, 3), 100, 20),
            (of(0.0, 0), 100, 0),
            (of(100.0, 0), 5, 5),
        ] {
            assert_eq!(limits.retries(active), expected, "{limits:?} {active}");
        }
    }
}
