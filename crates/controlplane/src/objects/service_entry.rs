//! `networking.istio.io` ServiceEntry and WorkloadEntry: services and instances that Kubernetes does not know, with every
//! field that a valid object may have, so that an unknown one is found.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

/// Hosts that the mesh shall know as services.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntry {
    #[expect(
        dead_code,
        reason = "checked when the document was classified; named so that it is not unknown"
    )]
    api_version: String,
    #[expect(
        dead_code,
        reason = "checked when the document was classified; named so that it is not unknown"
    )]
    kind: String,
    /// Name, namespace, labels, annotations.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The services.
    pub spec: ServiceEntrySpec,
    /// Addresses that a controller gave to the hosts.
    #[serde(default)]
    pub status: ServiceEntryStatus,
}

/// The body of a ServiceEntry.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntrySpec {
    /// Host names; each is a service.
    pub hosts: Vec<String>,
    /// Virtual addresses and blocks of them.
    pub addresses: Vec<String>,
    /// Ports.
    pub ports: Vec<EntryPort>,
    /// `MESH_EXTERNAL` or `MESH_INTERNAL`; nothing here depends on it.
    pub location: Option<String>,
    /// `NONE` when absent.
    pub resolution: Option<String>,
    /// Instances that are not objects of their own.
    pub endpoints: Vec<WorkloadEntrySpec>,
    /// Instances that are: pods and WorkloadEntries.
    pub workload_selector: Option<EntrySelector>,
    /// Who sees the hosts; everybody when empty.
    pub export_to: Vec<String>,
    /// Names that an instance may prove besides its own.
    pub subject_alt_names: Vec<String>,
}

/// Chooses instances by labels.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct EntrySelector {
    /// All must be present.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A port of a ServiceEntry.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryPort {
    /// The port that clients use.
    pub number: i64,
    /// What is spoken on it.
    #[serde(default)]
    pub protocol: String,
    /// By which instances may name a port of their own.
    pub name: String,
    /// The port of the instances, when it is another.
    pub target_port: Option<i64>,
}

/// Written by a controller that allocates addresses.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntryStatus {
    /// The addresses.
    pub addresses: Vec<AllocatedAddress>,
    /// Whether it works.
    pub conditions: Option<Value>,
    /// Findings of an analyzer.
    pub validation_messages: Option<Value>,
    /// The generation that was seen.
    pub observed_generation: Option<Value>,
}

/// An address of a host.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AllocatedAddress {
    /// The address.
    pub value: String,
    /// The host; all of them when empty.
    pub host: String,
}

/// An instance that is no pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadEntry {
    #[expect(
        dead_code,
        reason = "checked when the document was classified; named so that it is not unknown"
    )]
    api_version: String,
    #[expect(
        dead_code,
        reason = "checked when the document was classified; named so that it is not unknown"
    )]
    kind: String,
    /// Name, namespace, labels, annotations.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The instance.
    pub spec: WorkloadEntrySpec,
    #[serde(default)]
    #[expect(
        dead_code,
        reason = "written by controllers; named so that it is not unknown"
    )]
    status: Option<Value>,
}

/// Where an instance is and what it is called.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEntrySpec {
    /// An IP address, or a host name to be resolved by its clients.
    pub address: String,
    /// Its own ports, by the names of the service's.
    pub ports: BTreeMap<String, i64>,
    /// Labels that selectors see.
    pub labels: BTreeMap<String, String>,
    /// Its network; that of the cluster when empty.
    pub network: String,
    /// `region/zone/subzone`.
    pub locality: String,
    /// Its share of connections; 1 when absent.
    pub weight: Option<u32>,
    /// Whose identity it has.
    pub service_account: String,
}
