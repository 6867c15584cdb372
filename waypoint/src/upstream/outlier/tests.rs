use super::*;

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
        assert_eq!(found.flatten().next(), expected, "{showed:?}");
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
