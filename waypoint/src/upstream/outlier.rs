//! Endpoints that fail several times in a row, or more often than others, are left out for a while (Envoy's documents on outlier
//! detection). What counts is what requests meet; nobody is asked for his health.

pub(crate) mod rates;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use metrics::counter;
use parking_lot::Mutex;
use rand::RngExt;
use tokio::time::{Duration, Instant};
use tracing::info;

use self::rates::{Counts, Origin};
use crate::config::{
    cluster::{
        Cluster,
        outlier::{OutlierDetection, Trigger},
    },
    endpoints::{Endpoint, EndpointSet},
};

/// What one endpoint did lately.
#[derive(Debug, Default)]
pub(crate) struct Record {
    server_errors: AtomicU32,
    gateway_errors: AtomicU32,
    local_failures: AtomicU32,
    counts: Counts,
    /// Whether `past` has to be looked at.
    ejected: AtomicBool,
    past: Mutex<Past>,
}

#[derive(Debug, Default)]
struct Past {
    /// The end of the ejection now, or of the last one.
    until: Option<Instant>,
    /// Ejections that are not yet forgotten.
    count: u32,
}

/// What an attempt showed of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Showed {
    /// An answer with this status.
    Status(u16),
    /// No connection, or one that broke.
    Broken,
    /// No answer in time.
    Late,
}

/// Why an endpoint is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    ServerErrors,
    GatewayErrors,
    LocalFailures,
    SuccessRate,
    LocalSuccessRate,
    FailureRate,
    LocalFailureRate,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::ServerErrors => "consecutive_5xx",
            Self::GatewayErrors => "consecutive_gateway_failure",
            Self::LocalFailures => "consecutive_local_origin_failure",
            Self::SuccessRate => "success_rate",
            Self::LocalSuccessRate => "local_origin_success_rate",
            Self::FailureRate => "failure_percentage",
            Self::LocalFailureRate => "local_origin_failure_percentage",
        }
    }
}

/// Takes note of an attempt, and ejects its endpoint if it was one too many.
pub(crate) fn report(cluster: &Cluster, endpoint: &Endpoint, showed: Showed) {
    let Some(policy) = &cluster.outlier else {
        return;
    };
    let record = &endpoint.state.record;
    for (reason, enforced) in record.count(policy, showed).into_iter().flatten() {
        if rand::rng().random_range(0..100) < enforced
            && let Some(set) = cluster.balancer.set()
        {
            eject(cluster, policy, &set, endpoint, reason);
        }
    }
    if policy.looks_at_rates() {
        record.counts.add(policy, showed);
        if cluster
            .state
            .outliers
            .has_rung(policy.interval, Instant::now())
        {
            compare(cluster, policy);
        }
    }
}

/// Ejects by what all endpoints did in the interval that is over.
fn compare(cluster: &Cluster, policy: &OutlierDetection) {
    let Some(set) = cluster.balancer.set() else {
        return;
    };
    for origin in [Origin::External, Origin::Local] {
        let all = set.all();
        let taken: Vec<_> = all
            .map(|endpoint| endpoint.state.record.counts.take(origin))
            .collect();
        let mut found: Vec<(usize, Reason, u32)> = Vec::new();
        if let Some((reason, rate)) = origin.success(policy) {
            let low = rates::below_the_others(&taken, rate).into_iter();
            found.extend(low.map(|index| (index, reason, rate.enforced)));
        }
        if let Some((reason, rate)) = origin.failure(policy) {
            let high = rates::above_the_threshold(&taken, rate).into_iter();
            found.extend(high.map(|index| (index, reason, rate.enforced)));
        }
        for (index, reason, enforced) in found {
            if rand::rng().random_range(0..100) < enforced
                && let Some(endpoint) = set.all().nth(index)
            {
                eject(cluster, policy, &set, endpoint, reason);
            }
        }
    }
}

/// gRPC says in its own status what HTTP says in the response's (Envoy's mapping).
pub(crate) fn status_of_grpc(status: u32) -> u16 {
    match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        // Unknown, internal, data loss.
        _ => 500,
    }
}

