//! Node proxies that ask for addresses by name when somebody calls there, and not for everything.
//!
//! What is sent is more than what is named: the endpoints of a service that is named, the waypoints and gateways on the way,
//! and the workloads of the proxy's own node with their services. A name that nobody has is told as removed, once for each
//! time that it is asked for.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use leyline_proto::{
    envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    istio::workload::{
        Address, GatewayAddress, NetworkAddress, NetworkMode, Service, Workload, address::Type,
        gateway_address::Destination,
    },
};
use prost::Message;

use super::{Difference, SessionError, TypeState, WILDCARD};
use crate::{mesh::Published, translate::Resources};

/// Names that one proxy may ask for: the peers of the pods of one node.
const MAX_NAMES: usize = 100_000;

/// What leads from one resource to others; made once for each state of the mesh, if anybody asks by name.
#[derive(Debug, Default)]
pub(crate) struct AddressIndex {
    resources: HashMap<String, Links>,
    /// Who has an address, as `network/address`.
    by_address: HashMap<String, Vec<String>>,
    /// Services with blocks of addresses, by network.
    blocks: Vec<(String, IpNet, String)>,
    /// Workloads by node.
    by_node: HashMap<String, Vec<String>>,
    /// Workloads by service.
    endpoints: HashMap<String, Vec<String>>,
}

#[derive(Debug, Default)]
struct Links {
    addresses: Vec<String>,
    gateways: Vec<String>,
    services: Vec<String>,
}

impl AddressIndex {
    pub(crate) fn of(resources: &Resources) -> Self {
        let mut index = Self::default();
        for (name, resource) in resources {
            // Our own encoding.
            match Address::decode(resource.body.clone())
                .ok()
                .and_then(|it| it.r#type)
            {
                Some(Type::Workload(workload)) => index.add_workload(name, &workload),
                Some(Type::Service(service)) => index.add_service(name, &service),
                None => {}
            }
        }
        index
    }

    fn add_workload(&mut self, name: &str, workload: &Workload) {
        // The address of its node is not the workload's.
        let own = workload.network_mode != i32::from(NetworkMode::HostNetwork);
        let addresses = workload.addresses.iter().filter(|_| own);
        let addresses = addresses.filter_map(|bytes| key(&workload.network, bytes));
        let gateways = [&workload.waypoint, &workload.network_gateway];
        let links = Links {
            addresses: addresses.collect(),
            gateways: gateways.into_iter().flatten().filter_map(gateway).collect(),
            services: workload.services.keys().cloned().collect(),
        };
        for service in &links.services {
            let endpoints = self.endpoints.entry(service.clone()).or_default();
            endpoints.push(name.to_owned());
        }
        let of_node = self.by_node.entry(workload.node.clone()).or_default();
        of_node.push(name.to_owned());
        self.add(name, links);
    }

    fn add_service(&mut self, name: &str, service: &Service) {
        let mut addresses = Vec::new();
        for address in &service.addresses {
            match block(address) {
                Some(block) => {
                    let network = address.network.clone();
                    self.blocks.push((network, block, name.to_owned()));
                }
                None => addresses.extend(key(&address.network, &address.address)),
            }
        }
        let weighted = service.weighted_waypoints.iter();
        let weighted = weighted.filter_map(|one| one.destination.as_ref());
        let gateways = service.waypoint.iter().chain(weighted);
        let links = Links {
            addresses,
            gateways: gateways.filter_map(gateway).collect(),
            services: Vec::new(),
        };
        self.add(name, links);
    }

    fn add(&mut self, name: &str, links: Links) {
        for address in &links.addresses {
            let known = self.by_address.entry(address.clone()).or_default();
            known.push(name.to_owned());
        }
        self.resources.insert(name.to_owned(), links);
    }

    /// The resources that a name stands for: its own, or those that have the address.
    fn named(&self, name: &str) -> Vec<String> {
        if self.resources.contains_key(name) {
            return vec![name.to_owned()];
        }
        let mut found = self.by_address.get(name).cloned().unwrap_or_default();
        if let Some((network, address)) = name.rsplit_once('/')
            && let Ok(address) = address.parse::<IpAddr>()
        {
            let blocks = self.blocks.iter();
            let holding = blocks.filter(|(of, block, _)| of == network && block.contains(&address));
            found.extend(holding.map(|(_, _, name)| name.clone()));
        }
        found
    }

    /// All that goes with what is named, and with a node.
    fn closure<'a>(&self, names: impl Iterator<Item = &'a String>, node: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut next: Vec<String> = names.flat_map(|name| self.named(name)).collect();
        for local in self.by_node.get(node).into_iter().flatten() {
            next.push(local.clone());
            let links = self.resources.get(local);
            next.extend(
                links
                    .into_iter()
                    .flat_map(|links| links.services.iter().cloned()),
            );
        }
        while let Some(name) = next.pop() {
            let Some(links) = self.resources.get(&name) else {
                continue;
            };
            if !found.insert(name.clone()) {
                continue;
            }
            next.extend(self.endpoints.get(&name).into_iter().flatten().cloned());
            next.extend(links.gateways.iter().flat_map(|name| self.named(name)));
        }
        found
    }
}

