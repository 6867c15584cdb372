//! `envoy.filters.http.local_ratelimit`: limits that this waypoint counts alone, with token buckets.
//!
//! A request takes a token of each bucket whose descriptor it has, and one of the default bucket when it has none (or
//! always, if so configured). The first bucket without a token refuses it.

mod bucket;

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Weak},
};

use envoy_types::pb::envoy::{
    config::core::v3::RuntimeFractionalPercent,
    extensions::{
        common::ratelimit::v3::{
            LocalRateLimitDescriptor, VhRateLimitsOptions, XRateLimitHeadersRfcVersion,
        },
        filters::http::local_ratelimit::v3::LocalRateLimit,
    },
};
use http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use leyline_types::Str;
use metrics::counter;
use parking_lot::Mutex;
use prost::Message;
use tokio::time::Duration;

use self::bucket::{Bucket, Clock, Keyed, Rate, Taken};
use super::ratelimit::headers;
use crate::{
    config::{
        descriptors::{Descriptor, Entries, Limit},
        error::{At, Compiled, Unsupported},
        route::{
            headers::{HeaderChanges, HeaderOps},
            matching::Fraction,
        },
    },
    http::{
        filters::ratelimit::{RouteLimits, VirtualHostLimits, descriptors_of},
        pipeline::Exchange,
        reply::{Flag, Reply},
        server::HttpConnection,
    },
};

/// Filters with this at the start of their `stat_prefix` are made from a RateLimit of ours: those with the same prefix and
/// the same settings share their buckets, over ports and over changes of anything else.
const SHARED_PREFIX: &str = "leyline.io/";
/// Envoy's default for values that come with requests.
const DYNAMIC_DESCRIPTORS: usize = 20;
/// What Envoy calls it.
const DETAILS: &str = "local_rate_limited";

/// One filter, compiled.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// For metrics.
    prefix: Str,
    enabled: Fraction,
    enforced: Fraction,
    status: StatusCode,
    is_resource_exhausted: bool,
    when_refused: HeaderChanges,
    when_not_enforced: HeaderChanges,
    tells: bool,
    limits: Vec<Limit>,
    stage: u32,
    of_host: VirtualHostLimits,
    always_default: bool,
    buckets: Arc<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    clock: Clock,
    default: Option<(Rate, Bucket)>,
    described: Vec<Described>,
}

/// A limit for requests with this descriptor.
#[derive(Debug)]
struct Described {
    entries: Entries,
    rate: Rate,
    is_shadow: bool,
    buckets: Either,
}

#[derive(Debug)]
enum Either {
    One(Bucket),
    /// An entry has no value: each value that comes gets a bucket.
    Each(Keyed),
}

impl Config {
    pub(crate) fn compile(proto: &LocalRateLimit) -> Compiled<Self> {
        if proto.local_rate_limit_per_downstream_connection
            || proto.local_cluster_rate_limit.is_some()
        {
            return Err(Unsupported::new(
                "local_rate_limit_per_downstream_connection or local_cluster_rate_limit",
            ));
        }
        let status = proto.status.map_or(0, |status| status.code);
        let ops = HeaderOps::compile(
            &[],
            &proto.request_headers_to_add_when_not_enforced,
            &[],
            &proto.response_headers_to_add,
        )?;
        Ok(Self {
            prefix: proto.stat_prefix.as_str().into(),
            enabled: fraction(proto.filter_enabled.as_ref()).at("filter_enabled")?,
            enforced: fraction(proto.filter_enforced.as_ref()).at("filter_enforced")?,
            status: refusal_status(status)?,
            is_resource_exhausted: proto.rate_limited_as_resource_exhausted,
            when_refused: ops.response,
            when_not_enforced: ops.request,
            tells: proto.enable_x_ratelimit_headers
                == i32::from(XRateLimitHeadersRfcVersion::DraftVersion03),
            limits: Limit::compile_all(&proto.rate_limits)?,
            stage: proto.stage,
            of_host: match VhRateLimitsOptions::try_from(proto.vh_rate_limits) {
                Ok(VhRateLimitsOptions::Override) => VirtualHostLimits::Override,
                Ok(VhRateLimitsOptions::Include) => VirtualHostLimits::Include,
                Ok(VhRateLimitsOptions::Ignore) => VirtualHostLimits::Ignore,
                Err(_) => return Err(Unsupported::new("vh_rate_limits")),
            },
            always_default: proto
                .always_consume_default_token_bucket
                .is_none_or(|flag| flag.value),
            buckets: buckets(proto)?,
        })
    }

