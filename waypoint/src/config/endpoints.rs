//! Endpoints of a cluster. Those that stay over an update keep their state: connections, load, failures.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use envoy_types::pb::{
    envoy::config::{
        core::v3::{
            HealthStatus, SocketAddress, address::Address,
            envoy_internal_address::AddressNameSpecifier, socket_address::PortSpecifier,
        },
        endpoint::v3::{
            ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
        },
    },
    google::protobuf::Struct,
};
use leyline_types::Str;
use tokio::time::Instant;

use super::{
    any::text,
    error::{At, Compiled, Unsupported},
};
use crate::upstream::endpoint::EndpointState;

/// The internal listener that stands for "through HBONE".
const CONNECT_ORIGINATE: &str = "connect_originate";
/// Envoy's default, in percent.
const OVERPROVISIONING: u32 = 140;
/// Metadata that says where a tunnel goes.
const ORIGINAL_DST: &str = "envoy.filters.listener.original_dst";

/// The endpoints of one cluster.
#[derive(Debug)]
pub(crate) struct EndpointSet {
    /// Later ones are greater; of two sets of a cluster it tells which is the newer.
    pub(crate) version: u64,
    /// Priority 0 first.
    pub(crate) priorities: Vec<Vec<Locality>>,
    /// How much more than its part a priority is trusted to carry, in percent: with 140, one that has lost a quarter
    /// of its endpoints still takes everything.
    pub(crate) overprovisioning: u32,
}

/// Endpoints of one priority that are near each other.
#[derive(Debug, Default)]
pub(crate) struct Locality {
    /// Its share where localities have shares; 0 is none.
    pub(crate) weight: u32,
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
}

/// One endpoint.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: EndpointAddress,
    /// Other ways to it, where it is reached in plain text. Whichever answers first is taken.
    pub(crate) others: Box<[SocketAddr]>,
    /// Its name, where a request has named it.
    pub(crate) host: Option<Str>,
    /// Relative, at least 1.
    pub(crate) weight: u32,
    /// What the control plane says of it.
    pub(crate) told_healthy: bool,
    pub(crate) state: Arc<EndpointState>,
}

impl Endpoint {
    /// Whether it is to be used: nothing bad is told of it, and it has not been ejected for what it did.
    pub(crate) fn is_healthy(&self, now: Instant) -> bool {
        self.told_healthy && self.state.back_at(now).is_none()
    }
}

/// How an endpoint is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum EndpointAddress {
    /// Through a tunnel to its pod.
    Hbone(SocketAddr),
    /// In plain text: it is not in the mesh.
    Plain(SocketAddr),
}

impl EndpointAddress {
    pub(crate) fn addr(self) -> SocketAddr {
        match self {
            Self::Hbone(addr) | Self::Plain(addr) => addr,
        }
    }
}

impl EndpointSet {
    pub(crate) fn new(priorities: Vec<Vec<Locality>>, overprovisioning: u32) -> Self {
        static VERSION: AtomicU64 = AtomicU64::new(1);
        Self {
            version: VERSION.fetch_add(1, Ordering::Relaxed),
            priorities,
            overprovisioning,
        }
    }

    /// Compiles an assignment; endpoints that `before` has keep their state.
    pub(crate) fn compile(
        assignment: &ClusterLoadAssignment,
        before: Option<&Self>,
    ) -> Compiled<Self> {
        let known: HashMap<EndpointAddress, &Arc<EndpointState>> = before
            .into_iter()
            .flat_map(Self::all)
            .map(|endpoint| (endpoint.address, &endpoint.state))
            .collect();
        let policy = assignment.policy.as_ref();
        if policy.is_some_and(|policy| !policy.drop_overloads.is_empty()) {
            return Err(Unsupported::new("policy.drop_overloads"));
        }
        let factor = policy.and_then(|policy| policy.overprovisioning_factor.as_ref());
        let mut priorities = Vec::new();
        for (index, locality) in assignment.endpoints.iter().enumerate() {
            add(&mut priorities, locality, &known).at_item("endpoints", index)?;
        }
        let factor = factor.map_or(OVERPROVISIONING, |factor| factor.value.max(100));
        Ok(Self::new(priorities, factor))
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        let localities = self.priorities.iter().flatten();
        localities.flat_map(|locality| &locality.endpoints)
    }
}

