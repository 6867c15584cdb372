//! `gateway.networking.k8s.io` BackendTLSPolicy (GEP-1897): TLS from a waypoint to the application.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Custom;

/// How a waypoint speaks TLS to Services.
pub type BackendTlsPolicy = Custom<BackendTlsPolicySpec>;

/// The body of a BackendTLSPolicy.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendTlsPolicySpec {
    /// Services of its own namespace, or single ports of them.
    pub target_refs: Vec<PortTarget>,
    /// Whom to believe.
    pub validation: Validation,
    /// Of implementations; we have none.
    pub options: BTreeMap<String, String>,
}

/// A Service or a ServiceEntry, or one port of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortTarget {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Name of a port; all when absent.
    pub section_name: Option<String>,
}

/// Whom to believe.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Validation {
    /// ConfigMaps of its own namespace with roots in `ca.crt`.
    pub ca_certificate_refs: Vec<CaReference>,
    /// `System`, in place of the above.
    #[serde(rename = "wellKnownCACertificates")]
    pub well_known_ca_certificates: Option<String>,
    /// The server that is asked for, and must answer where no other names are given.
    pub hostname: String,
    /// One of them must be in the certificate.
    pub subject_alt_names: Vec<SubjectAltName>,
}

/// Roots.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct CaReference {
    /// API group.
    pub group: String,
    /// Kind; ConfigMap is known.
    pub kind: String,
    /// Name.
    pub name: String,
}

/// A name in a certificate.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SubjectAltName {
    /// `Hostname` or `URI`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of the first type.
    pub hostname: Option<String>,
    /// Of the second type.
    pub uri: Option<String>,
}

impl SubjectAltName {
    /// The name, where the one of its type is there.
    pub fn name(&self) -> Option<&str> {
        let name = match self.kind.as_str() {
            "Hostname" => &self.hostname,
            "URI" => &self.uri,
            _ => &None,
        };
        name.as_deref().filter(|name| !name.is_empty())
    }
}
