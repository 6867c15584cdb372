//! Where a workload is: network, region, zone.

use leyline_proto::istio::workload::Locality;

use super::MeshSettings;
use crate::objects::Objects;

const NETWORK: &str = "topology.istio.io/network";
const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const SUBZONE: &str = "topology.istio.io/subzone";

/// The network of the cluster: a label of the root namespace.
pub(super) fn network(objects: &Objects, mesh: &MeshSettings) -> String {
    objects
        .namespace_label(&mesh.root_namespace, NETWORK)
        .unwrap_or_default()
        .to_owned()
}

/// From the labels of the node; `None` when it says nothing.
pub(super) fn of_node(objects: &Objects, node: &str) -> Option<Locality> {
    let labels = objects.nodes.get(node)?.metadata.labels.as_ref()?;
    let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
    let locality = Locality {
        region: label(REGION),
        zone: label(ZONE),
        subzone: label(SUBZONE),
    };
    (locality != Locality::default()).then_some(locality)
}
