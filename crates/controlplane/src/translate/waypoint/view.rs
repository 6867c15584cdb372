//! What a waypoint's configuration is computed from: the services of the mesh with their endpoints, beside the objects.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use leyline_proto::istio::workload::{
    AppProtocol, Port, TunnelProtocol, Workload, WorkloadStatus, load_balancing::Mode,
};
use leyline_types::NamespacedName;

use super::{Inputs, clusters::locality, index::Index};
use crate::{
    objects::{Objects, mesh_config::MeshConfig},
    translate::{
        KeySets, MeshSettings,
        services::{Browsers, ConnectStrategy, MeshService, Resolution},
        trust_domains::TrustDomains,
    },
};

/// A workload with the labels that subsets are told by.
pub(in crate::translate) struct Member {
    pub(in crate::translate) workload: Workload,
    pub(in crate::translate) labels: BTreeMap<String, String>,
}

impl Member {
    /// A workload that is no pod: in no subset.
    pub(in crate::translate) fn without_labels(workload: Workload) -> Self {
        Self {
            workload,
            labels: BTreeMap::new(),
        }
    }
}

/// Everything.
pub(super) struct View<'a> {
    pub(super) objects: &'a Objects,
    pub(super) mesh: &'a MeshSettings,
    /// What the user says of the whole mesh.
    pub(super) config: &'a MeshConfig,
    /// Whose identities are of the mesh.
    pub(super) trust_domains: &'a TrustDomains,
    /// Keys of token issuers.
    pub(super) keys: &'a KeySets,
    /// By host name.
    pub(super) services: BTreeMap<&'a str, ServiceView<'a>>,
    /// By what they are about.
    pub(super) index: Index<'a>,
}

/// A service.
pub(super) struct ServiceView<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) host: &'a str,
    /// With the length of the block: `10.0.0.1` and 32.
    pub(super) addresses: Vec<(String, u32)>,
    pub(super) ports: Vec<PortView>,
    /// Names of ports, by which routes may ask for one.
    pub(super) sections: Vec<(&'a str, u32)>,
    pub(super) endpoints: Vec<EndpointView<'a>>,
    pub(super) waypoints: &'a BTreeSet<NamespacedName>,
    /// Labels by which it prefers endpoints that are near.
    pub(super) preference: Vec<String>,
    pub(super) resolution: Resolution,
    pub(super) connect_strategy: ConnectStrategy,
}

/// A port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PortView {
    pub(super) number: u16,
    /// Of the endpoint, where that is the same for all.
    pub(super) target: Option<u16>,
    pub(super) protocol: PortProtocol,
}

/// What is spoken on a port, as far as its name or `appProtocol` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PortProtocol {
    Http1,
    Http2,
    /// Of clients in browsers, or gRPC; gRPC towards the application.
    GrpcWeb,
    Tcp,
    /// Passed through as it is; the client says first which host it wants.
    Tls,
    /// Told from what the client sends first.
    Unknown,
}

impl PortProtocol {
    pub(super) fn may_be_http(self) -> bool {
        !matches!(self, Self::Tcp | Self::Tls)
    }

    /// Whether the application speaks it.
    pub(super) fn is_http2(self) -> bool {
        match self {
            Self::Http2 | Self::GrpcWeb => true,
            Self::Http1 | Self::Tcp | Self::Tls | Self::Unknown => false,
        }
    }

    /// Whether each request or connection says which host it is for.
    fn names_host(self) -> bool {
        matches!(self, Self::Http1 | Self::Http2 | Self::GrpcWeb | Self::Tls)
    }

    pub(super) fn may_be_tcp(self) -> bool {
        matches!(self, Self::Tcp | Self::Tls | Self::Unknown)
    }
}

/// An address of a service's port.
pub(super) struct EndpointView<'a> {
    pub(super) member: &'a Member,
    /// Where it has one; else its workload has a host name.
    pub(super) address: Option<IpAddr>,
    /// By port of the service.
    pub(super) ports: BTreeMap<u16, u16>,
}

impl EndpointView<'_> {
    /// Whether it is reached through a tunnel.
    pub(super) fn is_hbone(&self) -> bool {
        self.member.workload.tunnel_protocol == i32::from(TunnelProtocol::Hbone)
    }
}

