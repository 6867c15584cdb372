//! Networks: whose pods cannot be reached directly from each other, only through the gateways between them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::api::core::v1::Pod;
use leyline_proto::istio::workload::{
    GatewayAddress, NetworkAddress, TunnelProtocol, Workload, WorkloadStatus, WorkloadType,
    gateway_address,
};
use leyline_types::NamespacedName;

use super::{
    Advice, MeshSettings, locality,
    services::address_bytes,
    workloads::{self, trust_domain},
};
use crate::objects::{EAST_WEST_CLASS, Gateway, Kind, ObjectKey, Objects, REMOTE_CLASS};

const NETWORK: &str = "topology.istio.io/network";
const SERVICE_ACCOUNT: &str = "gateway.istio.io/service-account";
const HBONE_PORT: u16 = 15008;

/// The networks of the mesh.
#[derive(Debug, Default)]
pub(super) struct Networks {
    own: String,
    of_nodes: BTreeMap<String, String>,
    /// All that are in use.
    all: BTreeSet<String>,
    gateways: BTreeMap<String, NetworkGateway>,
}

/// How a network is entered.
#[derive(Debug)]
struct NetworkGateway {
    address: IpAddr,
    wire: GatewayAddress,
    /// Described to node proxies where no pod has its address.
    workload: Workload,
}

impl Networks {
    pub(super) fn new(objects: &Objects, mesh: &MeshSettings, advice: &mut Vec<Advice>) -> Self {
        let own = locality::network(objects, mesh);
        let of_nodes = objects.nodes.iter().filter_map(|(name, node)| {
            let network = node.metadata.labels.as_ref()?.get(NETWORK)?;
            (!network.is_empty()).then(|| (name.clone(), network.clone()))
        });
        let mut networks = Self {
            all: BTreeSet::from([own.clone()]),
            own,
            of_nodes: of_nodes.collect(),
            gateways: BTreeMap::new(),
        };
        for pod in objects.pods.values() {
            networks.all.insert(networks.of_pod(pod).to_owned());
        }
        for (name, gateway) in &objects.gateways {
            networks.add_gateway(name, gateway, mesh, advice);
        }
        networks
    }

    fn add_gateway(
        &mut self,
        name: &NamespacedName,
        gateway: &Gateway,
        mesh: &MeshSettings,
        advice: &mut Vec<Advice>,
    ) {
        if !gateway.is_of_class(EAST_WEST_CLASS) && !gateway.is_of_class(REMOTE_CLASS) {
            return;
        }
        let Some(network) = gateway.label(NETWORK) else {
            return;
        };
        let mut advise = |field: &str, reason: &str| {
            let (namespace, name) = (name.namespace.as_str(), name.name.as_str());
            advice.push(Advice {
                object: ObjectKey::new(Kind::Gateway, Some(namespace), name),
                field: field.to_owned(),
                reason: reason.to_owned(),
            });
        };
        if self.gateways.contains_key(network) {
            return advise(
                "metadata.labels",
                "another Gateway already leads to this network",
            );
        }
        let said = gateway.status.addresses.iter();
        let mut said = said.chain(&gateway.spec.addresses);
        let Some(address) = said.find_map(|address| address.value.parse().ok()) else {
            return advise(
                "spec.addresses",
                "no IP address, so that nobody finds the gateway",
            );
        };
        let port = gateway.hbone_port().unwrap_or(HBONE_PORT);
        let wire = GatewayAddress {
            hbone_mtls_port: port.into(),
            destination: Some(gateway_address::Destination::Address(NetworkAddress {
                network: network.to_owned(),
                address: address_bytes(address),
                length: None,
            })),
        };
        let workload = workload(name, gateway, network, address, port, mesh);
        let gateway = NetworkGateway {
            address,
            wire,
            workload,
        };
        self.gateways.insert(network.to_owned(), gateway);
    }

    /// The network of what says nothing else.
    pub(super) fn own(&self) -> &str {
        &self.own
    }

    /// All networks, the own one first.
    pub(super) fn all(&self) -> impl Iterator<Item = &str> {
        let others = self.all.iter().filter(|network| **network != self.own);
        std::iter::once(&self.own).chain(others).map(String::as_str)
    }

    /// By a label of the pod, else of its node.
    pub(super) fn of_pod<'a>(&'a self, pod: &'a Pod) -> &'a str {
        let labels = pod.metadata.labels.as_ref();
        let own = labels.and_then(|labels| labels.get(NETWORK));
        own.filter(|network| !network.is_empty())
            .or_else(|| self.of_nodes.get(workloads::node_of(pod)))
            .unwrap_or(&self.own)
    }

    /// How a network is entered from another one.
    pub(super) fn gateway_to(&self, network: &str) -> Option<GatewayAddress> {
        Some(self.gateways.get(network)?.wire.clone())
    }

    /// Gateways that are no pods, for node proxies to know whom to expect there.
    pub(super) fn workloads(&self, objects: &Objects) -> Vec<Workload> {
        let is_pod = |network: &str, gateway: &NetworkGateway| {
            objects.pods.values().any(|pod| {
                self.of_pod(pod) == network
                    && workloads::is_live(pod)
                    && workloads::addresses_of(pod).contains(&gateway.address)
            })
        };
        self.gateways
            .iter()
            .filter(|(network, gateway)| !is_pod(network, gateway))
            .map(|(_, gateway)| gateway.workload.clone())
            .collect()
    }
}

/// A gateway as an instance that has its identity.
fn workload(
    name: &NamespacedName,
    gateway: &Gateway,
    network: &str,
    address: IpAddr,
    port: u16,
    mesh: &MeshSettings,
) -> Workload {
    let account = gateway.annotation(SERVICE_ACCOUNT);
    Workload {
        uid: format!("NetworkGateway/{network}/{address}/{port}"),
        name: name.name.to_string(),
        namespace: name.namespace.to_string(),
        addresses: vec![address_bytes(address)],
        network: network.to_owned(),
        tunnel_protocol: TunnelProtocol::Hbone.into(),
        trust_domain: trust_domain(mesh),
        service_account: account.unwrap_or(name.name.as_str()).to_owned(),
        canonical_name: name.name.to_string(),
        canonical_revision: "latest".to_owned(),
        workload_type: WorkloadType::Pod.into(),
        workload_name: name.name.to_string(),
        status: WorkloadStatus::Healthy.into(),
        cluster_id: mesh.cluster_id.clone(),
        ..Workload::default()
    }
}
