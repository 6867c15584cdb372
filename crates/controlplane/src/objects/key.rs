//! What an object is called: its kind, namespace and name.

use std::fmt;

/// The kinds that the control plane reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1`, cluster scoped.
    Namespace,
    /// `v1`, cluster scoped.
    Node,
    /// `v1`.
    ServiceAccount,
    /// `v1`.
    Pod,
    /// `v1`.
    Service,
    /// `discovery.k8s.io/v1`.
    EndpointSlice,
    /// `security.istio.io/v1` and `v1beta1`.
    AuthorizationPolicy,
    /// `security.istio.io/v1` and `v1beta1`.
    PeerAuthentication,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Namespace,
        Self::Node,
        Self::ServiceAccount,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
    ];

    /// The name as YAML has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::ServiceAccount => "ServiceAccount",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
        }
    }

    /// The kind of that name, whatever its version.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// The versions that are read.
    pub(crate) fn api_versions(self) -> &'static [&'static str] {
        match self {
            Self::Namespace | Self::Node | Self::ServiceAccount | Self::Pod | Self::Service => {
                &["v1"]
            }
            Self::EndpointSlice => &["discovery.k8s.io/v1"],
            Self::AuthorizationPolicy | Self::PeerAuthentication => {
                &["security.istio.io/v1", "security.istio.io/v1beta1"]
            }
        }
    }

    /// Whether objects of the kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        match self {
            Self::Namespace | Self::Node => false,
            Self::ServiceAccount
            | Self::Pod
            | Self::Service
            | Self::EndpointSlice
            | Self::AuthorizationPolicy
            | Self::PeerAuthentication => true,
        }
    }
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
