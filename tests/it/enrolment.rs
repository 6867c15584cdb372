//! Finer promises of enrolment: nothing breaks, nothing is left, labels of pods, pods that come later.

use std::{collections::BTreeMap, fs, time::Duration};

use futures::future::try_join_all;
use leyline_tests::{
    cluster::Family,
    eventually::eventually,
    mesh::{Enrolment, Mesh, uid},
    netlink::Netlink,
};
use tokio::{sync::watch, task::JoinSet};

use crate::support::{load, mesh};

const SOON: Duration = Duration::from_secs(10);
/// What capture may set in a pod (facts/capture.md 2.1).
const SYSCTLS: [&str; 3] = [
    "/proc/sys/net/ipv4/tcp_fwmark_accept",
    "/proc/sys/net/ipv4/fwmark_reflect",
    "/proc/sys/net/ipv6/fwmark_reflect",
];

/// TestServiceDynamicEnroll: enrolling and releasing under load breaks no connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_dynamic_enroll() {
    let mesh = mesh().await;
    let cluster = mesh.cluster();
    let client = cluster.client("shop/client").unwrap();
    let (stop, stopped) = watch::channel(false);
    let mut calls = JoinSet::new();
    for server in ["shop/server-v1", "shop/server-v2"] {
        for family in Family::ALL {
            let target = cluster.pod_addr(server, family, 8080).unwrap();
            calls.spawn(load(client.clone(), target, stopped.clone()));
        }
    }
    let mut held = Vec::new();
    for from in ["shop/client", "legacy/legacy"] {
        let echo = cluster
            .pod_addr("shop/server-v1", Family::V4, 9000)
            .unwrap();
        held.push(
            cluster
                .client(from)
                .unwrap()
                .connect(echo, SOON)
                .await
                .unwrap(),
        );
    }
    for _ in 0..3 {
        for enrolment in [Enrolment::Ambient, Enrolment::None] {
            mesh.set_enrolment("shop", enrolment).await.unwrap();
            try_join_all(held.iter_mut().map(|held| held.echo(b"still here")))
                .await
                .unwrap();
        }
    }
    stop.send(true).unwrap();
    let made: usize = calls.join_all().await.into_iter().sum();
    assert!(made > 100, "only {made} calls were made");
    mesh.stop().await.unwrap();
}

/// Rules, routes and settings of a pod, and what is pinned for all.
async fn kernel_state(mesh: &Mesh, pod: &str) -> BTreeMap<String, String> {
    let namespace = mesh.cluster().pod(pod).unwrap().namespace();
    let policy = Netlink::open(namespace).unwrap().policy().await.unwrap();
    let mut state = BTreeMap::from([("policy".to_owned(), policy.join("\n"))]);
    for path in SYSCTLS {
        let value = namespace.run(|| fs::read_to_string(path)).unwrap().unwrap();
        state.insert(path.to_owned(), value);
    }
    state
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_in_a_released_pod() {
    let mesh = mesh().await;
    let mut untouched = BTreeMap::new();
    for pod in ["shop/client", "shop/server-v1"] {
        untouched.insert(pod, kernel_state(&mesh, pod).await);
    }
    mesh.set_enrolment("shop", Enrolment::Ambient)
        .await
        .unwrap();
    for (pod, before) in &untouched {
        let now = kernel_state(&mesh, pod).await;
        assert_ne!(&now, before, "capture has set nothing in {pod}");
    }
    mesh.set_enrolment("shop", Enrolment::None).await.unwrap();
    for (pod, before) in &untouched {
        let what = format!("all of capture is gone from {pod}");
        let gone = eventually(what, SOON, || async {
            let now = kernel_state(&mesh, pod).await;
            anyhow::ensure!(&now == before, "before {before:#?}\nnow {now:#?}");
            Ok(())
        });
        gone.await.unwrap();
    }
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_come_later_are_enrolled_and_forgotten_with_their_namespace() {
    let mut mesh = mesh().await;
    mesh.set_enrolment("shop", Enrolment::Ambient)
        .await
        .unwrap();
    let pod = "\
apiVersion: v1
kind: Pod
metadata: {name: late, namespace: shop, labels: {app: late}}
spec:
  nodeName: node-b
  serviceAccountName: server
  containers: [{name: app, image: leyline-echo, args: [--http=8080]}]
";
    mesh.cluster().config().write("late.yaml", pod).unwrap();
    mesh.cluster_mut().follow_pods().await.unwrap();
    let (late, edit) = (uid("shop/late"), mesh.limits().edit);
    let enrolled = eventually("the late pod is enrolled", edit, || async {
        let dumps = mesh.dumps().await?;
        anyhow::ensure!(dumps["node-b"].up.contains(&late), "not served");
        dumps["node-a"].check_enrolled(&late)
    });
    enrolled.await.unwrap();
    let target = mesh
        .cluster()
        .pod_addr("shop/late", Family::V6, 8080)
        .unwrap();
    let client = mesh.cluster().client("shop/client").unwrap();
    let seen = client
        .get(target, "/", SOON)
        .await
        .unwrap()
        .description()
        .unwrap();
    assert_eq!(seen.pod, "late");

    mesh.cluster().config().remove("late.yaml").unwrap();
    mesh.cluster_mut().follow_pods().await.unwrap();
    let gone = eventually("the late pod is forgotten", edit, || async {
        for (node, dump) in mesh.dumps().await? {
            anyhow::ensure!(!dump.workloads.contains_key(&late), "known on {node}");
            anyhow::ensure!(!dump.up.contains(&late), "served on {node}");
        }
        Ok(())
    });
    gone.await.unwrap();
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_label_of_a_pod_wins_over_that_of_its_namespace() {
    let mesh = mesh().await;
    let config = mesh.cluster().config();
    let plain = config.read("shop.yaml").unwrap();
    let opted_out = plain.replacen(
        "    app: server\n    version: v1\n",
        "    app: server\n    version: v1\n    istio.io/dataplane-mode: none\n",
        1,
    );
    assert_ne!(opted_out, plain);
    config.write("shop.yaml", &opted_out).unwrap();
    mesh.write_label("shop", Enrolment::Ambient).unwrap();
    let edit = mesh.limits().edit;
    let settled = eventually("all but the one pod are enrolled", edit, || async {
        for dump in mesh.dumps().await?.values() {
            dump.check_enrolled(&uid("shop/client"))?;
            dump.check_enrolled(&uid("shop/server-v2"))?;
            dump.check_not_enrolled(&uid("shop/server-v1"))?;
        }
        Ok(())
    });
    settled.await.unwrap();
    let client = mesh.cluster().client("shop/client").unwrap();
    for server in ["shop/server-v1", "shop/server-v2"] {
        let target = mesh.cluster().pod_addr(server, Family::V4, 8080).unwrap();
        client.get(target, "/", SOON).await.unwrap();
    }
    mesh.stop().await.unwrap();
}