    /// Takes the tokens of a request; `None` where no limit applies to it.
    fn take(&self, descriptors: &[Descriptor]) -> Option<Taken> {
        let buckets = &*self.buckets;
        let now = buckets.clock.now();
        let mut first = None;
        for described in &buckets.described {
            let mut fitting = descriptors.iter();
            let Some(found) = fitting.find(|descriptor| described.fits(descriptor)) else {
                continue;
            };
            let taken = described.take(found, now);
            if described.is_shadow {
                continue;
            }
            if !taken.is_allowed {
                return Some(taken);
            }
            first.get_or_insert(taken);
        }
        if (first.is_none() || self.always_default)
            && let Some((rate, bucket)) = &buckets.default
        {
            let taken = bucket.take(*rate, now);
            if !taken.is_allowed || first.is_none() {
                return Some(taken);
            }
        }
        first
    }

    fn refuse(&self, taken: &Taken) -> Reply {
        let mut reply = Reply::new(self.status, Flag::RateLimited, DETAILS, DETAILS);
        let mut added = HeaderMap::new();
        added.insert(RETRY_AFTER, headers::seconds(taken.wait));
        if self.tells {
            let mut quota = Quota::default();
            quota.tighten(taken.limit, taken.remaining, taken.wait);
            quota.apply(&mut added);
        }
        self.when_refused.apply(&mut added);
        reply.headers = added
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if self.is_resource_exhausted {
            reply.grpc_status = Some(headers::RESOURCE_EXHAUSTED);
        }
        reply
    }
}

impl Described {
    fn compile(proto: &LocalRateLimitDescriptor, dynamic: usize) -> Compiled<Self> {
        let bucket = proto.token_bucket.as_ref();
        let bucket = bucket.ok_or_else(|| Unsupported::missing("token_bucket"))?;
        let entries: Entries = proto
            .entries
            .iter()
            .map(|entry| (entry.key.clone(), entry.value.clone()))
            .collect();
        let has_wildcard = entries.iter().any(|(_, value)| value.is_empty());
        Ok(Self {
            rate: Rate::compile(bucket).at("token_bucket")?,
            is_shadow: proto.shadow_mode,
            buckets: if has_wildcard {
                Either::Each(Keyed::new(dynamic))
            } else {
                Either::One(Bucket::default())
            },
            entries,
        })
    }

    fn fits(&self, descriptor: &Descriptor) -> bool {
        let had = &descriptor.entries;
        self.entries.len() == had.len()
            && self.entries.iter().zip(had).all(|(wanted, had)| {
                wanted.0 == had.0 && (wanted.1.is_empty() || wanted.1 == had.1)
            })
    }

    fn take(&self, descriptor: &Descriptor, now: u64) -> Taken {
        match &self.buckets {
            Either::One(bucket) => bucket.take(self.rate, now),
            Either::Each(keyed) => keyed.bucket(&descriptor.entries).take(self.rate, now),
        }
    }
}

