//! Two nodes and two pods, as network namespaces without a name: they end with the last descriptor or socket, so nothing
//! can be left behind.
//!
//! client (10.1.0.2, fd01::2) - node a - node b - server (10.2.0.2, fd02::2)

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
    process,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use futures::TryStreamExt;
use leyline_capture::{CaptureError, HostProbes, NodeCapture, NodeConfig, remove_instance};
use leyline_net::NetNs;
use netlink_packet_route::{
    address::AddressHeaderFlags,
    link::{InfoData, InfoVeth, LinkAttribute},
    route::{RouteAddress, RouteAttribute, RouteMessage},
};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

pub(crate) const ETHERNET_MTU: u32 = 1500;

/// Family of a test case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A pod: a namespace with one interface, `eth0`.
pub(crate) struct PodNs {
    pub(crate) netns: NetNs,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
}

impl PodNs {
    pub(crate) fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    pub(crate) fn ips(&self) -> Vec<IpAddr> {
        vec![self.v4, self.v6]
    }
}

/// The machine of a test.
pub(crate) struct Lab {
    pub(crate) node_a: NetNs,
    pub(crate) node_b: NetNs,
    pub(crate) client: PodNs,
    pub(crate) server: PodNs,
    pub(crate) instance: Instance,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with_mtu_between_nodes(ETHERNET_MTU)
    }

    pub(crate) fn with_mtu_between_nodes(mtu: u32) -> Self {
        let (node_a, node_b) = (namespace(), namespace());
        let (client, server) = (namespace(), namespace());
        join(&node_a, "peer", &node_b, "peer", mtu);
        join(&node_a, "pod", &client, "eth0", ETHERNET_MTU);
        join(&node_b, "pod", &server, "eth0", ETHERNET_MTU);
        address(&node_a, "peer", "10.0.0.1", 24, "fd00::1");
        address(&node_b, "peer", "10.0.0.2", 24, "fd00::2");
        address(&node_a, "pod", "10.1.0.1", 24, "fd01::1");
        address(&node_b, "pod", "10.2.0.1", 24, "fd02::1");
        address(&client, "eth0", "10.1.0.2", 24, "fd01::2");
        address(&server, "eth0", "10.2.0.2", 24, "fd02::2");
        route(&node_a, "10.2.0.0", 24, "10.0.0.2");
        route(&node_a, "fd02::", 64, "fd00::2");
        route(&node_b, "10.1.0.0", 24, "10.0.0.1");
        route(&node_b, "fd01::", 64, "fd00::1");
        route(&client, "0.0.0.0", 0, "10.1.0.1");
        route(&client, "::", 0, "fd01::1");
        route(&server, "0.0.0.0", 0, "10.2.0.1");
        route(&server, "::", 0, "fd02::1");
        Self {
            node_a,
            node_b,
            client: pod(client, "10.1.0.2", "fd01::2"),
            server: pod(server, "10.2.0.2", "fd02::2"),
            instance: Instance::new(),
        }
    }

    /// Node capture whose own node is b, the server's.
    pub(crate) fn attach(&self) -> NodeCapture {
        NodeCapture::attach(self.config()).unwrap()
    }

    pub(crate) fn config(&self) -> NodeConfig {
        NodeConfig {
            host_probes: HostProbes::OfNamespace(self.node_b.cookie()),
            ..NodeConfig::new(&self.instance.0)
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let known = [self.client.netns.clone(), self.server.netns.clone()];
        if let Err(e) = self.instance.remove(&known) {
            // A second panic while a failed test unwinds would hide the first.
            if !thread::panicking() {
                panic!("cleaning up: {e}");
            }
        }
    }
}

/// Name of an instance of capture that no other test or process has.
pub(crate) struct Instance(pub(crate) String);

impl Instance {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(format!("leyt-{}-{number}", process::id()))
    }

    pub(crate) fn pins(&self) -> PathBuf {
        PathBuf::from("/sys/fs/bpf").join(&self.0)
    }

    pub(crate) fn remove(&self, known: &[NetNs]) -> Result<(), CaptureError> {
        remove_instance("/sys/fs/bpf".as_ref(), &self.0, known).map(|_| ())
    }
}

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    const TRIES: u32 = 500;
    for _ in 0..TRIES {
        if condition() {
            return;
        }
        thread::park_timeout(Duration::from_millis(10));
    }
    panic!("never happened: {what}");
}

