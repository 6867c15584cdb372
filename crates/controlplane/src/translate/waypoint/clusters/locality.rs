//! Which endpoints are near: `localityLbSetting` of a DestinationRule and `trafficDistribution` of a Service, as seen from
//! the pod of a waypoint. Nearness becomes priorities, shares of localities become weights (facts A.6, E.3).

use std::collections::BTreeMap;

use leyline_proto::istio::workload::{Workload, load_balancing::Scope};

use super::{
    super::view::{EndpointView, Member, ServiceView},
    Policy,
};
use crate::objects::l7::destination_rule::{Distribute, Failover};

const NETWORK: &str = "topology.istio.io/network";
const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const SUBZONE: &str = "topology.istio.io/subzone";
const HOSTNAME: &str = "kubernetes.io/hostname";

/// Shares are given in percent; so fine are they split over the localities that share one.
const PARTS: u64 = 1000;

/// Region, zone and subzone.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct Place {
    pub(in super::super) region: String,
    pub(in super::super) zone: String,
    pub(in super::super) subzone: String,
}

/// Where one pod of a waypoint is.
#[derive(Clone, Debug)]
pub(in super::super) struct Standpoint {
    place: Place,
    /// Its labels, with those of its place.
    labels: BTreeMap<String, String>,
}

/// How endpoints are ranked.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) enum Nearness {
    /// Shares by place.
    Shares(Vec<Distribute>),
    /// By region, zone and subzone; then other regions, one of them before the rest.
    Places(Vec<Failover>),
    /// By how many of these labels are the same, from the first on.
    Labels(Vec<String>),
}

impl Place {
    pub(in super::super) fn of(workload: &Workload) -> Self {
        let Some(locality) = &workload.locality else {
            return Self::default();
        };
        Self {
            region: locality.region.clone(),
            zone: locality.zone.clone(),
            subzone: locality.subzone.clone(),
        }
    }

    /// How many parts of a pattern (`region/zone/subzone`, `*` or nothing for any) name this place, if all fit.
    fn fits(&self, pattern: &str) -> Option<usize> {
        let mut patterns = pattern.splitn(3, '/');
        let mut named = 0;
        for part in [&self.region, &self.zone, &self.subzone] {
            match patterns.next().unwrap_or("*") {
                "*" | "" => {}
                text if text == part => named += 1,
                _ => return None,
            }
        }
        Some(named)
    }
}

impl Standpoint {
    pub(in super::super) fn of(member: &Member) -> Self {
        Self {
            place: Place::of(&member.workload),
            labels: labels_of(member),
        }
    }
}

/// Labels of a workload; where it is, is among them, as Istio has it.
fn labels_of(member: &Member) -> BTreeMap<String, String> {
    let workload = &member.workload;
    let place = Place::of(workload);
    let mut labels = member.labels.clone();
    let topology = [
        (NETWORK, &workload.network),
        (REGION, &place.region),
        (ZONE, &place.zone),
        (SUBZONE, &place.subzone),
        (HOSTNAME, &workload.node),
    ];
    for (key, value) in topology {
        if !value.is_empty() {
            labels.insert(key.to_owned(), value.clone());
        }
    }
    labels
}

impl Nearness {
    /// Of a cluster; `None` where all endpoints are alike.
    pub(super) fn of(policy: &Policy, service: &ServiceView<'_>) -> Option<Self> {
        let balancer = policy.load_balancer.as_ref();
        let setting = balancer.and_then(|balancer| balancer.locality_lb_setting.as_ref());
        let setting = setting.cloned().unwrap_or_default();
        // A Service that wants near endpoints gets them, with or without detection of bad ones.
        if !service.preference.is_empty() {
            return Some(Self::Labels(service.preference.clone()));
        }
        if setting.enabled == Some(false) {
            return None;
        }
        if !setting.distribute.is_empty() {
            return Some(Self::Shares(setting.distribute));
        }
        // Without detection nothing would ever fail over.
        policy.outlier_detection.as_ref()?;
        Some(if setting.failover_priority.is_empty() {
            Self::Places(setting.failover)
        } else {
            Self::Labels(setting.failover_priority)
        })
    }

