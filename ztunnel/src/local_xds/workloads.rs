//! Workloads, and what services share with them.

use std::{collections::BTreeMap, net::IpAddr};

use leyline_proto::istio::workload::{self as wire, gateway_address::Destination};
use serde::Deserialize;

use super::address_bytes;

/// Service port to target port.
pub(super) type Ports = BTreeMap<u16, u16>;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Workload {
    uid: String,
    name: String,
    namespace: String,
    service_account: String,
    trust_domain: String,
    workload_ips: Vec<IpAddr>,
    hostname: String,
    network: String,
    node: String,
    protocol: Protocol,
    network_mode: NetworkMode,
    waypoint: Option<Gateway>,
    network_gateway: Option<Gateway>,
    workload_name: String,
    workload_type: WorkloadType,
    canonical_name: String,
    canonical_revision: String,
    native_tunnel: bool,
    application_tunnel: Option<ApplicationTunnel>,
    authorization_policies: Vec<String>,
    status: Status,
    cluster_id: String,
    locality: Locality,
    capacity: Option<u32>,
    pub(super) services: BTreeMap<String, Ports>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Protocol {
    #[default]
    Tcp,
    Hbone,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum NetworkMode {
    #[default]
    Standard,
    HostNetwork,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum Status {
    #[default]
    Healthy,
    Unhealthy,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WorkloadType {
    Deployment,
    CronJob,
    #[default]
    Pod,
    Job,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ApplicationTunnel {
    protocol: TunnelProtocol,
    port: Option<u16>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum TunnelProtocol {
    None,
    Proxy,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Locality {
    region: String,
    zone: String,
    subzone: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Gateway {
    /// `network/address` or `namespace/hostname`.
    destination: String,
    hbone_mtls_port: u16,
}

impl Workload {
    pub(super) fn uid(&self) -> String {
        if self.uid.is_empty() {
            format!("Kubernetes//Pod/{}/{}", self.namespace, self.name)
        } else {
            self.uid.clone()
        }
    }

    pub(super) fn into_wire(self) -> Result<wire::Workload, String> {
        let uid = self.uid();
        Ok(wire::Workload {
            uid,
            name: self.name,
            namespace: self.namespace,
            addresses: self.workload_ips.into_iter().map(address_bytes).collect(),
            hostname: self.hostname,
            network: self.network,
            tunnel_protocol: match self.protocol {
                Protocol::Tcp => wire::TunnelProtocol::None,
                Protocol::Hbone => wire::TunnelProtocol::Hbone,
            }
            .into(),
            trust_domain: self.trust_domain,
            service_account: self.service_account,
            waypoint: self.waypoint.map(Gateway::into_wire).transpose()?,
            network_gateway: self.network_gateway.map(Gateway::into_wire).transpose()?,
            node: self.node,
            canonical_name: self.canonical_name,
            canonical_revision: self.canonical_revision,
            workload_type: match self.workload_type {
                WorkloadType::Deployment => wire::WorkloadType::Deployment,
                WorkloadType::CronJob => wire::WorkloadType::Cronjob,
                WorkloadType::Pod => wire::WorkloadType::Pod,
                WorkloadType::Job => wire::WorkloadType::Job,
            }
            .into(),
            workload_name: self.workload_name,
            native_tunnel: self.native_tunnel,
            application_tunnel: self.application_tunnel.map(ApplicationTunnel::into_wire),
            services: self
                .services
                .into_iter()
                .map(|(service, ports)| (service, port_list(&ports)))
                .collect(),
            authorization_policies: self.authorization_policies,
            status: match self.status {
                Status::Healthy => wire::WorkloadStatus::Healthy,
                Status::Unhealthy => wire::WorkloadStatus::Unhealthy,
            }
            .into(),
            cluster_id: self.cluster_id,
            locality: Some(wire::Locality {
                region: self.locality.region,
                zone: self.locality.zone,
                subzone: self.locality.subzone,
            }),
            network_mode: match self.network_mode {
                NetworkMode::Standard => wire::NetworkMode::Standard,
                NetworkMode::HostNetwork => wire::NetworkMode::HostNetwork,
            }
            .into(),
            capacity: self.capacity,
            ..wire::Workload::default()
        })
    }
}

impl ApplicationTunnel {
    fn into_wire(self) -> wire::ApplicationTunnel {
        let protocol = match self.protocol {
            TunnelProtocol::None => wire::application_tunnel::Protocol::None,
            TunnelProtocol::Proxy => wire::application_tunnel::Protocol::Proxy,
        };
        wire::ApplicationTunnel {
            protocol: protocol.into(),
            port: self.port.unwrap_or(0).into(),
        }
    }
}

impl Gateway {
    pub(super) fn into_wire(self) -> Result<wire::GatewayAddress, String> {
        let (first, second) = self.destination.split_once('/').ok_or_else(|| {
            format!(
                "{}: write network/address or namespace/hostname",
                self.destination
            )
        })?;
        let destination = match second.parse() {
            Ok(ip) => Destination::Address(wire::NetworkAddress {
                network: first.to_owned(),
                address: address_bytes(ip),
                length: None,
            }),
            Err(_) => Destination::Hostname(wire::NamespacedHostname {
                namespace: first.to_owned(),
                hostname: second.to_owned(),
            }),
        };
        Ok(wire::GatewayAddress {
            destination: Some(destination),
            hbone_mtls_port: self.hbone_mtls_port.into(),
        })
    }
}

pub(super) fn port_list(ports: &Ports) -> wire::PortList {
    let ports = ports.iter().map(|(service, target)| wire::Port {
        service_port: (*service).into(),
        target_port: (*target).into(),
        app_protocol: 0,
    });
    wire::PortList {
        ports: ports.collect(),
    }
}
