//! The harness itself: nodes, pods, apps, the sniffer, and that nothing is left of a run.

use std::{fs, path::Path, time::Duration};

use anyhow::ensure;
use bytes::Bytes;
use leyline_tests::{
    client::End,
    cluster::Family,
    eventually::eventually,
    payload::{hash, pattern},
    run,
    sniffer::Sniffer,
};

use crate::support::cluster;

const SOON: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_talk_in_plain_text_over_both_families() {
    let cluster = cluster().await;
    let client = cluster.client("shop/client").unwrap();
    for family in Family::ALL {
        for server in [
            "shop/server-v1",
            "shop/server-v2",
            "shop/client",
            "legacy/legacy",
        ] {
            let target = cluster.pod_addr(server, family, 8080).unwrap();
            let seen = client
                .get(target, "/", SOON)
                .await
                .unwrap()
                .description()
                .unwrap();
            assert_eq!(format!("{}/{}", seen.namespace, seen.pod), server);
            let own = cluster.pod_addr("shop/client", family, 0).unwrap().ip();
            assert_eq!(seen.peer.ip(), own);
        }
        let vip = cluster.vip("shop/server", family, 80).unwrap();
        assert!(client.get(vip, "/", SOON).await.is_err(), "a VIP is routed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_app_speaks_as_applications_do() {
    let cluster = cluster().await;
    let client = cluster.client("shop/client").unwrap();
    let server = |port| {
        cluster
            .pod_addr("shop/server-v1", Family::V4, port)
            .unwrap()
    };

    let data = pattern(3_000_000);
    let down = client
        .get(server(8080), "/bytes/3000000", SOON)
        .await
        .unwrap();
    assert_eq!(down.body, data);
    let up = client
        .post(server(8080), "/upload", data.clone(), SOON)
        .await
        .unwrap();
    assert_eq!(up.description().unwrap().body_sha256, hash(&data));
    assert_eq!(
        client
            .get(server(8080), "/bytes/x", SOON)
            .await
            .unwrap()
            .status,
        400
    );

    let mut summary = client.connect(server(9002), SOON).await.unwrap();
    summary.write(b"all of it").await.unwrap();
    summary.finish().await.unwrap();
    let answer = String::from_utf8(summary.read_to_end().await.unwrap()).unwrap();
    assert_eq!(answer, format!("9 {}\n", hash(b"all of it")));

    let mut banner = client.connect(server(9001), SOON).await.unwrap();
    assert_eq!(banner.read(21).await.unwrap(), b"220 server-v1 ready\r\n");
    banner.finish().await.unwrap();
    assert_eq!(banner.ended(SOON).await.unwrap(), End::Finished);

    let closed = client.connect(server(4444), SOON).await;
    assert!(closed.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sniffer_sees_plain_text_between_nodes() {
    let secret = b"open sesame, said Ali Baba";
    let cluster = cluster().await;
    let client = cluster.client("shop/client").unwrap();
    for family in Family::ALL {
        let sniffer = Sniffer::start(cluster.fabric().infra(), secret).unwrap();
        let target = cluster.pod_addr("shop/server-v1", family, 8080).unwrap();
        let reply = client
            .post(target, "/", Bytes::from_static(secret), SOON)
            .await
            .unwrap();
        assert_eq!(reply.description().unwrap().body_bytes, secret.len() as u64);
        let packets = sniffer.stop().await.unwrap();
        let secrets: Vec<_> = packets.iter().filter(|packet| packet.secret).collect();
        assert!(!secrets.is_empty(), "{packets:?}");
        assert!(secrets.iter().all(|packet| packet.destination == target));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_come_and_go_with_the_yaml() {
    let mut cluster = cluster().await;
    let pod = "\
apiVersion: v1
kind: Pod
metadata: {name: late, namespace: shop}
spec:
  nodeName: node-b
  containers: [{name: app, image: leyline-echo, args: [--http=8080]}]
";
    cluster.config().write("late.yaml", pod).unwrap();
    cluster.follow_pods().await.unwrap();
    let target = cluster.pod_addr("shop/late", Family::V6, 8080).unwrap();
    let client = cluster.client("shop/client").unwrap();
    client.get(target, "/", SOON).await.unwrap();
    let status = cluster.config().read("status.shop.late.yaml").unwrap();
    assert!(status.contains(&target.ip().to_string()), "{status}");

    cluster.config().remove("late.yaml").unwrap();
    cluster.follow_pods().await.unwrap();
    assert!(cluster.pod("shop/late").is_err());
    assert!(cluster.config().read("status.shop.late.yaml").is_err());
    assert!(client.get(target, "/", SOON).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_a_run() {
    let cluster = cluster().await;
    let id = cluster.run().id().to_owned();
    let dir = cluster.run().dir().to_owned();
    let apps: Vec<_> = fs::read_dir(dir.join("processes"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(apps.len(), cluster.pods().count());
    assert!(run::exists(&id));
    drop(cluster);
    assert!(!run::exists(&id));
    assert!(!dir.exists());
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(&id), "{mounts}");
    let ended = eventually("every process ends", SOON, async || {
        for pid in &apps {
            // Killed; a zombie until it is reaped has no command line.
            let path = Path::new("/proc").join(pid).join("cmdline");
            let command = fs::read(path).unwrap_or_default();
            ensure!(command.is_empty(), "process {pid} lives");
        }
        Ok(())
    });
    ended.await.unwrap();
    assert_eq!(run::remove(&id).unwrap(), run::Removed::default());
}