    /// The rank of an endpoint; 0 is nearest. Ranks may have gaps.
    pub(super) fn rank(&self, from: &Standpoint, endpoint: &EndpointView<'_>) -> usize {
        match self {
            Self::Shares(_) => 0,
            Self::Places(failover) => {
                let (own, place) = (&from.place, Place::of(&endpoint.member.workload));
                // Who does not know where he is has nothing near.
                if *own == Place::default() || *own == place {
                    return 0;
                }
                if own.region != place.region {
                    let next = failover.iter().find(|pair| pair.from == own.region);
                    return match next {
                        Some(pair) if pair.to == place.region => 3,
                        Some(_) => 4,
                        None => 3,
                    };
                }
                if own.zone == place.zone { 1 } else { 2 }
            }
            Self::Labels(names) => {
                let labels = labels_of(endpoint.member);
                let is_same = |name: &&String| match name.split_once('=') {
                    // The value that counts in place of the waypoint's own.
                    Some((key, value)) => labels.get(key).is_some_and(|own| own == value),
                    None => labels.get(name.as_str()) == from.labels.get(name.as_str()),
                };
                names.len() - names.iter().take_while(is_same).count()
            }
        }
    }

    /// The weights of places, of these weights by their endpoints: `None` where they stay as they are. A place without
    /// a share gets none.
    pub(super) fn weights(
        &self,
        from: &Standpoint,
        places: &BTreeMap<Place, u32>,
    ) -> Option<BTreeMap<Place, u32>> {
        let Self::Shares(distribute) = self else {
            return None;
        };
        let fitting = distribute
            .iter()
            .filter_map(|one| Some((from.place.fits(&one.from)?, one)));
        let (_, chosen) = fitting.max_by_key(|(named, _)| *named)?;
        let mut by_pattern: BTreeMap<&str, Vec<(&Place, u32)>> = BTreeMap::new();
        for (place, weight) in places {
            let patterns = chosen.to.keys();
            let fitting = patterns.filter_map(|pattern| Some((place.fits(pattern)?, pattern)));
            if let Some((_, pattern)) = fitting.max_by_key(|(named, _)| *named) {
                by_pattern
                    .entry(pattern)
                    .or_default()
                    .push((place, *weight));
            }
        }
        let mut weights = BTreeMap::new();
        for (pattern, places) in by_pattern {
            let share = chosen.to.get(pattern).copied().unwrap_or(0);
            let total: u64 = places.iter().map(|(_, weight)| u64::from(*weight)).sum();
            for (place, weight) in places {
                let part = u64::from(share) * PARTS * u64::from(weight);
                let part = part.checked_div(total).unwrap_or(0);
                if share > 0 {
                    let weight = u32::try_from(part.max(1)).unwrap_or(u32::MAX);
                    weights.insert(place.clone(), weight);
                }
            }
        }
        Some(weights)
    }
}

