//! Pods to workloads.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use leyline_proto::istio::workload::{
    Extension, GatewayAddress, NetworkMode, PortList, TunnelProtocol, Workload, WorkloadStatus,
    WorkloadType,
};
use leyline_types::{ENROLMENT_PENDING, TrustDomain};

use super::{
    Advice, Captured, MeshSettings, WantedPods,
    authorization::Policies,
    endpoints::Slices,
    locality,
    networks::Networks,
    peer_authentication::PeerAuthentications,
    pod_uid,
    selectors::Selectors,
    services::{MeshService, Target, address_bytes},
    waypoints::{Attached, Waypoints},
};
use crate::objects::{Kind, ObjectKey, Objects};

pub(super) const TUNNEL: &str = "networking.istio.io/tunnel";
/// istio-cni's word that it has captured a pod.
const REDIRECTION: &str = "ambient.istio.io/redirection";
const POD_TEMPLATE_HASH: &str = "pod-template-hash";
pub(super) const NAME_LABELS: [&str; 3] = [
    "service.istio.io/canonical-name",
    "app.kubernetes.io/name",
    "app",
];
pub(super) const REVISION_LABELS: [&str; 3] = [
    "service.istio.io/canonical-revision",
    "app.kubernetes.io/version",
    "version",
];

/// What a workload is computed from.
pub(super) struct Context<'a> {
    pub(super) objects: &'a Objects,
    pub(super) mesh: &'a MeshSettings,
    pub(super) services: HashMap<&'a str, Selectors<&'a MeshService>>,
    pub(super) slices: &'a Slices,
    pub(super) policies: &'a Policies,
    pub(super) peers: &'a PeerAuthentications,
    pub(super) captured: &'a Captured,
    pub(super) wanted: &'a BTreeMap<String, WantedPods>,
    pub(super) networks: &'a Networks,
    pub(super) waypoints: &'a Waypoints<'a>,
}

/// The workload of a pod; `None` while it has no address and once it has ended.
pub(super) fn of_pod(
    context: &Context<'_>,
    pod: &Pod,
    advice: &mut Vec<Advice>,
) -> Option<Workload> {
    let addresses = addresses_of(pod);
    if addresses.is_empty() || !is_live(pod) {
        return None;
    }
    let mesh = context.mesh;
    let (namespace, name, node) = (namespace_of(pod), name_of(pod), node_of(pod));
    let uid = pod_uid(mesh, namespace, name);
    let native = has_native_tunnel(pod);
    let network = context.networks.of_pod(pod);
    let workload_name = workload_name(pod);
    let canonical = |labels: &[&str], fallback: &str| {
        labels
            .iter()
            .find_map(|key| label(pod, key))
            .unwrap_or(fallback)
            .to_owned()
    };
    let wanted = context.wanted.get(node).and_then(|pods| pods.get(&uid));
    let captured = wanted.is_some_and(|pod| context.captured.get(&uid) == Some(&pod.instance));
    let tunnelled = captured || native || is_redirected(pod);
    Some(Workload {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        addresses: addresses.into_iter().map(address_bytes).collect(),
        network: network.to_owned(),
        network_gateway: context.networks.gateway_to(network),
        waypoint: waypoint_of(context, pod, advice),
        application_tunnel: context.waypoints.application_tunnel(pod),
        tunnel_protocol: tunnel(tunnelled).into(),
        trust_domain: trust_domain(mesh),
        service_account: service_account_of(pod).to_owned(),
        node: node.to_owned(),
        canonical_name: canonical(&NAME_LABELS, &workload_name),
        canonical_revision: canonical(&REVISION_LABELS, "latest"),
        workload_type: WorkloadType::Pod.into(),
        workload_name,
        native_tunnel: native,
        services: services_of(context, pod),
        authorization_policies: policies_of(context, pod),
        status: status(pod).into(),
        cluster_id: mesh.cluster_id.clone(),
        locality: locality::of_node(context.objects, node),
        network_mode: if is_host_network(pod) {
            NetworkMode::HostNetwork
        } else {
            NetworkMode::Standard
        }
        .into(),
        extensions: pending(wanted.is_some() && !tunnelled),
        uid,
        ..Workload::default()
    })
}

/// What tells node proxies not to send plaintext to a pod that is about to be captured, or that cannot be.
fn pending(pending: bool) -> Vec<Extension> {
    let extension = Extension {
        name: ENROLMENT_PENDING.to_owned(),
        config: None,
    };
    pending.then_some(extension).into_iter().collect()
}

/// Of traffic by the pod's address; none for the pods of gateways.
fn waypoint_of(
    context: &Context<'_>,
    pod: &Pod,
    advice: &mut Vec<Advice>,
) -> Option<GatewayAddress> {
    if context.waypoints.gateway_of(pod).is_some() {
        return None;
    }
    let attached = Attached {
        object: &ObjectKey::new(Kind::Pod, Some(namespace_of(pod)), name_of(pod)),
        labels: pod.metadata.labels.as_ref(),
        annotations: pod.metadata.annotations.as_ref(),
        account: Some(service_account_of(pod)),
    };
    context.waypoints.of_workload(attached, advice)
}

