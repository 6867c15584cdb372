//! Endpoints that have only a host name: resolved by the proxy's own resolver when a connection needs them.

use std::ffi::OsString;

use anyhow::ensure;
use leyline_tests::{
    cluster::Family,
    eventually::eventually,
    fabric::CONTROL_PLANE,
    process::{Process, Program, output},
};

use crate::support::{SOON, enrolled_with};

const ENTRY: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db, namespace: shop}
spec:
  hosts: [db.mesh.example]
  addresses: [10.97.0.9]
  ports: [{number: 80, name: tcp, protocol: TCP, targetPort: 8080}]
  resolution: DNS
  endpoints: [{address: db.up.example}]
";

const HALF_DEAD: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: half, namespace: shop}
spec:
  hosts: [half.mesh.example]
  addresses: [10.97.0.10]
  ports: [{number: 80, name: tcp, protocol: TCP, targetPort: 8080}]
  resolution: DNS
  endpoints: [{address: half.up.example}]
";

const HEADLESS: &str = "
apiVersion: v1
kind: Service
metadata: {name: named, namespace: shop}
spec: {clusterIP: None, selector: {app: named}, ports: [{port: 80, targetPort: 8080, name: http}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: outside, namespace: shop}
spec: {address: db.up.example, labels: {app: named}}
";

/// Starts the proxy with a resolv.conf of its own, in a mount namespace of its own.
const WITH_RESOLV_CONF: &str = r#"mount --bind "$1" /etc/resolv.conf && exec "$2" proxy"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_are_resolved_for_connections() {
    let mut mesh = enrolled_with(&[], &[]).await;
    let resolver = mesh.cluster().pod_addr("legacy/legacy", Family::V4, 53);
    let resolver = resolver.unwrap().ip();
    let namespace = mesh.cluster().pod("legacy/legacy").unwrap().namespace();
    let record = format!("--host-record=db.up.example,{resolver}");
    // The control plane is there, and nothing listens on the port.
    let dead = CONTROL_PLANE[0];
    let half_dead = format!("--host-record=half.up.example,{dead}");
    let half_alive = format!("--host-record=half.up.example,{resolver}");
    let options = [
        "--local-ttl=300",
        "--local=/example/",
        &record,
        &half_dead,
        &half_alive,
    ];
    let program = Program::dnsmasq(namespace, options);
    let mut dnsmasq = Process::start(mesh.cluster().run(), &program).unwrap();
    dnsmasq.wait_for_line("started", SOON).await.unwrap();

    let conf = mesh.cluster().run().dir().join("resolv.conf");
    std::fs::write(&conf, format!("nameserver {resolver}\n")).unwrap();
    let program = mesh.ztunnel_mut("node-a").unwrap().program_mut();
    let binary = std::mem::replace(&mut program.path, "/usr/bin/unshare".into());
    let args = ["--mount", "/bin/sh", "-ec", WITH_RESOLV_CONF, "sh"];
    program.args = args.iter().map(OsString::from).collect();
    program.args.extend([conf.into(), binary.into()]);
    program
        .env
        .insert("PATH".to_owned(), "/usr/bin:/bin".into());
    mesh.restart_ztunnel("node-a", &[]).await.unwrap();
    mesh.write_check_file("db", ENTRY).unwrap();

    let client = mesh.cluster().client("shop/client").unwrap();
    let service = "10.97.0.9:80".parse().unwrap();
    let reached = eventually("the entry is known and reached", SOON, || async {
        let reply = client.get(service, "/", SOON).await?;
        ensure!(reply.status == 200, "{}", reply.status);
        Ok(())
    });
    reached.await.unwrap();
    let metrics = mesh.ztunnel("node-a").unwrap().metrics().await.unwrap();
    let labels = [("hostname", "db.up.example"), ("source_workload", "client")];
    let asked = metrics.sum("istio_on_demand_dns_total", &labels);
    assert!(asked >= 1.0, "not counted");
    // What is known is not asked for again.
    client.get(service, "/", SOON).await.unwrap();
    let metrics = mesh.ztunnel("node-a").unwrap().metrics().await.unwrap();
    assert_eq!(metrics.sum("istio_on_demand_dns_total", &labels), asked);

    // Of a name with two addresses the one that is dead is met, and no call fails for it.
    mesh.write_check_file("half", HALF_DEAD).unwrap();
    let service = "10.97.0.10:80".parse().unwrap();
    let known = eventually("the second entry is known", SOON, || async {
        client.get(service, "/", SOON).await.map(drop)
    });
    known.await.unwrap();
    let retried = eventually("the dead address is met", SOON, || async {
        client.get(service, "/", SOON).await.unwrap();
        let metrics = mesh.ztunnel("node-a")?.metrics().await?;
        ensure!(metrics.sum("leyline_connect_retries_total", &[]) >= 1.0);
        Ok(())
    });
    retried.await.unwrap();
    // From then on it is avoided.
    let metrics = mesh.ztunnel("node-a").unwrap().metrics().await.unwrap();
    let retries = metrics.sum("leyline_connect_retries_total", &[]);
    for _ in 0..8 {
        client.get(service, "/", SOON).await.unwrap();
    }
    let metrics = mesh.ztunnel("node-a").unwrap().metrics().await.unwrap();
    assert_eq!(metrics.sum("leyline_connect_retries_total", &[]), retries);
    // A headless service stands for its endpoints, though one is only a name.
    mesh.write_check_file("headless", HEADLESS).unwrap();
    let server = format!("@{resolver}");
    let question = "named.shop.svc.cluster.local";
    let dig = ["dig", &server, "+short", "+tries=1", "+time=8", question];
    let namespace = mesh.cluster().pod("shop/client").unwrap().namespace();
    let dig = Program::of_machine("dig", dig, namespace);
    let answered = eventually("the endpoint's address is told", SOON, || async {
        let answer = output(&dig, SOON).await?;
        ensure!(answer.trim() == resolver.to_string(), "{answer}");
        Ok(())
    });
    answered.await.unwrap();
    mesh.stop().await.unwrap();
    dnsmasq.kill().await.unwrap();
}
