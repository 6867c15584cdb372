//! The pods of a service behind a waypoint are replaced one after the other while it is called.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use leyline_tests::{
    client::Client,
    cluster::Family,
    eventually::eventually,
    mesh::{Mesh, uid},
};
use tokio::{sync::watch, task::JoinSet};

use crate::{
    support::SOON,
    waypoint::{CANARY, mesh_with_waypoint},
};

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: rolling, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec:
  clusterIP: 10.96.0.93
  clusterIPs: [10.96.0.93]
  selector: {app: rolling}
  ports: [{name: http, port: 80, targetPort: 8080}]
";

fn pod(name: &str, node: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{app: rolling}}}}
spec:
  nodeName: {node}
  serviceAccountName: server
  containers: [{{name: app, image: leyline-echo, args: [--http=8080]}}]
"
    )
}

/// Starts a pod and waits until it is captured.
async fn start(mesh: &mut Mesh, name: &str, node: &str) {
    let file = format!("{name}.yaml");
    let config = mesh.cluster().config();
    config.write(&file, &pod(name, node)).unwrap();
    mesh.cluster_mut().follow_pods().await.unwrap();
    let captured = eventually("the pod is captured", mesh.limits().edit, || async {
        let uid = uid(&format!("shop/{name}"));
        for (_, dump) in mesh.dumps().await? {
            dump.check_enrolled(&uid)?;
        }
        Ok(())
    });
    captured.await.unwrap();
}

/// As Kubernetes does it: nobody is sent to the pod any more when it is killed.
async fn stop_pod(mesh: &mut Mesh, name: &str) {
    let address = mesh.cluster().pod(&format!("shop/{name}")).unwrap();
    let address = format!("{}:", address.addresses().v4);
    let config = mesh.cluster().config();
    config.remove(&format!("{name}.yaml")).unwrap();
    let gone = eventually("the waypoint knows no such endpoint", SOON, || async {
        let waypoint = mesh.waypoint("shop/waypoint")?;
        let clusters = waypoint.admin("/clusters?format=json").await?.to_string();
        ensure!(!clusters.contains(&address), "{clusters}");
        Ok(())
    });
    gone.await.unwrap();
    mesh.cluster_mut().follow_pods().await.unwrap();
}

/// Calls until it is told to stop; how many calls were answered, of how many.
async fn load(client: Client, target: SocketAddr, stopped: watch::Receiver<bool>) -> (u32, u32) {
    let (mut answered, mut all) = (0, 0);
    while !*stopped.borrow() {
        let reply = client.get(target, "/", SOON).await;
        answered += u32::from(reply.is_ok_and(|reply| reply.status == 200));
        all += 1;
    }
    (answered, all)
}

/// Who answers so many calls.
async fn answering(mesh: &Mesh, target: SocketAddr) -> Result<Vec<String>> {
    let client = mesh.cluster().client("shop/client")?;
    let mut pods = Vec::new();
    for _ in 0..8 {
        pods.push(client.get(target, "/", SOON).await?.description()?.pod);
    }
    Ok(pods)
}

/// TestServiceRestart: nine of ten calls are answered in a rolling restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_restart() {
    let (mut mesh, _vip) = Box::pin(mesh_with_waypoint(&[CANARY, SERVICE])).await;
    start(&mut mesh, "rolling-1", "node-a").await;
    start(&mut mesh, "rolling-2", "node-b").await;
    let target = mesh.cluster().vip("shop/rolling", Family::V4, 80).unwrap();
    let answered = eventually("the service answers", SOON, || answering(&mesh, target));
    answered.await.unwrap();

    let (stop, stopped) = watch::channel(false);
    let client = mesh.cluster().client("shop/client").unwrap();
    let mut calls = JoinSet::new();
    calls.spawn(load(client, target, stopped));
    for (old, new, node) in [
        ("rolling-1", "rolling-3", "node-a"),
        ("rolling-2", "rolling-4", "node-b"),
    ] {
        start(&mut mesh, new, node).await;
        stop_pod(&mut mesh, old).await;
    }
    let new = eventually("only new pods answer", SOON, || async {
        let pods = answering(&mesh, target).await?;
        let is_new = |pod: &String| ["rolling-3", "rolling-4"].contains(&pod.as_str());
        ensure!(pods.iter().all(is_new), "{pods:?}");
        Ok(())
    });
    new.await.unwrap();
    stop.send(true).unwrap();
    let (answered, all) = calls.join_next().await.unwrap().unwrap();
    assert!(
        answered * 10 >= all * 9,
        "{answered} of {all} were answered"
    );
    mesh.stop().await.unwrap();
}
