//! What an object is called: its kind, namespace and name.

use std::fmt;

/// The kinds that the control plane reads; `Kind::facts` has their names and versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Of Kubernetes.
    Namespace,
    /// Of Kubernetes.
    Node,
    /// Of Kubernetes.
    ServiceAccount,
    /// Of Kubernetes.
    Pod,
    /// Of Kubernetes.
    Service,
    /// Of Kubernetes.
    EndpointSlice,
    /// Of Istio.
    AuthorizationPolicy,
    /// Of Istio.
    PeerAuthentication,
    /// Of the Gateway API.
    Gateway,
    /// Of the Gateway API.
    GatewayClass,
    /// Of Istio, for waypoints.
    RequestAuthentication,
    /// Of Istio, for waypoints.
    VirtualService,
    /// Of Istio, for waypoints.
    DestinationRule,
    /// Of Istio, for waypoints.
    Telemetry,
    /// Of Istio, for whoever starts proxies.
    ProxyConfig,
    /// Of Istio, for waypoints.
    EnvoyFilter,
    /// Of the Gateway API, for waypoints.
    HttpRoute,
    /// Of the Gateway API, for waypoints.
    GrpcRoute,
    /// Of the Gateway API, for waypoints.
    TcpRoute,
    /// Of the Gateway API, for waypoints.
    TlsRoute,
    /// Of the Gateway API.
    ReferenceGrant,
    /// Of the Gateway API, for waypoints.
    BackendTlsPolicy,
    /// Our own, for waypoints.
    RateLimit,
    /// Of Istio.
    ServiceEntry,
    /// Of Istio.
    WorkloadEntry,
    /// Of Kubernetes; the one with Istio's MeshConfig, and those with roots for BackendTLSPolicies.
    ConfigMap,
    /// Of Kubernetes; those with certificates for DestinationRules.
    Secret,
}

/// Whether objects of a kind live in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Cluster,
    Namespace,
}

struct Facts {
    /// As YAML has it.
    name: &'static str,
    /// The versions that are read.
    versions: &'static [&'static str],
    scope: Scope,
}

/// Versions of kinds.
const CORE: &[&str] = &["v1"];
const SECURITY: &[&str] = &["security.istio.io/v1", "security.istio.io/v1beta1"];
const NETWORKING: &[&str] = &[
    "networking.istio.io/v1",
    "networking.istio.io/v1beta1",
    "networking.istio.io/v1alpha3",
];
const TELEMETRY: &[&str] = &["telemetry.istio.io/v1", "telemetry.istio.io/v1alpha1"];
const GATEWAY: &[&str] = &[
    "gateway.networking.k8s.io/v1",
    "gateway.networking.k8s.io/v1beta1",
];
const GATEWAY_ALPHA: &[&str] = &[
    "gateway.networking.k8s.io/v1",
    "gateway.networking.k8s.io/v1alpha3",
    "gateway.networking.k8s.io/v1alpha2",
];
const GATEWAY_TLS: &[&str] = &[
    "gateway.networking.k8s.io/v1",
    "gateway.networking.k8s.io/v1alpha3",
];

impl Kind {
    const ALL: [Self; 27] = [
        Self::Namespace,
        Self::Node,
        Self::ServiceAccount,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
        Self::Gateway,
        Self::GatewayClass,
        Self::RequestAuthentication,
        Self::VirtualService,
        Self::DestinationRule,
        Self::Telemetry,
        Self::ProxyConfig,
        Self::EnvoyFilter,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TcpRoute,
        Self::TlsRoute,
        Self::ReferenceGrant,
        Self::BackendTlsPolicy,
        Self::RateLimit,
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::ConfigMap,
        Self::Secret,
    ];

