//! What a DestinationRule says of a cluster: balancing, limits, ejection.

use std::time::Duration;

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{
            CircuitBreakers, Cluster, OutlierDetection as ProtoOutlier,
            circuit_breakers::{Thresholds, thresholds::RetryBudget as ProtoBudget},
            cluster::{
                LbConfig, LbPolicy, LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig,
                RoundRobinLbConfig, SlowStartConfig, ring_hash_lb_config::HashFunction,
            },
        },
        core::v3::RuntimeDouble,
    },
    r#type::v3::Percent,
};

use super::{super::pb, time, transport};
use crate::objects::l7::destination_rule::{
    ClientTls, ConnectionPool, LoadBalancer, OutlierDetection, PortPolicy, ProxyProtocol,
    RetryBudget, Subset, TrafficPolicy, Warmup,
};

/// Istio's default where a rule sets none.
const MIN_RING_SIZE: u64 = 1024;
const SLOW_START_MIN_PERCENT: f64 = 10.0;
const RETRY_BUDGET_PERCENT: f64 = 20.0;
const RETRY_BUDGET_MIN: u32 = 3;

pub(super) fn connect_timeout(
    policy: &Policy,
) -> Option<envoy_types::pb::google::protobuf::Duration> {
    let tcp = policy
        .connection_pool
        .as_ref()
        .and_then(|pool| pool.tcp.as_ref());
    let given = tcp.and_then(|tcp| time(tcp.connect_timeout.as_ref()));
    pb::duration(given.unwrap_or(Duration::from_secs(10)))
}

/// No limit unless the user sets one.
pub(super) fn circuit_breakers(policy: &Policy) -> CircuitBreakers {
    let pool = policy.connection_pool.as_ref();
    let http = pool.and_then(|pool| pool.http.as_ref());
    let limit = |number: Option<i64>| {
        let number = number
            .filter(|number| *number > 0)
            .and_then(|number| u32::try_from(number).ok());
        pb::uint32(number.unwrap_or(u32::MAX))
    };
    let budget = policy.retry_budget.as_ref().map(|budget| ProtoBudget {
        budget_percent: Some(Percent {
            value: budget.percent.unwrap_or(RETRY_BUDGET_PERCENT),
        }),
        min_retry_concurrency: pb::uint32(budget.min_retry_concurrency.unwrap_or(RETRY_BUDGET_MIN)),
        ..ProtoBudget::default()
    });
    CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: limit(pool.and_then(|pool| pool.tcp.as_ref()?.max_connections)),
            max_pending_requests: limit(http.and_then(|http| http.http1_max_pending_requests)),
            max_requests: limit(http.and_then(|http| http.http2_max_requests)),
            max_retries: limit(http.and_then(|http| http.max_retries)),
            retry_budget: budget,
            track_remaining: true,
            ..Thresholds::default()
        }],
        per_host_thresholds: Vec::new(),
    }
}

pub(super) fn outlier_detection(outlier: &OutlierDetection) -> ProtoOutlier {
    // Istio turns off what is by rate, and enforces what is by number wholly.
    let enforced = |count: Option<u32>| pb::uint32(if count == Some(0) { 0 } else { 100 });
    let five_hundreds = outlier.consecutive5xx_errors;
    let gateway = outlier.consecutive_gateway_errors;
    let local = outlier.consecutive_local_origin_failures;
    let percent = |number: Option<i32>| {
        number
            .and_then(|number| u32::try_from(number).ok())
            .and_then(pb::uint32)
    };
    ProtoOutlier {
        consecutive_5xx: five_hundreds
            .filter(|count| *count > 0)
            .and_then(pb::uint32),
        enforcing_consecutive_5xx: enforced(five_hundreds),
        consecutive_gateway_failure: gateway.filter(|count| *count > 0).and_then(pb::uint32),
        enforcing_consecutive_gateway_failure: enforced(gateway.or(Some(0))),
        split_external_local_origin_errors: outlier.split_external_local_origin_errors
            == Some(true),
        consecutive_local_origin_failure: local.filter(|count| *count > 0).and_then(pb::uint32),
        enforcing_consecutive_local_origin_failure: enforced(local.or(Some(0))),
        enforcing_success_rate: pb::uint32(0),
        interval: time(outlier.interval.as_ref()).and_then(pb::duration),
        base_ejection_time: time(outlier.base_ejection_time.as_ref()).and_then(pb::duration),
        max_ejection_percent: percent(outlier.max_ejection_percent),
        ..ProtoOutlier::default()
    }
}

