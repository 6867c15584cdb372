//! What an operator is told: the explanation of a connection, and metrics that others can read.

use std::{ffi::OsString, net::Ipv4Addr};

use leyline_tests::{
    cluster::{Binaries, Family},
    mesh::Mesh,
    process::{Program, output},
    scraper::scrape,
};
use serde_json::Value;

use crate::support::{SOON, addr, enrolled_with, root};

const ONLY_THE_WORKER: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-the-worker, namespace: shop}
spec:
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/worker]}}]
";

async fn explain(mesh: &Mesh, from: &str, to: &str) -> Value {
    let ztunnel = mesh.ztunnel_of("shop/client").unwrap();
    let path = format!("/explain?from={from}&to={to}&format=json");
    let reply = ztunnel.ask("GET", 15000, &path).await.unwrap();
    let body = String::from_utf8_lossy(&reply.body).into_owned();
    assert_eq!(reply.status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// Whether a call of the same kind is answered.
async fn is_answered(mesh: &Mesh, from: &str, to: std::net::SocketAddr) -> bool {
    let client = mesh.cluster().client(from).unwrap();
    client.get(to, "/", SOON).await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_explanation_is_what_then_happens() {
    let mesh = enrolled_with(&[], &[]).await;
    let vip = mesh.cluster().vip("shop/server", Family::V4, 80).unwrap();
    let explained = explain(&mesh, "shop/client", &vip.to_string()).await;
    assert_eq!(explained["verdict"]["allowed"], true, "{explained:#}");
    assert!(is_answered(&mesh, "shop/client", vip).await);
    assert_eq!(explained["route"]["kind"], "hbone");
    assert_eq!(explained["destination"]["kind"], "service");
    assert_eq!(explained["certificate"]["state"], "Available");
    let endpoints = explained["endpoints"].as_array().unwrap();
    assert!(endpoints.len() > 1, "{explained:#}");
    assert_eq!(
        endpoints.iter().filter(|one| one["picked"] == true).count(),
        1
    );
    // By name it is the same.
    let by_name = explain(&mesh, "shop/client", "server.shop.svc.cluster.local:80").await;
    assert_eq!(by_name["destination"], explained["destination"]);
    let no_port = vip.ip();
    let explained = explain(&mesh, "shop/client", &format!("{no_port}:81")).await;
    assert_eq!(explained["route"]["kind"], "refused", "{explained:#}");
    assert_eq!(explained["verdict"]["allowed"], false);

    mesh.write_check_file("policy", ONLY_THE_WORKER).unwrap();
    leyline_tests::eventually::eventually("the policy is in force", SOON, || async {
        for (node, dump) in mesh.dumps().await? {
            anyhow::ensure!(dump.policies.contains("shop/only-the-worker"), "on {node}");
        }
        Ok(())
    })
    .await
    .unwrap();
    let target = addr(&mesh, "shop/server-v1", 8080);
    for from in ["shop/client", "legacy/legacy"] {
        let explained = explain(&mesh, from, &target.to_string()).await;
        let verdict = &explained["verdict"];
        assert_eq!(
            verdict["allowed"],
            is_answered(&mesh, from, target).await,
            "{from}: {explained:#}"
        );
        assert_eq!(verdict["allowed"], false);
        let policy = &explained["policies"]["list"][0];
        assert_eq!(policy["name"], "shop/only-the-worker");
        assert_eq!(policy["matches"], false);
    }
    assert_words(&mesh, &target.to_string()).await;
    mesh.stop().await.unwrap();
}

/// The text form, and what is no question.
async fn assert_words(mesh: &Mesh, target: &str) {
    let ztunnel = mesh.ztunnel_of("shop/client").unwrap();
    let path = format!("/explain?from=shop%2Fclient&to={target}");
    let reply = ztunnel.ask("GET", 15000, &path).await.unwrap();
    let text = String::from_utf8(reply.body.to_vec()).unwrap();
    for line in [
        format!("shop/client -> {target}\n"),
        "  route        HBONE tunnel to ".to_owned(),
        "  certificate  spiffe://cluster.local/ns/shop/sa/client\n".to_owned(),
        "- ALLOW shop/only-the-worker  does not match\n".to_owned(),
        "  verdict      REFUSED: allow policies exist, but none allowed\n".to_owned(),
    ] {
        assert!(text.contains(&line), "{line} not in:\n{text}");
    }
    // The command prints the same.
    let namespace = mesh.cluster().fabric().node("node-a").unwrap();
    let program = Program {
        name: "explain".to_owned(),
        path: Binaries::beside_this_test().unwrap().ztunnel,
        args: ["explain", "--from", "shop/client", "--to", target]
            .map(OsString::from)
            .into(),
        env: std::collections::BTreeMap::new(),
        namespace: namespace.clone(),
    };
    assert_eq!(
        output(&program, SOON).await.unwrap().trim_end(),
        text.trim_end()
    );
    for bad in [
        "",
        "from=shop/client",
        "from=client&to=1.2.3.4:5",
        "from=shop/nobody&to=1.2.3.4:5",
        "from=shop/client&to=nowhere:80",
    ] {
        let reply = ztunnel
            .ask("GET", 15000, &format!("/explain?{bad}"))
            .await
            .unwrap();
        assert_eq!(reply.status, 400, "{bad}");
    }
}

/// Facts A19: family, type, and the labels that tell it apart.
// tidy: table
const FAMILIES: &[(&str, &str, &[&str])] = &[
    (
        "istio_tcp_connections_opened",
        "counter",
        &[
            "reporter",
            "source_principal",
            "destination_service",
            "response_flags",
            "connection_security_policy",
            "destination_zone",
        ],
    ),
    (
        "istio_tcp_connections_closed",
        "counter",
        &["reporter", "response_flags"],
    ),
    (
        "istio_tcp_sent_bytes",
        "counter",
        &["reporter", "request_protocol"],
    ),
    (
        "istio_tcp_received_bytes",
        "counter",
        &["reporter", "request_protocol"],
    ),
    ("istio_tcp_sockets_open", "gauge", &["reporter"]),
    ("istio_xds_message", "counter", &["url"]),
    ("istio_xds_message_bytes", "counter", &["url"]),
    ("istio_build", "gauge", &["component", "tag"]),
    ("workload_manager_active_proxy_count", "gauge", &[]),
    ("workload_manager_pending_proxy_count", "gauge", &[]),
    ("workload_manager_proxies_started", "counter", &[]),
    ("tokio_num_workers", "gauge", &[]),
    ("tokio_global_queue_depth", "gauge", &[]),
    ("tokio_num_alive_tasks", "gauge", &[]),
    (
        "tokio_worker_total_busy_duration_seconds",
        "counter",
        &["worker"],
    ),
    ("tokio_worker_park_count", "counter", &["worker"]),
    ("tokio_worker_park_unpark_count", "counter", &["worker"]),
    ("process_open_fds", "gauge", &[]),
    ("process_max_fds", "gauge", &[]),
    ("process_resident_memory_bytes", "gauge", &[]),
    ("leyline_log_lines_dropped", "counter", &[]),
    ("leyline_capture_connects", "counter", &["decision"]),
    (
        "leyline_capture_steered",
        "counter",
        &["namespace", "pod", "decision"],
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_scraper_reads_every_family() {
    let mesh = enrolled_with(&[], &[]).await;
    let target = addr(&mesh, "shop/server-v1", 8080);
    assert!(is_answered(&mesh, "shop/client", target).await);
    let metrics = mesh
        .ztunnel_of("shop/client")
        .unwrap()
        .metrics()
        .await
        .unwrap();
    let captured = metrics.sum(
        "leyline_capture_connects_total",
        &[("decision", "captured")],
    );
    let steered = metrics.sum(
        "leyline_capture_steered_total",
        &[("decision", "outbound"), ("pod", "client")],
    );
    assert!(captured > 0.0 && steered > 0.0, "{captured} {steered}");

    let directory = root().join("target/scraper-venv");
    let node = mesh.cluster().fabric().node("node-a").unwrap();
    let page = (Ipv4Addr::LOCALHOST, 15020).into();
    let scraped = scrape(&directory, node, page).await.unwrap();
    for (name, kind, labels) in FAMILIES {
        assert_eq!(
            scraped.types.get(*name).map(String::as_str),
            Some(*kind),
            "{name}"
        );
        for label in *labels {
            let has = scraped.labels[*name].iter().any(|one| one == label);
            assert!(has, "{name} has no {label}");
        }
    }
    assert_eq!(scraped.labels["istio_tcp_connections_opened"].len(), 27);
    let plain = scraped.sizes["identity"];
    for encoding in ["gzip", "deflate", "br", "zstd"] {
        assert!(scraped.sizes[encoding] < plain / 2, "{:?}", scraped.sizes);
    }
    let known = |name: &&String| FAMILIES.iter().any(|(known, _, _)| known == name);
    let undocumented: Vec<_> = scraped.undocumented.iter().filter(known).collect();
    assert!(undocumented.is_empty(), "{undocumented:?}");
    mesh.stop().await.unwrap();
}
