//! Settings of connections: of TCP, of tunnels, and for how long they may be silent.

use std::{ops::RangeInclusive, time::Duration};

use leyline_hbone::HboneConfig;
use leyline_net::sockopt::Keepalive;
use leyline_runtime::env::Reader;

use super::{duration, within};
use crate::proxy::{DnsConfig, IdleLimits};

/// The range of a signed 32 bit number of RFC 9113, 6.9.2; below the default a tunnel crawls.
const WINDOW_SIZE: RangeInclusive<u32> = 65_535..=(1 << 31) - 1;
/// SETTINGS_MAX_FRAME_SIZE (RFC 9113, 6.5.2).
const FRAME_SIZE: RangeInclusive<u32> = 1 << 14..=(1 << 24) - 1;
/// What the kernel takes for TCP_KEEPIDLE and TCP_KEEPINTVL, in whole seconds.
const KEEPALIVE_SECONDS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(32_767);
/// What the kernel takes for TCP_KEEPCNT.
const KEEPALIVE_RETRIES: RangeInclusive<u32> = 1..=127;
/// A connection that is slower than this is not dead.
const MIN_IDLE: Duration = Duration::from_millis(100);

pub(super) fn keepalive(env: &mut Reader<'_>) -> Option<Keepalive> {
    let keepalive = Keepalive::default();
    env.bool("KEEPALIVE_ENABLED", true).then(|| Keepalive {
        time: duration(env, "KEEPALIVE_TIME", keepalive.time, KEEPALIVE_SECONDS),
        interval: duration(
            env,
            "KEEPALIVE_INTERVAL",
            keepalive.interval,
            KEEPALIVE_SECONDS,
        ),
        retries: within(
            env,
            "KEEPALIVE_RETRIES",
            keepalive.retries,
            KEEPALIVE_RETRIES,
        ),
        user_timeout: env.bool("USER_TIMEOUT_ENABLED", false),
    })
}

pub(super) fn hbone(env: &mut Reader<'_>) -> HboneConfig {
    let defaults = HboneConfig::default();
    let streams = "POOL_MAX_STREAMS_PER_CONNECTION";
    HboneConfig {
        outbound_streams: within(env, streams, defaults.outbound_streams, 1..=65_535),
        idle: env.duration("POOL_UNUSED_RELEASE_TIMEOUT", defaults.idle),
        stream_window: within(
            env,
            "HTTP2_STREAM_WINDOW_SIZE",
            defaults.stream_window,
            WINDOW_SIZE,
        ),
        connection_window: within(
            env,
            "HTTP2_CONNECTION_WINDOW_SIZE",
            defaults.connection_window,
            WINDOW_SIZE,
        ),
        max_frame_size: within(env, "HTTP2_FRAME_SIZE", defaults.max_frame_size, FRAME_SIZE),
        ..defaults
    }
}

/// Half-closed connections that are of use move something within the hour; open ones may wait for days.
pub(super) fn idle_limits(env: &mut Reader<'_>) -> IdleLimits {
    let mut limit = |name, default| {
        let limit = env.duration(name, default);
        if !limit.is_zero() && limit < MIN_IDLE {
            let why = format!("must be 0 (never) or at least {MIN_IDLE:?}");
            env.reject(name, format!("{limit:?}"), why);
        }
        (!limit.is_zero()).then_some(limit)
    };
    IdleLimits {
        half_closed: limit("LEYLINE_HALF_CLOSED_TIMEOUT", Duration::from_secs(3600)),
        open: limit("LEYLINE_IDLE_TIMEOUT", Duration::ZERO),
    }
}

/// The DNS proxy must know all names, so that there is one or the other.
pub(super) fn on_demand(env: &mut Reader<'_>, dns: &DnsConfig) -> bool {
    let on_demand = env.bool("XDS_ON_DEMAND", false);
    if on_demand && dns.enabled {
        let why =
            "not with the DNS proxy, which must know all names: set ISTIO_META_DNS_CAPTURE=false";
        env.reject("XDS_ON_DEMAND", true, why);
    }
    on_demand
}
