//! Which keys of token issuers are to be fetched, and those that were. Fetching is `crate::keys`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::Advice;
use crate::objects::{Kind, ObjectKey, Objects, duration, l7::request_authentication::JwtRule};

/// For fetching, where the object says nothing; Istio's.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where the keys of an issuer are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub enum KeySource {
    /// At this address.
    KeySet(String),
    /// Where the issuer's own description says (OpenID Connect Discovery 1.0).
    Discovery(String),
}

/// Before an issuer in the state file.
const DISCOVERY: &str = "discovery:";

impl From<KeySource> for String {
    fn from(source: KeySource) -> Self {
        source.to_string()
    }
}

impl From<String> for KeySource {
    fn from(text: String) -> Self {
        match text.strip_prefix(DISCOVERY) {
            Some(issuer) => Self::Discovery(issuer.to_owned()),
            None => Self::KeySet(text),
        }
    }
}

impl std::fmt::Display for KeySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::KeySet(uri) => f.write_str(uri),
            Self::Discovery(issuer) => write!(f, "{DISCOVERY}{issuer}"),
        }
    }
}

/// What was fetched.
pub type KeySets = BTreeMap<KeySource, Arc<str>>;

impl KeySource {
    /// Where the keys of a rule are; `None` where it has them itself.
    pub(crate) fn of(rule: &JwtRule) -> Option<Self> {
        match (&rule.jwks, &rule.jwks_uri) {
            (Some(_), _) => None,
            (None, Some(uri)) => Some(Self::KeySet(uri.clone())),
            (None, None) => Some(Self::Discovery(rule.issuer.clone())),
        }
    }
}

/// All keys that are to be fetched, each with the time for it.
pub(crate) fn wanted(objects: &Objects) -> BTreeMap<KeySource, Duration> {
    let policies = objects.request_authentications.values();
    let rules = policies.flat_map(|policy| &policy.spec.jwt_rules);
    let mut wanted = BTreeMap::new();
    for rule in rules {
        if let Some(source) = KeySource::of(rule) {
            let timeout = rule.timeout.as_deref().map(duration::parse);
            let timeout = timeout.and_then(Result::ok).unwrap_or(TIMEOUT);
            let known = wanted.entry(source).or_insert(timeout);
            *known = timeout.max(*known);
        }
    }
    wanted
}

/// Tells the authors whose issuers' keys are not known.
pub(super) fn advise(objects: &Objects, keys: &KeySets, advice: &mut Vec<Advice>) {
    for (name, policy) in &objects.request_authentications {
        for (index, rule) in policy.spec.jwt_rules.iter().enumerate() {
            let source = KeySource::of(rule);
            let Some(source) = source.filter(|source| !keys.contains_key(source)) else {
                continue;
            };
            let kind = Kind::RequestAuthentication;
            advice.push(Advice {
                object: ObjectKey::new(kind, Some(name.namespace.as_str()), name.name.as_str()),
                field: format!("spec.jwtRules[{index}]"),
                reason: format!(
                    "no keys could be fetched yet ({source}): all tokens of issuer {} are refused",
                    rule.issuer
                ),
            });
        }
    }
}
