use std::thread;

use super::*;
use crate::{
    log::{Format, tests::lines},
    metrics::tests::{registry, series},
};

fn workload(name: &str, namespace: &str) -> Arc<WorkloadLabels> {
    Arc::new(WorkloadLabels {
        name: format!("{name}-7d4b9-x2x").into(),
        workload: name.into(),
        namespace: namespace.into(),
        canonical_service: format!("{name}-svc").into(),
        canonical_revision: "v1".into(),
        app: format!("{name}-app").into(),
        version: "v1.0".into(),
        cluster: "Kubernetes".into(),
        region: "r1".into(),
        zone: "z1".into(),
    })
}

/// Each test uses a namespace of its own, because the registry is one for all.
fn connection(namespace: &str, reporter: Reporter) -> Connection {
    Connection {
        reporter,
        direction: match reporter {
            Reporter::Source => Direction::Outbound,
            Reporter::Destination => Direction::Inbound,
        },
        security: Security::MutualTls,
        source: Some(workload("client", namespace)),
        destination: Some(workload("server", namespace)),
        service: Some(Arc::new(ServiceLabels {
            hostname: format!("server.{namespace}.svc.cluster.local").into(),
            name: "server".into(),
            namespace: namespace.into(),
        })),
        source_identity: Some("spiffe://cluster.local/ns/a/sa/client".parse().unwrap()),
        destination_identity: Some("spiffe://cluster.local/ns/a/sa/server".parse().unwrap()),
        src_addr: "10.0.0.1:40000".parse().unwrap(),
        dst_addr: "10.0.0.2:15008".parse().unwrap(),
        hbone_addr: Some("10.0.0.2:8080".to_owned()),
    }
}

fn bare(namespace: &str) -> Connection {
    Connection {
        security: Security::Unknown,
        source: None,
        destination: Some(workload("server", namespace)),
        service: None,
        hbone_addr: None,
        ..connection(namespace, Reporter::Destination)
    }
}

/// The line of the access log, with its duration replaced.
fn log_line(filter: &str, format: Format, run: impl FnOnce()) -> Vec<String> {
    registry();
    let all = lines(format, filter, run).into_iter();
    all.map(|line| {
        let Some((before, after)) = line.split_once("duration=\"") else {
            return line;
        };
        let (number, after) = after.split_once("ms").unwrap();
        number.parse::<u64>().unwrap();
        format!("{before}duration=\"0ms{after}")
    })
    .collect()
}

#[test]
fn a_complete_connection_logs_its_fields_in_istios_order() {
    let got = log_line("info", Format::Plain, || {
        let log = AccessLog::open(connection("order", Reporter::Source));
        log.moved_from_downstream(84);
        log.moved_from_upstream(239);
    });
    assert_eq!(
        got,
        ["TIME\tinfo\taccess\tconnection complete\t\
         src.addr=10.0.0.1:40000 src.workload=\"client-7d4b9-x2x\" src.namespace=\"order\" \
         src.identity=\"spiffe://cluster.local/ns/a/sa/client\" src.cluster=\"Kubernetes\" \
         dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:8080 dst.service=\"server.order.svc.cluster.local\" \
         dst.workload=\"server-7d4b9-x2x\" dst.namespace=\"order\" \
         dst.identity=\"spiffe://cluster.local/ns/a/sa/server\" dst.cluster=\"Kubernetes\" \
         direction=\"outbound\" bytes_sent=84 bytes_recv=239 duration=\"0ms\""]
    );
}

#[test]
fn a_failed_connection_logs_an_error_and_the_first_reason() {
    let got = log_line("info", Format::Plain, || {
        let mut log = AccessLog::open(connection("failed", Reporter::Destination));
        log.fail(
            ResponseFlag::Deny,
            "connection closed due to policy rejection: x",
        );
        log.fail(ResponseFlag::Connect, "later");
    });
    assert_eq!(got.len(), 1);
    assert!(got[0].starts_with("TIME\terror\taccess\tconnection complete\tsrc.addr="));
    assert!(
        got[0].ends_with(
            "direction=\"inbound\" bytes_sent=0 bytes_recv=0 duration=\"0ms\" \
             error=\"connection closed due to policy rejection: x\""
        ),
        "{}",
        got[0]
    );
}

