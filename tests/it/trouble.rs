//! One pod's trouble is that pod's: it is told, it is tried again, and everybody else is served meanwhile.

use std::{
    fs::{self, File},
    io::Read,
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Result, ensure};
use leyline_net::{ListenOptions, listen::listen_on};
use leyline_tests::{
    access_log,
    client::End,
    cluster::Family,
    cni,
    eventually::eventually,
    mesh::{Enrolment, Mesh, uid},
    process::output,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::support::{SOON, addr, enrolled_with, hold, mesh};

/// Retries of a pod get as rare as one in five seconds.
const RETRIED: Duration = Duration::from_secs(15);

const LATE: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: late, namespace: shop, labels: {app: late}}
spec:
  nodeName: node-b
  serviceAccountName: server
  containers: [{name: app, image: leyline-echo, args: [--http=8080, --tcp=9000]}]
";

/// Labels the namespace, and waits until all of its pods are served but the one that has trouble.
async fn enrol_all_but(mesh: &Mesh, troubled: &str, error: &str) {
    mesh.write_label("shop", Enrolment::Ambient).unwrap();
    let node = mesh.cluster().pod(troubled).unwrap().spec().node.clone();
    let settled = eventually(format!("all but {troubled} are served"), SOON, || async {
        let dumps = mesh.dumps().await?;
        for pod in ["shop/client", "shop/server-v1", "shop/server-v2"] {
            let up = dumps.values().any(|dump| dump.up.contains(&uid(pod)));
            ensure!(up == (pod != troubled), "{pod} up: {up}");
        }
        let dump = mesh.ztunnel(&node)?.config_dump().await?;
        let state = &dump["workloadState"][uid(troubled)];
        ensure!(state["state"] == "Pending", "{state}");
        let told = state["error"].as_str().unwrap_or_default();
        ensure!(told.contains(error), "{told}");
        Ok(())
    });
    settled.await.unwrap();
    let ztunnel = mesh.ztunnel(&node).unwrap();
    let ready = ztunnel.ask("GET", 15021, "/healthz/ready").await.unwrap();
    assert_eq!(ready.status, 200, "the node is not ready");
    let lines = ztunnel.log().unwrap().lines().unwrap();
    let told = |line: &&String| line.contains("cannot be enrolled yet") && line.contains(error);
    assert!(lines.iter().any(|line| told(&line)), "not in the log");
    let metrics = ztunnel.metrics().await.unwrap();
    assert_eq!(
        metrics.sum("workload_manager_pending_proxy_count", &[]),
        1.0
    );

    // The mesh sends nothing in plaintext to the pod that should be in it; who is outside reaches it as before.
    for (from, pod, reached) in [
        ("shop/client", "shop/server-v2", true),
        ("shop/client", troubled, false),
        ("legacy/legacy", troubled, true),
    ] {
        let client = mesh.cluster().client(from).unwrap();
        for family in Family::ALL {
            let target = mesh.cluster().pod_addr(pod, family, 8080).unwrap();
            let reply = client.get(target, "/", SOON).await;
            assert_eq!(reply.is_ok(), reached, "{from} to {pod}");
        }
    }
}

