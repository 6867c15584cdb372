//! An upgrade of a node's proxy: the next one takes the pods over while the old one runs, and no call fails.

use std::time::Duration;

use leyline_tests::{
    cluster::Family,
    daemon::Daemon,
    eventually::eventually,
    mesh::{Enrolment, Mesh},
};
use leyline_types::ports;
use tokio::{sync::watch, task::JoinSet};

use crate::support::{load, mesh, upgrades};

const SOON: Duration = Duration::from_secs(10);
/// The pod of [`NEXT_POD`].
const NEXT: &str = "istio-system/ztunnel-next";

/// Where the next proxy runs, as the pod of a DaemonSet would: outside of the mesh.
const NEXT_POD: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
---
apiVersion: v1
kind: Pod
metadata: {name: ztunnel-next, namespace: istio-system}
spec:
  nodeName: node-b
  serviceAccountName: ztunnel
  containers: [{name: app, image: leyline-echo, args: [--http=8080]}]
";

/// Starts the next proxy of node-b and ends the old one once the next is ready, as a DaemonSet does.
async fn hand_over(mesh: &mut Mesh) -> Daemon {
    let next = mesh.cluster().pod("istio-system/ztunnel-next").unwrap();
    let old = mesh.ztunnel("node-b").unwrap();
    let run = mesh.cluster().run();
    let mut next = old.start_successor(run, next.namespace()).unwrap();
    next.ready().await.unwrap();
    mesh.ztunnel_mut("node-b").unwrap().stop().await.unwrap();
    next
}

/// TestZtunnelRestart: the next proxy takes over under load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ztunnel_restart() {
    let mut mesh = mesh().await;
    mesh.cluster()
        .config()
        .write("next.yaml", NEXT_POD)
        .unwrap();
    mesh.cluster_mut().follow_pods().await.unwrap();
    mesh.set_enrolment("shop", Enrolment::Ambient)
        .await
        .unwrap();

    // Through the node as server and, from office/worker, as client.
    let (stop, stopped) = watch::channel(false);
    let mut calls = JoinSet::new();
    for (from, to) in [
        ("shop/client", "shop/server-v1"),
        ("office/worker", "shop/server-v2"),
    ] {
        for family in Family::ALL {
            let target = mesh.cluster().pod_addr(to, family, 8080).unwrap();
            calls.spawn(load(
                mesh.cluster().client(from).unwrap(),
                target,
                stopped.clone(),
            ));
        }
    }
    let mut next = hand_over(&mut mesh).await;
    for _ in 1..upgrades() {
        // Back into the node's namespace, and out of it again.
        mesh.start_ztunnel("node-b").unwrap();
        mesh.ztunnel_ready("node-b").await.unwrap();
        next.stop().await.unwrap();
        next = hand_over(&mut mesh).await;
        assert!(calls.try_join_next().is_none(), "a call has failed");
    }

    // A call that is certainly new.
    let target = mesh
        .cluster()
        .pod_addr("shop/server-v1", Family::V4, 8080)
        .unwrap();
    let client = mesh.cluster().client("shop/client").unwrap();
    client.get(target, "/", SOON).await.unwrap();
    stop.send(true).unwrap();
    let made: usize = calls.join_all().await.into_iter().sum();
    assert!(made > 100, "only {made} calls were made");
    next.stop().await.unwrap();
    mesh.stop().await.unwrap();
}

/// A proxy that is a pod of node b, with these settings besides.
async fn proxy_in_a_pod(mesh: &mut Mesh, env: &[(&str, &str)]) -> Daemon {
    // As Istio's chart says that a pod speaks HBONE by itself.
    let labels = "ztunnel-next, labels: {networking.istio.io/tunnel: http},";
    let pod = NEXT_POD.replace("ztunnel-next,", labels);
    mesh.cluster().config().write("next.yaml", &pod).unwrap();
    mesh.cluster_mut().follow_pods().await.unwrap();
    mesh.set_enrolment("shop", Enrolment::Ambient)
        .await
        .unwrap();
    let who = [
        ("POD_NAME", "ztunnel-next"),
        ("POD_NAMESPACE", "istio-system"),
        ("SERVICE_ACCOUNT", "ztunnel"),
    ];
    let env = [&who[..], env].concat();
    mesh.ztunnel_mut("node-b").unwrap().set_env(&env);
    let namespace = mesh.cluster().pod(NEXT).unwrap().namespace();
    let old = mesh.ztunnel("node-b").unwrap();
    let mut next = old
        .start_successor(mesh.cluster().run(), namespace)
        .unwrap();
    next.ready().await.unwrap();
    next
}

/// TestZtunnelSecureMetrics: a proxy that is a pod shows its metrics in tunnels.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ztunnel_secure_metrics() {
    let mut mesh = mesh().await;
    let mut next = proxy_in_a_pod(&mut mesh, &[("TRUST_DOMAIN", "cluster.local")]).await;
    let target = mesh.cluster().pod_addr(NEXT, Family::V4, ports::METRICS);
    let client = mesh.cluster().client("shop/client").unwrap();
    let reply = client.get(target.unwrap(), "/metrics", SOON).await.unwrap();
    assert_eq!(reply.status, 200);
    let seen = eventually("the scrape came in a tunnel", SOON, || async {
        let log = next.log()?.lines()?;
        let ours = |line: &&String| {
            line.contains("dst.workload=\"ztunnel-next\"")
                && line.contains("src.identity=\"spiffe://cluster.local/ns/shop/sa/client\"")
        };
        anyhow::ensure!(log.iter().any(|line| ours(&line)), "{}", log.join("\n"));
        Ok(())
    });
    seen.await.unwrap();
    next.stop().await.unwrap();
    mesh.stop().await.unwrap();
}

/// `TRUST_DOMAIN` is of the proxy's own identity; those of pods are in the trust domain that the control plane says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxys_own_identity_is_in_the_trust_domain_that_it_is_told() {
    let mut mesh = mesh().await;
    let elsewhere = [("TRUST_DOMAIN", "elsewhere.example")];
    let mut next = proxy_in_a_pod(&mut mesh, &elsewhere).await;
    let target = mesh.cluster().pod_addr(NEXT, Family::V4, ports::METRICS);
    let client = mesh.cluster().client("shop/client").unwrap();
    // Our CA signs for no other trust domain, so that nobody answers as the proxy.
    let scraped = client.get(target.unwrap(), "/metrics", SOON).await;
    assert!(scraped.is_err(), "{scraped:?}");
    let told = eventually("the certificate is asked for and refused", SOON, || async {
        let log = next.log()?.lines()?.join("\n");
        let identity = "spiffe://elsewhere.example/ns/istio-system/sa/ztunnel";
        anyhow::ensure!(log.contains(identity), "{log}");
        Ok(())
    });
    told.await.unwrap();
    let server = mesh
        .cluster()
        .pod_addr("shop/server-v1", Family::V4, 8080)
        .unwrap();
    client.get(server, "/", SOON).await.unwrap();
    let dump = next.config_dump().await.unwrap();
    let certificates = dump["certificates"].as_array().unwrap();
    let of_pod = certificates
        .iter()
        .find(|one| one["identity"] == "spiffe://cluster.local/ns/shop/sa/server");
    assert_eq!(of_pod.unwrap()["state"], "Available");
    next.stop().await.unwrap();
    mesh.stop().await.unwrap();
}
