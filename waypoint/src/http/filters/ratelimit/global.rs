//! `envoy.filters.http.ratelimit`: a rate limit service counts for all waypoints together, asked by
//! `envoy.service.ratelimit.v3.RateLimitService`.

use envoy_types::pb::envoy::{
    config::core::v3::HeaderValue as HeaderProto,
    extensions::{
        common::ratelimit::v3::{
            RateLimitDescriptor, rate_limit_descriptor, rate_limit_descriptor::Entry,
        },
        filters::http::ratelimit::v3::{
            RateLimit as Proto, RateLimitPerRoute, rate_limit::XRateLimitHeadersRfcVersion,
            rate_limit_per_route::VhRateLimitsOptions,
        },
    },
    service::ratelimit::v3::{
        RateLimitRequest, RateLimitResponse,
        rate_limit_response::{Code, DescriptorStatus, rate_limit::Unit},
    },
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header::RETRY_AFTER};
use metrics::counter;
use tokio::time::Duration;
use tracing::warn;

use super::{RouteLimits, VirtualHostLimits, descriptors_of, headers};
use crate::{
    config::{
        Config as Everything,
        any::duration,
        descriptors::{Descriptor, Limit, Rate},
        error::{At, Compiled, Unsupported},
        route::{
            headers::{HeaderChanges, HeaderOps},
            matching::Fraction,
        },
    },
    http::{
        filters::local_ratelimit::{Quota, refusal_status},
        pipeline::Exchange,
        reply::{Flag, Reply},
        server::HttpConnection,
    },
    upstream::{call::Target, grpc},
};

/// Envoy's default.
const TIMEOUT: Duration = Duration::from_millis(20);
const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// What Envoy calls a refusal, and a refusal for lack of an answer.
const REFUSED: &str = "request_rate_limited";
const FAILED: &str = "rate_limiter_error";

/// One filter, compiled.
#[derive(Debug)]
pub(crate) struct Config {
    domain: String,
    stage: u32,
    service: Target,
    on_failure: OnFailure,
    status: StatusCode,
    is_resource_exhausted: bool,
    enabled: Fraction,
    enforced: Fraction,
    tells: bool,
    tells_retry: bool,
    marks: bool,
    when_refused: HeaderChanges,
    limits: Vec<Limit>,
}

/// When the service does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnFailure {
    Pass,
    Refuse(StatusCode),
}

/// What a route sets differently.
#[derive(Clone, Debug)]
pub(crate) struct Override {
    domain: String,
    of_host: VirtualHostLimits,
    limits: Vec<Limit>,
}

impl Override {
    pub(crate) fn compile(proto: &RateLimitPerRoute) -> Compiled<Self> {
        if proto.override_option != 0 {
            return Err(Unsupported::new("override_option"));
        }
        Ok(Self {
            domain: proto.domain.clone(),
            of_host: match VhRateLimitsOptions::try_from(proto.vh_rate_limits) {
                Ok(VhRateLimitsOptions::Override) => VirtualHostLimits::Override,
                Ok(VhRateLimitsOptions::Include) => VirtualHostLimits::Include,
                Ok(VhRateLimitsOptions::Ignore) => VirtualHostLimits::Ignore,
                Err(_) => return Err(Unsupported::new("vh_rate_limits")),
            },
            limits: Limit::compile_all(&proto.rate_limits)?,
        })
    }
}

impl Config {
    pub(crate) fn compile(proto: &Proto) -> Compiled<Self> {
        if !matches!(proto.request_type.as_str(), "" | "both" | "external") {
            return Err(Unsupported::new(format!(
                "request_type {}",
                proto.request_type
            )));
        }
        if proto.failure_mode_deny_percent.is_some() {
            return Err(Unsupported::new("failure_mode_deny_percent"));
        }
        if proto.domain.is_empty() {
            return Err(Unsupported::missing("domain"));
        }
        let on_error = proto.status_on_error.map_or(0, |status| status.code);
        let on_error = match u16::try_from(on_error) {
            Ok(0) => StatusCode::INTERNAL_SERVER_ERROR,
            Ok(code) => {
                StatusCode::from_u16(code).map_err(|_range| Unsupported::new("status_on_error"))?
            }
            Err(_) => return Err(Unsupported::new("status_on_error")),
        };
        let headers = HeaderOps::compile(&[], &[], &[], &proto.response_headers_to_add)?;
        let fraction = |share: Option<_>| match share {
            None => Ok(Fraction::ALL),
            Some(share) => Fraction::compile(&share),
        };
        let enabled = proto.filter_enabled.as_ref();
        let enforced = proto.filter_enforced.as_ref();
        Ok(Self {
            domain: proto.domain.clone(),
            stage: proto.stage,
            service: service(proto).at("rate_limit_service")?,
            on_failure: if proto.failure_mode_deny {
                OnFailure::Refuse(on_error)
            } else {
                OnFailure::Pass
            },
            status: refusal_status(proto.rate_limited_status.map_or(0, |it| it.code))?,
            is_resource_exhausted: proto.rate_limited_as_resource_exhausted,
            enabled: fraction(enabled.and_then(|it| it.default_value)).at("filter_enabled")?,
            enforced: fraction(enforced.and_then(|it| it.default_value)).at("filter_enforced")?,
            tells: proto.enable_x_ratelimit_headers
                == i32::from(XRateLimitHeadersRfcVersion::DraftVersion03),
            tells_retry: proto.enable_retry_after_header,
            marks: !proto.disable_x_envoy_ratelimited_header,
            when_refused: headers.response,
            limits: Limit::compile_all(&proto.rate_limits)?,
        })
    }

