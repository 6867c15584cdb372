//! Services.

use std::{collections::BTreeMap, net::IpAddr};

use leyline_proto::istio::workload as wire;
use serde::Deserialize;

use super::{
    address_bytes, block,
    workloads::{Gateway, Ports, Workload, port_list},
};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Service {
    name: String,
    namespace: String,
    hostname: String,
    /// `network/address`.
    vips: Vec<String>,
    cidr_vips: Vec<NetworkBlock>,
    ports: Ports,
    /// By uid of the workload.
    endpoints: BTreeMap<String, Endpoint>,
    subject_alt_names: Vec<String>,
    waypoint: Option<Gateway>,
    weighted_waypoints: Vec<WeightedGateway>,
    load_balancer: Option<LoadBalancer>,
    ip_families: Option<IpFamilies>,
    canonical: bool,
    visibility: Visibility,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkBlock {
    #[serde(default)]
    network: String,
    cidr: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Endpoint {
    /// Said by the key too.
    #[serde(rename = "workloadUid")]
    _workload_uid: String,
    port: Ports,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WeightedGateway {
    destination: Gateway,
    weight: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct LoadBalancer {
    routing_preferences: Vec<Scope>,
    mode: Mode,
    health_policy: HealthPolicy,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Scope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum Mode {
    #[default]
    Standard,
    Strict,
    Failover,
    Passthrough,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum HealthPolicy {
    #[default]
    OnlyHealthy,
    AllowAll,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum IpFamilies {
    Dual,
    IPv4,
    IPv6,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum Visibility {
    #[default]
    Public,
    Namespace,
}

impl Service {
    pub(super) fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.hostname)
    }

    /// On the wire, workloads name their services.
    pub(super) fn add_endpoints(&self, workloads: &mut [Workload]) {
        for (uid, endpoint) in &self.endpoints {
            let named = workloads.iter_mut().filter(|one| one.uid() == *uid);
            for workload in named {
                let ports = workload.services.entry(self.key()).or_default();
                ports.extend(&endpoint.port);
            }
        }
    }

    pub(super) fn into_wire(self) -> Result<wire::Service, String> {
        let mut addresses = Vec::new();
        for vip in &self.vips {
            addresses.push(vip_address(vip)?);
        }
        for NetworkBlock { network, cidr } in self.cidr_vips {
            let (address, length) = block(&cidr)?;
            addresses.push(wire::NetworkAddress {
                network,
                address,
                length: Some(length),
            });
        }
        let mut weighted_waypoints = Vec::new();
        for WeightedGateway {
            destination,
            weight,
        } in self.weighted_waypoints
        {
            weighted_waypoints.push(wire::WeightedGatewayAddress {
                destination: Some(destination.into_wire()?),
                weight,
            });
        }
        Ok(wire::Service {
            name: self.name,
            namespace: self.namespace,
            hostname: self.hostname,
            addresses,
            ports: port_list(&self.ports).ports,
            subject_alt_names: self.subject_alt_names,
            waypoint: self.waypoint.map(Gateway::into_wire).transpose()?,
            load_balancing: self.load_balancer.map(LoadBalancer::into_wire),
            ip_families: match self.ip_families {
                None => wire::IpFamilies::Automatic,
                Some(IpFamilies::Dual) => wire::IpFamilies::Dual,
                Some(IpFamilies::IPv4) => wire::IpFamilies::Ipv4Only,
                Some(IpFamilies::IPv6) => wire::IpFamilies::Ipv6Only,
            }
            .into(),
            canonical: self.canonical,
            weighted_waypoints,
            visibility: match self.visibility {
                Visibility::Public => wire::Visibility::Public,
                Visibility::Namespace => wire::Visibility::NamespaceOnly,
            }
            .into(),
            ..wire::Service::default()
        })
    }
}

fn vip_address(text: &str) -> Result<wire::NetworkAddress, String> {
    let wrong = || format!("{text}: write network/address, such as /10.0.0.1");
    let (network, ip) = text.rsplit_once('/').ok_or_else(wrong)?;
    let ip: IpAddr = ip.parse().map_err(|_not_one| wrong())?;
    Ok(wire::NetworkAddress {
        network: network.to_owned(),
        address: address_bytes(ip),
        length: None,
    })
}

impl LoadBalancer {
    fn into_wire(self) -> wire::LoadBalancing {
        use wire::load_balancing as lb;
        let scopes = self.routing_preferences.into_iter().map(|scope| {
            match scope {
                Scope::Region => lb::Scope::Region,
                Scope::Zone => lb::Scope::Zone,
                Scope::Subzone => lb::Scope::Subzone,
                Scope::Node => lb::Scope::Node,
                Scope::Cluster => lb::Scope::Cluster,
                Scope::Network => lb::Scope::Network,
            }
            .into()
        });
        wire::LoadBalancing {
            routing_preference: scopes.collect(),
            mode: match self.mode {
                Mode::Standard => lb::Mode::UnspecifiedMode,
                Mode::Strict => lb::Mode::Strict,
                Mode::Failover => lb::Mode::Failover,
                Mode::Passthrough => lb::Mode::Passthrough,
            }
            .into(),
            health_policy: match self.health_policy {
                HealthPolicy::OnlyHealthy => lb::HealthPolicy::OnlyHealthy,
                HealthPolicy::AllowAll => lb::HealthPolicy::AllowAll,
            }
            .into(),
        }
    }
}