#[test]
fn what_is_unknown_or_unproven_is_left_out() {
    let got = log_line("info", Format::Plain, || {
        drop(AccessLog::open(bare("bare")))
    });
    assert_eq!(
        got,
        [
            "TIME\tinfo\taccess\tconnection complete\tsrc.addr=10.0.0.1:40000 dst.addr=10.0.0.2:15008 \
         dst.workload=\"server-7d4b9-x2x\" dst.namespace=\"bare\" dst.cluster=\"Kubernetes\" \
         direction=\"inbound\" bytes_sent=0 bytes_recv=0 duration=\"0ms\""
        ]
    );
}

#[test]
fn the_json_form_has_the_same_keys() {
    let got = log_line("info", Format::Json, || drop(AccessLog::open(bare("json"))));
    let value: serde_json::Value = serde_json::from_str(&got[0]).unwrap();
    assert_eq!(value["scope"], "access");
    assert_eq!(value["src.addr"], "10.0.0.1:40000");
    assert_eq!(value["bytes_sent"], 0);
    assert_eq!(value["direction"], "inbound");
}

#[test]
fn opening_is_logged_at_debug_and_nothing_when_off() {
    let run = || drop(AccessLog::open(bare("levels")));
    let got = log_line("access=debug", Format::Plain, run);
    assert!(got[0].starts_with("TIME\tdebug\taccess\tconnection opened\tsrc.addr=10.0.0.1:40000"));
    assert!(!got[0].contains("bytes_sent"));
    assert_eq!(got.len(), 2);
    assert!(log_line("access=off", Format::Plain, run).is_empty());
}

#[test]
fn spans_do_not_enter_the_access_log() {
    let got = log_line("info", Format::Plain, || {
        let span = tracing::info_span!("inbound", pod = "x");
        let _entered = span.enter();
        drop(AccessLog::open(bare("spans")));
    });
    assert!(
        got[0].starts_with("TIME\tinfo\taccess\tconnection complete"),
        "{}",
        got[0]
    );
}

#[test]
fn metrics_carry_istios_labels_in_order() {
    registry();
    let log = AccessLog::open(connection("labels", Reporter::Destination));
    let labels = |flag: &str| {
        format!(
            "reporter=\"destination\",source_workload=\"client\",source_canonical_service=\"client-svc\",\
             source_canonical_revision=\"v1\",source_workload_namespace=\"labels\",\
             source_principal=\"spiffe://cluster.local/ns/a/sa/client\",source_app=\"client-app\",\
             source_version=\"v1.0\",source_cluster=\"Kubernetes\",\
             destination_service=\"server.labels.svc.cluster.local\",destination_service_namespace=\"labels\",\
             destination_service_name=\"server\",destination_workload=\"server\",\
             destination_canonical_service=\"server-svc\",destination_canonical_revision=\"v1\",\
             destination_workload_namespace=\"labels\",\
             destination_principal=\"spiffe://cluster.local/ns/a/sa/server\",destination_app=\"server-app\",\
             destination_version=\"v1.0\",destination_cluster=\"Kubernetes\",request_protocol=\"tcp\",\
             response_flags=\"{flag}\",connection_security_policy=\"mutual_tls\",\
             source_region=\"r1\",source_zone=\"z1\",destination_region=\"r1\",destination_zone=\"z1\""
        )
    };
    let check = |name: &str, flag: &str, value: u64| {
        let expected = format!("{name}{{{}}} {value}", labels(flag));
        assert_eq!(series(name, "=\"labels\""), [expected]);
    };
    check("istio_tcp_connections_opened_total", "-", 1);
    assert!(series("istio_tcp_connections_closed_total", "=\"labels\"").is_empty());
    log.moved_from_downstream(5);
    log.moved_from_upstream(7);
    check("istio_tcp_sent_bytes_total", "-", 7);
    check("istio_tcp_received_bytes_total", "-", 5);
    let mut log = log;
    log.fail(ResponseFlag::NetworkPolicy, "x");
    drop(log);
    check("istio_tcp_connections_closed_total", "NETWORK_POLICY", 1);
    check("istio_tcp_connections_failed_total", "NETWORK_POLICY", 1);
}

