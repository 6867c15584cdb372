//! Endpoints of services without a selector: EndpointSlices, whose endpoints are pods or plain addresses.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use leyline_proto::istio::workload::{Locality, PortList, Workload, WorkloadStatus, WorkloadType};
use leyline_types::NamespacedName;

use super::{
    locality,
    services::{MeshService, address_bytes},
    workloads::{self, Context},
};
use crate::objects::Objects;

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The slices that count, resolved to pods where they name or meet one.
pub(super) struct Slices {
    /// By pod `namespace/name`.
    by_pod: BTreeMap<(String, String), HashMap<String, PortList>>,
    plain: Vec<PlainEndpoint>,
}

/// An address that is no pod's.
struct PlainEndpoint {
    slice: Arc<EndpointSlice>,
    endpoint: usize,
    address: IpAddr,
    service: String,
    ports: PortList,
}

impl Slices {
    pub(super) fn new(objects: &Objects, services: &BTreeMap<NamespacedName, MeshService>) -> Self {
        let mut slices = Self {
            by_pod: BTreeMap::new(),
            plain: Vec::new(),
        };
        let pods = pods_by_address(objects);
        for (name, slice) in &objects.endpoint_slices {
            let service = slice
                .metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(SERVICE_NAME));
            let Some(service) = service.and_then(|service| {
                services.get(&NamespacedName {
                    namespace: name.namespace.clone(),
                    name: service.as_str().into(),
                })
            }) else {
                continue;
            };
            if service.selector.is_empty() {
                slices.add(slice, service, name.namespace.as_str(), &pods);
            }
        }
        slices
    }

    fn add(
        &mut self,
        slice: &Arc<EndpointSlice>,
        service: &MeshService,
        namespace: &str,
        pods: &HashMap<IpAddr, (String, String)>,
    ) {
        let ports = ports(service, slice.ports.as_deref().unwrap_or_default());
        for (index, endpoint) in slice.endpoints.iter().flatten().enumerate() {
            let named = endpoint
                .target_ref
                .as_ref()
                .filter(|target| target.kind.as_deref() == Some("Pod"))
                .and_then(|target| target.name.clone())
                .map(|name| (namespace.to_owned(), name));
            for address in endpoint
                .addresses
                .iter()
                .filter_map(|text| text.parse().ok())
            {
                // One address is one workload: an endpoint that is a pod in fact is that pod.
                match named.clone().or_else(|| pods.get(&address).cloned()) {
                    Some(pod) => {
                        let of_pod = self.by_pod.entry(pod).or_default();
                        of_pod.insert(service.key.clone(), ports.clone());
                    }
                    None => self.plain.push(PlainEndpoint {
                        slice: Arc::clone(slice),
                        endpoint: index,
                        address,
                        service: service.key.clone(),
                        ports: ports.clone(),
                    }),
                }
            }
        }
    }

    /// The services that slices put on a pod.
    pub(super) fn of_pod(&self, namespace: &str, name: &str) -> HashMap<String, PortList> {
        let key = (namespace.to_owned(), name.to_owned());
        self.by_pod.get(&key).cloned().unwrap_or_default()
    }
}

fn pods_by_address(objects: &Objects) -> HashMap<IpAddr, (String, String)> {
    let mut pods = HashMap::new();
    for (name, pod) in &objects.pods {
        if workloads::is_host_network(pod) || !workloads::is_live(pod) {
            continue;
        }
        for address in workloads::addresses_of(pod) {
            pods.insert(address, (name.namespace.to_string(), name.name.to_string()));
        }
    }
    pods
}

/// Service ports matched with slice ports by name, as Kubernetes pairs them.
fn ports(service: &MeshService, slice: &[EndpointPort]) -> PortList {
    let target = |name: &str| {
        slice
            .iter()
            .filter(|port| matches!(port.protocol.as_deref(), None | Some("TCP")))
            .find(|port| port.name.as_deref().unwrap_or_default() == name)
            .and_then(|port| port.port)
            .and_then(|port| u32::try_from(port).ok())
    };
    let ports = service.ports.iter();
    PortList {
        ports: ports
            .filter_map(|port| Some(port.wire_port(target(&port.name)?)))
            .collect(),
    }
}

/// The workloads of endpoints that are no pods; one per slice and address.
pub(super) fn workloads(context: &Context<'_>) -> Vec<Workload> {
    context
        .slices
        .plain
        .iter()
        .filter_map(|plain| workload(context, plain))
        .collect()
}

fn workload(context: &Context<'_>, plain: &PlainEndpoint) -> Option<Workload> {
    let endpoint: &Endpoint = plain.slice.endpoints.as_ref()?.get(plain.endpoint)?;
    let name = plain.slice.metadata.name.as_deref().unwrap_or_default();
    let namespace = plain
        .slice
        .metadata
        .namespace
        .as_deref()
        .unwrap_or("default");
    let ready = endpoint
        .conditions
        .as_ref()
        .and_then(|conditions| conditions.ready);
    let node = endpoint.node_name.clone().unwrap_or_default();
    let zone = endpoint.zone.clone().map(|zone| Locality {
        zone,
        ..Locality::default()
    });
    let mesh = context.mesh;
    Some(Workload {
        uid: format!(
            "{}/discovery.k8s.io/EndpointSlice/{namespace}/{name}/{}",
            mesh.cluster_id, plain.address
        ),
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        addresses: vec![address_bytes(plain.address)],
        network: context.networks.own().to_owned(),
        network_gateway: context.networks.gateway_to(context.networks.own()),
        trust_domain: workloads::trust_domain(mesh),
        canonical_name: name.to_owned(),
        canonical_revision: "latest".to_owned(),
        workload_type: WorkloadType::Pod.into(),
        workload_name: name.to_owned(),
        services: HashMap::from([(plain.service.clone(), plain.ports.clone())]),
        // Kubernetes takes an unset condition as ready.
        status: match ready {
            Some(false) => WorkloadStatus::Unhealthy,
            Some(true) | None => WorkloadStatus::Healthy,
        }
        .into(),
        cluster_id: mesh.cluster_id.clone(),
        locality: locality::of_node(context.objects, &node).or(zone),
        node,
        ..Workload::default()
    })
}