/// Runs async code of the library from a test.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Writes a sysctl of a namespace.
pub(crate) fn sysctl(netns: &NetNs, name: &str, value: &str) {
    let path = format!("/proc/sys/net/{name}");
    netns.run(|| fs::write(&path, value)).unwrap().unwrap();
}

pub(crate) fn read_sysctl(netns: &NetNs, name: &str) -> String {
    let path = format!("/proc/sys/net/{name}");
    let text = netns.run(|| fs::read_to_string(&path)).unwrap().unwrap();
    text.trim().to_owned()
}

pub(crate) fn namespace() -> NetNs {
    let fd = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        File::open("/proc/thread-self/ns/net").unwrap()
    })
    .join()
    .unwrap();
    let netns = NetNs::from_fd(fd.into()).unwrap();
    for name in [
        "ipv4/ip_forward",
        "ipv6/conf/all/forwarding",
        "ipv6/conf/default/forwarding",
    ] {
        sysctl(&netns, name, "1");
    }
    for name in [
        "ipv6/conf/all/accept_dad",
        "ipv6/conf/default/accept_dad",
        "ipv6/conf/default/dad_transmits",
    ] {
        sysctl(&netns, name, "0");
    }
    netlink(&netns, async |handle| up(&handle, "lo").await);
    netns
}

/// Runs `work` with a netlink socket of the namespace.
pub(crate) fn netlink<T>(netns: &NetNs, work: impl AsyncFnOnce(Handle) -> T) -> T {
    netns
        .run(|| {
            block_on(async {
                let (connection, handle, _unsolicited) = rtnetlink::new_connection().unwrap();
                tokio::select! {
                    () = connection => panic!("netlink closed"),
                    result = work(handle) => result,
                }
            })
        })
        .unwrap()
}

/// A veth pair.
pub(crate) fn join(one: &NetNs, name: &str, other: &NetNs, other_name: &str, mtu: u32) {
    netlink(one, async |handle| {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(other_name)
            .mtu(mtu)
            .setns_by_fd(other.as_fd().as_raw_fd())
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new(name, other_name)
            .mtu(mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        handle.link().add(pair).execute().await.unwrap();
        up(&handle, name).await;
    });
    netlink(other, async |handle| up(&handle, other_name).await);
}

pub(crate) fn address(netns: &NetNs, link: &str, v4: &str, prefix: u8, v6: &str) {
    netlink(netns, async |handle| {
        let index = index(&handle, link).await;
        for (ip, prefix) in [(v4, prefix), (v6, 64)] {
            let mut request = handle.address().add(index, ip.parse().unwrap(), prefix);
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            request.execute().await.unwrap();
        }
    });
    // The kernel makes an IPv6 address usable in the background.
    let usable = RouteAttribute::Destination(RouteAddress::Inet6(v6.parse().unwrap()));
    eventually("the address is usable", || {
        routes(netns).iter().any(|r| r.attributes.contains(&usable))
    });
}

/// All routes of a namespace.
pub(crate) fn routes(netns: &NetNs) -> Vec<RouteMessage> {
    netlink(netns, async |handle| {
        let mut all = Vec::new();
        for query in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let stream = handle.route().get(query).execute();
            all.extend(stream.try_collect::<Vec<_>>().await.unwrap());
        }
        all
    })
}

pub(crate) fn route(netns: &NetNs, network: &str, prefix: u8, gateway: &str) {
    netlink(netns, async |handle| {
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(network.parse().unwrap(), prefix)
            .unwrap()
            .gateway(gateway.parse().unwrap())
            .unwrap()
            .build();
        handle.route().add(route).execute().await.unwrap();
    });
}

pub(crate) async fn index(handle: &Handle, name: &str) -> u32 {
    let mut links = Box::pin(handle.link().get().execute());
    while let Some(link) = links.try_next().await.unwrap() {
        if link
            .attributes
            .contains(&LinkAttribute::IfName(name.to_owned()))
        {
            return link.header.index;
        }
    }
    panic!("no link {name}");
}

async fn up(handle: &Handle, name: &str) {
    let index = index(handle, name).await;
    let message = LinkMessageBuilder::<LinkUnspec>::new()
        .index(index)
        .up()
        .build();
    handle.link().set(message).execute().await.unwrap();
}

fn pod(netns: NetNs, v4: &str, v6: &str) -> PodNs {
    PodNs {
        netns,
        v4: v4.parse().unwrap(),
        v6: v6.parse().unwrap(),
    }
}
