//! The network of a run: one infrastructure namespace, a namespace per node joined to it, a namespace per pod joined to
//! its node. IPv4 and IPv6 throughout.
//!
//! Pods have a /32 and a /128 and reach all else through their node, as with Calico or in the big clouds. Service VIPs
//! are routed nowhere: whoever calls one without a mesh is told that it is unreachable.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context, Result, ensure};
use leyline_net::NetNs;

use crate::{
    netlink::{End, Mac, Netlink, Route},
    netns::{self, Role},
    run::Run,
};

/// What a pod takes for its gateway; every node has it on every pod's link.
const POD_GATEWAY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
];
/// The control plane's own address; on the loopback of the infrastructure, so that it is the same from every node.
pub const CONTROL_PLANE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 250, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x250, 0, 0, 0, 0, 0, 1)),
];
/// The third octet of a pod's address is its node, the fourth its number there.
const MAX_NODES: u8 = 200;
const MAX_PODS: u8 = 250;

/// An IPv4 and an IPv6 address of the same host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// Both, IPv4 first.
    pub fn all(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// The namespaces of a run and the links between them.
#[derive(Debug)]
pub struct Fabric {
    infra: NetNs,
    infra_links: Netlink,
    nodes: BTreeMap<String, Node>,
}

#[derive(Debug)]
struct Node {
    namespace: NetNs,
    links: Netlink,
    number: u8,
    addresses: Addresses,
    /// Numbers of pods are not reused while a run lasts, as addresses are not in a real cluster for some time.
    pods_made: u8,
}

/// A pod's place in the network.
#[derive(Clone, Debug)]
pub struct PodNetwork {
    /// Its namespace.
    pub namespace: NetNs,
    /// Its addresses.
    pub addresses: Addresses,
    /// The node's end of its link.
    link: u32,
}

impl Fabric {
    /// Makes the infrastructure namespace.
    pub async fn create(run: &Run) -> Result<Self> {
        let infra = netns::create(&run.namespace_path("infra"), Role::Router)?;
        let infra_links = Netlink::open(&infra)?;
        let loopback = up_loopback(&infra_links).await?;
        for address in CONTROL_PLANE {
            infra_links
                .address(loopback, address, host_prefix(address))
                .await?;
        }
        Ok(Self {
            infra,
            infra_links,
            nodes: BTreeMap::new(),
        })
    }

    /// The namespace between the nodes, in which the control plane runs.
    pub fn infra(&self) -> &NetNs {
        &self.infra
    }

    /// The namespace of a node.
    pub fn node(&self, name: &str) -> Result<&NetNs> {
        Ok(&self.known(name)?.namespace)
    }

    /// Names of all nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// A node's own addresses.
    pub fn node_addresses(&self, name: &str) -> Result<Addresses> {
        Ok(self.known(name)?.addresses)
    }

    /// Adds a node.
    pub async fn add_node(&mut self, run: &Run, name: &str) -> Result<()> {
        let number = u8::try_from(self.nodes.len() + 1)?;
        ensure!(number <= MAX_NODES, "a mesh has at most {MAX_NODES} nodes");
        let namespace = netns::create(&run.namespace_path(name), Role::Router)?;
        let links = Netlink::open(&namespace)?;
        up_loopback(&links).await?;

        let (here, there) = (uplink_addresses(number, 1), uplink_addresses(number, 2));
        let (here_mac, there_mac) = (mac([0, number, 1]), mac([0, number, 2]));
        let outside = End {
            name: &format!("node{number}"),
            mac: here_mac,
        };
        let inside = End {
            name: "eth0",
            mac: there_mac,
        };
        let infra_link = self.infra_links.veth(outside, inside, &namespace).await?;
        let uplink = links.index("eth0").await?;
        links.up(uplink).await?;
        for i in 0..2 {
            let (near, far) = (here.all()[i], there.all()[i]);
            let prefix = if near.is_ipv4() { 24 } else { 64 };
            self.infra_links.address(infra_link, near, prefix).await?;
            self.infra_links
                .neighbour(infra_link, far, there_mac)
                .await?;
            links.address(uplink, far, prefix).await?;
            links.neighbour(uplink, near, here_mac).await?;
            links.route(default_route(uplink, near)).await?;
            let pods = pod_addresses(number, 0).all()[i];
            let pods_prefix = if pods.is_ipv4() { 24 } else { 64 };
            let to_pods = Route {
                link: infra_link,
                destination: pods,
                prefix: pods_prefix,
                gateway: Some(far),
                source: None,
            };
            self.infra_links.route(to_pods).await?;
        }
        self.nodes.insert(
            name.to_owned(),
            Node {
                namespace,
                links,
                number,
                addresses: there,
                pods_made: 0,
            },
        );
        Ok(())
    }

    /// Adds a pod to a node; its namespace is mounted as `file` in the run's directory of pods.
    pub async fn add_pod(&mut self, run: &Run, node: &str, file: &str) -> Result<PodNetwork> {
        let node = self
            .nodes
            .get_mut(node)
            .with_context(|| format!("no node `{node}`"))?;
        ensure!(
            node.pods_made < MAX_PODS,
            "a node has at most {MAX_PODS} pods"
        );
        node.pods_made += 1;
        let addresses = pod_addresses(node.number, node.pods_made);
        let namespace = netns::create(&run.pods_dir().join(file), Role::Host)?;
        let inside = Netlink::open(&namespace)?;
        up_loopback(&inside).await?;

        let (node_mac, pod_mac) = (
            mac([1, node.number, node.pods_made]),
            mac([2, node.number, node.pods_made]),
        );
        let outside = End {
            name: &format!("pod{}", node.pods_made),
            mac: node_mac,
        };
        let eth0 = End {
            name: "eth0",
            mac: pod_mac,
        };
        let link = node.links.veth(outside, eth0, &namespace).await?;
        let eth0 = inside.index("eth0").await?;
        inside.up(eth0).await?;
        let pod_end = LinkEnd {
            links: &inside,
            index: eth0,
            mac: pod_mac,
        };
        let node_end = LinkEnd {
            links: &node.links,
            index: link,
            mac: node_mac,
        };
        for (i, address) in addresses.all().into_iter().enumerate() {
            let own = node.addresses.all()[i];
            route_pod(&pod_end, &node_end, address, POD_GATEWAY[i], own).await?;
        }
        Ok(PodNetwork {
            namespace,
            addresses,
            link,
        })
    }

    /// Makes the pods of a node a network of their own: other nodes no longer have a route to them, only to the node.
    pub async fn separate(&self, node: &str) -> Result<()> {
        let number = self.known(node)?.number;
        let link = self.infra_links.index(&format!("node{number}")).await?;
        let (pods, there) = (pod_addresses(number, 0), uplink_addresses(number, 2));
        for (destination, gateway) in pods.all().into_iter().zip(there.all()) {
            let prefix = if destination.is_ipv4() { 24 } else { 64 };
            let to_pods = Route {
                link,
                destination,
                prefix,
                gateway: Some(gateway),
                source: None,
            };
            self.infra_links.remove_route(to_pods).await?;
        }
        Ok(())
    }

    /// Takes a pod off its node. Its namespace goes when `file` is unmounted and its processes have ended.
    pub async fn remove_pod(
        &self,
        run: &Run,
        node: &str,
        file: &str,
        pod: &PodNetwork,
    ) -> Result<()> {
        self.known(node)?.links.delete(pod.link).await?;
        let path = run.pods_dir().join(file);
        nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH)
            .with_context(|| format!("unmounting {}", path.display()))?;
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
    }

    fn known(&self, name: &str) -> Result<&Node> {
        self.nodes
            .get(name)
            .with_context(|| format!("no node `{name}`"))
    }
}

