//! How the endpoint of a request is chosen: Envoy's `lb_policy` and what belongs to it.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::{
    self as proto,
    cluster::{
        ClusterDiscoveryType, DiscoveryType, LbConfig, LbPolicy, SlowStartConfig,
        common_lb_config::LocalityConfigSpecifier, ring_hash_lb_config::HashFunction,
    },
};
use tracing::warn;

use crate::config::{
    any::duration,
    error::{At, Compiled, Unsupported},
};

/// Envoy's default where `healthy_panic_threshold` is not set.
const PANIC_THRESHOLD: f64 = 50.0;
/// Envoy's default.
const MIN_RING: u64 = 1024;
/// Points of a ring: 16 bytes each, so that no ring takes more than 16 MiB.
const MAX_RING: u64 = 1 << 20;
/// Envoy's default, and its limit.
const MAGLEV_TABLE: u64 = 65_537;
const MAX_MAGLEV_TABLE: u64 = 5_000_011;
/// Envoy's default: two choices.
const CHOICES: u32 = 2;
/// More choices look at all endpoints of a small service several times over.
const MAX_CHOICES: u32 = 100;
/// Envoy's default share of an endpoint that has just come.
const MIN_WEIGHT_PERCENT: f64 = 10.0;

/// How requests are spread.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Balancing {
    pub(crate) policy: Balance,
    pub(crate) slow_start: Option<SlowStart>,
    /// With fewer healthy endpoints than this, in percent, all are used: the rest would not carry the load.
    pub(crate) panic_threshold: f64,
    /// Localities get requests by their own weight, and not by how many endpoints they have.
    pub(crate) by_locality: bool,
}

/// How an endpoint is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Balance {
    /// The one with the fewest requests of so many that are drawn.
    LeastRequest {
        choices: u32,
    },
    RoundRobin,
    Random,
    /// By the hash of the request, on a ring of at least so many points.
    RingHash {
        min_size: u64,
        max_size: u64,
    },
    /// By the hash of the request, in a table of so many places.
    Maglev {
        table_size: u64,
    },
}

/// New endpoints get their share little by little.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SlowStart {
    pub(crate) window: Duration,
    pub(crate) aggression: f64,
    /// Of 1.
    pub(crate) min_weight: f64,
}

impl Balancing {
    pub(crate) fn compile(proto: &proto::Cluster) -> Compiled<Self> {
        if proto.load_balancing_policy.is_some() || proto.lb_subset_config.is_some() {
            return Err(Unsupported::new(
                "load_balancing_policy or lb_subset_config",
            ));
        }
        let common = proto.common_lb_config.as_ref();
        let panic = common.and_then(|common| common.healthy_panic_threshold.as_ref());
        let locality = common.and_then(|common| common.locality_config_specifier.as_ref());
        Ok(Self {
            policy: Balance::compile(proto)?,
            slow_start: slow_start(proto).at("slow_start_config")?,
            panic_threshold: panic.map_or(PANIC_THRESHOLD, |percent| percent.value),
            by_locality: matches!(
                locality,
                Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_))
            ),
        })
    }
}

