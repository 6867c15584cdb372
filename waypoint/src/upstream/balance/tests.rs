use std::collections::BTreeMap;

use rand::{SeedableRng, rngs::StdRng};
use tokio::time::Duration;

use super::*;
use crate::config::{
    cluster::balance::{Balance, Balancing, SlowStart},
    endpoints::Locality,
};

/// Localities of weight, with the weights of their endpoints; all of one priority.
fn set(localities: &[(u32, &[u32])]) -> Arc<EndpointSet> {
    let mut last = 0;
    let localities = localities.iter().map(|(weight, endpoints)| Locality {
        weight: *weight,
        endpoints: endpoints
            .iter()
            .map(|weight| {
                last += 1;
                Arc::new(Endpoint {
                    address: EndpointAddress::Plain(([10, 0, 0, last], 80).into()),
                    others: Box::default(),
                    host: None,
                    weight: *weight,
                    told_healthy: true,
                    state: Arc::default(),
                })
            })
            .collect(),
    });
    Arc::new(EndpointSet::new(vec![vec![], localities.collect()], 140))
}

fn balancing(policy: Balance) -> Balancing {
    Balancing {
        policy,
        slow_start: None,
        panic_threshold: 0.0,
        by_locality: false,
    }
}

const RING: Balance = Balance::RingHash {
    min_size: 1024,
    max_size: 1 << 20,
};
const MAGLEV: Balance = Balance::Maglev { table_size: 65_537 };

/// How often each endpoint (by its last byte) is picked.
fn picks(set: &Arc<EndpointSet>, balancing: &Balancing, count: u64) -> BTreeMap<u8, u64> {
    let now = Instant::now();
    let balancer = Balancer::new(balancing, set, 0, now, None);
    let mut rng = StdRng::seed_from_u64(7);
    let mut picked = BTreeMap::new();
    for number in 0..count {
        let wanted = Wanted {
            tried: &[],
            beyond: &[],
            hash: balancing
                .policy
                .is_by_hash()
                .then(|| twox_hash::XxHash64::oneshot(0, &number.to_le_bytes())),
        };
        let endpoint = balancer.pick(balancing, wanted, &mut rng, now).unwrap();
        *picked.entry(last_byte(&endpoint)).or_default() += 1;
    }
    picked
}

fn last_byte(endpoint: &Endpoint) -> u8 {
    match endpoint.address.addr().ip() {
        std::net::IpAddr::V4(ip) => ip.octets()[3],
        std::net::IpAddr::V6(_) => 0,
    }
}

/// Within `tolerance` percent of the shares.
#[track_caller]
fn check(picked: &BTreeMap<u8, u64>, shares: &[u64], tolerance: u64) {
    let (count, total): (u64, u64) = (picked.values().sum(), shares.iter().sum());
    for (endpoint, share) in (1u8..).zip(shares) {
        let expected = count * share / total;
        let got = picked.get(&endpoint).copied().unwrap_or(0);
        assert!(
            got.abs_diff(expected) * 100 <= expected * tolerance,
            "{endpoint} got {got} in place of {expected}: {picked:?}"
        );
    }
}

#[test]
fn every_policy_keeps_the_weights() {
    let weights: [&[u32]; 3] = [&[1, 1, 1], &[3, 2, 1], &[5, 5, 90]];
    for weights in weights {
        let shares: Vec<u64> = weights.iter().map(|weight| u64::from(*weight)).collect();
        let set = set(&[(0, weights)]);
        for (policy, tolerance) in [
            (Balance::RoundRobin, 0),
            (Balance::Random, 10),
            (Balance::LeastRequest { choices: 2 }, 10),
            // 1024 points are not many for an exact share.
            (RING, 35),
            (MAGLEV, 10),
        ] {
            check(&picks(&set, &balancing(policy), 12_000), &shares, tolerance);
        }
    }
}