/// Fresh buckets, or those of the same RateLimit.
fn buckets(proto: &LocalRateLimit) -> Compiled<Arc<Buckets>> {
    static SHARED: LazyLock<Mutex<HashMap<Vec<u8>, Weak<Buckets>>>> = LazyLock::new(Mutex::default);
    let dynamic = proto.max_dynamic_descriptors.map(|number| number.value);
    let dynamic = dynamic.map_or(Ok(DYNAMIC_DESCRIPTORS), usize::try_from);
    let dynamic = dynamic.unwrap_or(DYNAMIC_DESCRIPTORS);
    let make = || -> Compiled<Arc<Buckets>> {
        let default = proto.token_bucket.as_ref().map(Rate::compile);
        let described = proto.descriptors.iter().enumerate();
        let mut described: Vec<Described> = described
            .map(|(index, one)| Described::compile(one, dynamic).at_item("descriptors", index))
            .collect::<Compiled<_>>()?;
        // The tightest first: where it refuses, the others lose no token.
        described.sort_by_key(|one| (std::cmp::Reverse(one.rate.interval()), one.rate.max()));
        Ok(Arc::new(Buckets {
            clock: Clock::default(),
            default: default
                .transpose()
                .at("token_bucket")?
                .map(|rate| (rate, Bucket::default())),
            described,
        }))
    };
    if !proto.stat_prefix.starts_with(SHARED_PREFIX) {
        return make();
    }
    let mut shared = SHARED.lock();
    let key = proto.encode_to_vec();
    if let Some(known) = shared.get(&key).and_then(Weak::upgrade) {
        return Ok(known);
    }
    shared.retain(|_, known| known.strong_count() > 0);
    let made = make()?;
    shared.insert(key, Arc::downgrade(&made));
    Ok(made)
}

/// Without a fraction the filter is off, for safety, as with Envoy.
fn fraction(proto: Option<&RuntimeFractionalPercent>) -> Compiled<Fraction> {
    let value = proto.and_then(|proto| proto.default_value.as_ref());
    Fraction::compile(&value.copied().unwrap_or_default())
}

/// 429 where nothing, or a status that is no refusal, is set.
pub(crate) fn refusal_status(code: i32) -> Compiled<StatusCode> {
    match u16::try_from(code) {
        Ok(code) if code < 400 => Ok(StatusCode::TOO_MANY_REQUESTS),
        Ok(code) => StatusCode::from_u16(code).map_err(|_range| Unsupported::new("status")),
        Err(_) => Err(Unsupported::new("status")),
    }
}

/// What a response says about the limits that its request was under: the one that is nearest to its end.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Quota(Option<(u64, u64, Duration)>);

impl Quota {
    pub(crate) fn tighten(&mut self, limit: u64, remaining: u64, reset: Duration) {
        if self.0.is_none_or(|(_, known, _)| remaining < known) {
            self.0 = Some((limit, remaining, reset));
        }
    }

    pub(crate) fn tighten_by(&mut self, other: Self) {
        if let Some((limit, remaining, reset)) = other.0 {
            self.tighten(limit, remaining, reset);
        }
    }

    pub(crate) fn apply(self, to: &mut HeaderMap) {
        if let Some((limit, remaining, reset)) = self.0 {
            for (name, value) in headers::quota(limit, remaining, reset) {
                to.insert(name, value);
            }
        }
    }
}

/// Asks all filters of the chain, in its order; each may be replaced by the route.
///
/// # Errors
/// The answer of a refused request.
pub(crate) fn check(
    filters: &[(Str, Config)],
    route: &RouteLimits<'_>,
    exchange: &mut Exchange,
    conn: &HttpConnection,
) -> Result<Quota, Reply> {
    let mut quota = Quota::default();
    for (name, filter) in filters {
        let replaced = route.local.iter().find(|(of, _)| of == name);
        let config = replaced.map_or(filter, |(_, config)| config);
        if !config.enabled.takes(rand::random()) {
            continue;
        }
        let lists = if config.limits.is_empty() {
            route.lists(config.of_host)
        } else {
            [config.limits.as_slice(), &[]]
        };
        let descriptors = descriptors_of(lists, config.stage, exchange, conn);
        let Some(taken) = config.take(&descriptors) else {
            continue;
        };
        let count = |result| {
            counter!(
                "leyline_waypoint_local_rate_limit_total",
                "filter" => config.prefix.to_string(), "result" => result
            )
            .increment(1);
        };
        if taken.is_allowed {
            if config.tells {
                quota.tighten(taken.limit, taken.remaining, taken.wait);
            }
            count("ok");
        } else if config.enforced.takes(rand::random()) {
            count("refused");
            return Err(config.refuse(&taken));
        } else {
            count("not_enforced");
            config.when_not_enforced.apply(&mut exchange.head.headers);
        }
    }
    Ok(quota)
}

#[cfg(test)]
mod tests;