impl<'a> View<'a> {
    pub(super) fn new(
        inputs: &Inputs<'a>,
        services: impl Iterator<Item = &'a MeshService>,
    ) -> Self {
        let mut by_key: BTreeMap<&str, Vec<EndpointView<'a>>> = BTreeMap::new();
        for member in inputs.members {
            for (key, ports) in &member.workload.services {
                if let Some(endpoint) = endpoint(member, &ports.ports) {
                    by_key.entry(key).or_default().push(endpoint);
                }
            }
        }
        let services = services.map(|service| {
            let endpoints = by_key.remove(service.key.as_str()).unwrap_or_default();
            (
                service.wire.hostname.as_str(),
                service_view(service, endpoints),
            )
        });
        Self {
            objects: inputs.objects,
            mesh: inputs.mesh,
            config: inputs.config,
            trust_domains: inputs.trust_domains,
            keys: inputs.keys,
            services: services.collect(),
            index: Index::new(inputs.objects, inputs.policies, &inputs.mesh.cluster_domain),
        }
    }

    /// The services of a waypoint.
    pub(super) fn behind(&self, gateway: &NamespacedName) -> Vec<&ServiceView<'a>> {
        let all = self.services.values();
        all.filter(|service| service.waypoints.contains(gateway))
            .collect()
    }
}

fn service_view<'a>(
    service: &'a MeshService,
    mut endpoints: Vec<EndpointView<'a>>,
) -> ServiceView<'a> {
    let wire = &service.wire;
    // Services that publish what is not ready say so; the rest only counts what is.
    let all = wire.load_balancing.as_ref().is_some_and(|balancing| {
        use leyline_proto::istio::workload::load_balancing::HealthPolicy;
        balancing.health_policy == i32::from(HealthPolicy::AllowAll)
    });
    endpoints.retain(|endpoint| {
        let workload = &endpoint.member.workload;
        // A capacity of 0 means: never.
        workload.capacity != Some(0)
            && (all || workload.status == i32::from(WorkloadStatus::Healthy))
    });
    ServiceView {
        namespace: &wire.namespace,
        name: &wire.name,
        host: &wire.hostname,
        addresses: wire
            .addresses
            .iter()
            .filter_map(|address| {
                let ip = ip(&address.address)?;
                let whole = if ip.is_ipv4() { 32 } else { 128 };
                Some((ip.to_string(), address.length.unwrap_or(whole)))
            })
            .collect(),
        ports: wire
            .ports
            .iter()
            .filter_map(|port| {
                Some(PortView {
                    number: u16::try_from(port.service_port).ok()?,
                    target: u16::try_from(port.target_port)
                        .ok()
                        .filter(|port| *port != 0),
                    protocol: protocol(service, port),
                })
            })
            .filter(|port| service.resolution != Resolution::Request || port.protocol.names_host())
            .collect(),
        sections: service
            .ports
            .iter()
            .map(|port| (port.name.as_str(), port.service_port))
            .collect(),
        endpoints,
        waypoints: &service.waypoints,
        resolution: service.resolution,
        connect_strategy: service.connect_strategy,
        preference: wire
            .load_balancing
            .as_ref()
            .filter(|balancing| balancing.mode == i32::from(Mode::Failover))
            .map(|balancing| locality::preference(&balancing.routing_preference))
            .unwrap_or_default(),
    }
}

fn endpoint<'a>(member: &'a Member, ports: &[Port]) -> Option<EndpointView<'a>> {
    let workload = &member.workload;
    let address = workload.addresses.first().and_then(|bytes| ip(bytes));
    if address.is_none() && workload.hostname.is_empty() {
        return None;
    }
    let port = |number: u32| u16::try_from(number).ok().filter(|port| *port != 0);
    let ports = ports.iter();
    Some(EndpointView {
        member,
        address,
        ports: ports
            .filter_map(|one| Some((port(one.service_port)?, port(one.target_port)?)))
            .collect(),
    })
}

pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .ok()
        .or_else(|| <[u8; 16]>::try_from(bytes).map(IpAddr::from).ok())
}

fn protocol(service: &MeshService, port: &Port) -> PortProtocol {
    let mut known = service.ports.iter();
    let known = known.find(|known| known.service_port == port.service_port);
    if known.is_some_and(|known| known.browsers == Browsers::ByGrpcWeb) {
        return PortProtocol::GrpcWeb;
    }
    match AppProtocol::try_from(port.app_protocol) {
        Ok(AppProtocol::Http11) => PortProtocol::Http1,
        Ok(AppProtocol::Http2 | AppProtocol::Grpc) => PortProtocol::Http2,
        Ok(AppProtocol::Tcp) => PortProtocol::Tcp,
        Ok(AppProtocol::Tls) => PortProtocol::Tls,
        Ok(AppProtocol::Unknown) | Err(_) => PortProtocol::Unknown,
    }
}
