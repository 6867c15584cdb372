//! istio-cni in front of the proxies: pods by its socket, connections by its iptables rules.

use std::{net::SocketAddr, time::Duration};

use anyhow::ensure;
use leyline_net::{ListenOptions, Redirection, listen};
use leyline_tests::{
    client::{End, Reply},
    cluster::Family,
    cni::{Cni, cni_uid, redirect, tool},
    dump::Dump,
    eventually::eventually,
    mesh::{Mesh, uid},
    process::output,
};
use leyline_types::ports;
use nix::sys::signal::Signal;
use tokio::{sync::watch, task::JoinSet};

use crate::support::{SOON, addr, hold, load, mesh, upgrades};

const PODS: [(&str, &str); 3] = [
    ("node-a", "shop/client"),
    ("node-b", "shop/server-v1"),
    ("node-a", "shop/server-v2"),
];

/// What istio-cni writes on a pod that it has captured.
fn annotated(shop: &str) -> String {
    let annotation = "  annotations: {ambient.istio.io/redirection: enabled}\n";
    let documents = shop.split("---\n").map(|document| {
        if document.contains("\nkind: Pod\n") {
            document.replacen("metadata:\n", &format!("metadata:\n{annotation}"), 1)
        } else {
            document.to_owned()
        }
    });
    documents.collect::<Vec<_>>().join("---\n")
}

/// The demo's mesh with the pods of the shop named by an istio-cni on each node.
pub(crate) struct Scene {
    pub(crate) mesh: Mesh,
    pub(crate) node_a: Cni,
    node_b: Cni,
}

impl Scene {
    /// Behind istio-cni's rules, or captured by the proxies themselves.
    pub(crate) async fn start(redirection: Redirection) -> Self {
        let mut mesh = mesh().await;
        let node_a = cni_of(&mut mesh, "node-a", redirection).await;
        let node_b = cni_of(&mut mesh, "node-b", redirection).await;
        let scene = Self {
            mesh,
            node_a,
            node_b,
        };
        for (node, pod) in PODS {
            let cluster = scene.mesh.cluster();
            if redirection == Redirection::Rewritten {
                redirect(cluster.pod(pod).unwrap().namespace())
                    .await
                    .unwrap();
            }
            scene.of(node).add(cluster, pod).await.unwrap();
        }
        let config = scene.mesh.cluster().config();
        let shop = config.read("shop.yaml").unwrap();
        config.write("shop.yaml", &annotated(&shop)).unwrap();
        let known = eventually("every proxy knows the pods as captured", SOON, || async {
            for dump in scene.mesh.dumps().await?.values() {
                for (_, pod) in PODS {
                    dump.check_enrolled(&uid(pod))?;
                }
            }
            Ok(())
        });
        known.await.unwrap();
        scene
    }

    fn of(&self, node: &str) -> &Cni {
        if node == "node-a" {
            &self.node_a
        } else {
            &self.node_b
        }
    }

    /// Waits until a node's proxy serves a pod, or serves it no more.
    async fn served(&self, node: &str, pod: &str, expected: bool) {
        let done = eventually(format!("{pod} is served: {expected}"), SOON, || async {
            let dump = Dump::read(&self.mesh.ztunnel(node)?.config_dump().await?)?;
            ensure!(dump.up.contains(&cni_uid(pod)) == expected, "not yet");
            Ok(())
        });
        done.await.unwrap();
    }

    async fn call(&self, from: &str, target: SocketAddr) -> Reply {
        let client = self.mesh.cluster().client(from).unwrap();
        client.get(target, "/", SOON).await.unwrap()
    }
}

/// An istio-cni that has no pod yet: its empty snapshot makes the proxy ready.
async fn cni_of(mesh: &mut Mesh, node: &str, redirection: Redirection) -> Cni {
    let cluster = mesh.cluster();
    let namespace = cluster.fabric().node(node).unwrap();
    let cni = Cni::start(cluster.run(), node, namespace).await.unwrap();
    let socket = cni.socket().display().to_string();
    let capture = match redirection {
        Redirection::Rewritten => "cni",
        Redirection::Steered => "ebpf",
    };
    let env = [("INPOD_UDS", socket.as_str()), ("LEYLINE_CAPTURE", capture)];
    mesh.restart_ztunnel(node, &env).await.unwrap();
    cni
}