pub(super) fn balance(cluster: &mut Cluster, balancer: Option<&LoadBalancer>) {
    let slow_start = balancer.and_then(slow_start);
    let hash = balancer.and_then(|balancer| balancer.consistent_hash.as_ref());
    if let Some(hash) = hash {
        if let Some(maglev) = &hash.maglev {
            cluster.lb_policy = LbPolicy::Maglev.into();
            cluster.lb_config = Some(LbConfig::MaglevLbConfig(MaglevLbConfig {
                table_size: maglev.table_size.and_then(pb::uint64),
            }));
            return;
        }
        let ring = hash
            .ring_hash
            .as_ref()
            .and_then(|ring| ring.minimum_ring_size);
        let size = ring.or(hash.minimum_ring_size).filter(|size| *size > 0);
        cluster.lb_policy = LbPolicy::RingHash.into();
        cluster.lb_config = Some(LbConfig::RingHashLbConfig(RingHashLbConfig {
            minimum_ring_size: pb::uint64(size.unwrap_or(MIN_RING_SIZE)),
            hash_function: HashFunction::XxHash.into(),
            maximum_ring_size: None,
        }));
        return;
    }
    match balancer.and_then(|balancer| balancer.simple.as_deref()) {
        Some("ROUND_ROBIN") => {
            cluster.lb_policy = LbPolicy::RoundRobin.into();
            cluster.lb_config = slow_start.map(|slow_start| {
                LbConfig::RoundRobinLbConfig(RoundRobinLbConfig {
                    slow_start_config: Some(slow_start),
                })
            });
        }
        Some("RANDOM") => cluster.lb_policy = LbPolicy::Random.into(),
        Some(_) | None => {
            cluster.lb_policy = LbPolicy::LeastRequest.into();
            cluster.lb_config = slow_start.map(|slow_start| {
                LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
                    slow_start_config: Some(slow_start),
                    ..LeastRequestLbConfig::default()
                })
            });
        }
    }
}

fn slow_start(balancer: &LoadBalancer) -> Option<SlowStartConfig> {
    let warmup = balancer.warmup.clone().or_else(|| {
        balancer
            .warmup_duration_secs
            .clone()
            .map(|duration| Warmup {
                duration: Some(duration),
                ..Warmup::default()
            })
    })?;
    Some(SlowStartConfig {
        slow_start_window: pb::duration(time(warmup.duration.as_ref())?),
        aggression: warmup.aggression.map(|value| RuntimeDouble {
            default_value: value,
            runtime_key: "aggression".to_owned(),
        }),
        min_weight_percent: Some(Percent {
            value: warmup.minimum_percent.unwrap_or(SLOW_START_MIN_PERCENT),
        }),
    })
}

/// How the connections of a TCP port are treated.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct TcpOptions {
    /// The client's address chooses the endpoint.
    pub(in super::super) by_client: bool,
    pub(in super::super) idle_timeout: Option<Duration>,
    pub(in super::super) max_duration: Option<Duration>,
}

/// The policy of one cluster: that of the rule, over it that of the port, over both that of the subset.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Policy {
    pub(super) load_balancer: Option<LoadBalancer>,
    pub(super) connection_pool: Option<ConnectionPool>,
    pub(super) outlier_detection: Option<OutlierDetection>,
    pub(super) tls: Option<ClientTls>,
    pub(super) proxy_protocol: Option<ProxyProtocol>,
    retry_budget: Option<RetryBudget>,
}

