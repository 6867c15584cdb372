//! One process for one workload, in its namespace and with its own token (`PROXY_MODE=dedicated`), behind rules of iptables.

use std::ffi::OsString;

use anyhow::ensure;
use leyline_tests::{
    access_log,
    cluster::{Binaries, Family},
    cni,
    daemon::Daemon,
    eventually::eventually,
    mesh::Mesh,
    process::output,
    ztunnel,
};

use crate::support::{SOON, enrolled_with, hold};

/// It speaks HBONE by a program of its own, says its label, and no node proxy serves it.
const WORKLOAD: &str = "partner/gateway";
const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
";

/// The group of Istio's proxies, which its rules for a single workload leave alone: the way to the control plane goes direct.
const GROUP: &str = "1337";

async fn redirect(mesh: &Mesh) {
    let namespace = mesh.cluster().pod(WORKLOAD).unwrap().namespace();
    cni::redirect(namespace).await.unwrap();
    let owned = ["-m", "owner", "--gid-owner", GROUP, "-j", "RETURN"];
    let first = ["-w", "-t", "nat", "-I", "OUTPUT"];
    let rule = [&first[..], &owned[..]].concat();
    let iptables = cni::tool("iptables", &rule, namespace);
    output(&iptables, SOON).await.unwrap();
}

async fn start(mesh: &Mesh) -> Daemon {
    let cluster = mesh.cluster();
    let namespace = cluster.pod(WORKLOAD).unwrap().namespace();
    let token = mesh
        .controlplane()
        .account_token(cluster.run(), "partner", "gateway")
        .await
        .unwrap();
    let binary = Binaries::beside_this_test().unwrap().ztunnel;
    let mut proxy = ztunnel::prepare(cluster.run(), "gateway", namespace, &binary, &token);
    let program = proxy.program_mut();
    let args = ["--regid", GROUP, "--clear-groups"].map(OsString::from);
    program.args = Vec::from(args);
    program.args.extend([binary.into(), "proxy".into()]);
    program.path = "/usr/bin/setpriv".into();
    let env = &mut program.env;
    env.remove("NODE_NAME");
    env.insert("PROXY_MODE".to_owned(), "dedicated".into());
    let workload = "partner/gateway/gateway";
    env.insert("PROXY_WORKLOAD_INFO".to_owned(), workload.into());
    proxy.start(cluster.run()).unwrap();
    proxy.ready().await.unwrap();
    proxy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_with_a_proxy_of_its_own() {
    let mesh = enrolled_with(&[], &[]).await;
    redirect(&mesh).await;
    let mut proxy = start(&mesh).await;
    mesh.write_check_file("strict", STRICT).unwrap();

    // Both directions, and only in tunnels: plaintext is refused on either side.
    let client = mesh.cluster().client("shop/client").unwrap();
    let gateway = mesh.cluster().client(WORKLOAD).unwrap();
    let inward = mesh.cluster().pod_addr(WORKLOAD, Family::V4, 8080).unwrap();
    let outward = mesh.cluster().vip("shop/server", Family::V4, 80).unwrap();
    let legacy = mesh.cluster().client("legacy/legacy").unwrap();
    eventually("plaintext is refused", SOON, || async {
        let answered = legacy.get(inward, "/", SOON).await.is_ok();
        ensure!(!answered, "answered");
        Ok(())
    })
    .await
    .unwrap();
    client.get(inward, "/", SOON).await.unwrap();
    gateway.get(outward, "/", SOON).await.unwrap();
    let mut held = hold(&mesh, "shop/client", WORKLOAD).await;
    held.echo(b"both ways").await.unwrap();

    let log = proxy.log().unwrap();
    let inbound = [
        ("direction", "inbound"),
        ("src.identity", "spiffe://cluster.local/ns/shop/sa/client"),
        ("dst.workload", "gateway"),
    ];
    access_log::find(log, &inbound, SOON).await.unwrap();
    let outbound = [
        ("direction", "outbound"),
        (
            "src.identity",
            "spiffe://cluster.local/ns/partner/sa/gateway",
        ),
        ("dst.service", "server.shop.svc.cluster.local"),
    ];
    access_log::find(log, &outbound, SOON).await.unwrap();
    // Nobody else's certificate was asked for.
    let dump = proxy.config_dump().await.unwrap();
    let certificates = dump["certificates"].as_array().unwrap();
    assert_eq!(certificates.len(), 1, "{certificates:#?}");
    assert_eq!(certificates[0]["state"], "Available");
    drop(held);
    proxy.stop().await.unwrap();
    mesh.stop().await.unwrap();
}