fn eject(
    cluster: &Cluster,
    policy: &OutlierDetection,
    set: &Arc<EndpointSet>,
    endpoint: &Endpoint,
    reason: Reason,
) {
    let now = Instant::now();
    // One at a time, so that two do not both find room for the last.
    let _ejecting = cluster.state.ejecting.lock();
    let all = set.all().count();
    let ejected = set
        .all()
        .filter(|one| one.state.back_at(now).is_some())
        .count();
    if endpoint.state.back_at(now).is_some() {
        return;
    }
    let name = cluster
        .service
        .as_ref()
        .map_or("unknown", |service| service.host.as_str());
    if ejected * 100 >= all * policy.max_percent as usize && ejected > 0 {
        counter!(
            "leyline_waypoint_outlier_ejections_total",
            "destination_service" => name.to_owned(), "reason" => "overflow"
        )
        .increment(1);
        return;
    }
    let lasts = endpoint.state.record.eject(policy, now);
    cluster.state.health_changed();
    counter!(
        "leyline_waypoint_outlier_ejections_total",
        "destination_service" => name.to_owned(), "reason" => reason.as_str()
    )
    .increment(1);
    info!(
        cluster = %cluster.name,
        endpoint = %endpoint.address.addr(),
        reason = reason.as_str(),
        ?lasts,
        ejected = ejected + 1,
        all,
        "endpoint ejected"
    );
}

impl Record {
    /// The end of an ejection that is not over.
    pub(crate) fn back_at(&self, now: Instant) -> Option<Instant> {
        if !self.ejected.load(Ordering::Acquire) {
            return None;
        }
        let until = self.past.lock().until;
        let until = until.filter(|until| now < *until);
        if until.is_none() {
            self.ejected.store(false, Ordering::Release);
        }
        until
    }

    /// What is now too much, and how often that has an effect.
    fn count(&self, policy: &OutlierDetection, showed: Showed) -> [Option<(Reason, u32)>; 2] {
        let status = match showed {
            Showed::Status(status) => {
                self.local_failures.store(0, Ordering::Relaxed);
                status
            }
            Showed::Broken | Showed::Late if policy.split => {
                let (counter, trigger) = (&self.local_failures, policy.local_failures);
                return [one_more(counter, trigger, Reason::LocalFailures), None];
            }
            Showed::Broken => 503,
            Showed::Late => 504,
        };
        if status < 500 {
            self.server_errors.store(0, Ordering::Relaxed);
            self.gateway_errors.store(0, Ordering::Relaxed);
            return [None, None];
        }
        let gateway = if matches!(status, 502..=504) {
            let (counter, trigger) = (&self.gateway_errors, policy.gateway_errors);
            one_more(counter, trigger, Reason::GatewayErrors)
        } else {
            self.gateway_errors.store(0, Ordering::Relaxed);
            None
        };
        let trigger = policy.server_errors;
        let server = one_more(&self.server_errors, trigger, Reason::ServerErrors);
        [gateway, server]
    }

    /// How long it lasts.
    fn eject(&self, policy: &OutlierDetection, now: Instant) -> Duration {
        let mut past = self.past.lock();
        let behaved = past.until.map(|until| now.saturating_duration_since(until));
        let intervals = behaved.map_or(0, |behaved| {
            behaved
                .as_millis()
                .checked_div(policy.interval.as_millis())
                .unwrap_or(0)
        });
        let forgotten = u32::try_from(intervals).unwrap_or(u32::MAX);
        past.count = past.count.saturating_sub(forgotten).saturating_add(1);
        let lasts = policy
            .base_ejection
            .saturating_mul(past.count)
            .min(policy.max_ejection);
        past.until = Some(now + lasts);
        self.ejected.store(true, Ordering::Release);
        self.server_errors.store(0, Ordering::Relaxed);
        self.gateway_errors.store(0, Ordering::Relaxed);
        self.local_failures.store(0, Ordering::Relaxed);
        lasts
    }
}

fn one_more(counter: &AtomicU32, trigger: Trigger, reason: Reason) -> Option<(Reason, u32)> {
    let count = counter.fetch_add(1, Ordering::Relaxed) + 1;
    if trigger.count == 0 || count < trigger.count {
        return None;
    }
    counter.store(0, Ordering::Relaxed);
    Some((reason, trigger.enforced))
}

#[cfg(test)]
mod tests;