/// Across nodes, on one node, by service and to oneself: in tunnels, and the application sees the client's address.
async fn all_ways_work(scene: &Scene) {
    let cluster = scene.mesh.cluster();
    for family in Family::ALL {
        let own = cluster.pod_addr("shop/client", family, 0).unwrap().ip();
        let mut targets = vec![cluster.vip("shop/server", family, 80).unwrap()];
        for pod in ["shop/server-v1", "shop/server-v2", "shop/client"] {
            targets.push(cluster.pod_addr(pod, family, 8080).unwrap());
        }
        for target in targets {
            let reply = scene.call("shop/client", target).await;
            assert_eq!(reply.description().unwrap().peer.ip(), own, "{target}");
        }
        // From outside of the mesh, in plaintext.
        let target = cluster.pod_addr("shop/server-v1", family, 8080).unwrap();
        let reply = scene.call("legacy/legacy", target).await;
        let legacy = cluster.pod_addr("legacy/legacy", family, 0).unwrap().ip();
        assert_eq!(reply.description().unwrap().peer.ip(), legacy);
    }
    let logged = eventually(
        "the server's proxy has seen the client's identity",
        SOON,
        || async {
            let log = scene.mesh.ztunnel("node-b")?.log()?.lines()?.join("\n");
            for part in [
                "src.identity=\"spiffe://cluster.local/ns/shop/sa/client\"",
                "src.workload=\"legacy\"",
            ] {
                ensure!(log.contains(part), "{part} is not in {log}");
            }
            Ok(())
        },
    );
    logged.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_pods_and_its_rules_are_taken() {
    let mut scene = Box::pin(Scene::start(Redirection::Rewritten)).await;
    all_ways_work(&scene).await;

    // Names too: the rules hide whom the pod asked, but not what.
    let namespace = scene.mesh.cluster().pod("shop/client").unwrap().namespace();
    for transport in ["+notcp", "+tcp"] {
        let name = "server.shop.svc.cluster.local";
        let args = ["@192.0.2.53", "+short", "+tries=1", transport, name];
        let program = tool("dig", &args, namespace);
        let answer = output(&program, SOON).await.unwrap();
        let vip = scene.mesh.cluster().vip("shop/server", Family::V4, 80);
        assert_eq!(answer.trim(), vip.unwrap().ip().to_string(), "{transport}");
    }

    // What is said again changes nothing; a pod that is gone is served no more.
    let held = hold(&scene.mesh, "shop/client", "shop/server-v1");
    let mut held = held.await;
    scene
        .node_a
        .add(scene.mesh.cluster(), "shop/client")
        .await
        .unwrap();
    held.echo(b"after").await.unwrap();
    scene.node_a.delete("shop/server-v2").await.unwrap();
    scene.served("node-a", "shop/server-v2", false).await;
    held.echo(b"still").await.unwrap();

    // A second snapshot is a mistake of protocol.
    assert!(scene.node_a.raw("1a00").await.is_err());
    let ztunnel = scene.mesh.ztunnel_mut("node-a").unwrap();
    let ended = ztunnel.ended_by_itself(Duration::from_secs(20)).await;
    assert_eq!(ended.unwrap().code(), Some(1));
    scene.mesh.stop().await.unwrap();
}

/// OUT-1, DNS-10: a pod of which the control plane says nothing waits for that, and not for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_the_control_plane_does_not_know_is_refused() {
    const POD: &str = "legacy/legacy";
    let mut mesh = mesh().await;
    let cni = cni_of(&mut mesh, "node-a", Redirection::Rewritten).await;
    let cluster = mesh.cluster();
    cluster.config().remove("legacy.yaml").unwrap();
    let forgotten = eventually("nobody knows the pod", SOON, || async {
        let dumps = mesh.dumps().await?;
        let workloads = &dumps["node-a"].workloads;
        ensure!(!workloads.contains_key(&uid(POD)), "it is known");
        Ok(())
    });
    forgotten.await.unwrap();
    let namespace = cluster.pod(POD).unwrap().namespace();
    redirect(namespace).await.unwrap();
    cni.add(cluster, POD).await.unwrap();

    let client = cluster.client(POD).unwrap();
    let target = addr(&mesh, "shop/server-v1", 9000);
    let mut connection = client.connect(target, SOON).await.unwrap();
    let dig = ["@192.0.2.53", "+tries=1", "+time=9", "server.shop"];
    let dig = tool("dig", &dig, namespace);
    let (answer, end) = tokio::join!(output(&dig, SOON * 2), connection.ended(SOON));
    let answer = answer.unwrap();
    assert!(answer.contains("status: SERVFAIL"), "{answer}");
    assert_eq!(end.unwrap(), End::Reset);
    let metrics = mesh.ztunnel("node-a").unwrap().metrics().await.unwrap();
    let reason = [("reason", "unknown_source")];
    assert_eq!(
        metrics.sum("leyline_connections_refused_total", &reason),
        1.0
    );
    drop(cni);
    mesh.stop().await.unwrap();
}