/// Where istio-cni enrols the pods of a node in place of our node proxy.
fn is_redirected(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations
        .and_then(|all| all.get(REDIRECTION))
        .is_some_and(|value| value == "enabled")
}

fn tunnel(hbone: bool) -> TunnelProtocol {
    if hbone {
        TunnelProtocol::Hbone
    } else {
        TunnelProtocol::None
    }
}

/// Left out where it is Istio's default, as Istio does.
pub(super) fn trust_domain(mesh: &MeshSettings) -> String {
    let name = mesh.trust_domain.as_str();
    if name == TrustDomain::DEFAULT {
        String::new()
    } else {
        name.to_owned()
    }
}

fn policies_of(context: &Context<'_>, pod: &Pod) -> Vec<String> {
    let labels = pod.metadata.labels.as_ref();
    let mut policies = context.policies.selecting(namespace_of(pod), labels);
    policies.extend(context.peers.attached(namespace_of(pod), labels));
    policies.sort();
    policies
}

fn services_of(context: &Context<'_>, pod: &Pod) -> HashMap<String, PortList> {
    let namespace = namespace_of(pod);
    let mut services = HashMap::new();
    let of_namespace = context.services.get(namespace).into_iter();
    for service in of_namespace.flat_map(|all| all.matching(pod.metadata.labels.as_ref())) {
        let resolved = service.ports.iter().filter_map(|port| {
            let target = match &port.target {
                Target::Number(number) => Some(*number),
                Target::Name(name) => container_port(pod, name),
            };
            target.map(|target| port.wire_port(target))
        });
        services.insert(
            service.key.clone(),
            PortList {
                ports: resolved.collect(),
            },
        );
    }
    services.extend(context.slices.of_pod(namespace, name_of(pod)));
    services
}

/// A named TCP port of a container, or of an init container that keeps running.
fn container_port(pod: &Pod, name: &str) -> Option<u32> {
    let spec = spec_of(pod)?;
    let sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let init = spec.init_containers.iter().flatten().filter(sidecar);
    let ports = spec
        .containers
        .iter()
        .chain(init)
        .flat_map(|container| container.ports.iter().flatten());
    ports
        .filter(|port| matches!(port.protocol.as_deref(), None | Some("TCP")))
        .find(|port| port.name.as_deref() == Some(name))
        .and_then(|port| u32::try_from(port.container_port).ok())
}

fn label<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    let value = pod.metadata.labels.as_ref()?.get(key)?;
    (!value.is_empty()).then_some(value.as_str())
}

fn has_native_tunnel(pod: &Pod) -> bool {
    label(pod, TUNNEL).is_some_and(|list| list.split(',').any(|part| part.trim() == "http"))
}

fn spec_of(pod: &Pod) -> Option<&PodSpec> {
    pod.spec.as_ref()
}

pub(super) fn namespace_of(pod: &Pod) -> &str {
    pod.metadata
        .namespace
        .as_deref()
        .filter(|name| !name.is_empty())
        .unwrap_or("default")
}

fn name_of(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub(super) fn node_of(pod: &Pod) -> &str {
    spec_of(pod)
        .and_then(|spec| spec.node_name.as_deref())
        .unwrap_or_default()
}

pub(super) fn service_account_of(pod: &Pod) -> &str {
    let account = spec_of(pod).and_then(|spec| {
        spec.service_account_name
            .as_deref()
            .or(spec.service_account.as_deref())
    });
    account.filter(|name| !name.is_empty()).unwrap_or("default")
}

pub(super) fn is_host_network(pod: &Pod) -> bool {
    spec_of(pod).is_some_and(|spec| spec.host_network == Some(true))
}

/// Neither succeeded nor failed: its address is its own.
pub(super) fn is_live(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

fn status(pod: &Pod) -> WorkloadStatus {
    if is_ready(pod) {
        WorkloadStatus::Healthy
    } else {
        WorkloadStatus::Unhealthy
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let ready = conditions
        .into_iter()
        .flatten()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}

/// `podIPs`, or `podIP` where only that is set.
pub(super) fn addresses_of(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut addresses = Vec::new();
    for text in all.chain(status.pod_ip.as_deref()) {
        if let Ok(address) = text.parse::<IpAddr>()
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
    }
    addresses
}

/// The name of what created the pod: a Deployment rather than its ReplicaSet, a CronJob rather than its Job.
fn workload_name(pod: &Pod) -> String {
    let owners = pod.metadata.owner_references.iter().flatten();
    let Some(owner) = owners
        .into_iter()
        .find(|owner| owner.controller == Some(true))
    else {
        return name_of(pod).to_owned();
    };
    let trimmed = match owner.kind.as_str() {
        "ReplicaSet" => label(pod, POD_TEMPLATE_HASH)
            .and_then(|hash| owner.name.strip_suffix(hash))
            .and_then(|name| name.strip_suffix('-')),
        "Job" => owner.name.rsplit_once('-').and_then(|(name, time)| {
            // The minute or the second of the schedule.
            let scheduled =
                matches!(time.len(), 8..=10) && time.bytes().all(|b| b.is_ascii_digit());
            scheduled.then_some(name)
        }),
        _ => None,
    };
    trimmed
        .filter(|name| !name.is_empty())
        .unwrap_or(&owner.name)
        .to_owned()
}