impl Balance {
    fn compile(proto: &proto::Cluster) -> Compiled<Self> {
        match (LbPolicy::try_from(proto.lb_policy), &proto.lb_config) {
            (Ok(LbPolicy::RoundRobin), _) => Ok(Self::RoundRobin),
            (Ok(LbPolicy::Random), _) => Ok(Self::Random),
            (Ok(LbPolicy::LeastRequest), config) => {
                let config = match config {
                    Some(LbConfig::LeastRequestLbConfig(config)) => Some(config),
                    _ => None,
                };
                let choices = config.and_then(|config| config.choice_count.as_ref());
                let choices = choices.map_or(CHOICES, |choices| choices.value);
                Ok(Self::LeastRequest {
                    choices: choices.clamp(CHOICES, MAX_CHOICES),
                })
            }
            (Ok(LbPolicy::RingHash), config) => Self::ring(proto, config.as_ref()),
            (Ok(LbPolicy::Maglev), config) => {
                let size = match config {
                    Some(LbConfig::MaglevLbConfig(config)) => config.table_size.as_ref(),
                    _ => None,
                };
                let table_size = size.map_or(MAGLEV_TABLE, |size| size.value);
                // In a table of another size not every endpoint finds its places.
                if table_size > MAX_MAGLEV_TABLE || !is_prime(table_size) {
                    let reason = format!("table_size {table_size} is no prime up to 5000011");
                    return Err(Unsupported::new(reason));
                }
                Ok(Self::Maglev { table_size })
            }
            // Nothing is chosen where the client or the request says where to go.
            (Ok(LbPolicy::ClusterProvided), _) if is_told_where(proto) => Ok(Self::Random),
            (Ok(LbPolicy::ClusterProvided | LbPolicy::LoadBalancingPolicyConfig) | Err(_), _) => {
                Err(Unsupported::new("lb_policy"))
            }
        }
    }

    fn ring(proto: &proto::Cluster, config: Option<&LbConfig>) -> Compiled<Self> {
        let config = match config {
            Some(LbConfig::RingHashLbConfig(config)) => Some(config),
            _ => None,
        };
        if config.is_some_and(|config| config.hash_function != i32::from(HashFunction::XxHash)) {
            return Err(Unsupported::new("hash_function"));
        }
        let min = config.and_then(|config| config.minimum_ring_size.as_ref());
        let max = config.and_then(|config| config.maximum_ring_size.as_ref());
        let max = max.map_or(MAX_RING, |max| max.value);
        let min = min.map_or(MIN_RING, |min| min.value);
        if min > MAX_RING {
            warn!(cluster = proto.name, min, "the ring has 1048576 points");
        }
        let max_size = max.clamp(1, MAX_RING);
        Ok(Self::RingHash {
            min_size: min.clamp(1, max_size),
            max_size,
        })
    }

    /// Whether the hash of a request decides.
    pub(crate) fn is_by_hash(self) -> bool {
        match self {
            Self::RingHash { .. } | Self::Maglev { .. } => true,
            Self::LeastRequest { .. } | Self::RoundRobin | Self::Random => false,
        }
    }
}

fn slow_start(proto: &proto::Cluster) -> Compiled<Option<SlowStart>> {
    let config: Option<&SlowStartConfig> = match &proto.lb_config {
        Some(LbConfig::LeastRequestLbConfig(config)) => config.slow_start_config.as_ref(),
        Some(LbConfig::RoundRobinLbConfig(config)) => config.slow_start_config.as_ref(),
        Some(_) | None => None,
    };
    let Some(config) = config else {
        return Ok(None);
    };
    let window = config.slow_start_window.as_ref();
    let window = window.map(duration).transpose()?.unwrap_or_default();
    let aggression = config.aggression.as_ref();
    let aggression = aggression.map_or(1.0, |aggression| aggression.default_value);
    if aggression.is_nan() || aggression <= 0.0 {
        return Err(Unsupported::new("aggression"));
    }
    let percent = config.min_weight_percent.as_ref();
    let percent = percent.map_or(MIN_WEIGHT_PERCENT, |percent| percent.value);
    Ok((!window.is_zero()).then_some(SlowStart {
        window,
        aggression,
        // Not 0: an endpoint that is never asked would stay new for the consecutive draws of all others.
        min_weight: (percent / 100.0).clamp(0.01, 1.0),
    }))
}

/// By trial division: the largest number asked has a square root of 2,237.
fn is_prime(number: u64) -> bool {
    let mut divisors = (2..).take_while(|divisor| divisor * divisor <= number);
    number > 1 && divisors.all(|divisor| !number.is_multiple_of(divisor))
}

