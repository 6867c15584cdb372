use std::collections::BTreeMap;

use leyline_proto::istio::workload::{
    self as wire,
    load_balancing::{HealthPolicy, Mode, Scope},
};
use leyline_types::{OrigDst, WorkloadUid};
use prost::Message;

use crate::{
    EndpointView, OutboundRoute, Service, Standing,
    testing::{hbone, in_service, rng, service, store, uid, workload_of},
};

/// An endpoint at a place `region/zone/node`, with a capacity.
fn endpoint(name: &str, ip: &str, place: &str, capacity: u32) -> wire::Workload {
    let mut parts = place.split('/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    let locality = wire::Locality {
        region: next(),
        zone: next(),
        subzone: String::new(),
    };
    wire::Workload {
        locality: Some(locality),
        node: next(),
        capacity: Some(capacity),
        ..in_service(hbone(name, &[ip]), "web", &[])
    }
}

/// How often each endpoint is picked of 1000 connections from region `r`, zone `z`, node `a`.
fn picks(lb: wire::LoadBalancing, endpoints: Vec<wire::Workload>) -> BTreeMap<String, u32> {
    let web = wire::Service {
        load_balancing: Some(lb),
        ..service("web", &["10.1.0.1"])
    };
    let mut client = endpoint("client", "10.0.0.1", "r/z/a", 1);
    client.services.clear();
    let mut changes: Vec<crate::Change> = vec![client.into(), web.into()];
    changes.extend(endpoints.into_iter().map(Into::into));
    let snapshot = store(changes).snapshot();
    let client = workload_of(&snapshot, "client");
    let mut rng = rng();
    let mut counts = BTreeMap::new();
    for _ in 0..1000 {
        let dst = OrigDst::new("10.1.0.1:80".parse().unwrap());
        let name = match snapshot.route_outbound(client, dst, &mut rng) {
            OutboundRoute::Hbone(route) => route.workload.name.name.to_string(),
            OutboundRoute::Refused(why) => why.reason().to_owned(),
            other => format!("{other:?}"),
        };
        *counts.entry(name).or_insert(0) += 1;
    }
    counts
}

fn names(counts: &BTreeMap<String, u32>) -> Vec<&str> {
    counts.keys().map(String::as_str).collect()
}

fn prefer(mode: Mode, scopes: &[Scope]) -> wire::LoadBalancing {
    wire::LoadBalancing {
        mode: mode.into(),
        routing_preference: scopes.iter().map(|scope| i32::from(*scope)).collect(),
        health_policy: 0,
    }
}

#[test]
fn picks_by_capacity() {
    let check = |lb: wire::LoadBalancing| {
        let counts = picks(
            lb,
            vec![
                endpoint("one", "10.0.0.2", "r/z/a", 1),
                endpoint("three", "10.0.0.3", "r/z/a", 3),
                endpoint("zero", "10.0.0.4", "r/z/a", 0),
            ],
        );
        assert_eq!(names(&counts), ["one", "three"]);
        assert!((200..300).contains(&counts["one"]), "{counts:?}");
    };
    check(wire::LoadBalancing::default());
    check(prefer(Mode::Failover, &[Scope::Region]));
}

#[test]
fn rare_usable_endpoints_are_found() {
    let mut endpoints: Vec<wire::Workload> = (0..50)
        .map(|at| wire::Workload {
            network: "far".into(),
            ..endpoint(&format!("far-{at}"), "10.9.0.1", "r/z/a", 1000)
        })
        .collect();
    endpoints.push(endpoint("near", "10.0.0.2", "r/z/a", 1));
    assert_eq!(
        names(&picks(wire::LoadBalancing::default(), endpoints)),
        ["near"]
    );
}

#[test]
fn without_capacity_there_is_no_upstream() {
    let counts = picks(
        wire::LoadBalancing::default(),
        vec![endpoint("zero", "10.0.0.2", "r/z/a", 0)],
    );
    assert_eq!(names(&counts), ["no_healthy_upstream"]);
}