/// One end of a pod's link.
struct LinkEnd<'a> {
    links: &'a Netlink,
    index: u32,
    mac: Mac,
}

/// Gives a pod one address, its way out through the node and the node's way in. What the node itself sends, such as probes,
/// comes from its own address and not from the gateway's.
async fn route_pod(
    pod: &LinkEnd<'_>,
    node: &LinkEnd<'_>,
    address: IpAddr,
    gateway: IpAddr,
    node_address: IpAddr,
) -> Result<()> {
    let prefix = host_prefix(address);
    pod.links.address(pod.index, address, prefix).await?;
    let to_gateway = Route {
        link: pod.index,
        destination: gateway,
        prefix,
        gateway: None,
        source: None,
    };
    pod.links.route(to_gateway).await?;
    pod.links.neighbour(pod.index, gateway, node.mac).await?;
    pod.links.route(default_route(pod.index, gateway)).await?;

    node.links.address(node.index, gateway, prefix).await?;
    let to_pod = Route {
        link: node.index,
        destination: address,
        prefix,
        gateway: None,
        source: Some(node_address),
    };
    node.links.route(to_pod).await?;
    node.links.neighbour(node.index, address, pod.mac).await
}

async fn up_loopback(links: &Netlink) -> Result<u32> {
    let loopback = links.index("lo").await?;
    links.up(loopback).await?;
    Ok(loopback)
}

/// Whether an address is one that pods have.
pub fn is_pod(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets().starts_with(&[10, 244]),
        IpAddr::V6(v6) => v6.segments().starts_with(&[0xfd00, 0x244]),
    }
}

fn default_route(link: u32, gateway: IpAddr) -> Route {
    Route {
        link,
        destination: match gateway {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        },
        prefix: 0,
        gateway: Some(gateway),
        source: None,
    }
}

fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Addresses on the link of a node to the infrastructure.
fn uplink_addresses(node: u8, host: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, 250, node, host),
        v6: Ipv6Addr::new(0xfd00, 0x250, 0, node.into(), 0, 0, 0, host.into()),
    }
}

/// Addresses of a pod; number 0 gives the network of all pods of the node.
fn pod_addresses(node: u8, pod: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, 244, node, pod),
        v6: Ipv6Addr::new(0xfd00, 0x244, 0, node.into(), 0, 0, 0, pod.into()),
    }
}

/// A locally administered unicast address.
fn mac(tail: [u8; 3]) -> Mac {
    [0x02, 0x1e, 0x71, tail[0], tail[1], tail[2]]
}
