use envoy_types::pb::{
    envoy::config::{
        cluster::v3::{self as proto, cluster::ClusterDiscoveryType},
        core::v3::{
            Address as AddressProto, SocketAddress, address, socket_address::PortSpecifier,
        },
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint as EndpointProto, LbEndpoint, LocalityLbEndpoints,
            lb_endpoint::HostIdentifier,
        },
    },
    google::protobuf::UInt32Value,
};

use super::*;
use crate::config::{cluster::EndpointSource, secrets::Secrets};

fn policy(split: bool) -> OutlierDetection {
    let trigger = |count| Trigger {
        count,
        enforced: 100,
    };
    OutlierDetection {
        server_errors: trigger(3),
        gateway_errors: trigger(2),
        local_failures: trigger(2),
        split,
        success_rate: None,
        failure_rate: None,
        local_success_rate: None,
        local_failure_rate: None,
        interval: Duration::from_secs(10),
        base_ejection: Duration::from_secs(30),
        max_ejection: Duration::from_secs(100),
        max_percent: 10,
    }
}

#[test]
fn only_what_comes_in_a_row_counts() {
    use Reason::{GatewayErrors, LocalFailures, ServerErrors};
    use Showed::{Broken, Late, Status};
    let cases: [(bool, &[Showed], Option<Reason>); 10] = [
        (
            false,
            &[Status(500), Status(501), Status(500)],
            Some(ServerErrors),
        ),
        (
            false,
            &[Status(500), Status(500), Status(200), Status(500)],
            None,
        ),
        (
            false,
            &[Status(500), Status(404), Status(500), Status(500)],
            None,
        ),
        (false, &[Status(503), Status(504)], Some(GatewayErrors)),
        (
            false,
            &[Status(503), Status(500), Status(503)],
            Some(ServerErrors),
        ),
        (false, &[Broken, Late], Some(GatewayErrors)),
        (false, &[Broken, Status(200), Late], None),
        (true, &[Broken, Late], Some(LocalFailures)),
        (true, &[Broken, Status(500), Late, Status(500)], None),
        (true, &[Status(503), Broken, Status(200), Broken], None),
    ];
    for (split, showed, expected) in cases {
        let (record, policy) = (Record::default(), policy(split));
        let found = showed.iter().flat_map(|one| record.count(&policy, *one));
        let found = found.flatten().next().map(|(reason, _)| reason);
        assert_eq!(found, expected, "{showed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_ejection_lasts_longer_until_it_is_forgotten() {
    let (record, policy) = (Record::default(), policy(false));
    let mut lasted = Vec::new();
    // How long it behaves after each return.
    for behaved in [0, 5, 0, 15, 1000, 0] {
        let lasts = record.eject(&policy, Instant::now());
        lasted.push(lasts.as_secs());
        assert!(record.back_at(Instant::now()).is_some());
        tokio::time::advance(lasts).await;
        assert_eq!(record.back_at(Instant::now()), None);
        tokio::time::advance(Duration::from_secs(behaved)).await;
    }
    // Twice as long, three times, no longer than the limit; one interval takes one off; long enough takes all off.
    assert_eq!(lasted, [30, 60, 90, 100, 100, 30]);
}

#[test]
fn grpc_failures_are_told_from_what_the_client_did_wrong() {
    let is_failure = |status| status_of_grpc(status) >= 500;
    let failures: Vec<u32> = (0..=16).filter(|status| is_failure(*status)).collect();
    assert_eq!(failures, [2, 4, 12, 13, 14, 15]);
}

/// Five endpoints, one of which answers half of its requests with 500, and never several times in a row.
fn five_of_which_one_is_flaky(change: impl Fn(&mut proto::OutlierDetection)) -> Vec<bool> {
    let endpoint = |last: u8| LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(EndpointProto {
            address: Some(AddressProto {
                address: Some(address::Address::SocketAddress(SocketAddress {
                    address: format!("10.0.0.{last}"),
                    port_specifier: Some(PortSpecifier::PortValue(80)),
                    ..SocketAddress::default()
                })),
            }),
            ..EndpointProto::default()
        })),
        ..LbEndpoint::default()
    };
    let mut outlier = proto::OutlierDetection::default();
    change(&mut outlier);
    let cluster = Cluster::compile(
        &proto::Cluster {
            name: "c".to_owned(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(0)),
            outlier_detection: Some(outlier),
            load_assignment: Some(ClusterLoadAssignment {
                endpoints: vec![LocalityLbEndpoints {
                    lb_endpoints: (1..=5).map(endpoint).collect(),
                    ..LocalityLbEndpoints::default()
                }],
                ..ClusterLoadAssignment::default()
            }),
            ..proto::Cluster::default()
        },
        None,
        &Secrets::default(),
    )
    .unwrap();
    let EndpointSource::Static(set) = &cluster.endpoints else {
        panic!("the endpoints are not static");
    };
    crate::upstream::balance::prepare(&cluster, set);
    let ask_all = || {
        for turn in 0..100 {
            for (index, endpoint) in set.all().enumerate() {
                let status = if index == 2 && turn % 2 == 0 {
                    500
                } else {
                    200
                };
                report(&cluster, endpoint, Showed::Status(status));
            }
        }
    };
    ask_all();
    let ejected = |one: &Arc<Endpoint>| one.state.back_at(Instant::now()).is_some();
    assert!(!set.all().any(ejected), "the interval is not over");
    cluster.state.outliers.ring();
    report(&cluster, set.all().next().unwrap(), Showed::Status(200));
    set.all().map(ejected).collect()
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_worse_than_the_others_is_ejected() {
    let only_third = [false, false, true, false, false];
    let value = |value| Some(UInt32Value { value });
    assert_eq!(five_of_which_one_is_flaky(|_| {}), only_third, "by default");
    let none = five_of_which_one_is_flaky(|outlier| outlier.enforcing_success_rate = value(0));
    assert_eq!(none, [false; 5]);
    for (threshold, expected) in [(50, only_third), (51, [false; 5])] {
        let found = five_of_which_one_is_flaky(|outlier| {
            outlier.enforcing_success_rate = value(0);
            outlier.enforcing_failure_percentage = value(100);
            outlier.failure_percentage_threshold = value(threshold);
        });
        assert_eq!(found, expected, "{threshold}");
    }
    let few = five_of_which_one_is_flaky(|outlier| outlier.success_rate_minimum_hosts = value(6));
    assert_eq!(few, [false; 5]);
}