fn key(network: &str, bytes: &[u8]) -> Option<String> {
    Some(format!("{network}/{}", ip(bytes)?))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).map(IpAddr::from).ok();
    let v6 = || <[u8; 16]>::try_from(bytes).map(IpAddr::from).ok();
    v4().or_else(v6)
}

/// Of an address that stands for several.
fn block(address: &NetworkAddress) -> Option<IpNet> {
    let ip = ip(&address.address)?;
    let length = u8::try_from(address.length?).ok()?;
    let block = IpNet::new(ip, length).ok()?;
    (block.prefix_len() < block.max_prefix_len()).then(|| block.trunc())
}

fn gateway(gateway: &GatewayAddress) -> Option<String> {
    match gateway.destination.as_ref()? {
        Destination::Hostname(name) => Some(format!("{}/{}", name.namespace, name.hostname)),
        Destination::Address(address) => key(&address.network, &address.address),
    }
}

/// What a proxy has asked for.
#[derive(Default)]
pub(super) struct OnDemand {
    /// It asks by name. One that subscribes to everything has all names too.
    active: bool,
    /// Where the proxy runs, as its token says.
    node: String,
    names: BTreeSet<String>,
    /// Asked for since the last response.
    asked: BTreeSet<String>,
    /// What it comes to, for this state of the mesh.
    wanted: Option<(Arc<Resources>, Arc<Resources>)>,
}

impl OnDemand {
    pub(super) fn set_node(&mut self, node: String) {
        self.node = node;
    }

    /// Takes the names out of a request, so that what is left reads like one for everything.
    pub(super) fn take_names(
        &mut self,
        kind: &TypeState,
        request: &mut DeltaDiscoveryRequest,
    ) -> Result<(), SessionError> {
        let (all, asked) = split(std::mem::take(&mut request.resource_names_subscribe));
        let (not_all, left) = split(std::mem::take(&mut request.resource_names_unsubscribe));
        let is_first = !kind.subscribed;
        if is_first && (not_all || !all && !asked.is_empty()) {
            self.active = true;
        }
        if !self.active {
            // As it was, for who leaves everything.
            let wildcard = |is: bool| is.then(|| WILDCARD.to_owned()).into_iter().collect();
            request.resource_names_subscribe = wildcard(all);
            request.resource_names_unsubscribe = wildcard(not_all);
            return Ok(());
        }
        for name in left {
            self.names.remove(&name);
            self.asked.remove(&name);
            self.wanted = None;
        }
        for name in asked {
            self.asked.insert(name.clone());
            self.names.insert(name);
            self.wanted = None;
        }
        if self.names.len() > MAX_NAMES {
            return Err(SessionError::TooManyNames(kind.type_url));
        }
        Ok(())
    }

    /// What of all there is the proxy is to have. What it has just asked for is sent even if it should have it.
    pub(super) fn wanted(&mut self, kind: &mut TypeState, published: &Published) -> Arc<Resources> {
        let all = &published.translation.addresses;
        if !self.active {
            return Arc::clone(all);
        }
        if let Some((of, wanted)) = &self.wanted
            && Arc::ptr_eq(of, all)
        {
            return Arc::clone(wanted);
        }
        let index = published.address_index();
        for name in self.asked.iter().flat_map(|name| index.named(name)) {
            kind.known.forget(&name);
        }
        let names = index.closure(self.names.iter(), &self.node);
        let wanted = names
            .into_iter()
            .filter_map(|name| all.get(&name).cloned().map(|resource| (name, resource)));
        let wanted = Arc::new(wanted.collect());
        self.wanted = Some((Arc::clone(all), Arc::clone(&wanted)));
        wanted
    }

    /// Adds what was asked for and is not there to what is gone.
    pub(super) fn tell_absent(&self, difference: &mut Difference, published: &Published) {
        let absent = self.asked.iter();
        let absent = absent.filter(|name| published.address_index().named(name).is_empty());
        difference.removed.extend(absent.cloned());
    }

    /// A response goes out with all that was asked for. The proxy learns for which addresses its resources stand.
    pub(super) fn answered(
        &mut self,
        response: &mut DeltaDiscoveryResponse,
        published: &Published,
    ) {
        if !self.active {
            return;
        }
        self.asked.clear();
        let index = published.address_index();
        for resource in &mut response.resources {
            if let Some(links) = index.resources.get(&resource.name) {
                resource.aliases.clone_from(&links.addresses);
            }
        }
    }
}

fn split(names: Vec<String>) -> (bool, Vec<String>) {
    let wildcard = names.iter().any(|name| name == WILDCARD);
    let named = names.into_iter().filter(|name| name != WILDCARD);
    (wildcard, named.collect())
}

#[cfg(test)]
mod tests;
