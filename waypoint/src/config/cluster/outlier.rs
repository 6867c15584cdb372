//! When an endpoint that fails is left out for a while: Envoy's outlier detection, by failures in a row, which is what Istio
//! configures, and by rates.

use std::time::Duration;

use envoy_types::pb::{
    envoy::config::cluster::v3::{self as proto},
    google::protobuf::{Duration as ProtoDuration, UInt32Value},
};

use crate::config::{any::duration, error::Compiled};

/// Envoy's defaults.
const CONSECUTIVE: u32 = 5;
const INTERVAL: Duration = Duration::from_secs(10);
const BASE_EJECTION: Duration = Duration::from_secs(30);
const MAX_EJECTION: Duration = Duration::from_secs(300);
const MAX_EJECTION_PERCENT: u32 = 10;
const RATE_HOSTS: u32 = 5;
const SUCCESS_VOLUME: u32 = 100;
const SUCCESS_FACTOR: u32 = 1900;
const FAILURE_VOLUME: u32 = 50;
const FAILURE_THRESHOLD: u32 = 85;

/// What ejects an endpoint, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutlierDetection {
    /// Answers with 5xx.
    pub(crate) server_errors: Trigger,
    /// Answers with 502, 503, 504.
    pub(crate) gateway_errors: Trigger,
    /// No connection, a broken one, or a timeout; counted with the others unless `split`.
    pub(crate) local_failures: Trigger,
    pub(crate) split: bool,
    /// `None` where it has no effect, here and below.
    pub(crate) success_rate: Option<SuccessRate>,
    pub(crate) failure_rate: Option<FailureRate>,
    /// Of connections, where they are `split`.
    pub(crate) local_success_rate: Option<SuccessRate>,
    pub(crate) local_failure_rate: Option<FailureRate>,
    /// How often rates are looked at. An endpoint that behaves for so long has one ejection less behind it.
    pub(crate) interval: Duration,
    /// For the first ejection; the second takes twice as long, and so on.
    pub(crate) base_ejection: Duration,
    pub(crate) max_ejection: Duration,
    /// Of all endpoints. One is always ejected.
    pub(crate) max_percent: u32,
}

/// So many in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trigger {
    pub(crate) count: u32,
    /// In percent: how often it has an effect.
    pub(crate) enforced: u32,
}

/// Endpoints that succeed much less often than the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SuccessRate {
    /// With fewer that were used enough, nothing is said of any.
    pub(crate) min_hosts: u32,
    /// What is enough, in attempts of an interval.
    pub(crate) volume: u32,
    /// Standard deviations below the mean, in thousandths.
    pub(crate) factor: u32,
    pub(crate) enforced: u32,
}

/// Endpoints that fail at least so often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FailureRate {
    /// In percent.
    pub(crate) threshold: u32,
    pub(crate) min_hosts: u32,
    pub(crate) volume: u32,
    pub(crate) enforced: u32,
}

impl OutlierDetection {
    /// Whether attempts are counted for rates.
    pub(crate) fn looks_at_rates(&self) -> bool {
        self.success_rate.is_some()
            || self.failure_rate.is_some()
            || self.local_success_rate.is_some()
            || self.local_failure_rate.is_some()
    }

    pub(crate) fn compile(proto: &proto::Cluster) -> Compiled<Option<Self>> {
        let Some(outlier) = &proto.outlier_detection else {
            return Ok(None);
        };
        let split = outlier.split_external_local_origin_errors;
        let local_success = outlier.enforcing_local_origin_success_rate.as_ref();
        let local_failure = outlier.enforcing_failure_percentage_local_origin.as_ref();
        let trigger =
            |count: &Option<UInt32Value>, enforced: &Option<UInt32Value>, default| Trigger {
                count: value(count.as_ref(), CONSECUTIVE),
                enforced: value(enforced.as_ref(), default),
            };
        let base_ejection = time(outlier.base_ejection_time.as_ref(), BASE_EJECTION)?;
        let max_ejection = time(outlier.max_ejection_time.as_ref(), MAX_EJECTION)?;
        Ok(Some(Self {
            server_errors: trigger(
                &outlier.consecutive_5xx,
                &outlier.enforcing_consecutive_5xx,
                100,
            ),
            gateway_errors: trigger(
                &outlier.consecutive_gateway_failure,
                &outlier.enforcing_consecutive_gateway_failure,
                0,
            ),
            local_failures: trigger(
                &outlier.consecutive_local_origin_failure,
                &outlier.enforcing_consecutive_local_origin_failure,
                100,
            ),
            split,
            success_rate: success(outlier, outlier.enforcing_success_rate.as_ref()),
            failure_rate: failure(outlier, outlier.enforcing_failure_percentage.as_ref()),
            local_success_rate: success(outlier, local_success).filter(|_rate| split),
            local_failure_rate: failure(outlier, local_failure).filter(|_rate| split),
            interval: time(outlier.interval.as_ref(), INTERVAL)?,
            base_ejection,
            max_ejection: max_ejection.max(base_ejection),
            max_percent: value(outlier.max_ejection_percent.as_ref(), MAX_EJECTION_PERCENT),
        }))
    }
}

fn success(
    outlier: &proto::OutlierDetection,
    enforced: Option<&UInt32Value>,
) -> Option<SuccessRate> {
    let enforced = value(enforced, 100);
    (enforced != 0).then(|| SuccessRate {
        min_hosts: value(outlier.success_rate_minimum_hosts.as_ref(), RATE_HOSTS),
        volume: value(outlier.success_rate_request_volume.as_ref(), SUCCESS_VOLUME),
        factor: value(outlier.success_rate_stdev_factor.as_ref(), SUCCESS_FACTOR),
        enforced,
    })
}

fn failure(
    outlier: &proto::OutlierDetection,
    enforced: Option<&UInt32Value>,
) -> Option<FailureRate> {
    let enforced = value(enforced, 0);
    let threshold = outlier.failure_percentage_threshold.as_ref();
    let min_hosts = outlier.failure_percentage_minimum_hosts.as_ref();
    let volume = outlier.failure_percentage_request_volume.as_ref();
    (enforced != 0).then(|| FailureRate {
        threshold: value(threshold, FAILURE_THRESHOLD),
        min_hosts: value(min_hosts, RATE_HOSTS),
        volume: value(volume, FAILURE_VOLUME),
        enforced,
    })
}

fn value(value: Option<&UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |value| value.value)
}

fn time(value: Option<&ProtoDuration>, default: Duration) -> Compiled<Duration> {
    Ok(value.map(duration).transpose()?.unwrap_or(default))
}
