//! Guests of a captured pod: a network stack of its own behind a bridge in the pod, as KubeVirt makes for a virtual machine
//! (masquerade), named by `istio.io/reroute-virtual-interfaces`.

use std::{fs, net::IpAddr};

use anyhow::{bail, ensure};
use leyline_net::NetNs;
use leyline_tests::{
    access_log,
    client::{Client, End},
    cni::tool,
    eventually::eventually,
    mesh::{Enrolment, Mesh},
    netlink::{self, Netlink},
    netns::{Role, create},
    process::{Program, output},
};

use crate::support::{SOON, addr, enrolled_with};

const POD: &str = "shop/client";
const SERVER: &str = "shop/server-v1";
const CLIENT_ID: &str = "spiffe://cluster.local/ns/shop/sa/client";
const INTERFACE: &str = "k6t-eth0";
/// In the pod, and in the guest.
const GATEWAY: [&str; 2] = ["10.9.0.1", "fd00:9::1"];
const GUEST: [&str; 2] = ["10.9.0.2", "fd00:9::2"];
const NETWORK: [(&str, u8); 2] = [("10.9.0.0", 24), ("fd00:9::", 64)];
const STRICT: &str = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

/// The guest, and the mesh that it is to be in.
struct Scene {
    mesh: Mesh,
    pod: NetNs,
    guest: NetNs,
    /// The shop without the annotation, and with it.
    shop: [String; 2],
}

impl Scene {
    /// The pod is in the mesh, which wants to know everybody, and forwards.
    async fn start() -> Self {
        let mesh = enrolled_with(&[], &[]).await;
        mesh.write_check_file("strict", STRICT).unwrap();
        let pod = mesh.cluster().pod(POD).unwrap().namespace().clone();
        // Goes with the run.
        let path = mesh.cluster().run().namespace_path("guest");
        let guest = create(&path, Role::Host).unwrap();
        pod.run(|| {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        })
        .unwrap();
        for (iptables, (network, prefix)) in ["iptables", "ip6tables"].into_iter().zip(NETWORK) {
            let network = format!("{network}/{prefix}");
            let rule = [
                "-w",
                "-t",
                "nat",
                "-A",
                "POSTROUTING",
                "-s",
                &network,
                "-o",
                "eth0",
                "-j",
                "MASQUERADE",
            ];
            run(tool(iptables, &rule, &pod)).await;
        }
        let plain = mesh.cluster().config().read("shop.yaml").unwrap();
        let head = "kind: Pod\nmetadata:\n  name: client\n";
        let annotation =
            format!("  annotations: {{istio.io/reroute-virtual-interfaces: \"{INTERFACE}\"}}\n");
        let named = plain.replacen(head, &format!("{head}{annotation}"), 1);
        assert_ne!(named, plain);
        Self {
            mesh,
            pod,
            guest,
            shop: [plain, named],
        }
    }

    /// A bridge with the guest behind it.
    async fn plug_in(&self) {
        run(tool(
            "ip",
            &["link", "add", INTERFACE, "type", "bridge"],
            &self.pod,
        ))
        .await;
        let end = |name, last| netlink::End {
            name,
            mac: [2, 0, 0, 9, 0, last],
        };
        let here = Netlink::open(&self.pod).unwrap();
        let there = Netlink::open(&self.guest).unwrap();
        let tap = here
            .veth(end("tap0", 1), end("eth0", 2), &self.guest)
            .await
            .unwrap();
        let enslave = ["link", "set", "tap0", "master", INTERFACE];
        run(tool("ip", &enslave, &self.pod)).await;
        here.up(tap).await.unwrap();
        let bridge = here.index(INTERFACE).await.unwrap();
        here.up(bridge).await.unwrap();
        let eth0 = there.index("eth0").await.unwrap();
        there.up(eth0).await.unwrap();
        for ((gateway, guest), (_, prefix)) in GATEWAY.into_iter().zip(GUEST).zip(NETWORK) {
            let (gateway, guest): (IpAddr, IpAddr) =
                (gateway.parse().unwrap(), guest.parse().unwrap());
            here.address(bridge, gateway, prefix).await.unwrap();
            there.address(eth0, guest, prefix).await.unwrap();
            let any = match gateway {
                IpAddr::V4(_) => "0.0.0.0",
                IpAddr::V6(_) => "::",
            };
            let default = netlink::Route {
                link: eth0,
                destination: any.parse().unwrap(),
                prefix: 0,
                gateway: Some(gateway),
                source: None,
            };
            there.route(default).await.unwrap();
        }
    }

    async fn unplug(&self) {
        let netlink = Netlink::open(&self.pod).unwrap();
        for name in ["tap0", INTERFACE] {
            let index = netlink.index(name).await.unwrap();
            netlink.delete(index).await.unwrap();
        }
    }

    fn write(&self, yaml: &str) {
        self.mesh
            .cluster()
            .config()
            .write("shop.yaml", yaml)
            .unwrap();
    }

    /// Waits until the guest reaches the server, as the pod, or is turned away, as a stranger.
    async fn expect(&self, expected: End) {
        let guest = Client::new(self.guest.clone());
        let target = addr(&self.mesh, SERVER, 8080);
        let what = format!("calls of the guest: {expected:?}");
        let done = eventually(what, SOON, || async {
            match (guest.get(target, "/", SOON).await, expected) {
                (Ok(_), End::Finished) | (Err(_), End::Reset) => Ok(()),
                (Ok(_), End::Reset) => bail!("it is answered"),
                (Err(error), End::Finished) => Err(error),
            }
        });
        done.await.unwrap();
    }