/// What a Service prefers, as labels in the order of their weight (Istio makes the same of it).
pub(in super::super) fn preference(scopes: &[i32]) -> Vec<String> {
    let label = |scope: &i32| match Scope::try_from(*scope) {
        Ok(Scope::Network) => Some(NETWORK),
        Ok(Scope::Region) => Some(REGION),
        Ok(Scope::Zone) => Some(ZONE),
        Ok(Scope::Subzone) => Some(SUBZONE),
        Ok(Scope::Node) => Some(HOSTNAME),
        Ok(Scope::Cluster | Scope::UnspecifiedScope) | Err(_) => None,
    };
    scopes.iter().filter_map(label).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use leyline_proto::istio::workload::Locality;

    use super::*;

    fn member(place: &str, labels: &[(&str, &str)]) -> Member {
        let mut parts = place.split('/').map(str::to_owned);
        let mut part = || parts.next().unwrap_or_default();
        let locality = Locality {
            region: part(),
            zone: part(),
            subzone: part(),
        };
        Member {
            workload: Workload {
                locality: Some(locality),
                node: "node-1".to_owned(),
                ..Workload::default()
            },
            labels: labels
                .iter()
                .map(|(key, value)| ((*key).into(), (*value).into()))
                .collect(),
        }
    }

    #[track_caller]
    fn check_ranks(nearness: &Nearness, from: &Member, expected: &[(&Member, usize)]) {
        let from = Standpoint::of(from);
        for (member, rank) in expected {
            let endpoint = EndpointView {
                member,
                address: Some(IpAddr::from([10, 0, 0, 1])),
                ports: BTreeMap::new(),
            };
            assert_eq!(
                nearness.rank(&from, &endpoint),
                *rank,
                "{:?}",
                member.workload
            );
        }
    }

    #[test]
    fn places_are_ranked_by_region_zone_and_subzone() {
        let failover = vec![Failover {
            from: "eu".to_owned(),
            to: "us".to_owned(),
        }];
        let at = |place| member(place, &[]);
        let (near, zone, region) = (at("eu/a/1"), at("eu/a/2"), at("eu/b/1"));
        let (us, asia) = (at("us/a/1"), at("asia/a/1"));
        let ranks = [(&near, 0), (&zone, 1), (&region, 2), (&us, 3), (&asia, 4)];
        check_ranks(&Nearness::Places(failover), &near, &ranks);
        let ranks = [(&near, 0), (&region, 2), (&us, 3), (&asia, 3)];
        check_ranks(&Nearness::Places(Vec::new()), &near, &ranks);
        check_ranks(
            &Nearness::Places(Vec::new()),
            &at("//"),
            &[(&us, 0), (&near, 0)],
        );
    }

    #[test]
    fn labels_count_from_the_first_as_long_as_they_are_the_same() {
        let names = |names: &[&str]| {
            Nearness::Labels(names.iter().map(|name| (*name).to_owned()).collect())
        };
        let from = member("eu/a/1", &[("version", "v1")]);
        let same = member("eu/a/1", &[("version", "v1")]);
        let other = member("eu/a/1", &[("version", "v2")]);
        let far = member("us/a/1", &[("version", "v1")]);
        let nearness = names(&["version", REGION, ZONE]);
        check_ranks(&nearness, &from, &[(&same, 0), (&far, 2), (&other, 3)]);
        let nearness = names(&["version=v2", REGION]);
        check_ranks(&nearness, &from, &[(&other, 0), (&same, 2)]);
        check_ranks(&names(&[HOSTNAME]), &from, &[(&far, 0)]);
    }

    #[test]
    fn shares_are_split_over_the_places_that_a_pattern_names() {
        let place = |text: &str| Place::of(&member(text, &[]).workload);
        let to = |pairs: &[(&str, u32)]| {
            pairs
                .iter()
                .map(|(pattern, share)| ((*pattern).to_owned(), *share))
                .collect()
        };
        let nearness = Nearness::Shares(vec![
            Distribute {
                from: "eu/*".to_owned(),
                to: to(&[("eu/a/*", 80), ("eu/*", 20), ("us/*", 0)]),
            },
            Distribute {
                from: "us/a/*".to_owned(),
                to: to(&[("us/*", 100)]),
            },
        ]);
        let places: BTreeMap<Place, u32> = [
            (place("eu/a/1"), 3),
            (place("eu/a/2"), 1),
            (place("eu/b/1"), 5),
            (place("us/a/1"), 5),
        ]
        .into();
        let from = |text| Standpoint::of(&member(text, &[]));
        let weights = nearness.weights(&from("eu/a/1"), &places).unwrap();
        let expected = [
            (place("eu/a/1"), 60_000),
            (place("eu/a/2"), 20_000),
            (place("eu/b/1"), 20_000),
        ];
        assert_eq!(weights, expected.into());
        assert_eq!(nearness.weights(&from("asia/a/1"), &places), None);
    }
}
