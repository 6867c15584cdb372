//! Applications that ask for their connections by SOCKS5, with curl as the client.

use std::time::Duration;

use anyhow::Context;
use leyline_tests::{
    access_log,
    client::End,
    echo::Description,
    mesh::Mesh,
    process::{Program, output},
};

use crate::{
    local::ONLY_STRANGERS,
    support::{SOON, addr, enrolled_with, in_force},
};

const CLIENT: &str = "shop/client";
const CLIENT_ID: &str = "spiffe://cluster.local/ns/shop/sa/client";
const IPV4: [&str; 2] = ["--socks5", "127.0.0.1:15080"];
const IPV6: [&str; 2] = ["--socks5", "[::1]:15080"];
const BY_NAME: [&str; 2] = ["--socks5-hostname", "127.0.0.1:15080"];
/// Longer than a client may take to say what it wants.
const SILENCE: Duration = Duration::from_secs(20);

/// What curl prints, errors too.
async fn curl(mesh: &Mesh, pod: &str, proxy: [&str; 2], url: &str) -> String {
    let command = format!("curl -sS -m 8 {} {} {url} 2>&1 || true", proxy[0], proxy[1]);
    let namespace = mesh.cluster().pod(pod).unwrap().namespace();
    let program = Program::of_machine("curl", ["sh", "-c", &command], namespace);
    output(&program, SOON).await.unwrap()
}

/// Whoever answered, and what it saw.
async fn called(mesh: &Mesh, proxy: [&str; 2], url: &str) -> Description {
    let said = curl(mesh, CLIENT, proxy, url).await;
    let described = serde_json::from_str(&said);
    described.with_context(|| format!("{url}: {said}")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_by_socks5_are_like_captured_ones() {
    let mesh = enrolled_with(&["node-a"], &[("UNSTABLE_ENABLE_SOCKS5", "true")]).await;
    let node = mesh.ztunnel_of(CLIENT).unwrap();
    let client = addr(&mesh, CLIENT, 0).ip();
    let application = mesh.cluster().client(CLIENT).unwrap();
    let port = "127.0.0.1:15080".parse().unwrap();
    let mut silent = application.connect(port, SOON).await.unwrap();

    // By address, over the wire and inside the node; the application is called from the pod's address.
    for server in ["shop/server-v1", "shop/server-v2"] {
        let target = addr(&mesh, server, 8080);
        let seen = called(&mesh, IPV4, &format!("http://{target}/")).await;
        assert_eq!(seen.peer.ip(), client);
        let target = target.to_string();
        let end = match server {
            "shop/server-v1" => ("dst.hbone_addr", target.as_str()),
            _ => ("path", "node-local"),
        };
        let wanted = [
            ("direction", "outbound"),
            ("src.workload", "client"),
            ("src.identity", CLIENT_ID),
            end,
        ];
        let log = node.log().unwrap();
        let line = access_log::find(log, &wanted, SOON).await.unwrap();
        let from = line.field("src.addr").unwrap();
        assert!(from.starts_with(&format!("{client}:")), "{from}");
    }
    // Services by address and by name.
    called(&mesh, IPV6, "http://10.96.0.20/").await;
    called(&mesh, IPV6, "http://[fd00:96::20]/").await;
    for name in ["server", "server.shop", "server.shop.svc.cluster.local"] {
        called(&mesh, BY_NAME, &format!("http://{name}/")).await;
    }

    // Failures are told in the reply, so success was not told before.
    let dead = [
        addr(&mesh, "shop/server-v1", 8999),
        addr(&mesh, "shop/server-v2", 8999),
        addr(&mesh, "legacy/legacy", 8999),
    ];
    for target in dead {
        let said = curl(&mesh, CLIENT, IPV4, &format!("http://{target}/")).await;
        assert!(said.contains("(5)"), "{target}: {said}");
    }
    for (proxy, url, reply, reason) in [
        (IPV4, "http://127.0.0.1:8080/", "(2)", "self_call"),
        (IPV4, "http://0.0.0.0:15001/", "(2)", "self_call"),
        (BY_NAME, "http://nobody.example/", "(4)", "unknown_host"),
    ] {
        let said = curl(&mesh, CLIENT, proxy, url).await;
        assert!(said.contains(reply), "{url}: {said}");
        let metrics = node.metrics().await.unwrap();
        let refused = metrics.sum("leyline_connections_refused_total", &[("reason", reason)]);
        assert!(refused >= 1.0, "{reason}");
    }
    assert_eq!(silent.ended(SILENCE).await.unwrap(), End::Finished);
    let metrics = node.metrics().await.unwrap();
    let reason = [("reason", "socks5")];
    assert!(metrics.sum("leyline_connections_refused_total", &reason) >= 1.0);

    // The other node has been told nothing: nobody listens there.
    let said = curl(&mesh, "shop/server-v1", IPV4, "http://10.96.0.20/").await;
    assert!(said.starts_with("curl: (7)"), "{said}");
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_hold_for_connections_by_socks5() {
    let mesh = enrolled_with(&["node-a"], &[("UNSTABLE_ENABLE_SOCKS5", "true")]).await;
    let tunnelled = addr(&mesh, "shop/server-v1", 8080);
    let local = addr(&mesh, "shop/server-v2", 8080);
    called(&mesh, IPV4, &format!("http://{tunnelled}/")).await;
    mesh.write_check_file("policy", ONLY_STRANGERS).unwrap();
    for (node, target) in [("node-b", tunnelled), ("node-a", local)] {
        in_force(&mesh, node, "shop/only-strangers").await;
        let said = curl(&mesh, CLIENT, IPV4, &format!("http://{target}/")).await;
        assert!(said.contains("(2)"), "{target}: {said}");
    }
    mesh.stop().await.unwrap();
}