fn add(
    priorities: &mut Vec<Vec<Locality>>,
    locality: &LocalityLbEndpoints,
    known: &HashMap<EndpointAddress, &Arc<EndpointState>>,
) -> Compiled<()> {
    /// Envoy's own limit.
    const MAX_PRIORITY: usize = 128;
    let priority = usize::try_from(locality.priority).unwrap_or(usize::MAX);
    if priority > MAX_PRIORITY {
        return Err(Unsupported::new("priority"));
    }
    if priorities.len() <= priority {
        priorities.resize_with(priority + 1, Vec::new);
    }
    let Some(localities) = priorities.get_mut(priority) else {
        return Ok(());
    };
    let weight = locality.load_balancing_weight.as_ref();
    let mut endpoints = Vec::with_capacity(locality.lb_endpoints.len());
    for (index, endpoint) in locality.lb_endpoints.iter().enumerate() {
        let Some(told_healthy) = told_health(endpoint) else {
            continue;
        };
        let address = address(endpoint).at_item("lb_endpoints", index)?;
        let state = known.get(&address).map(|state| Arc::clone(state));
        let weight = endpoint.load_balancing_weight.as_ref();
        endpoints.push(Arc::new(Endpoint {
            address,
            host: None,
            others: others(endpoint).at_item("lb_endpoints", index)?,
            weight: weight.map_or(1, |weight| weight.value.max(1)),
            told_healthy,
            state: state.unwrap_or_default(),
        }));
    }
    localities.push(Locality {
        weight: weight.map_or(0, |weight| weight.value),
        endpoints,
    });
    Ok(())
}

/// A control plane that says nothing means healthy. What is being drained is not even used when all others are bad.
fn told_health(endpoint: &LbEndpoint) -> Option<bool> {
    match HealthStatus::try_from(endpoint.health_status) {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded) => Some(true),
        Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) => Some(false),
        Ok(HealthStatus::Draining) | Err(_) => None,
    }
}

/// Whether all that is there is the listener that opens tunnels, without a word where to: to where the client wants to go
/// (the cluster `encap`).
pub(super) fn is_encap(assignment: &ClusterLoadAssignment) -> bool {
    let mut endpoints = assignment
        .endpoints
        .iter()
        .flat_map(|it| &it.lb_endpoints)
        .peekable();
    let leads_nowhere = |endpoint: &LbEndpoint| {
        let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else {
            return false;
        };
        let address = host.address.as_ref().and_then(|it| it.address.as_ref());
        let Some(Address::EnvoyInternalAddress(internal)) = address else {
            return false;
        };
        let tunnels = matches!(
            &internal.address_name_specifier,
            Some(AddressNameSpecifier::ServerListenerName(name)) if name == CONNECT_ORIGINATE
        );
        tunnels && internal.endpoint_id.is_empty() && endpoint.metadata.is_none()
    };
    endpoints.peek().is_some() && endpoints.all(leads_nowhere)
}

fn address(endpoint: &LbEndpoint) -> Compiled<EndpointAddress> {
    let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else {
        return Err(Unsupported::missing("endpoint"));
    };
    let address = host
        .address
        .as_ref()
        .and_then(|address| address.address.as_ref());
    match address.ok_or_else(|| Unsupported::missing("address"))? {
        Address::SocketAddress(address) => socket_address(address).map(EndpointAddress::Plain),
        Address::EnvoyInternalAddress(internal) => {
            let Some(AddressNameSpecifier::ServerListenerName(listener)) =
                &internal.address_name_specifier
            else {
                return Err(Unsupported::missing("server_listener_name"));
            };
            if listener != CONNECT_ORIGINATE {
                return Err(Unsupported::new(format!("endpoint through {listener}")));
            }
            let metadata = endpoint.metadata.as_ref();
            let target = metadata.and_then(|it| it.filter_metadata.get(ORIGINAL_DST));
            tunnel(target, &internal.endpoint_id).map(EndpointAddress::Hbone)
        }
        Address::Pipe(_) => Err(Unsupported::new("pipe")),
    }
}

/// `additional_addresses`.
fn others(endpoint: &LbEndpoint) -> Compiled<Box<[SocketAddr]>> {
    let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else {
        return Ok(Box::default());
    };
    let others = host.additional_addresses.iter().map(|other| {
        match other.address.as_ref().and_then(|it| it.address.as_ref()) {
            Some(Address::SocketAddress(address)) => socket_address(address),
            Some(Address::EnvoyInternalAddress(_) | Address::Pipe(_)) | None => {
                Err(Unsupported::new("additional_addresses"))
            }
        }
    });
    others.collect()
}

/// `local` of the metadata, which is the pod; `waypoint` would be another proxy in between.
fn tunnel(metadata: Option<&Struct>, id: &str) -> Compiled<SocketAddr> {
    if let Some(waypoint) = metadata.and_then(|fields| text(fields, "waypoint")) {
        return Err(Unsupported::new(format!("another waypoint ({waypoint})")));
    }
    let local = metadata.and_then(|fields| text(fields, "local"));
    let target = local.unwrap_or(id);
    target
        .parse()
        .map_err(|_not_an_address| Unsupported::new(format!("`{target}` is no address")))
}

fn socket_address(address: &SocketAddress) -> Compiled<SocketAddr> {
    let text = &address.address;
    let ip: IpAddr = text
        .parse()
        .map_err(|_not_an_address| Unsupported::new(format!("`{text}` is no address")))?;
    let Some(PortSpecifier::PortValue(port)) = address.port_specifier else {
        return Err(Unsupported::missing("port_value"));
    };
    let port = u16::try_from(port).map_err(|_too_large| Unsupported::new("port_value"))?;
    Ok(SocketAddr::new(ip, port))
}