    fn facts(self) -> Facts {
        let of = |name, versions| Facts {
            name,
            versions,
            scope: Scope::Namespace,
        };
        let of_cluster = |name| Facts {
            name,
            versions: CORE,
            scope: Scope::Cluster,
        };
        match self {
            Self::Namespace => of_cluster("Namespace"),
            Self::Node => of_cluster("Node"),
            Self::ServiceAccount => of("ServiceAccount", CORE),
            Self::Pod => of("Pod", CORE),
            Self::Service => of("Service", CORE),
            Self::EndpointSlice => of("EndpointSlice", &["discovery.k8s.io/v1"]),
            Self::AuthorizationPolicy => of("AuthorizationPolicy", SECURITY),
            Self::PeerAuthentication => of("PeerAuthentication", SECURITY),
            Self::Gateway => of("Gateway", GATEWAY),
            Self::GatewayClass => Facts {
                versions: GATEWAY,
                ..of_cluster("GatewayClass")
            },
            Self::RequestAuthentication => of("RequestAuthentication", SECURITY),
            Self::VirtualService => of("VirtualService", NETWORKING),
            Self::DestinationRule => of("DestinationRule", NETWORKING),
            Self::Telemetry => of("Telemetry", TELEMETRY),
            Self::ProxyConfig => of("ProxyConfig", NETWORKING),
            Self::EnvoyFilter => of("EnvoyFilter", NETWORKING),
            Self::HttpRoute => of("HTTPRoute", GATEWAY),
            Self::GrpcRoute => of("GRPCRoute", GATEWAY),
            Self::TcpRoute => of("TCPRoute", GATEWAY_ALPHA),
            Self::TlsRoute => of("TLSRoute", GATEWAY_ALPHA),
            Self::ReferenceGrant => of("ReferenceGrant", GATEWAY),
            Self::BackendTlsPolicy => of("BackendTLSPolicy", GATEWAY_TLS),
            Self::RateLimit => of("RateLimit", &["leyline.io/v1alpha1"]),
            Self::ServiceEntry => of("ServiceEntry", NETWORKING),
            Self::WorkloadEntry => of("WorkloadEntry", NETWORKING),
            Self::ConfigMap => of("ConfigMap", CORE),
            Self::Secret => of("Secret", CORE),
        }
    }

    /// The name as YAML has it.
    pub fn as_str(self) -> &'static str {
        self.facts().name
    }

    /// The kind of that name, whatever its version.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// What was meant by a kind that does not exist. A typo must not count as deleting the object: a policy would no
    /// longer be enforced.
    pub(crate) fn meant_by(api_version: &str, name: &str) -> Option<&'static str> {
        let near = |kind: &Self| {
            let text = kind.as_str();
            // Short names are near to others that exist (Pod, Job).
            let allowed = if text.len() < 6 { 1 } else { 2 };
            text.eq_ignore_ascii_case(name)
                || (!kind.has_near_namesakes() && differences(text, name) <= allowed)
        };
        if let Some(kind) = Self::ALL.iter().find(|kind| near(kind)) {
            return Some(kind.as_str());
        }
        api_version
            .starts_with("security.istio.io/")
            .then_some("AuthorizationPolicy, PeerAuthentication or RequestAuthentication")
    }

    /// UDPRoute, which is not read, is no typo of TCPRoute.
    fn has_near_namesakes(self) -> bool {
        matches!(
            self,
            Self::HttpRoute | Self::GrpcRoute | Self::TcpRoute | Self::TlsRoute
        )
    }

    /// The versions that are read.
    pub(crate) fn api_versions(self) -> &'static [&'static str] {
        self.facts().versions
    }

    /// Whether objects of the kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        self.facts().scope == Scope::Namespace
    }
}

/// Levenshtein's distance, over bytes; names of kinds are ASCII and short.
fn differences(left: &str, right: &str) -> usize {
    if left.len().abs_diff(right.len()) > 2 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.bytes().enumerate() {
        let mut diagonal = i;
        let mut last = i + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(right.bytes()) {
            let replaced = diagonal + usize::from(a != b);
            diagonal = *cell;
            last = replaced.min(*cell + 1).min(last + 1);
            *cell = last;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(usize::MAX)
}

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace, empty for a cluster-scoped kind.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// Fills in the namespace that Kubernetes would: none for cluster-scoped kinds, else `default` where none is given.
    pub(crate) fn new(kind: Kind, namespace: Option<&str>, name: &str) -> Self {
        let namespace = if kind.is_namespaced() {
            namespace
                .filter(|text| !text.is_empty())
                .unwrap_or("default")
        } else {
            ""
        };
        Self {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind.as_str(), self.name)
        } else {
            write!(f, "{} {}/{}", self.kind.as_str(), self.namespace, self.name)
        }
    }
}