impl Policy {
    pub(in super::super) fn of(
        rule: Option<&TrafficPolicy>,
        subset: Option<&Subset>,
        port: u16,
    ) -> Self {
        let mut policy = Self::default();
        let layers = [
            rule,
            subset.and_then(|subset| subset.traffic_policy.as_ref()),
        ];
        for layer in layers.into_iter().flatten() {
            policy.take(layer, port);
        }
        policy
    }

    fn take(&mut self, layer: &TrafficPolicy, port: u16) {
        let of_port = layer.port_level_settings.iter().find(|settings| {
            let number = settings.port.as_ref().map(|port| port.number);
            number == Some(u32::from(port))
        });
        // A port's settings stand in place of the rest, even where they say nothing (Istio's DestinationRule).
        let (balancer, pool, outlier, tls) = match of_port {
            Some(PortPolicy {
                load_balancer,
                connection_pool,
                outlier_detection,
                tls,
                ..
            }) => (load_balancer, connection_pool, outlier_detection, tls),
            None => (
                &layer.load_balancer,
                &layer.connection_pool,
                &layer.outlier_detection,
                &layer.tls,
            ),
        };
        let put = |into: &mut Option<_>, from: &Option<_>| {
            if from.is_some() {
                *into = from.clone();
            }
        };
        put(&mut self.load_balancer, balancer);
        if pool.is_some() {
            self.connection_pool = pool.clone();
        }
        if outlier.is_some() {
            self.outlier_detection = outlier.clone();
        }
        if tls.is_some() {
            self.tls = tls.clone();
        }
        if layer.proxy_protocol.is_some() {
            self.proxy_protocol = layer.proxy_protocol.clone();
        }
        if layer.retry_budget.is_some() {
            self.retry_budget = layer.retry_budget.clone();
        }
    }

    /// TLS of a BackendTLSPolicy, unless a DestinationRule says how TLS is spoken.
    pub(in super::super) fn or_tls(mut self, tls: ClientTls) -> Self {
        if !self.tls.as_ref().is_some_and(transport::originates) {
            self.tls = Some(tls);
        }
        self
    }

    /// Whether connections go where the client wants, whatever endpoints there are.
    pub(super) fn passes_through(&self) -> bool {
        let balancer = self.load_balancer.as_ref();
        balancer.is_some_and(|balancer| {
            balancer.simple.as_deref() == Some("PASSTHROUGH") && balancer.consistent_hash.is_none()
        })
    }

    /// Whether a server may prove another name than the one that it is called by.
    pub(super) fn may_take_another_name(&self) -> bool {
        let tls = self.tls.as_ref().filter(|tls| transport::originates(tls));
        tls.is_some_and(|tls| {
            tls.insecure_skip_verify == Some(true)
                || tls.sni.is_some()
                || !tls.subject_alt_names.is_empty()
        })
    }

    /// What the proxy of a port's connections is told.
    pub(in super::super) fn tcp_options(&self) -> TcpOptions {
        let hash = self
            .load_balancer
            .as_ref()
            .and_then(|balancer| balancer.consistent_hash.as_ref());
        let tcp = self
            .connection_pool
            .as_ref()
            .and_then(|pool| pool.tcp.as_ref());
        TcpOptions {
            by_client: hash.and_then(|hash| hash.use_source_ip) == Some(true),
            idle_timeout: tcp.and_then(|tcp| time(tcp.idle_timeout.as_ref())),
            max_duration: tcp.and_then(|tcp| time(tcp.max_connection_duration.as_ref())),
        }
    }

    pub(in super::super) fn load_balancer(&self) -> Option<&LoadBalancer> {
        self.load_balancer.as_ref()
    }
}
