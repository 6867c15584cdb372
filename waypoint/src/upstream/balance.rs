//! Which endpoint gets the next request.

use std::sync::Arc;

use rand::{Rng, RngExt};

use crate::config::{
    cluster::{Balance, Cluster},
    endpoints::{Endpoint, EndpointAddress, EndpointSet},
};

/// Picks an endpoint of the best priority that has one, not one of `tried` if there are others.
pub(crate) fn pick(
    cluster: &Cluster,
    set: &EndpointSet,
    tried: &[EndpointAddress],
    rng: &mut impl Rng,
) -> Option<Arc<Endpoint>> {
    let fresh = |endpoint: &&Arc<Endpoint>| !tried.contains(&endpoint.address);
    for priority in &set.priorities {
        let untried: Vec<&Arc<Endpoint>> = priority.iter().filter(fresh).collect();
        if let Some(found) = choose(cluster.balance, &untried, rng) {
            return Some(found);
        }
    }
    let all = set
        .priorities
        .iter()
        .find(|priority| !priority.is_empty())?;
    choose(cluster.balance, &all.iter().collect::<Vec<_>>(), rng)
}

fn choose(
    balance: Balance,
    endpoints: &[&Arc<Endpoint>],
    rng: &mut impl Rng,
) -> Option<Arc<Endpoint>> {
    match balance {
        Balance::LeastRequest => {
            // Power of two choices: nearly as even as looking at all, and it needs no lock.
            let one = weighted(endpoints, rng)?;
            let other = weighted(endpoints, rng)?;
            let least = if other.state.active() < one.state.active() {
                other
            } else {
                one
            };
            Some(least.clone())
        }
        Balance::Random | Balance::RoundRobin => weighted(endpoints, rng).cloned(),
    }
}

fn weighted<'a>(endpoints: &[&'a Arc<Endpoint>], rng: &mut impl Rng) -> Option<&'a Arc<Endpoint>> {
    let total: u64 = endpoints
        .iter()
        .map(|endpoint| u64::from(endpoint.weight))
        .sum();
    if total == 0 {
        return None;
    }
    let mut left = rng.random_range(0..total);
    for endpoint in endpoints {
        let weight = u64::from(endpoint.weight);
        if left < weight {
            return Some(endpoint);
        }
        left -= weight;
    }
    None
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::cluster::v3 as proto;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn set(weights: &[u32]) -> EndpointSet {
        let endpoint = |(index, weight): (usize, &u32)| {
            Arc::new(Endpoint {
                address: EndpointAddress::Plain(([10, 0, 0, index as u8], 80).into()),
                weight: *weight,
                state: Arc::default(),
            })
        };
        EndpointSet {
            priorities: vec![vec![], weights.iter().enumerate().map(endpoint).collect()],
        }
    }

    fn cluster(policy: proto::cluster::LbPolicy) -> Cluster {
        let kind = proto::cluster::DiscoveryType::Eds.into();
        Cluster::compile(&proto::Cluster {
            lb_policy: policy.into(),
            cluster_discovery_type: Some(proto::cluster::ClusterDiscoveryType::Type(kind)),
            ..proto::Cluster::default()
        })
        .unwrap()
    }

    #[test]
    fn the_least_loaded_is_preferred() {
        let (set, cluster) = (
            set(&[1, 1]),
            cluster(proto::cluster::LbPolicy::LeastRequest),
        );
        let mut rng = StdRng::seed_from_u64(1);
        let busy = &set.priorities[1][0];
        let _load: Vec<_> = (0..10).map(|_| busy.state.enter()).collect();
        let picked = (0..100).filter(|_| {
            let picked = pick(&cluster, &set, &[], &mut rng).unwrap();
            picked.address == busy.address
        });
        // Both choices fall on the busy one in a quarter of all cases.
        assert!((10..40).contains(&picked.count()));
    }

    #[test]
    fn weights_are_kept_and_what_failed_is_avoided() {
        let (set, cluster) = (set(&[9, 1]), cluster(proto::cluster::LbPolicy::Random));
        let mut rng = StdRng::seed_from_u64(1);
        let first = set.priorities[1][0].address;
        let mut count = |tried: &[EndpointAddress]| {
            (0..1000)
                .filter(|_| pick(&cluster, &set, tried, &mut rng).unwrap().address == first)
                .count()
        };
        assert!((860..940).contains(&count(&[])));
        assert_eq!(count(&[first]), 0);
        let all: Vec<EndpointAddress> = set.all().map(|endpoint| endpoint.address).collect();
        assert!(count(&all) > 0);
    }
}