    async fn not_captured(&self) -> f64 {
        let ztunnel = self.mesh.ztunnel_of(POD).unwrap();
        let metrics = ztunnel.metrics().await.unwrap();
        metrics.sum("leyline_guest_interfaces_not_captured_total", &[])
    }
}

/// Rules and routes of capture in the pod, which have a table of their own.
async fn of_capture(scene: &Scene) -> Vec<String> {
    let all = Netlink::open(&scene.pod).unwrap().policy().await.unwrap();
    all.into_iter()
        .filter(|one| one.contains("Table(4133)"))
        .collect()
}

async fn run(program: Program) -> String {
    output(&program, SOON).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_in_the_mesh_as_its_pod() {
    let scene = Box::pin(Scene::start()).await;
    scene.plug_in().await;
    // Plaintext, which the server's policy refuses.
    scene.expect(End::Reset).await;
    let [plain, named] = scene.shop.clone();
    scene.write(&named);
    scene.expect(End::Finished).await;

    let logs = ["node-a", "node-b"].map(|node| {
        let log = scene.mesh.ztunnel(node).unwrap().log().unwrap();
        log.from_now().unwrap()
    });
    let guest = Client::new(scene.guest.clone());
    for target in [
        "10.96.0.20:80".parse().unwrap(),
        "[fd00:96::20]:80".parse().unwrap(),
    ] {
        let reply = guest.get(target, "/", SOON).await.unwrap();
        assert_eq!(reply.status, 200, "{target}");
    }
    let target = addr(&scene.mesh, SERVER, 8080);
    guest.get(target, "/", SOON).await.unwrap();
    let sent = [
        ("direction", "outbound"),
        ("src.workload", "client"),
        ("src.identity", CLIENT_ID),
        ("dst.workload", "server-v1"),
    ];
    let sent = access_log::find(&logs[0], &sent, SOON).await.unwrap();
    let peer = sent.field("src.addr").unwrap();
    assert!(GUEST.iter().any(|ip| peer.contains(ip)), "{peer}");
    let taken = [
        ("direction", "inbound"),
        ("src.identity", CLIENT_ID),
        ("dst.workload", "server-v1"),
    ];
    access_log::find(&logs[1], &taken, SOON).await.unwrap();

    // What is open goes on by the way it began, whatever the pod says next.
    let echo = addr(&scene.mesh, SERVER, 9000);
    let mut held = guest.connect(echo, SOON).await.unwrap();
    held.echo(b"hello").await.unwrap();
    scene.write(&plain);
    scene.expect(End::Reset).await;
    held.echo(b"still there").await.unwrap();
    scene.write(&named);
    scene.expect(End::Finished).await;
    held.echo(b"still there").await.unwrap();
    held.finish().await.unwrap();
    drop(held);

    assert_eq!(scene.not_captured().await, 0.0);
    // Nothing of it outlives the enrolment.
    let rules = of_capture(&scene).await;
    assert!(
        rules.iter().any(|rule| rule.contains(INTERFACE)),
        "{rules:?}"
    );
    scene.write(&plain);
    scene
        .mesh
        .set_enrolment("shop", Enrolment::None)
        .await
        .unwrap();
    let removed = eventually("no rule leads to the proxy", SOON, || async {
        let left = of_capture(&scene).await;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    });
    removed.await.unwrap();
    scene.expect(End::Finished).await;
    scene.mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interfaces_of_guests_come_late_and_again() {
    let mut scene = Box::pin(Scene::start()).await;
    let [_, named] = scene.shop.clone();
    scene.write(&named);
    let told = eventually("the missing interface is told", SOON, || async {
        let count = scene.not_captured().await;
        ensure!(count > 0.0, "not yet");
        Ok(())
    });
    told.await.unwrap();
    // The pod is served all the same.
    let client = scene.mesh.cluster().client(POD).unwrap();
    let target = addr(&scene.mesh, SERVER, 8080);
    client.get(target, "/", SOON).await.unwrap();
    assert_eq!(scene.not_captured().await, 1.0, "told once");

    for _ in 0..2 {
        scene.plug_in().await;
        scene.expect(End::Finished).await;
        scene.unplug().await;
    }
    scene.plug_in().await;
    scene.expect(End::Finished).await;
    scene.mesh.restart_ztunnel("node-a", &[]).await.unwrap();
    scene.expect(End::Finished).await;
    scene.mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_the_mesh_are_answered_to_guests() {
    let scene = Box::pin(Scene::start()).await;
    let [_, named] = scene.shop.clone();
    scene.plug_in().await;
    scene.write(&named);
    scene.expect(End::Finished).await;
    // Nobody is there: what is answered, the proxy answers.
    for server in ["@192.0.2.53", "@2001:db8::53"] {
        for over in ["+notcp", "+tcp"] {
            let name = "server.shop.svc.cluster.local";
            // As resolvers ask: a datagram may be lost on its way through the pod.
            let dig = ["dig", server, name, over, "+short", "+tries=3", "+time=3"];
            let text = run(Program::of_machine("dig", dig, &scene.guest)).await;
            assert_eq!(text.trim(), "10.96.0.20", "{server} {over}");
        }
    }
    scene.mesh.stop().await.unwrap();
}