/// `ENABLE_PROXY=false`: connections are nobody's business, names are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_proxy_off_only_dns_is_answered() {
    let mut mesh = mesh().await;
    let cluster = mesh.cluster();
    let node = cluster.fabric().node("node-a").unwrap();
    let cni = Cni::start(cluster.run(), "node-a", node).await.unwrap();
    let socket = cni.socket().display().to_string();
    let env = [("INPOD_UDS", socket.as_str()), ("ENABLE_PROXY", "false")];
    mesh.restart_ztunnel("node-a", &env).await.unwrap();
    let cluster = mesh.cluster();
    let namespace = cluster.pod("shop/client").unwrap().namespace();
    let rule = "-w -t nat -A OUTPUT ! -o lo -p udp -m mark ! --mark 0x539/0xfff --dport 53 \
                -j REDIRECT --to-ports 15053";
    let rule: Vec<&str> = rule.split_whitespace().collect();
    output(&tool("iptables", &rule, namespace), SOON)
        .await
        .unwrap();
    cni.add(cluster, "shop/client").await.unwrap();

    let dig = ["@192.0.2.53", "+short", "+tries=1", "server.shop"];
    let dig = tool("dig", &dig, namespace);
    let vip = cluster.vip("shop/server", Family::V4, 80).unwrap().ip();
    let answered = eventually("a service is found by name", SOON, || async {
        let answer = output(&dig, SOON).await?;
        ensure!(answer.trim() == vip.to_string(), "{answer}");
        Ok(())
    });
    answered.await.unwrap();
    // Connections go past the proxy, which does not even listen.
    let client = cluster.client("shop/client").unwrap();
    let target = addr(&mesh, "shop/server-v1", 8080);
    client.get(target, "/", SOON).await.unwrap();
    let log = mesh.ztunnel("node-a").unwrap().log().unwrap();
    let carried = log.lines().unwrap().join("\n");
    assert!(!carried.contains("direction="), "{carried}");
    for port in [ports::OUTBOUND, ports::INBOUND_PLAINTEXT, ports::HBONE] {
        let own = addr(&mesh, "shop/client", port);
        assert!(client.connect(own, SOON).await.is_err(), "{port}");
    }
    drop(cni);
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_pods_may_be_captured_by_us() {
    let scene = Box::pin(Scene::start(Redirection::Steered)).await;
    all_ways_work(&scene).await;
    // What only its rules would have read is not ignored in silence.
    let lines = scene.mesh.ztunnel("node-a").unwrap().log().unwrap().lines();
    let told = |line: &String| line.contains("annotations of pods have no effect");
    assert!(lines.unwrap().iter().any(told));
    scene.mesh.stop().await.unwrap();
}

