//! The objects as a whole, and what was wrong with the rest.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use leyline_types::NamespacedName;
use serde::Serialize;

use crate::objects::{
    gateway::Gateway,
    key::{Kind, ObjectKey},
    security::{AuthorizationPolicy, PeerAuthentication},
};

/// Every valid object, by name. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// Namespaces by name.
    pub namespaces: BTreeMap<String, Arc<Namespace>>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// Service accounts.
    pub service_accounts: BTreeMap<NamespacedName, Arc<ServiceAccount>>,
    /// Pods, each with the status that its patch says.
    pub pods: BTreeMap<NamespacedName, Arc<Pod>>,
    /// Services.
    pub services: BTreeMap<NamespacedName, Arc<Service>>,
    /// Endpoint slices.
    pub endpoint_slices: BTreeMap<NamespacedName, Arc<EndpointSlice>>,
    /// Authorization policies.
    pub authorization_policies: BTreeMap<NamespacedName, Arc<AuthorizationPolicy>>,
    /// Peer authentications.
    pub peer_authentications: BTreeMap<NamespacedName, Arc<PeerAuthentication>>,
    /// Gateways of all classes.
    pub gateways: BTreeMap<NamespacedName, Arc<Gateway>>,
}

impl Objects {
    /// How many there are, by kind.
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        BTreeMap::from([
            (Kind::Namespace.as_str(), self.namespaces.len()),
            (Kind::Node.as_str(), self.nodes.len()),
            (Kind::ServiceAccount.as_str(), self.service_accounts.len()),
            (Kind::Pod.as_str(), self.pods.len()),
            (Kind::Service.as_str(), self.services.len()),
            (Kind::EndpointSlice.as_str(), self.endpoint_slices.len()),
            (
                Kind::AuthorizationPolicy.as_str(),
                self.authorization_policies.len(),
            ),
            (
                Kind::PeerAuthentication.as_str(),
                self.peer_authentications.len(),
            ),
            (Kind::Gateway.as_str(), self.gateways.len()),
        ])
    }

    /// The label of a namespace, if the namespace and the label exist.
    pub(crate) fn namespace_label(&self, namespace: &str, label: &str) -> Option<&str> {
        let labels = self.namespaces.get(namespace)?.metadata.labels.as_ref()?;
        labels.get(label).map(String::as_str)
    }
}

/// One object of any kind.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    Namespace(Arc<Namespace>),
    Node(Arc<Node>),
    ServiceAccount(Arc<ServiceAccount>),
    Pod(Arc<Pod>),
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    PeerAuthentication(Arc<PeerAuthentication>),
    Gateway(Arc<Gateway>),
}

impl Objects {
    /// Puts an object in its place.
    pub(crate) fn insert(&mut self, key: &ObjectKey, object: Object) {
        let name = NamespacedName {
            namespace: key.namespace.as_str().into(),
            name: key.name.as_str().into(),
        };
        match object {
            Object::Namespace(object) => drop(self.namespaces.insert(key.name.clone(), object)),
            Object::Node(object) => drop(self.nodes.insert(key.name.clone(), object)),
            Object::ServiceAccount(object) => drop(self.service_accounts.insert(name, object)),
            Object::Pod(object) => drop(self.pods.insert(name, object)),
            Object::Service(object) => drop(self.services.insert(name, object)),
            Object::EndpointSlice(object) => drop(self.endpoint_slices.insert(name, object)),
            Object::AuthorizationPolicy(object) => {
                drop(self.authorization_policies.insert(name, object));
            }
            Object::PeerAuthentication(object) => {
                drop(self.peer_authentications.insert(name, object));
            }
            Object::Gateway(object) => drop(self.gateways.insert(name, object)),
        }
    }
}

/// What an issue means for the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The document is not used; the last good version of its object stays.
    Rejected,
    /// The document is used, though not in every respect as its author may expect.
    Warning,
}

/// Something wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Issue {
    /// The file.
    pub file: PathBuf,
    /// The document within it, from 1, not counting empty ones; 0 when it is about the whole file.
    pub document: usize,
    /// The line within the file, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The object, `Kind namespace/name`, as far as known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The field within the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Why.
    pub reason: String,
    /// What follows from it.
    pub severity: Severity,
}