#[test]
fn turns_of_a_heavy_endpoint_are_spread() {
    let set = set(&[(0, &[5, 1, 1])]);
    let policy = balancing(Balance::RoundRobin);
    let now = Instant::now();
    let balancer = Balancer::new(&policy, &set, 0, now, None);
    let mut rng = StdRng::seed_from_u64(1);
    let mut next = || {
        let picked = balancer.pick(&policy, Wanted::default(), &mut rng, now);
        last_byte(&picked.unwrap())
    };
    let round: Vec<u8> = (0..14).map(|_| next()).collect();
    assert_eq!(round[..7], round[7..]);
    let longest = round.split(|one| *one != 1).map(<[u8]>::len).max().unwrap();
    assert!(longest < 5, "{round:?}");
}

#[test]
fn localities_get_their_own_weight() {
    let set = set(&[(80, &[1]), (20, &[1, 1]), (0, &[1])]);
    let mut balancing = balancing(Balance::RoundRobin);
    check(&picks(&set, &balancing, 4000), &[1, 1, 1, 1], 0);
    balancing.by_locality = true;
    check(&picks(&set, &balancing, 4000), &[80, 10, 10, 0], 10);
    balancing.policy = MAGLEV;
    check(&picks(&set, &balancing, 8000), &[80, 10, 10, 0], 15);
}

#[test]
fn the_least_loaded_is_preferred_by_weight() {
    let set = set(&[(0, &[1, 1, 4])]);
    let endpoints: Vec<_> = set.all().cloned().collect();
    let _load: Vec<_> = (0..10).map(|_| endpoints[0].state.enter()).collect();
    let _more: Vec<_> = (0..3).map(|_| endpoints[2].state.enter()).collect();
    let picked = picks(&set, &balancing(Balance::LeastRequest { choices: 4 }), 1000);
    // The busy one is taken only when all draws fall on it; the strong one's requests weigh a quarter.
    assert!(picked.get(&1).copied().unwrap_or(0) < 10, "{picked:?}");
    assert!(picked[&2] > picked[&3], "{picked:?}");
}

#[test]
fn a_hash_stays_with_its_endpoint_when_others_go() {
    for policy in [RING, MAGLEV] {
        let balancing = balancing(policy);
        let (all, now) = (set(&[(0, &[1; 10])]), Instant::now());
        let mut rest = Vec::new();
        for endpoint in all.all().filter(|endpoint| last_byte(endpoint) != 4) {
            rest.push(endpoint.clone());
        }
        let rest = Locality {
            weight: 0,
            endpoints: rest,
        };
        let rest = Arc::new(EndpointSet::new(vec![vec![], vec![rest]], 140));
        let before = Balancer::new(&balancing, &all, 0, now, None);
        let after = Balancer::new(&balancing, &rest, 0, now, None);
        let mut rng = StdRng::seed_from_u64(1);
        let (mut moved, mut kept) = (0, 0);
        for number in 0..2000u64 {
            let wanted = Wanted {
                tried: &[],
                beyond: &[],
                hash: Some(twox_hash::XxHash64::oneshot(0, &number.to_le_bytes())),
            };
            let mut at = |balancer: &Balancer| {
                let picked = balancer.pick(&balancing, wanted, &mut rng, now);
                last_byte(&picked.unwrap())
            };
            assert_eq!(at(&before), at(&before));
            match (at(&before), at(&after)) {
                (4, _) => {}
                (one, other) if one == other => kept += 1,
                _ => moved += 1,
            }
        }
        // The places of nine are not those of ten less one: both move a few.
        assert!(moved * 10 < kept, "{policy:?}: {moved} moved, {kept} kept");
    }
}

