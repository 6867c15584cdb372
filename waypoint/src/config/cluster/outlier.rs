//! When an endpoint that fails is left out for a while: Envoy's outlier detection, as far as Istio configures it
//! (failures in a row; not rates of success).

use std::time::Duration;

use envoy_types::pb::{
    envoy::config::cluster::v3::{self as proto},
    google::protobuf::{Duration as ProtoDuration, UInt32Value},
};
use tracing::warn;

use crate::config::{any::duration, error::Compiled};

/// Envoy's defaults.
const CONSECUTIVE: u32 = 5;
const INTERVAL: Duration = Duration::from_secs(10);
const BASE_EJECTION: Duration = Duration::from_secs(30);
const MAX_EJECTION: Duration = Duration::from_secs(300);
const MAX_EJECTION_PERCENT: u32 = 10;

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
    /// An endpoint that behaves for so long has one ejection less behind it.
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

impl OutlierDetection {
    pub(crate) fn compile(proto: &proto::Cluster) -> Compiled<Option<Self>> {
        let Some(outlier) = &proto.outlier_detection else {
            return Ok(None);
        };
        if value(outlier.enforcing_success_rate.as_ref(), 100) != 0
            || value(outlier.enforcing_failure_percentage.as_ref(), 0) != 0
        {
            warn!(
                cluster = proto.name,
                "outlier detection by rates is left out: only failures in a row count"
            );
        }
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
            split: outlier.split_external_local_origin_errors,
            interval: time(outlier.interval.as_ref(), INTERVAL)?,
            base_ejection,
            max_ejection: max_ejection.max(base_ejection),
            max_percent: value(outlier.max_ejection_percent.as_ref(), MAX_EJECTION_PERCENT),
        }))
    }
}

fn value(value: Option<&UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |value| value.value)
}

fn time(value: Option<&ProtoDuration>, default: Duration) -> Compiled<Duration> {
    Ok(value.map(duration).transpose()?.unwrap_or(default))
}
