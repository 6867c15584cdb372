//! The policy model: what `istio.security.Authorization` says, as typed values. Built by `state::convert`, read by
//! `evaluate`, and serialized in the shape of Istio's `/config_dump`.
//!
//! A condition that could not be parsed is kept as text in [`Match::malformed`]; it is never dropped, because a rule
//! without one of its conditions would mean something else.

use ipnet::IpNet;
use leyline_types::{NamespacedName, Str};
use serde::{Serialize, Serializer, ser::SerializeStruct};

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Namespace and name, its key in xDS.
    pub key: NamespacedName,
    /// Which workloads it applies to.
    pub scope: Scope,
    /// What a match means.
    pub action: Action,
    /// Alternatives; a policy without rules matches nothing.
    pub rules: Vec<Rule>,
    /// Whether it only reports what it would do.
    pub dry_run: bool,
}

/// Which workloads a policy applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Scope {
    /// All workloads of the mesh.
    Global,
    /// All workloads of the policy's namespace.
    Namespace,
    /// Workloads that name the policy.
    WorkloadSelector,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Action {
    /// The connection is allowed, unless a DENY policy matches too.
    Allow,
    /// The connection is refused.
    Deny,
}

/// One alternative of a policy (Istio's group); all of its clauses must hold, and without clauses it always holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Rule {
    /// Conditions that must all hold.
    pub clauses: Vec<Clause>,
}

/// One condition of a rule (Istio's rules); one of its matches must hold, and without matches it always holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Clause {
    /// Alternatives.
    pub matches: Vec<Match>,
}

/// One alternative of a clause: every field that is not empty must hold, and with all fields empty it never holds.
/// Values of a field are alternatives; none of the values of a `not_` field may match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Match {
    /// Namespace of the peer's identity; the empty text for a peer without identity.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<StringMatch>,
    /// Not this namespace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<StringMatch>,
    /// Service account of the peer's identity, whatever its trust domain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// Not this service account.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// The peer's SPIFFE ID without `spiffe://`; a peer without identity matches none, not even presence.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<StringMatch>,
    /// Not this identity.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<StringMatch>,
    /// Address of the TCP peer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<IpNet>,
    /// Not this source.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_source_ips: Vec<IpNet>,
    /// Address that the connection is for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ips: Vec<IpNet>,
    /// Not this destination.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ips: Vec<IpNet>,
    /// Port of the application, never the port of the tunnel.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ports: Vec<u16>,
    /// Not this port.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ports: Vec<u16>,
    /// Conditions that could not be parsed, each with field and reason; one is enough for the policy to deny.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub malformed: Vec<String>,
}

/// A pattern over a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatch {
    /// The same text.
    Exact(Str),
    /// A text that starts so.
    Prefix(Str),
    /// A text that ends so.
    Suffix(Str),
    /// Any text but the empty one.
    Presence,
}

/// A service account of a namespace, in any trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountMatch {
    /// Namespace.
    pub namespace: Str,
    /// Name of the service account.
    pub service_account: Str,
}

impl Policy {
    /// The first condition that could not be parsed, if any.
    pub fn malformed(&self) -> Option<&str> {
        self.rules
            .iter()
            .flat_map(|rule| &rule.clauses)
            .flat_map(|clause| &clause.matches)
            .find_map(|one| one.malformed.first())
            .map(String::as_str)
    }
}

impl StringMatch {
    /// Whether the text fits the pattern.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == exact.as_str(),
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => text.ends_with(suffix.as_str()),
            Self::Presence => !text.is_empty(),
        }
    }
}

impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self {
            key,
            scope,
            action,
            rules,
            dry_run,
        } = self;
        let mut out = serializer.serialize_struct("Policy", 6)?;
        out.serialize_field("name", &key.name)?;
        out.serialize_field("namespace", &key.namespace)?;
        out.serialize_field("scope", scope)?;
        out.serialize_field("action", action)?;
        out.serialize_field("rules", rules)?;
        out.serialize_field("dryRun", dry_run)?;
        out.end()
    }
}

impl Serialize for StringMatch {
    /// `{"Exact":"x"}`, and `{"Presence":[]}`: the forms that istioctl reads.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (index, name, text) = match self {
            Self::Exact(text) => (0, "Exact", text),
            Self::Prefix(text) => (1, "Prefix", text),
            Self::Suffix(text) => (2, "Suffix", text),
            Self::Presence => {
                let empty: [Str; 0] = [];
                return serializer.serialize_newtype_variant("StringMatch", 3, "Presence", &empty);
            }
        };
        serializer.serialize_newtype_variant("StringMatch", index, name, text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn serializes_in_the_shape_of_config_dump() {
        let policy = Policy {
            key: "shop/web".parse().unwrap(),
            scope: Scope::WorkloadSelector,
            action: Action::Deny,
            rules: vec![Rule {
                clauses: vec![
                    Clause {
                        matches: vec![Match {
                            namespaces: vec![StringMatch::Exact("a".into())],
                            not_principals: vec![
                                StringMatch::Presence,
                                StringMatch::Prefix("p".into()),
                                StringMatch::Suffix("s".into()),
                            ],
                            service_accounts: vec![ServiceAccountMatch {
                                namespace: "shop".into(),
                                service_account: "web".into(),
                            }],
                            source_ips: vec!["10.0.0.0/8".parse().unwrap()],
                            destination_ports: vec![80],
                            ..Match::default()
                        }],
                    },
                    Clause {
                        matches: vec![Match {
                            malformed: vec!["source_ips: length 40".into()],
                            ..Match::default()
                        }],
                    },
                ],
            }],
            dry_run: false,
        };
        let expected = json!({
            "name": "web", "namespace": "shop", "scope": "WorkloadSelector", "action": "Deny", "dryRun": false,
            "rules": [[
                [{
                    "namespaces": [{"Exact": "a"}],
                    "notPrincipals": [{"Presence": []}, {"Prefix": "p"}, {"Suffix": "s"}],
                    "serviceAccounts": [{"namespace": "shop", "serviceAccount": "web"}],
                    "sourceIps": ["10.0.0.0/8"],
                    "destinationPorts": [80],
                }],
                [{"malformed": ["source_ips: length 40"]}],
            ]],
        });
        assert_eq!(serde_json::to_value(&policy).unwrap(), expected);
        assert_eq!(policy.malformed(), Some("source_ips: length 40"));
    }

    #[test]
    fn string_patterns() {
        let check = |pattern: StringMatch, text: &str, expected: bool| {
            assert_eq!(pattern.matches(text), expected, "{pattern:?} {text}");
        };
        check(StringMatch::Exact("ab".into()), "ab", true);
        check(StringMatch::Exact("ab".into()), "abc", false);
        check(StringMatch::Prefix("ab".into()), "abc", true);
        check(StringMatch::Prefix("ab".into()), "xab", false);
        check(StringMatch::Suffix("ab".into()), "xab", true);
        check(StringMatch::Suffix("ab".into()), "abc", false);
        check(StringMatch::Presence, "a", true);
        check(StringMatch::Presence, "", false);
    }
}