#[test]
fn the_source_counts_bytes_as_the_destination_does() {
    registry();
    let log = AccessLog::open(connection("swap", Reporter::Source));
    log.moved_from_downstream(3);
    log.moved_from_upstream(4);
    drop(log);
    let value = |name: &str| {
        let lines = series(name, "=\"swap\"");
        lines[0].rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!(value("istio_tcp_sent_bytes_total"), "4");
    assert_eq!(value("istio_tcp_received_bytes_total"), "3");
}

#[test]
fn what_is_unknown_is_labelled_unknown() {
    registry();
    let mut nobody = bare("nobody");
    nobody.source_identity = None;
    nobody.destination_identity = None;
    drop(AccessLog::open(nobody));
    let lines = series("istio_tcp_connections_closed_total", "=\"nobody\"");
    assert_eq!(lines.len(), 1);
    for label in [
        "source_workload",
        "source_principal",
        "source_cluster",
        "destination_principal",
        "destination_service",
        "destination_service_name",
        "destination_service_namespace",
        "connection_security_policy",
        "source_zone",
    ] {
        assert!(
            lines[0].contains(&format!("{label}=\"unknown\"")),
            "{label}: {}",
            lines[0]
        );
    }
    assert!(lines[0].contains("response_flags=\"-\""));
    assert!(series("istio_tcp_connections_failed_total", "=\"nobody\"").is_empty());
}

#[test]
fn flags_have_distinct_slots_and_names() {
    use ResponseFlag::*;
    let all = [
        None,
        Deny,
        Connect,
        TlsFailure,
        H2HandshakeFailure,
        NetworkPolicy,
        IdentityError,
        CertRevoked,
    ];
    assert_eq!(all.len(), ResponseFlag::COUNT);
    for (index, flag) in all.into_iter().enumerate() {
        assert_eq!(flag.index(), index, "{}", flag.as_str());
    }
}

#[test]
fn early_failures_are_logged_and_counted_with_their_reason() {
    let src = "10.0.0.1:1".parse().unwrap();
    let dst = "10.0.0.2:15008".parse().unwrap();
    let got = log_line("info", Format::Plain, || {
        early_failure(
            Direction::Inbound,
            src,
            dst,
            Refusal::TlsExpired,
            "certificate expired",
        );
    });
    assert_eq!(
        got,
        [
            "TIME\twarn\taccess\tconnection failed\tsrc.addr=10.0.0.1:1 dst.addr=10.0.0.2:15008 \
         direction=\"inbound\" error=\"certificate expired\" reason=\"tls_expired\""
        ]
    );
    assert_eq!(
        series("leyline_connections_refused_total", "tls_expired"),
        ["leyline_connections_refused_total{direction=\"inbound\",reason=\"tls_expired\"} 1"]
    );
}

#[test]
fn open_sockets_are_counted_while_they_live() {
    registry();
    let value = || series("istio_tcp_sockets_open", "destination");
    let first = OpenSocket::new(Reporter::Destination);
    let second = OpenSocket::new(Reporter::Destination);
    assert_eq!(
        value(),
        ["istio_tcp_sockets_open{reporter=\"destination\"} 2"]
    );
    drop((first, second));
    assert_eq!(
        value(),
        ["istio_tcp_sockets_open{reporter=\"destination\"} 0"]
    );
}

#[test]
fn concurrent_connections_of_one_label_set_add_up() {
    registry();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    AccessLog::open(bare("many")).moved_from_downstream(1);
                }
            });
        }
    });
    let lines = series("istio_tcp_received_bytes_total", "=\"many\"");
    assert!(lines[0].ends_with(" 400"), "{lines:?}");
}

#[test]
fn an_error_without_a_flag_is_logged_but_not_counted_as_failed() {
    let got = log_line("info", Format::Plain, || {
        AccessLog::open(bare("reset")).fail(ResponseFlag::None, "connection reset");
    });
    assert!(got[0].ends_with("error=\"connection reset\""), "{}", got[0]);
    let closed = series("istio_tcp_connections_closed_total", "=\"reset\"");
    assert!(closed[0].contains("response_flags=\"-\"") && closed[0].ends_with(" 1"));
    assert!(series("istio_tcp_connections_failed_total", "=\"reset\"").is_empty());
}