#[test]
fn preferences_rank_or_require() {
    use Scope::{Network, Node, Region, Zone};
    let check =
        |mode: Mode, scopes: &[Scope], places: &[(&'static str, &str)], expected: &[&str]| {
            let endpoints = places
                .iter()
                .enumerate()
                .map(|(at, (name, place))| endpoint(name, &format!("10.0.1.{at}"), place, 1))
                .collect();
            let counts = picks(prefer(mode, scopes), endpoints);
            assert_eq!(names(&counts), expected, "{mode:?} {scopes:?}");
        };
    let all = [
        ("far", "q/y/c"),
        ("node", "r/z/a"),
        ("region", "r/y/c"),
        ("zone", "r/z/b"),
        ("zone2", "r/z/c"),
    ];
    let everyone = ["far", "node", "region", "zone", "zone2"];
    check(Mode::UnspecifiedMode, &[Region, Zone], &all, &everyone);
    check(
        Mode::Failover,
        &[Network, Region, Zone],
        &all,
        &["node", "zone", "zone2"],
    );
    check(Mode::Failover, &[Region, Zone, Node], &all, &["node"]);
    check(
        Mode::Failover,
        &[Region, Zone, Node],
        &all[2..],
        &["zone", "zone2"],
    );
    check(Mode::Failover, &[Region, Zone], &all[..1], &["far"]);
    check(Mode::Failover, &[], &all, &everyone);
    // Only leading scopes count: the same zone name in another region is nothing.
    check(
        Mode::Failover,
        &[Region, Zone],
        &[("alias", "q/z/b"), ("region", "r/y/b")],
        &["region"],
    );
    check(Mode::Strict, &[Node], &all, &["node"]);
    check(
        Mode::Strict,
        &[Region, Zone],
        &all,
        &["node", "zone", "zone2"],
    );
    check(Mode::Strict, &[Node], &all[2..], &["no_healthy_upstream"]);
    check(Mode::Strict, &[], &all, &everyone);
}

#[test]
fn readiness_counts_unless_the_service_says_otherwise() {
    let check = |policy: HealthPolicy, expected: &str| {
        let starting = wire::Workload {
            status: wire::WorkloadStatus::Unhealthy.into(),
            ..endpoint("starting", "10.0.0.2", "r/z/a", 1)
        };
        let lb = wire::LoadBalancing {
            health_policy: policy.into(),
            ..wire::LoadBalancing::default()
        };
        assert_eq!(names(&picks(lb, vec![starting])), [expected]);
    };
    check(HealthPolicy::OnlyHealthy, "no_healthy_upstream");
    check(HealthPolicy::AllowAll, "starting");
}

/// What the application would tell of endpoints.
#[derive(Default)]
struct Seen {
    loads: BTreeMap<WorkloadUid, u64>,
    standings: BTreeMap<WorkloadUid, Standing>,
    kept: Option<WorkloadUid>,
}

impl EndpointView for Seen {
    fn load(&self, endpoint: &WorkloadUid) -> u64 {
        self.loads.get(endpoint).copied().unwrap_or(0)
    }

    fn standing(&self, endpoint: &WorkloadUid) -> Standing {
        let known = self.standings.get(endpoint).copied();
        known.unwrap_or(Standing::Good)
    }

    fn kept(&self, _service: &Service) -> Option<WorkloadUid> {
        self.kept.clone()
    }
}

/// As [`picks`], by what is seen; the endpoints `near-0`, `near-1` are in the client's zone, `far` is not.
fn picks_seeing(web: wire::Service, seen: &Seen) -> BTreeMap<String, u32> {
    let mut client = endpoint("client", "10.0.0.1", "r/z/a", 1);
    client.services.clear();
    let snapshot = store([
        client.into(),
        web.into(),
        endpoint("near-0", "10.0.0.2", "r/z/b", 1).into(),
        endpoint("near-1", "10.0.0.3", "r/z/c", 1).into(),
        endpoint("far", "10.0.0.4", "r/y/d", 1).into(),
    ])
    .snapshot();
    let client = workload_of(&snapshot, "client");
    let (mut rng, mut counts) = (rng(), BTreeMap::new());
    for _ in 0..1000 {
        let dst = OrigDst::new("10.1.0.1:80".parse().unwrap());
        let name = match snapshot.route_outbound_among(client, dst, seen, &mut rng) {
            OutboundRoute::Hbone(route) => route.workload.name.name.to_string(),
            OutboundRoute::Refused(why) => why.reason().to_owned(),
            other => format!("{other:?}"),
        };
        *counts.entry(name).or_insert(0) += 1;
    }
    counts
}

fn everywhere() -> wire::Service {
    service("web", &["10.1.0.1"])
}

fn by_zone(mode: Mode) -> wire::Service {
    wire::Service {
        load_balancing: Some(prefer(mode, &[Scope::Region, Scope::Zone])),
        ..everywhere()
    }
}

#[test]
fn of_two_the_less_loaded_is_taken() {
    let check = |web: wire::Service, busy: &str, expected: std::ops::Range<u32>| {
        let mut seen = Seen::default();
        seen.loads.insert(uid(busy), 100);
        let counts = picks_seeing(web, &seen);
        let times = counts.get(busy).copied().unwrap_or(0);
        assert!(expected.contains(&times), "{busy}: {counts:?}");
    };
    // Only when both draws fall on it.
    check(everywhere(), "near-0", 80..150);
    check(by_zone(Mode::Failover), "near-0", 200..300);
    // Load does not outweigh distance.
    check(by_zone(Mode::Failover), "far", 0..1);
}

#[test]
fn what_has_failed_is_avoided_as_long_as_there_is_another() {
    use Standing::{Avoided, Excluded};
    let check = |web: wire::Service, standings: &[(&str, Standing)], expected: &[&str]| {
        let standings = standings
            .iter()
            .map(|(name, as_seen)| (uid(name), *as_seen));
        let seen = Seen {
            standings: standings.collect(),
            ..Seen::default()
        };
        assert_eq!(names(&picks_seeing(web, &seen)), expected);
    };
    let all = |standing| ["near-0", "near-1", "far"].map(|name| (name, standing));
    check(everywhere(), &[("far", Avoided)], &["near-0", "near-1"]);
    check(everywhere(), &[("far", Excluded)], &["near-0", "near-1"]);
    check(everywhere(), &all(Avoided), &["far", "near-0", "near-1"]);
    check(everywhere(), &all(Excluded), &["no_healthy_upstream"]);
    let near = &[("near-0", Avoided), ("near-1", Avoided)];
    check(by_zone(Mode::Failover), near, &["far"]);
    check(by_zone(Mode::Strict), near, &["near-0", "near-1"]);
    let one = &[("near-0", Excluded), ("near-1", Avoided)];
    check(by_zone(Mode::Strict), one, &["near-1"]);
}

#[test]
fn a_client_stays_where_it_was_if_the_service_wants_it() {
    let sticky = |web: wire::Service| wire::Service {
        extensions: vec![wire::Extension {
            name: "leyline.io/session-affinity".to_owned(),
            config: Some(prost_types::Any {
                type_url: "type.googleapis.com/google.protobuf.Duration".to_owned(),
                value: prost_types::Duration {
                    seconds: 10_800,
                    nanos: 0,
                }
                .encode_to_vec(),
            }),
        }],
        ..web
    };
    let check = |web: wire::Service, kept: &str, standing: Standing, expected: &[&str]| {
        let seen = Seen {
            loads: [(uid(kept), 100)].into(),
            standings: [(uid(kept), standing)].into(),
            kept: Some(uid(kept)),
        };
        assert_eq!(names(&picks_seeing(web, &seen)), expected);
    };
    let good = Standing::Good;
    check(sticky(everywhere()), "near-1", good, &["near-1"]);
    check(sticky(by_zone(Mode::Failover)), "far", good, &["far"]);
    check(
        sticky(by_zone(Mode::Strict)),
        "far",
        good,
        &["near-0", "near-1"],
    );
    check(
        sticky(everywhere()),
        "near-1",
        Standing::Avoided,
        &["far", "near-0"],
    );
    check(
        sticky(everywhere()),
        "gone",
        good,
        &["far", "near-0", "near-1"],
    );
    check(everywhere(), "near-1", good, &["far", "near-0", "near-1"]);
}
