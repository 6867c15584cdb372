//! Which pods are to be enrolled (Istio's default enablement selectors).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use leyline_proto::istio::workload::zds::Exempt;
use leyline_types::{InterfaceName, InterfaceNameError, WorkloadName};

use super::{MeshSettings, WantedPod, WantedPods, pod_uid, workloads};
use crate::objects::Objects;

const MODE: &str = "istio.io/dataplane-mode";
/// `false`: its DNS goes direct.
pub(super) const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
/// `true`: what does not come in a tunnel goes direct.
pub(super) const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
/// Interfaces behind which there are virtual machines, or containers nested in the pod, with commas between them.
pub(super) const REROUTE: &str = "istio.io/reroute-virtual-interfaces";
/// What a pod may name; the node takes as many.
const MAX_REROUTED: usize = 32;
const SIDECAR: &str = "sidecar.istio.io/status";
/// Istio's default; what runs there may be needed before the mesh is.
const EXCLUDED_NAMESPACE: &str = "kube-system";

/// For each node, its pods that shall be captured.
pub(super) fn wanted(objects: &Objects, mesh: &MeshSettings) -> BTreeMap<String, WantedPods> {
    let mut nodes: BTreeMap<String, WantedPods> = BTreeMap::new();
    for (name, pod) in &objects.pods {
        let node = workloads::node_of(pod);
        if node.is_empty() || !is_wanted(objects, mesh, pod) {
            continue;
        }
        let workload = WorkloadName {
            name: name.name.clone(),
            namespace: name.namespace.clone(),
            service_account: workloads::service_account_of(pod).into(),
        };
        let uid = pod_uid(mesh, name.namespace.as_str(), name.name.as_str());
        nodes.entry(node.to_owned()).or_default().insert(
            uid,
            WantedPod {
                instance: instance(pod, &workload),
                exempt: exempt(pod),
                reroute: rerouted(pod),
                name: workload,
            },
        );
    }
    nodes
}

/// Pods come and go under one name, those of a StatefulSet always; what was captured is one of them.
fn instance(pod: &Pod, name: &WorkloadName) -> String {
    let mut text = format!("{} {}", workloads::node_of(pod), name.service_account);
    let addresses = workloads::addresses_of(pod);
    let addresses = addresses.iter().map(ToString::to_string);
    for part in addresses.chain(pod.metadata.uid.clone()) {
        text.push(' ');
        text.push_str(&part);
    }
    text
}

/// By annotation, as Istio documents it, or else by label. What is neither true nor false changes nothing.
fn exempt(pod: &Pod) -> Exempt {
    Exempt {
        dns: said(pod, DNS_CAPTURE) == Some("false"),
        inbound: said(pod, BYPASS_INBOUND) == Some("true"),
    }
}

fn said<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    let metadata = &pod.metadata;
    let mut places = [&metadata.annotations, &metadata.labels].into_iter();
    places.find_map(|all| Some(all.as_ref()?.get(key)?.as_str()))
}

/// What is no name is skipped, and told of elsewhere.
fn rerouted(pod: &Pod) -> Vec<InterfaceName> {
    let said = said(pod, REROUTE).unwrap_or_default();
    let mut names: Vec<InterfaceName> = Vec::new();
    for (_, name) in interface_names(said) {
        if let Ok(name) = name
            && !names.contains(&name)
            && names.len() < MAX_REROUTED
        {
            names.push(name);
        }
    }
    names
}

/// The parts of a list, and what they are.
pub(super) fn interface_names(
    list: &str,
) -> impl Iterator<Item = (&str, Result<InterfaceName, InterfaceNameError>)> {
    let parts = list.split(',').map(str::trim);
    let parts = parts.filter(|part| !part.is_empty());
    parts.map(|part| (part, part.parse()))
}

fn is_wanted(objects: &Objects, mesh: &MeshSettings, pod: &Pod) -> bool {
    let namespace = workloads::namespace_of(pod);
    let annotations = pod.metadata.annotations.as_ref();
    let has_sidecar = annotations.is_some_and(|all| all.contains_key(SIDECAR));
    let label = pod
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(MODE));
    let by_label = match label.map(String::as_str) {
        Some("ambient") => true,
        Some("none") => false,
        Some(_) | None => objects.namespace_label(namespace, MODE) == Some("ambient"),
    };
    by_label
        && !workloads::is_host_network(pod)
        && !has_sidecar
        && namespace != EXCLUDED_NAMESPACE
        && !is_node_proxy(mesh, pod)
        && workloads::is_live(pod)
        && !workloads::addresses_of(pod).is_empty()
}

/// A node proxy cannot carry its own traffic.
fn is_node_proxy(mesh: &MeshSettings, pod: &Pod) -> bool {
    let (namespace, account) = (
        workloads::namespace_of(pod),
        workloads::service_account_of(pod),
    );
    mesh.node_accounts
        .iter()
        .any(|node| node.namespace == *namespace && node.name == *account)
}