    fn refuse(&self, answer: &RateLimitResponse) -> Reply {
        let body = answer.raw_body.clone();
        let mut reply = Reply::new(self.status, Flag::RateLimited, REFUSED, body);
        let mut added = HeaderMap::new();
        if self.marks {
            added.insert("x-envoy-ratelimited", HeaderValue::from_static("true"));
        }
        let tightest = tightest(answer);
        if let Some(status) = tightest {
            let wait = until_reset(status);
            if self.tells_retry || self.tells {
                added.insert(RETRY_AFTER, headers::seconds(wait));
            }
        }
        if self.tells {
            quota(answer).apply(&mut added);
        }
        for (name, value) in answer.response_headers_to_add.iter().filter_map(header) {
            added.append(name, value);
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

fn service(proto: &Proto) -> Compiled<Target> {
    let service = proto.rate_limit_service.as_ref();
    let grpc = service.and_then(|service| service.grpc_service.as_ref());
    Target::compile(grpc, proto.timeout.as_ref(), TIMEOUT)
}

/// Asks the services of all filters of the chain, in its order.
///
/// # Errors
/// The answer of a refused request.
pub(crate) async fn check(
    filters: &[Config],
    route: &RouteLimits<'_>,
    config: &Everything,
    exchange: &mut Exchange,
    conn: &HttpConnection,
) -> Result<Quota, Reply> {
    let mut quota = Quota::default();
    for filter in filters {
        if !filter.enabled.takes(rand::random()) {
            continue;
        }
        let Some(question) = question(filter, route, exchange, conn) else {
            continue;
        };
        let asked = grpc::call(&conn.shared, config, &filter.service, METHOD, &question);
        let count = |result| {
            counter!(
                "leyline_waypoint_global_rate_limit_total",
                "domain" => filter.domain.clone(), "result" => result
            )
            .increment(1);
        };
        let answer: RateLimitResponse = match Box::pin(asked).await {
            Ok(answer) => answer,
            Err(error) => {
                count("error");
                warn!(domain = filter.domain, %error, "the rate limit service did not answer");
                match filter.on_failure {
                    OnFailure::Pass => continue,
                    OnFailure::Refuse(status) => {
                        return Err(Reply::new(status, Flag::RateLimitService, FAILED, ""));
                    }
                }
            }
        };
        let is_over = answer.overall_code == i32::from(Code::OverLimit);
        if is_over && filter.enforced.takes(rand::random()) {
            count("refused");
            return Err(filter.refuse(&answer));
        }
        count(if is_over { "not_enforced" } else { "ok" });
        for (name, value) in answer.request_headers_to_add.iter().filter_map(header) {
            exchange.head.headers.append(name, value);
        }
        if filter.tells {
            quota.tighten_by(self::quota(&answer));
        }
    }
    Ok(quota)
}

/// `None` where no limit applies: then nobody is asked.
fn question(
    filter: &Config,
    route: &RouteLimits<'_>,
    exchange: &Exchange,
    conn: &HttpConnection,
) -> Option<RateLimitRequest> {
    let special = route.global;
    let lists = match special {
        Some(special) if !special.limits.is_empty() => [special.limits.as_slice(), &[]],
        _ if !filter.limits.is_empty() => [filter.limits.as_slice(), &[]],
        _ => route.lists(special.map(|it| it.of_host).unwrap_or_default()),
    };
    let descriptors = descriptors_of(lists, filter.stage, exchange, conn);
    if descriptors.is_empty() {
        return None;
    }
    let domain = special.map_or("", |special| special.domain.as_str());
    Some(RateLimitRequest {
        domain: if domain.is_empty() {
            filter.domain.clone()
        } else {
            domain.to_owned()
        },
        descriptors: descriptors.into_iter().map(descriptor).collect(),
        hits_addend: 0,
    })
}

fn descriptor(descriptor: Descriptor) -> RateLimitDescriptor {
    let limit =
        descriptor.rate.map(
            |Rate { requests, unit }| rate_limit_descriptor::RateLimitOverride {
                requests_per_unit: requests,
                unit,
            },
        );
    let entries = descriptor.entries.into_iter();
    RateLimitDescriptor {
        entries: entries.map(|(key, value)| Entry { key, value }).collect(),
        limit,
        ..RateLimitDescriptor::default()
    }
}

/// The status with the least left.
fn tightest(answer: &RateLimitResponse) -> Option<&DescriptorStatus> {
    let limited = answer
        .statuses
        .iter()
        .filter(|it| it.current_limit.is_some());
    limited.min_by_key(|status| status.limit_remaining)
}

fn quota(answer: &RateLimitResponse) -> Quota {
    let mut quota = Quota::default();
    if let Some(status) = tightest(answer) {
        let limit = status.current_limit.as_ref();
        let limit = limit.map_or(0, |limit| limit.requests_per_unit);
        quota.tighten(
            limit.into(),
            status.limit_remaining.into(),
            until_reset(status),
        );
    }
    quota
}

/// As the service says it, or at most the unit of the limit.
fn until_reset(status: &DescriptorStatus) -> Duration {
    let told = status.duration_until_reset.as_ref();
    if let Some(told) = told.and_then(|told| duration(told).ok()) {
        return told;
    }
    let unit = status.current_limit.as_ref().map(|limit| limit.unit);
    Duration::from_secs(match unit.map(Unit::try_from) {
        Some(Ok(Unit::Minute)) => 60,
        Some(Ok(Unit::Hour)) => 3600,
        Some(Ok(Unit::Day)) => 86_400,
        _ => 1,
    })
}

fn header(proto: &HeaderProto) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::try_from(proto.key.as_str()).ok()?;
    let value = if proto.raw_value.is_empty() {
        HeaderValue::try_from(proto.value.as_str()).ok()?
    } else {
        HeaderValue::from_bytes(&proto.raw_value).ok()?
    };
    Some((name, value))
}
