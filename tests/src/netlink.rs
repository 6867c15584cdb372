//! Links, addresses and routes of a namespace, by rtnetlink.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd},
};

use anyhow::{Context, Result};
use futures::TryStreamExt;
use leyline_net::NetNs;
use netlink_packet_route::{
    address::AddressHeaderFlags,
    link::{InfoData, InfoVeth},
    route::{RouteAttribute, RouteMessage},
};
use rtnetlink::{IpVersion, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::task::JoinSet;

/// A netlink socket inside a namespace.
#[derive(Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    /// Drives the socket; ends with the value.
    _driver: JoinSet<()>,
}

/// A link-layer address. We choose them, so that neighbours need no discovery.
pub type Mac = [u8; 6];

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Interface name, at most 15 characters.
    pub name: &'a str,
    /// Its address.
    pub mac: Mac,
}

/// A route out of an interface.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// Index of the interface.
    pub link: u32,
    /// Network.
    pub destination: IpAddr,
    /// Its length.
    pub prefix: u8,
    /// Next hop; none means that the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The address that the namespace's own sockets take; none leaves it to the kernel.
    pub source: Option<IpAddr>,
}

impl Netlink {
    /// Opens a socket in `namespace`. Call it inside a tokio runtime.
    pub fn open(namespace: &NetNs) -> Result<Self> {
        let (connection, handle, _messages) = namespace
            .run(rtnetlink::new_connection)?
            .context("opening a netlink socket")?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Ok(Self {
            handle,
            _driver: driver,
        })
    }

    /// Makes a veth pair, one end here and the other in `peer_namespace`, and returns the index of the end here.
    pub async fn veth(&self, here: End<'_>, peer: End<'_>, peer_namespace: &NetNs) -> Result<u32> {
        let peer_link = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer.name)
            .address(peer.mac.to_vec())
            .setns_by_fd(peer_namespace.as_fd().as_raw_fd())
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new(here.name, peer.name)
            .address(here.mac.to_vec())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer_link)))
            .up()
            .build();
        self.handle
            .link()
            .add(pair)
            .execute()
            .await
            .with_context(|| format!("making the veth pair {} - {}", here.name, peer.name))?;
        self.index(here.name).await
    }

    /// The index of an interface.
    pub async fn index(&self, name: &str) -> Result<u32> {
        let mut links = self.handle.link().get().match_name(name).execute();
        let link = links
            .try_next()
            .await
            .with_context(|| format!("looking for {name}"))?;
        Ok(link
            .with_context(|| format!("no interface {name}"))?
            .header
            .index)
    }

    /// Sets an interface up.
    pub async fn up(&self, index: u32) -> Result<()> {
        let link = LinkUnspec::new_with_index(index).up().build();
        self.handle
            .link()
            .set(link)
            .execute()
            .await
            .context("setting a link up")
    }

    /// Gives an interface an address, without duplicate detection.
    pub async fn address(&self, index: u32, address: IpAddr, prefix: u8) -> Result<()> {
        let mut request = self.handle.address().add(index, address, prefix);
        if address.is_ipv6() {
            request.message_mut().header.flags = AddressHeaderFlags::Nodad;
        }
        request
            .execute()
            .await
            .with_context(|| format!("adding the address {address}/{prefix}"))
    }

    /// Adds a route.
    pub async fn route(&self, route: Route) -> Result<()> {
        let message = message(route)?;
        let Route {
            destination,
            prefix,
            ..
        } = route;
        self.handle
            .route()
            .add(message)
            .execute()
            .await
            .with_context(|| format!("adding the route to {destination}/{prefix}"))
    }

    /// Removes a route.
    pub async fn remove_route(&self, route: Route) -> Result<()> {
        let message = message(route)?;
        self.handle
            .route()
            .del(message)
            .execute()
            .await
            .with_context(|| format!("removing the route to {}", route.destination))
    }

    /// Says which link-layer address a neighbour has, so that the first packet waits for nothing.
    pub async fn neighbour(&self, index: u32, address: IpAddr, mac: Mac) -> Result<()> {
        self.handle
            .neighbours()
            .add(index, address)
            .link_layer_address(&mac)
            .execute()
            .await
            .with_context(|| format!("adding the neighbour {address}"))
    }

    /// Removes an interface, and with it the other end of a pair.
    pub async fn delete(&self, index: u32) -> Result<()> {
        self.handle
            .link()
            .del(index)
            .execute()
            .await
            .context("removing a link")
    }

    /// Every routing rule and route of the namespace as text, to compare before and after.
    pub async fn policy(&self) -> Result<Vec<String>> {
        let mut policy = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let rules: Vec<_> = self
                .handle
                .rule()
                .get(version)
                .execute()
                .try_collect()
                .await?;
            policy.extend(rules.iter().map(|rule| format!("{rule:?}")));
        }
        let all = [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ];
        for query in all {
            let routes: Vec<_> = self
                .handle
                .route()
                .get(query)
                .execute()
                .try_collect()
                .await?;
            policy.extend(routes.iter().map(without_cache));
        }
        policy.sort();
        Ok(policy)
    }
}

/// A route without its use counters and ages, which change by themselves.
fn without_cache(route: &RouteMessage) -> String {
    let mut route = route.clone();
    route
        .attributes
        .retain(|attribute| !matches!(attribute, RouteAttribute::CacheInfo(_)));
    format!("{route:?}")
}

fn message(route: Route) -> Result<RouteMessage> {
    let Route {
        link,
        destination,
        prefix,
        gateway,
        source,
    } = route;
    let mut message = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(destination, prefix)?
        .output_interface(link);
    if let Some(gateway) = gateway {
        // On link: the gateway need not be in a network of the interface.
        message = message.gateway(gateway)?.onlink();
    }
    if let Some(source) = source {
        message = message.pref_source(source)?;
    }
    Ok(message.build())
}
