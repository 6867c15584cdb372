//! Endpoints of a cluster. Those that stay over an update keep their state: connections, load, failures.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
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

use super::{
    any::text,
    error::{At, Compiled, Unsupported},
};
use crate::upstream::endpoint::EndpointState;

/// The internal listener that stands for "through HBONE".
const CONNECT_ORIGINATE: &str = "connect_originate";
/// Metadata that says where a tunnel goes.
const ORIGINAL_DST: &str = "envoy.filters.listener.original_dst";

/// The endpoints of one cluster.
#[derive(Debug, Default)]
pub(crate) struct EndpointSet {
    /// Priority 0 first; endpoints of a priority in order of localities.
    pub(crate) priorities: Vec<Vec<Arc<Endpoint>>>,
}

/// One endpoint.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: EndpointAddress,
    /// Relative, at least 1; includes that of its locality.
    pub(crate) weight: u32,
    pub(crate) state: Arc<EndpointState>,
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
        let mut set = Self::default();
        for (index, locality) in assignment.endpoints.iter().enumerate() {
            set.add(locality, &known).at_item("endpoints", index)?;
        }
        Ok(set)
    }

    fn add(
        &mut self,
        locality: &LocalityLbEndpoints,
        known: &HashMap<EndpointAddress, &Arc<EndpointState>>,
    ) -> Compiled<()> {
        /// Envoy's own limit.
        const MAX_PRIORITY: usize = 128;
        let priority = usize::try_from(locality.priority).unwrap_or(usize::MAX);
        if priority > MAX_PRIORITY {
            return Err(Unsupported::new("priority"));
        }
        if self.priorities.len() <= priority {
            self.priorities.resize_with(priority + 1, Vec::new);
        }
        let Some(endpoints) = self.priorities.get_mut(priority) else {
            return Ok(());
        };
        for (index, endpoint) in locality.lb_endpoints.iter().enumerate() {
            if !is_usable(endpoint) {
                continue;
            }
            let address = address(endpoint).at_item("lb_endpoints", index)?;
            let state = known.get(&address).map(|state| Arc::clone(state));
            let weight = endpoint.load_balancing_weight.as_ref();
            endpoints.push(Arc::new(Endpoint {
                address,
                weight: weight.map_or(1, |weight| weight.value.max(1)),
                state: state.unwrap_or_default(),
            }));
        }
        Ok(())
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.priorities.iter().flatten()
    }
}

/// What is known to be bad is not asked; a control plane that says nothing means healthy.
fn is_usable(endpoint: &LbEndpoint) -> bool {
    match HealthStatus::try_from(endpoint.health_status) {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded) => true,
        Ok(HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout) | Err(_) => {
            false
        }
    }
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
