//! The objects as a whole, and what was wrong with the rest.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use leyline_types::NamespacedName;
use serde::Serialize;

use crate::objects::{
    gateway::{Gateway, GatewayClass},
    key::{Kind, ObjectKey},
    l7::{
        backend_tls_policy::BackendTlsPolicy,
        destination_rule::DestinationRule,
        envoy_filter::EnvoyFilter,
        gateway_route::{GrpcRoute, HttpRoute, ReferenceGrant, TcpRoute, TlsRoute},
        proxy_config::ProxyConfig,
        rate_limit::RateLimit,
        request_authentication::RequestAuthentication,
        telemetry::Telemetry,
        virtual_service::VirtualService,
    },
    mesh_config::{MESH_CONFIG_NAME, MeshConfigMap},
    secret::TlsSecret,
    security::{AuthorizationPolicy, PeerAuthentication},
    service_entry::{ServiceEntry, WorkloadEntry},
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
    /// Classes of Gateways by name.
    pub gateway_classes: BTreeMap<String, Arc<GatewayClass>>,
    /// Services that Kubernetes does not know.
    pub service_entries: BTreeMap<NamespacedName, Arc<ServiceEntry>>,
    /// Instances that are no pods.
    pub workload_entries: BTreeMap<NamespacedName, Arc<WorkloadEntry>>,
    /// Request authentications.
    pub request_authentications: BTreeMap<NamespacedName, Arc<RequestAuthentication>>,
    /// Virtual services.
    pub virtual_services: BTreeMap<NamespacedName, Arc<VirtualService>>,
    /// Destination rules.
    pub destination_rules: BTreeMap<NamespacedName, Arc<DestinationRule>>,
    /// Telemetry settings.
    pub telemetries: BTreeMap<NamespacedName, Arc<Telemetry>>,
    /// How proxies are started.
    pub proxy_configs: BTreeMap<NamespacedName, Arc<ProxyConfig>>,
    /// Patches of proxies' configuration.
    pub envoy_filters: BTreeMap<NamespacedName, Arc<EnvoyFilter>>,
    /// HTTP routes of the Gateway API.
    pub http_routes: BTreeMap<NamespacedName, Arc<HttpRoute>>,
    /// gRPC routes of the Gateway API.
    pub grpc_routes: BTreeMap<NamespacedName, Arc<GrpcRoute>>,
    /// TCP routes of the Gateway API.
    pub tcp_routes: BTreeMap<NamespacedName, Arc<TcpRoute>>,
    /// TLS routes of the Gateway API.
    pub tls_routes: BTreeMap<NamespacedName, Arc<TlsRoute>>,
    /// Leaves to name objects of other namespaces.
    pub reference_grants: BTreeMap<NamespacedName, Arc<ReferenceGrant>>,
    /// TLS from waypoints to applications.
    pub backend_tls_policies: BTreeMap<NamespacedName, Arc<BackendTlsPolicy>>,
    /// Rate limits.
    pub rate_limits: BTreeMap<NamespacedName, Arc<RateLimit>>,
    /// ConfigMaps called `istio`; the one of the root namespace counts.
    pub mesh_configs: BTreeMap<NamespacedName, Arc<MeshConfigMap>>,
    /// ConfigMaps with roots.
    pub ca_bundles: BTreeMap<NamespacedName, Arc<TlsSecret>>,
    /// Secrets with certificates, keys or roots.
    pub secrets: BTreeMap<NamespacedName, Arc<TlsSecret>>,
}