async fn readiness(mesh: &Mesh, node: &str, expected: &str) {
    let said = eventually(format!("{node} says {expected}"), SOON, || async {
        let ztunnel = mesh.ztunnel(node)?;
        let reply = ztunnel.ask("GET", ports::READINESS, "/healthz/ready");
        let reply = reply.await?;
        let text = String::from_utf8_lossy(&reply.body);
        ensure!(text.contains(expected), "{text}");
        Ok(())
    });
    said.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_restarts_are_felt_by_no_pod() {
    let mut scene = Box::pin(Scene::start(Redirection::Rewritten)).await;
    let server = addr(&scene.mesh, "shop/server-v1", 8080);
    let mut held = hold(&scene.mesh, "shop/client", "shop/server-v1").await;

    // Only readiness tells that it is away.
    scene.node_b.kill().await.unwrap();
    readiness(&scene.mesh, "node-b", "workload proxy manager").await;
    scene.call("shop/client", server).await;
    let run = scene.mesh.cluster().run();
    let kept = &["shop/server-v1"];
    scene.node_b.start_again(run, kept).await.unwrap();
    readiness(&scene.mesh, "node-b", "ready\n").await;
    scene.call("shop/client", server).await;
    held.echo(b"kept").await.unwrap();
    scene.served("node-b", kept[0], true).await;

    // Back without the pod: it is gone.
    scene.node_b.kill().await.unwrap();
    scene.node_b.start_again(run, &[]).await.unwrap();
    scene.served("node-b", kept[0], false).await;

    // One pod's trouble is told to istio-cni, is that pod's, and is tried again.
    let namespace = scene.mesh.cluster().pod(kept[0]).unwrap().namespace();
    let taken = ListenOptions::default();
    let taken = listen(namespace, ports::HBONE, &taken).unwrap();
    let refused = scene.node_b.add(scene.mesh.cluster(), kept[0]).await;
    let refused = format!("{:#}", refused.unwrap_err());
    assert!(refused.contains("failure to start proxy : "), "{refused}");
    readiness(&scene.mesh, "node-b", "ready\n").await;
    drop(taken);
    scene.served("node-b", kept[0], true).await;
    scene.call("shop/client", server).await;
    scene.mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_under_load_fail_no_call() {
    let Scene {
        mut mesh,
        node_a,
        node_b,
    } = Box::pin(Scene::start(Redirection::Rewritten)).await;
    let (stop, stopped) = watch::channel(false);
    let mut calls = JoinSet::new();
    for family in Family::ALL {
        let target = mesh.cluster().pod_addr("shop/server-v1", family, 8080);
        let client = mesh.cluster().client("shop/client").unwrap();
        calls.spawn(load(client, target.unwrap(), stopped.clone()));
    }
    for _ in 0..upgrades() {
        let mut held = hold(&mesh, "shop/client", "shop/server-v1").await;
        let namespace = mesh.cluster().pod("legacy/legacy").unwrap().namespace();
        let run = mesh.cluster().run();
        let old = mesh.ztunnel("node-b").unwrap();
        let mut next = old.start_successor(run, namespace).unwrap();
        next.ready().await.unwrap();
        // The old one carries what it has, and ends with that.
        let old = mesh.ztunnel_mut("node-b").unwrap();
        old.signal(Signal::SIGTERM).unwrap();
        held.echo(b"carried on").await.unwrap();
        drop(held);
        old.ended_by_itself(SOON).await.unwrap();
        // The next one, back in the node's namespace.
        mesh.start_ztunnel("node-b").unwrap();
        mesh.ztunnel_ready("node-b").await.unwrap();
        next.stop().await.unwrap();
        assert!(calls.try_join_next().is_none(), "a call has failed");
    }
    let one = eventually("the last proxy alone is connected", SOON, || async {
        ensure!(node_b.connections().await? == 1, "not alone");
        Ok(())
    });
    one.await.unwrap();
    stop.send(true).unwrap();
    let made: usize = calls.join_all().await.into_iter().sum();
    assert!(made > 100, "only {made} calls were made");
    drop(node_a);
    mesh.stop().await.unwrap();
}