#[test]
fn what_failed_is_avoided_as_long_as_there_are_others() {
    for policy in [Balance::RoundRobin, Balance::Random, RING, MAGLEV] {
        let (set, balancing, now) = (set(&[(0, &[100, 1, 1])]), balancing(policy), Instant::now());
        let balancer = Balancer::new(&balancing, &set, 0, now, None);
        let all: Vec<EndpointAddress> = set.all().map(|endpoint| endpoint.address).collect();
        let mut rng = StdRng::seed_from_u64(1);
        for number in 0..100 {
            let mut pick = |tried: &[EndpointAddress]| {
                let hash = policy.is_by_hash().then_some(number << 56);
                let wanted = Wanted {
                    tried,
                    beyond: &[],
                    hash,
                };
                let picked = balancer.pick(&balancing, wanted, &mut rng, now);
                picked.unwrap().address
            };
            assert_ne!(pick(&all[..1]), all[0]);
            assert_eq!(pick(&all[..2]), all[2]);
            pick(&all);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn new_endpoints_get_their_share_little_by_little() {
    for policy in [Balance::RoundRobin, Balance::LeastRequest { choices: 2 }] {
        let old = set(&[(0, &[1, 1])]);
        tokio::time::advance(Duration::from_secs(1000)).await;
        let new = Arc::new(Endpoint {
            address: EndpointAddress::Plain(([10, 0, 0, 3], 80).into()),
            others: Box::default(),
            host: None,
            weight: 1,
            told_healthy: true,
            state: Arc::default(),
        });
        let mut endpoints: Vec<_> = old.all().cloned().collect();
        endpoints.push(new);
        let all = Locality {
            weight: 0,
            endpoints,
        };
        let set = Arc::new(EndpointSet::new(vec![vec![all]], 140));
        let balancing = Balancing {
            slow_start: Some(SlowStart {
                window: Duration::from_secs(100),
                aggression: 1.0,
                min_weight: 0.1,
            }),
            ..balancing(policy)
        };
        check(&picks(&set, &balancing, 6000), &[10, 10, 1], 20);
        tokio::time::advance(Duration::from_secs(50)).await;
        check(&picks(&set, &balancing, 6000), &[10, 10, 5], 20);
        tokio::time::advance(Duration::from_secs(50)).await;
        check(&picks(&set, &balancing, 6000), &[1, 1, 1], 10);
    }
}

#[test]
fn a_retry_goes_beyond_the_priorities_that_were_tried() {
    let level = |first: u8| {
        let endpoints = (first..first + 2).map(|last| {
            Arc::new(Endpoint {
                address: EndpointAddress::Plain(([10, 0, 0, last], 80).into()),
                others: Box::default(),
                host: None,
                weight: 1,
                told_healthy: true,
                state: Arc::default(),
            })
        });
        vec![Locality {
            weight: 0,
            endpoints: endpoints.collect(),
        }]
    };
    let set = Arc::new(EndpointSet::new(vec![level(1), level(3)], 140));
    let (now, balancing) = (Instant::now(), balancing(Balance::Random));
    let balancer = Balancer::new(&balancing, &set, 0, now, None);
    let mut rng = StdRng::seed_from_u64(7);
    let addresses: Vec<EndpointAddress> = set.all().map(|endpoint| endpoint.address).collect();
    for (beyond, expected) in [
        (&addresses[..0], [1, 2]),
        (&addresses[..1], [3, 4]),
        (&addresses[2..3], [1, 2]),
        // Where all were tried, the first is as good as any.
        (&addresses[1..3], [1, 2]),
    ] {
        for _ in 0..20 {
            let wanted = Wanted {
                beyond,
                ..Wanted::default()
            };
            let picked = balancer.pick(&balancing, wanted, &mut rng, now).unwrap();
            assert!(expected.contains(&last_byte(&picked)), "{beyond:?}");
        }
    }
}

#[test]
fn a_request_that_began_before_an_update_does_not_bring_old_endpoints_back() {
    let cluster = Cluster::compile(
        &envoy_types::pb::envoy::config::cluster::v3::Cluster {
            cluster_discovery_type: Some(
                envoy_types::pb::envoy::config::cluster::v3::cluster::ClusterDiscoveryType::Type(3),
            ),
            ..Default::default()
        },
        None,
        &Default::default(),
    )
    .unwrap();
    let (old, new) = (set(&[(0, &[1])]), set(&[(0, &[1, 1])]));
    let picked = |set| pick(&cluster, set, Wanted::default(), &mut rand::rng()).unwrap();
    picked(&old);
    let seen = |set| (0..50).map(|_| last_byte(&picked(set))).max();
    assert_eq!(seen(&old), Some(1));
    assert_eq!(seen(&new), Some(2));
    assert_eq!(seen(&old), Some(2));
}
