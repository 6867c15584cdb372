//! Istio's security kinds as far as a node proxy can enforce them, with every field that a valid object may have, so
//! that an unknown one is found.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

/// `security.istio.io` AuthorizationPolicy.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicy {
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
    /// What is allowed or denied.
    #[serde(default)]
    pub spec: AuthorizationPolicySpec,
    #[serde(default)]
    #[expect(
        dead_code,
        reason = "written by controllers; named so that it is not unknown"
    )]
    status: Option<Value>,
}

/// The body of an AuthorizationPolicy.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    /// The workloads it applies to; all of its namespace (or of the mesh) when absent.
    pub selector: Option<Selector>,
    /// One waypoint target.
    pub target_ref: Option<TargetRef>,
    /// Several waypoint targets.
    #[serde(default)]
    pub target_refs: Vec<TargetRef>,
    /// Alternatives; `None` and an empty list both match nothing.
    pub rules: Option<Vec<Rule>>,
    /// ALLOW when absent.
    pub action: Option<String>,
    /// External authorizer of action CUSTOM.
    pub provider: Option<Provider>,
}

impl AuthorizationPolicySpec {
    /// What it is attached to, by either field.
    pub(crate) fn targets(&self) -> impl Iterator<Item = &TargetRef> {
        self.target_ref.iter().chain(&self.target_refs)
    }
}

/// Chooses workloads by labels.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// All must be present.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
}

/// What a waypoint policy is attached to.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct TargetRef {
    /// API group.
    #[serde(default)]
    pub group: String,
    /// Kind.
    #[serde(default)]
    pub kind: String,
    /// Name.
    #[serde(default)]
    pub name: String,
    /// Namespace; that of the policy when absent.
    pub namespace: Option<String>,
}

/// Names an external authorizer.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Provider {
    /// As in the mesh configuration.
    #[serde(default)]
    pub name: String,
}

/// All parts must hold.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Rule {
    /// Who calls; alternatives.
    pub from: Option<Vec<From>>,
    /// What is called; alternatives.
    pub to: Option<Vec<To>>,
    /// Further conditions; all must hold.
    pub when: Option<Vec<Condition>>,
}

/// One alternative of `from`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct From {
    /// The caller.
    pub source: Option<Source>,
}

/// One alternative of `to`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct To {
    /// The call.
    pub operation: Option<Operation>,
}

/// A caller; all named fields must hold.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Source {
    /// Identities without `spiffe://`.
    pub principals: Vec<String>,
    /// None of these.
    pub not_principals: Vec<String>,
    /// JWT identities (L7).
    pub request_principals: Vec<String>,
    /// None of these (L7).
    pub not_request_principals: Vec<String>,
    /// Namespaces of the identity.
    pub namespaces: Vec<String>,
    /// None of these.
    pub not_namespaces: Vec<String>,
    /// Service accounts, `name` or `namespace/name`.
    pub service_accounts: Vec<String>,
    /// None of these.
    pub not_service_accounts: Vec<String>,
    /// Trust domains of the identity (not enforced at L4).
    pub trust_domains: Vec<String>,
    /// None of these (not enforced at L4).
    pub not_trust_domains: Vec<String>,
    /// Address blocks of the peer.
    pub ip_blocks: Vec<String>,
    /// None of these.
    pub not_ip_blocks: Vec<String>,
    /// Address blocks of the original client (L7).
    pub remote_ip_blocks: Vec<String>,
    /// None of these (L7).
    pub not_remote_ip_blocks: Vec<String>,
}

/// A call; all named fields must hold.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Operation {
    /// Host names (L7).
    pub hosts: Vec<String>,
    /// None of these (L7).
    pub not_hosts: Vec<String>,
    /// Destination ports.
    pub ports: Vec<String>,
    /// None of these.
    pub not_ports: Vec<String>,
    /// HTTP methods (L7).
    pub methods: Vec<String>,
    /// None of these (L7).
    pub not_methods: Vec<String>,
    /// HTTP paths (L7).
    pub paths: Vec<String>,
    /// None of these (L7).
    pub not_paths: Vec<String>,
}

/// A condition on one attribute.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// The attribute.
    pub key: String,
    /// One of these.
    pub values: Vec<String>,
    /// None of these.
    pub not_values: Vec<String>,
}

/// `security.istio.io` PeerAuthentication.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerAuthentication {
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
    /// Name, namespace.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Modes.
    #[serde(default)]
    pub spec: PeerAuthenticationSpec,
    #[serde(default)]
    #[expect(
        dead_code,
        reason = "written by controllers; named so that it is not unknown"
    )]
    status: Option<Value>,
}

/// The body of a PeerAuthentication.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerAuthenticationSpec {
    /// The workloads it applies to; all of its namespace (or of the mesh) when absent.
    pub selector: Option<Selector>,
    /// For all ports.
    pub mtls: Option<MutualTls>,
    /// For single ports of the workload.
    #[serde(default)]
    pub port_level_mtls: BTreeMap<String, MutualTls>,
}

/// A mode.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct MutualTls {
    /// UNSET when absent.
    pub mode: Option<String>,
}
