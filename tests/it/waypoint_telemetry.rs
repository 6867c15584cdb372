//! What a waypoint tells of requests and connections: metrics and access logs.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use leyline_tests::{eventually::eventually, mesh::Mesh};

use crate::{
    support::SOON,
    waypoint::{CANARY, mesh_with_waypoint},
    waypoint_limits::ask,
};

/// The metrics of the waypoint, as a scraper of its pod sees them.
async fn scraped(mesh: &Mesh, port: u16) -> Result<String> {
    let pod = mesh.cluster().pod("shop/waypoint")?.addresses().v4;
    let client = mesh.cluster().client("shop/waypoint")?;
    let target = SocketAddr::new(pod.into(), port);
    let reply = client.get(target, "/stats/prometheus", SOON).await?;
    ensure!(reply.status.is_success(), "{}", reply.status);
    Ok(String::from_utf8(reply.body.to_vec())?)
}

/// The lines of a metric that have all of these texts.
fn series<'a>(page: &'a str, name: &str, parts: &[&str]) -> Vec<&'a str> {
    page.lines()
        .filter(|line| line.starts_with(name) && parts.iter().all(|part| line.contains(part)))
        .collect()
}

fn one<'a>(page: &'a str, name: &str, parts: &[&str]) -> Result<&'a str> {
    let found = series(page, name, parts);
    ensure!(
        found.len() == 1,
        "{} series of {name} with {parts:?}",
        found.len()
    );
    found.first().copied().context("no series")
}

/// Istio's TestL7Telemetry, by its labels.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l7_telemetry() {
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY])).await;
    eventually("the call is answered", SOON, || async {
        let reply = ask(&mesh, vip, "/", "").await?;
        ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        Ok(())
    })
    .await
    .unwrap();
    let tcp = SocketAddr::new(vip.ip(), 9000);
    let client = mesh.cluster().client("shop/client").unwrap();
    let mut echo = client.connect(tcp, SOON).await.unwrap();
    echo.echo(b"through the waypoint").await.unwrap();
    drop(echo);

    let labels = [
        "reporter=\"waypoint\"",
        "source_workload=\"client\"",
        "source_workload_namespace=\"shop\"",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/client\"",
        "destination_workload_namespace=\"shop\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/server\"",
        "destination_service=\"canary.shop.svc.cluster.local\"",
        "destination_service_name=\"canary\"",
        "destination_service_namespace=\"shop\"",
        "connection_security_policy=\"mutual_tls\"",
        "response_flags=\"-\"",
    ];
    let of_http = [
        &labels[..],
        &["request_protocol=\"http\"", "response_code=\"200\""],
    ]
    .concat();
    let of_tcp = [&labels[..], &["request_protocol=\"tcp\""]].concat();
    eventually("all of it is told", SOON, || async {
        let page = scraped(&mesh, 15020).await?;
        ensure!(
            !series(&page, "istio_requests_total{", &of_http).is_empty(),
            "{page}"
        );
        one(&page, "istio_tcp_connections_closed_total{", &of_tcp)?;
        let received = one(&page, "istio_tcp_received_bytes_total{", &of_tcp)?;
        ensure!(received.ends_with(" 20"), "{received}");
        Ok(())
    })
    .await
    .unwrap();
    let page = scraped(&mesh, 15090).await.unwrap();
    for name in [
        "istio_request_duration_milliseconds_bucket{",
        "istio_request_bytes_sum{",
        "istio_response_bytes_count{",
    ] {
        assert!(!series(&page, name, &of_http).is_empty(), "{name}");
    }
    for name in [
        "istio_tcp_connections_opened_total{",
        "istio_tcp_sent_bytes_total{",
    ] {
        one(&page, name, &of_tcp).unwrap();
    }
    one(&page, "istio_build", &["component=\"proxy\""]).unwrap();
    mesh.stop().await.unwrap();
}