impl Objects {
    /// How many there are, by kind.
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        let counts = [
            (Kind::Namespace, self.namespaces.len()),
            (Kind::Node, self.nodes.len()),
            (Kind::ServiceAccount, self.service_accounts.len()),
            (Kind::Pod, self.pods.len()),
            (Kind::Service, self.services.len()),
            (Kind::EndpointSlice, self.endpoint_slices.len()),
            (Kind::AuthorizationPolicy, self.authorization_policies.len()),
            (Kind::PeerAuthentication, self.peer_authentications.len()),
            (
                Kind::RequestAuthentication,
                self.request_authentications.len(),
            ),
            (Kind::Gateway, self.gateways.len()),
            (Kind::GatewayClass, self.gateway_classes.len()),
            (Kind::ServiceEntry, self.service_entries.len()),
            (Kind::WorkloadEntry, self.workload_entries.len()),
            (Kind::VirtualService, self.virtual_services.len()),
            (Kind::DestinationRule, self.destination_rules.len()),
            (Kind::Telemetry, self.telemetries.len()),
            (Kind::ProxyConfig, self.proxy_configs.len()),
            (Kind::EnvoyFilter, self.envoy_filters.len()),
            (Kind::HttpRoute, self.http_routes.len()),
            (Kind::GrpcRoute, self.grpc_routes.len()),
            (Kind::TcpRoute, self.tcp_routes.len()),
            (Kind::TlsRoute, self.tls_routes.len()),
            (Kind::ReferenceGrant, self.reference_grants.len()),
            (Kind::BackendTlsPolicy, self.backend_tls_policies.len()),
            (Kind::RateLimit, self.rate_limits.len()),
            (
                Kind::ConfigMap,
                self.mesh_configs.len() + self.ca_bundles.len(),
            ),
            (Kind::Secret, self.secrets.len()),
        ];
        counts
            .into_iter()
            .map(|(kind, count)| (kind.as_str(), count))
            .collect()
    }

    /// The mesh's settings, if there are any.
    pub(crate) fn mesh_config(&self, root_namespace: &str) -> Option<&Arc<MeshConfigMap>> {
        self.mesh_configs.get(&NamespacedName {
            namespace: root_namespace.into(),
            name: MESH_CONFIG_NAME.into(),
        })
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
    GatewayClass(Arc<GatewayClass>),
    ServiceEntry(Arc<ServiceEntry>),
    WorkloadEntry(Arc<WorkloadEntry>),
    RequestAuthentication(Arc<RequestAuthentication>),
    VirtualService(Arc<VirtualService>),
    DestinationRule(Arc<DestinationRule>),
    Telemetry(Arc<Telemetry>),
    ProxyConfig(Arc<ProxyConfig>),
    EnvoyFilter(Arc<EnvoyFilter>),
    HttpRoute(Arc<HttpRoute>),
    GrpcRoute(Arc<GrpcRoute>),
    TcpRoute(Arc<TcpRoute>),
    TlsRoute(Arc<TlsRoute>),
    ReferenceGrant(Arc<ReferenceGrant>),
    BackendTlsPolicy(Arc<BackendTlsPolicy>),
    RateLimit(Arc<RateLimit>),
    MeshConfig(Arc<MeshConfigMap>),
    CaBundle(Arc<TlsSecret>),
    Secret(Arc<TlsSecret>),
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
            Object::GatewayClass(object) => {
                drop(self.gateway_classes.insert(key.name.clone(), object));
            }
            Object::ServiceEntry(object) => drop(self.service_entries.insert(name, object)),
            Object::WorkloadEntry(object) => drop(self.workload_entries.insert(name, object)),
            Object::RequestAuthentication(object) => {
                drop(self.request_authentications.insert(name, object))
            }
            Object::VirtualService(object) => drop(self.virtual_services.insert(name, object)),
            Object::DestinationRule(object) => drop(self.destination_rules.insert(name, object)),
            Object::Telemetry(object) => drop(self.telemetries.insert(name, object)),
            Object::ProxyConfig(object) => drop(self.proxy_configs.insert(name, object)),
            Object::EnvoyFilter(object) => drop(self.envoy_filters.insert(name, object)),
            Object::HttpRoute(object) => drop(self.http_routes.insert(name, object)),
            Object::GrpcRoute(object) => drop(self.grpc_routes.insert(name, object)),
            Object::TcpRoute(object) => drop(self.tcp_routes.insert(name, object)),
            Object::TlsRoute(object) => drop(self.tls_routes.insert(name, object)),
            Object::ReferenceGrant(object) => drop(self.reference_grants.insert(name, object)),
            Object::BackendTlsPolicy(object) => {
                drop(self.backend_tls_policies.insert(name, object));
            }
            Object::RateLimit(object) => drop(self.rate_limits.insert(name, object)),
            Object::MeshConfig(object) => drop(self.mesh_configs.insert(name, object)),
            Object::CaBundle(object) => drop(self.ca_bundles.insert(name, object)),
            Object::Secret(object) => drop(self.secrets.insert(name, object)),
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