/// By clients, or by requests.
fn is_told_where(proto: &proto::Cluster) -> bool {
    match &proto.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => *kind == i32::from(DiscoveryType::OriginalDst),
        Some(ClusterDiscoveryType::ClusterType(_)) => true,
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::{
        envoy::{
            config::{
                cluster::v3::cluster::{MaglevLbConfig, RingHashLbConfig, RoundRobinLbConfig},
                core::v3::RuntimeDouble,
            },
            r#type::v3::Percent,
        },
        google::protobuf::{Duration as ProtoDuration, UInt64Value},
    };

    use super::*;

    fn compiled(policy: LbPolicy, config: Option<LbConfig>) -> Compiled<Balancing> {
        Balancing::compile(&proto::Cluster {
            lb_policy: policy.into(),
            lb_config: config,
            ..proto::Cluster::default()
        })
    }

    #[test]
    fn policies_and_their_sizes() {
        let size = |value| Some(UInt64Value { value });
        let ring = |min| {
            Some(LbConfig::RingHashLbConfig(RingHashLbConfig {
                minimum_ring_size: size(min),
                ..RingHashLbConfig::default()
            }))
        };
        let maglev = |value| {
            Some(LbConfig::MaglevLbConfig(MaglevLbConfig {
                table_size: size(value),
            }))
        };
        let ring_of = |min_size| Balance::RingHash {
            min_size,
            max_size: MAX_RING,
        };
        let table = |table_size| Balance::Maglev { table_size };
        for (policy, config, expected) in [
            (LbPolicy::RoundRobin, None, Some(Balance::RoundRobin)),
            (LbPolicy::Random, None, Some(Balance::Random)),
            (
                LbPolicy::LeastRequest,
                None,
                Some(Balance::LeastRequest { choices: 2 }),
            ),
            (LbPolicy::RingHash, None, Some(ring_of(1024))),
            (LbPolicy::RingHash, ring(7), Some(ring_of(7))),
            (LbPolicy::RingHash, ring(1 << 40), Some(ring_of(MAX_RING))),
            (LbPolicy::Maglev, None, Some(table(65_537))),
            (LbPolicy::Maglev, maglev(251), Some(table(251))),
            (LbPolicy::Maglev, maglev(252), None),
            (LbPolicy::Maglev, maglev(0), None),
            (LbPolicy::Maglev, maglev(1 << 50), None),
            (LbPolicy::ClusterProvided, None, None),
        ] {
            let compiled = compiled(policy, config).map(|balancing| balancing.policy);
            assert_eq!(compiled.ok(), expected, "{policy:?}");
        }
    }

    #[test]
    fn slow_start_has_envoys_defaults() {
        let config = |aggression: Option<f64>, percent: Option<f64>| {
            Some(LbConfig::RoundRobinLbConfig(RoundRobinLbConfig {
                slow_start_config: Some(SlowStartConfig {
                    slow_start_window: Some(ProtoDuration {
                        seconds: 30,
                        nanos: 0,
                    }),
                    aggression: aggression.map(|default_value| RuntimeDouble {
                        default_value,
                        runtime_key: String::new(),
                    }),
                    min_weight_percent: percent.map(|value| Percent { value }),
                }),
            }))
        };
        let slow = |aggression, percent| {
            compiled(LbPolicy::RoundRobin, config(aggression, percent)).map(|it| it.slow_start)
        };
        let expected = |aggression, min_weight| {
            Some(SlowStart {
                window: Duration::from_secs(30),
                aggression,
                min_weight,
            })
        };
        assert_eq!(slow(None, None).unwrap(), expected(1.0, 0.1));
        assert_eq!(slow(Some(2.0), Some(50.0)).unwrap(), expected(2.0, 0.5));
        assert_eq!(slow(None, Some(0.0)).unwrap(), expected(1.0, 0.01));
        assert!(slow(Some(0.0), None).is_err());
    }
}
