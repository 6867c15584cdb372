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
    /// `gateway.networking.k8s.io/v1` and `v1beta1`.
    Gateway,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Namespace,
        Self::Node,
        Self::ServiceAccount,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
        Self::Gateway,
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
            Self::Gateway => "Gateway",
        }
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
            text.eq_ignore_ascii_case(name) || differences(text, name) <= allowed
        };
        if let Some(kind) = Self::ALL.iter().find(|kind| near(kind)) {
            return Some(kind.as_str());
        }
        // The group has one more kind, which only waypoints enforce.
        let other =
            api_version.starts_with("security.istio.io/") && name != "RequestAuthentication";
        other.then_some("AuthorizationPolicy or PeerAuthentication")
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
            Self::Gateway => &[
                "gateway.networking.k8s.io/v1",
                "gateway.networking.k8s.io/v1beta1",
            ],
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
            | Self::PeerAuthentication
            | Self::Gateway => true,
        }
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