async fn recovers(mesh: &Mesh, pod: &str) {
    let enrolled = eventually(format!("{pod} is enrolled"), RETRIED, || async {
        for dump in mesh.dumps().await?.values() {
            dump.check_enrolled(&uid(pod))?;
        }
        Ok(())
    });
    enrolled.await.unwrap();
    let client = mesh.cluster().client("shop/client").unwrap();
    client.get(addr(mesh, pod, 8080), "/", SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken() {
    let mesh = mesh().await;
    let pod = "shop/server-v1";
    let namespace = mesh.cluster().pod(pod).unwrap().namespace();
    let any = (Ipv6Addr::UNSPECIFIED, 15008).into();
    let squatter = listen_on(namespace, any, &ListenOptions::default()).unwrap();
    enrol_all_but(&mesh, pod, "cannot listen on port 15008 in the pod").await;
    drop(squatter);
    recovers(&mesh, pod).await;
    mesh.stop().await.unwrap();
}

/// Nobody waits for an endpoint that the control plane has replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_to_an_endpoint_that_leaves_goes_to_its_successor() {
    let entry = |endpoint: IpAddr| {
        format!(
            "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: moving, namespace: shop}}
spec:
  hosts: [moving.mesh.example]
  addresses: [10.97.0.11]
  ports: [{{number: 80, name: tcp, protocol: TCP, targetPort: 8080}}]
  resolution: STATIC
  endpoints: [{{address: {endpoint}}}]
"
        )
    };
    let mesh = enrolled_with(&[], &[]).await;
    let fabric = mesh.cluster().fabric();
    let silent = IpAddr::from(fabric.node_addresses("node-b").unwrap().v4);
    let drop_calls = "-w -t raw -A PREROUTING -p tcp --dport 8080 -d";
    let mut rule: Vec<&str> = drop_calls.split(' ').collect();
    let address = silent.to_string();
    rule.extend([&*address, "-j", "DROP"]);
    let rule = cni::tool("iptables", &rule, fabric.node("node-b").unwrap());
    output(&rule, SOON).await.unwrap();
    mesh.write_check_file("moving", &entry(silent)).unwrap();
    let node = mesh.ztunnel_of("shop/client").unwrap();
    let knows = eventually("the entry is known", SOON, || async {
        let services = node.config_dump().await?["services"].to_string();
        ensure!(services.contains("moving.mesh.example"), "{services}");
        Ok(())
    });
    knows.await.unwrap();

    let client = mesh.cluster().client("shop/client").unwrap();
    let call = client.get("10.97.0.11:80".parse().unwrap(), "/", SOON);
    let replaced = async {
        let waits = eventually("the connection waits", SOON, || async {
            let state = &node.config_dump().await?["workloadState"];
            let outbound = &state[uid("shop/client")]["connections"]["outbound"];
            let outbound = outbound.to_string();
            ensure!(outbound.contains(&format!("{address}:8080")), "{outbound}");
            Ok(())
        });
        waits.await.unwrap();
        let successor = addr(&mesh, "legacy/legacy", 0).ip();
        mesh.write_check_file("moving", &entry(successor)).unwrap();
    };
    let (reply, ()) = tokio::join!(call, replaced);
    assert_eq!(reply.unwrap().description().unwrap().pod, "legacy");
    let metrics = node.metrics().await.unwrap();
    assert!(metrics.sum("leyline_connect_retries_total", &[]) >= 1.0);
    mesh.stop().await.unwrap();
}

/// A pod that gives all ports to outgoing connections gives them none of the proxy's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_of_the_proxy_are_kept_from_other_connections() {
    const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    const CALLS: usize = 40;
    let mesh = mesh().await;
    let namespace = mesh.cluster().pod("shop/client").unwrap().namespace();
    // The kernel gives it to one read only.
    let read = || {
        let mut text = [0; 1024];
        let read = namespace.run(|| File::open(RESERVED)?.read(&mut text));
        read.unwrap()
            .map(|length| String::from_utf8_lossy(&text[..length]).into_owned())
    };
    let written = |path: &str, text: &str| {
        let written = namespace.run(|| fs::write(path, text)).unwrap();
        written.unwrap();
    };
    written(RANGE, "15000 15063");
    written(RESERVED, "15060,15062");
    mesh.set_enrolment("shop", Enrolment::Ambient)
        .await
        .unwrap();
    let all = "15001,15006,15008,15053,15060,15062,15080\n";
    assert_eq!(read().unwrap(), all);
    let client = mesh.cluster().client("shop/client").unwrap();
    let target = addr(&mesh, "shop/server-v1", 9000);
    let mut held = Vec::new();
    for _ in 0..CALLS {
        let connection = client.connect(target, SOON).await.unwrap();
        let port = connection.local_addr().unwrap().port();
        assert!(!all.contains(&port.to_string()), "{port} is reserved");
        held.push(connection);
    }
    drop(held);
    mesh.set_enrolment("shop", Enrolment::None).await.unwrap();
    let back = eventually("the pod has its own list again", RETRIED, || async {
        let now = read()?;
        ensure!(now == "15060,15062\n", "{now}");
        Ok(())
    });
    back.await.unwrap();
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_is_missing() {
    let mesh = mesh().await;
    let pod = "shop/server-v1";
    let path: PathBuf = mesh.cluster().run().pods_dir().join("shop_server-v1");
    umount2(&path, MntFlags::MNT_DETACH).unwrap();
    fs::remove_file(&path).unwrap();
    enrol_all_but(&mesh, pod, "cannot open its network namespace").await;
    // The pod's own processes keep it alive.
    fs::write(&path, "").unwrap();
    let namespace = mesh.cluster().pod(pod).unwrap().namespace();
    let back = namespace.run(|| {
        let flags = MsFlags::MS_BIND;
        mount(
            Some("/proc/thread-self/ns/net"),
            &path,
            None::<&str>,
            flags,
            None::<&str>,
        )
    });
    back.unwrap().unwrap();
    recovers(&mesh, pod).await;
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_without_ipv6() {
    let mesh = mesh().await;
    let namespace = mesh.cluster().pod("shop/server-v1").unwrap().namespace();
    let off = || fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
    namespace.run(off).unwrap().unwrap();
    mesh.set_enrolment("shop", Enrolment::Ambient)
        .await
        .unwrap();
    let client = mesh.cluster().client("shop/client").unwrap();
    for pod in ["shop/server-v1", "shop/server-v2", "office/worker"] {
        client.get(addr(&mesh, pod, 8080), "/", SOON).await.unwrap();
    }
    let v4_only = mesh.cluster().client("shop/server-v1").unwrap();
    let target = addr(&mesh, "shop/server-v2", 8080);
    v4_only.get(target, "/", SOON).await.unwrap();
    mesh.stop().await.unwrap();
}

/// Waits until the late pod is served by its node.
async fn served(mesh: &Mesh, expected: bool) -> Result<()> {
    let what = format!("the late pod is served: {expected}");
    let settled = eventually(what, RETRIED, || async {
        let dump = mesh.ztunnel("node-b")?.config_dump().await?;
        let state = &dump["workloadState"][uid("shop/late")];
        ensure!((state["state"] == "Up") == expected, "{state}");
        Ok(())
    });
    settled.await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_made_anew_under_the_same_name_is_captured() {
    let mut mesh = enrolled_with(&[], &[]).await;
    mesh.cluster().config().write("late.yaml", LATE).unwrap();
    mesh.cluster_mut().follow_pods().await.unwrap();
    served(&mesh, true).await.unwrap();
    let old = addr(&mesh, "shop/late", 8080);
    let client = mesh.cluster().client("shop/client").unwrap();
    client.get(old, "/", SOON).await.unwrap();
    // The control plane sees the pod go and come at once, as far as it can tell.
    mesh.stop_controlplane().await.unwrap();
    mesh.cluster().config().remove("late.yaml").unwrap();
    mesh.cluster_mut().follow_pods().await.unwrap();
    mesh.cluster().config().write("late.yaml", LATE).unwrap();
    mesh.cluster_mut().follow_pods().await.unwrap();
    mesh.start_controlplane().await.unwrap();

    let target = addr(&mesh, "shop/late", 8080);
    assert_ne!(target, old);
    let back = eventually(
        "it is reached through its own proxy",
        RETRIED * 2,
        || async {
            client.get(target, "/", SOON).await?;
            let out = mesh.cluster().client("shop/late")?;
            out.get(addr(&mesh, "shop/server-v2", 8080), "/", SOON)
                .await?;
            let dump = mesh.ztunnel("node-a")?.config_dump().await?;
            let text = dump["workloads"].to_string();
            ensure!(
                text.contains(&target.ip().to_string()),
                "the old address is published"
            );
            mesh.dumps().await?["node-a"].check_enrolled(&uid("shop/late"))
        },
    );
    back.await.unwrap();
    // Captured: its identity is known where it calls.
    let log = mesh
        .ztunnel("node-a")
        .unwrap()
        .log()
        .unwrap()
        .from_now()
        .unwrap();
    let late = mesh.cluster().client("shop/late").unwrap();
    let server = addr(&mesh, "shop/server-v2", 8080);
    late.get(server, "/", SOON).await.unwrap();
    let source = target.ip().to_string();
    let seen = eventually("its call came through a tunnel", SOON, || async {
        let lines = log.lines()?;
        let ours = lines
            .iter()
            .find(|line| line.contains(&format!("src.addr={source}")));
        let ours = ours.ok_or_else(|| anyhow::anyhow!("no line"))?;
        ensure!(ours.contains("src.identity="), "{ours}");
        Ok(())
    });
    seen.await.unwrap();
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_taken_while_the_control_plane_was_away_counts_when_it_is_back() {
    let mut mesh = enrolled_with(&[], &[]).await;
    mesh.cluster().config().write("late.yaml", LATE).unwrap();
    mesh.cluster_mut().follow_pods().await.unwrap();
    served(&mesh, true).await.unwrap();
    mesh.stop_controlplane().await.unwrap();
    mesh.write_label("shop", Enrolment::None).unwrap();
    mesh.start_controlplane().await.unwrap();
    served(&mesh, false).await.unwrap();
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_gone_is_let_go() {
    let mut mesh = enrolled_with(&[], &[]).await;
    mesh.cluster().config().write("late.yaml", LATE).unwrap();
    mesh.cluster_mut().follow_pods().await.unwrap();
    served(&mesh, true).await.unwrap();
    // The node that calls learns of it later than the node that serves it.
    let known = eventually("it is reached through tunnels", RETRIED, || async {
        mesh.dumps().await?["node-a"].check_enrolled(&uid("shop/late"))
    });
    known.await.unwrap();
    // Connections that its death leaves behind: out of it and into it, in tunnels and not.
    let mut held = hold(&mesh, "shop/client", "shop/late").await;
    let out = hold(&mesh, "shop/late", "legacy/legacy").await;
    let into = hold(&mesh, "legacy/legacy", "shop/late").await;
    mesh.cluster().config().remove("late.yaml").unwrap();
    mesh.cluster_mut().follow_pods().await.unwrap();

    let forgotten = eventually("nothing of it is left in the proxy", RETRIED, || async {
        let dump = mesh.ztunnel("node-b")?.config_dump().await?;
        let state = dump["workloadState"].get(uid("shop/late"));
        ensure!(state.is_none(), "{state:?}");
        let lines = mesh.ztunnel("node-b")?.log()?.lines()?;
        let removed = |line: &String| line.contains("capture removed") && line.contains("late");
        ensure!(lines.iter().any(removed), "its capture is not removed");
        Ok(())
    });
    forgotten.await.unwrap();
    held.ended(Duration::from_secs(40)).await.unwrap();
    drop((out, into));
    mesh.stop().await.unwrap();
}

/// SOCK-3, LOG-5: what a forgotten NetworkPolicy does is told in words that can be found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_that_vanish_on_the_way_to_a_pod() {
    const ERROR: &str =
        "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: ";
    let mesh = enrolled_with(&[], &[]).await;
    let namespace = mesh.cluster().pod("shop/server-v1").unwrap().namespace();
    let drop_tunnels = "-w -t raw -A PREROUTING -p tcp --dport 15008 -j DROP";
    let rule: Vec<&str> = drop_tunnels.split(' ').collect();
    let rule = cni::tool("iptables", &rule, namespace);
    output(&rule, SOON).await.unwrap();

    let node = mesh.ztunnel_of("shop/client").unwrap();
    let client = mesh.cluster().client("shop/client").unwrap();
    let target = addr(&mesh, "shop/server-v1", 9000);
    let mut connection = client.connect(target, SOON).await.unwrap();
    assert_eq!(connection.ended(SOON * 2).await.unwrap(), End::Reset);
    let told = eventually("the log says what it may be", SOON, || async {
        let lines = access_log::entries(node.log()?)?;
        let errors = lines.iter().filter_map(|line| line.field("error"));
        let errors: Vec<&str> = errors.collect();
        ensure!(
            errors.iter().any(|error| error.starts_with(ERROR)),
            "{errors:#?}"
        );
        Ok(())
    });
    told.await.unwrap();
    let metrics = node.metrics().await.unwrap();
    let labels = [
        ("response_flags", "NETWORK_POLICY"),
        ("destination_workload", "server-v1"),
    ];
    let failed = metrics.sum("istio_tcp_connections_failed_total", &labels);
    assert_eq!(failed, 1.0);
    // By its service the other endpoint answers, after a third of the time.
    for _ in 0..4 {
        let vip = mesh.cluster().vip("shop/server", Family::V4, 80).unwrap();
        let reply = client.get(vip, "/", SOON).await.unwrap();
        assert_eq!(reply.description().unwrap().pod, "server-v2");
    }
    mesh.stop().await.unwrap();
}
