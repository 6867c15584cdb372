//! DestinationRules.

use super::Teller;
use crate::{
    objects::{
        Kind, Objects,
        l7::destination_rule::{ConnectionPool, LoadBalancer, OutlierDetection, TrafficPolicy},
    },
    translate::Advice,
};

/// Parts that a policy and a port's policy have in common.
struct Parts<'a> {
    load_balancer: Option<&'a LoadBalancer>,
    connection_pool: Option<&'a ConnectionPool>,
    outlier_detection: Option<&'a OutlierDetection>,
}

pub(super) fn advise(objects: &Objects, advice: &mut Vec<Advice>) {
    for (name, rule) in &objects.destination_rules {
        let mut teller = Teller::new(Kind::DestinationRule, name, advice);
        teller.tell_if(
            rule.spec.workload_selector.is_some(),
            "spec.workloadSelector",
            "is not looked at: the rule counts for every waypoint",
        );
        if let Some(policy) = &rule.spec.traffic_policy {
            of_policy("spec.trafficPolicy", policy, &mut teller);
        }
        for (index, subset) in rule.spec.subsets.iter().enumerate() {
            if let Some(policy) = &subset.traffic_policy {
                let field = format!("spec.subsets[{index}].trafficPolicy");
                of_policy(&field, policy, &mut teller);
            }
        }
    }
}

fn of_policy(field: &str, policy: &TrafficPolicy, teller: &mut Teller<'_>) {
    teller.tell_if(
        policy.tunnel.is_some(),
        format!("{field}.tunnel"),
        "has no effect: connections are not tunnelled through a proxy of the user's",
    );
    let budget = policy.retry_budget.as_ref();
    teller.tell_if(
        budget.is_some_and(|budget| budget.budget_interval.is_some()),
        format!("{field}.retryBudget.budgetInterval"),
        "has no effect: retries are in proportion to the requests of the moment",
    );
    let parts = Parts {
        load_balancer: policy.load_balancer.as_ref(),
        connection_pool: policy.connection_pool.as_ref(),
        outlier_detection: policy.outlier_detection.as_ref(),
    };
    of_parts(field, &parts, teller);
    for (index, port) in policy.port_level_settings.iter().enumerate() {
        let parts = Parts {
            load_balancer: port.load_balancer.as_ref(),
            connection_pool: port.connection_pool.as_ref(),
            outlier_detection: port.outlier_detection.as_ref(),
        };
        of_parts(
            &format!("{field}.portLevelSettings[{index}]"),
            &parts,
            teller,
        );
    }
}

fn of_parts(field: &str, parts: &Parts<'_>, teller: &mut Teller<'_>) {
    teller.tell_if(
        parts
            .load_balancer
            .is_some_and(|one| one.zone_aware_lb_setting.is_some()),
        format!("{field}.loadBalancer.zoneAwareLbSetting"),
        "has no effect: nearness is by localityLbSetting",
    );
    let http = parts.connection_pool.and_then(|pool| pool.http.as_ref());
    teller.tell_if(
        http.is_some_and(|http| http.http2_keep_alive.is_some()),
        format!("{field}.connectionPool.http.http2KeepAlive"),
        "has no effect: connections are probed as the waypoint does by itself",
    );
    let tcp = parts.connection_pool.and_then(|pool| pool.tcp.as_ref());
    teller.tell_if(
        tcp.is_some_and(|tcp| tcp.tcp_keepalive.is_some()),
        format!("{field}.connectionPool.tcp.tcpKeepalive"),
        "has no effect: connections are probed as the waypoint does by itself",
    );
    let outlier = parts.outlier_detection;
    teller.tell_if(
        outlier.is_some_and(|outlier| !outlier.outlier_detection_http_error_codes.is_empty()),
        format!("{field}.outlierDetection.outlierDetectionHttpErrorCodes"),
        "has no effect: statuses from 500 on are failures",
    );
    teller.tell_if(
        outlier.is_some_and(|outlier| outlier.consecutive_errors.is_some()),
        format!("{field}.outlierDetection.consecutiveErrors"),
        "has no effect: consecutive5xxErrors and consecutiveGatewayErrors have taken its place",
    );
}
