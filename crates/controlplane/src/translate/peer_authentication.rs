//! PeerAuthentication as policies that deny callers without an identity.
//!
//! Of several that claim the same workloads the oldest counts, as in Istio. Files seldom say how old an object is; of
//! equals the strictest counts, so that adding a file never opens what another has closed.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use leyline_proto::istio::security::{
    Action, Authorization, Group, Match, Rules, Scope, StringMatch, string_match::MatchType,
};
use leyline_types::NamespacedName;

use super::{Advice, MeshSettings, selects};
use crate::objects::{Kind, MutualTls, ObjectKey, Objects, PeerAuthentication};

const STATIC_STRICT: &str = "istio_converted_static_strict";
const CONVERTED_PREFIX: &str = "converted_peer_authentication_";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Also for DISABLE: a node proxy always takes HBONE as well.
    Permissive,
    Strict,
}

/// `None`: not set, inherited.
fn mode_of(mtls: Option<&MutualTls>) -> Option<Mode> {
    match mtls.and_then(|mtls| mtls.mode.as_deref()) {
        Some("STRICT") => Some(Mode::Strict),
        Some("PERMISSIVE" | "DISABLE") => Some(Mode::Permissive),
        Some(_) | None => None,
    }
}

/// What a policy with a selector means for its workloads.
enum Outcome {
    Permissive,
    Strict,
    /// A policy of its own, which carries all strictness there is.
    Own(Authorization),
}

struct Selecting {
    selector: BTreeMap<String, String>,
    outcome: Outcome,
}

/// All of them.
pub(super) struct PeerAuthentications {
    root_namespace: String,
    exist: bool,
    mesh: Option<Mode>,
    namespaces: BTreeMap<String, Mode>,
    /// By namespace, oldest first.
    selecting: BTreeMap<String, Vec<Selecting>>,
}

impl PeerAuthentications {
    pub(super) fn new(objects: &Objects, mesh: &MeshSettings, advice: &mut Vec<Advice>) -> Self {
        let mut all: Vec<_> = objects.peer_authentications.iter().collect();
        all.sort_by(|(a_name, a), (b_name, b)| {
            age(&a.metadata)
                .cmp(&age(&b.metadata))
                .then_with(|| laxness(a).cmp(&laxness(b)))
                .then_with(|| a_name.cmp(b_name))
        });
        let mut peers = Self {
            root_namespace: mesh.root_namespace.clone(),
            exist: !all.is_empty(),
            mesh: None,
            namespaces: BTreeMap::new(),
            selecting: BTreeMap::new(),
        };
        let mut seen = std::collections::BTreeSet::new();
        for (name, peer) in &all {
            if selector_of(peer).is_empty() && seen.insert(name.namespace.clone()) {
                peers.set_default(name, mode_of(peer.spec.mtls.as_ref()));
            } else if selector_of(peer).is_empty() {
                advise(
                    name,
                    advice,
                    "spec",
                    "another policy already holds for the whole namespace: the oldest does, of equals the strictest",
                );
            }
        }
        for (name, peer) in all {
            if selector_of(peer).is_empty() {
                continue;
            }
            if name.namespace == peers.root_namespace.as_str() {
                let reason = "a selector in the root namespace has no effect";
                advise(name, advice, "spec.selector", reason);
                continue;
            }
            let outcome = peers.outcome(name, peer);
            let of_namespace = peers.selecting.entry(name.namespace.to_string());
            of_namespace.or_default().push(Selecting {
                selector: selector_of(peer).clone(),
                outcome,
            });
        }
        peers
    }

    fn set_default(&mut self, name: &NamespacedName, mode: Option<Mode>) {
        if name.namespace == self.root_namespace.as_str() {
            self.mesh = mode;
        } else if let Some(mode) = mode {
            self.namespaces.insert(name.namespace.to_string(), mode);
        }
    }

    fn inherited(&self, namespace: &str) -> Mode {
        let own = self.namespaces.get(namespace).copied();
        own.or(self.mesh).unwrap_or(Mode::Permissive)
    }

    fn outcome(&self, name: &NamespacedName, peer: &PeerAuthentication) -> Outcome {
        let inherited = self.inherited(name.namespace.as_str());
        let top = mode_of(peer.spec.mtls.as_ref()).unwrap_or(inherited);
        let ports_with = |wanted: Mode| -> Vec<u32> {
            let ports = peer.spec.port_level_mtls.iter();
            let chosen = ports.filter(|(_, mtls)| mode_of(Some(mtls)).unwrap_or(top) == wanted);
            chosen
                .filter_map(|(port, _)| port.parse::<u16>().ok())
                .map(u32::from)
                .collect()
        };
        let groups = match top {
            Mode::Strict => {
                let exceptions = ports_with(Mode::Permissive);
                if exceptions.is_empty() {
                    return Outcome::Strict;
                }
                vec![no_identity_and(Match {
                    not_destination_ports: exceptions,
                    ..Match::default()
                })]
            }
            Mode::Permissive => ports_with(Mode::Strict)
                .into_iter()
                .map(|port| {
                    no_identity_and(Match {
                        destination_ports: vec![port],
                        ..Match::default()
                    })
                })
                .collect(),
        };
        if groups.is_empty() {
            return Outcome::Permissive;
        }
        let name_of_policy = format!("{CONVERTED_PREFIX}{}", name.name);
        Outcome::Own(deny(name.namespace.as_str(), &name_of_policy, groups))
    }

    /// The policy that a workload must name, if its callers must have an identity.
    pub(super) fn attached(
        &self,
        namespace: &str,
        labels: Option<&BTreeMap<String, String>>,
    ) -> Option<String> {
        let strict = || format!("{}/{STATIC_STRICT}", self.root_namespace);
        let mut of_namespace = self.selecting.get(namespace).into_iter().flatten();
        let selecting = of_namespace.find(|peer| selects(&peer.selector, labels));
        match selecting.map(|peer| &peer.outcome) {
            Some(Outcome::Own(policy)) => Some(format!("{}/{}", policy.namespace, policy.name)),
            Some(Outcome::Strict) => Some(strict()),
            Some(Outcome::Permissive) => None,
            None => (self.inherited(namespace) == Mode::Strict).then(strict),
        }
    }

    pub(super) fn into_wire(self) -> Vec<Authorization> {
        let mut policies = Vec::new();
        if self.exist {
            let everywhere = Group {
                rules: vec![Rules {
                    matches: vec![no_identity()],
                }],
            };
            policies.push(deny(&self.root_namespace, STATIC_STRICT, vec![everywhere]));
        }
        policies.extend(self.selecting.into_values().flatten().filter_map(
            |peer| match peer.outcome {
                Outcome::Own(policy) => Some(policy),
                Outcome::Strict | Outcome::Permissive => None,
            },
        ));
        policies
    }
}

/// 0 is the strictest. A mode that is not set inherits and so is between; a strict port makes a policy stricter.
fn laxness(peer: &PeerAuthentication) -> (u8, bool) {
    let top = match mode_of(peer.spec.mtls.as_ref()) {
        Some(Mode::Strict) => 0,
        None => 1,
        Some(Mode::Permissive) => 2,
    };
    let mut ports = peer.spec.port_level_mtls.values();
    let wanted = if top == 0 {
        Mode::Permissive
    } else {
        Mode::Strict
    };
    let has = ports.any(|mtls| mode_of(Some(mtls)) == Some(wanted));
    (top, has == (top == 0))
}

/// Older first; where no time is written, the strictness decides.
fn age(metadata: &ObjectMeta) -> Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Time> {
    metadata.creation_timestamp.as_ref()
}

fn selector_of(peer: &PeerAuthentication) -> &BTreeMap<String, String> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    peer.spec
        .selector
        .as_ref()
        .map_or(&NONE, |selector| &selector.match_labels)
}

fn advise(name: &NamespacedName, advice: &mut Vec<Advice>, field: &str, reason: &str) {
    let (namespace, name) = (name.namespace.as_str(), name.name.as_str());
    advice.push(Advice {
        object: ObjectKey::new(Kind::PeerAuthentication, Some(namespace), name),
        field: field.to_owned(),
        reason: reason.to_owned(),
    });
}

fn no_identity() -> Match {
    Match {
        not_principals: vec![StringMatch {
            match_type: Some(MatchType::Presence(())),
        }],
        ..Match::default()
    }
}

fn no_identity_and(port: Match) -> Group {
    let clause = |single| Rules {
        matches: vec![single],
    };
    Group {
        rules: vec![clause(no_identity()), clause(port)],
    }
}

fn deny(namespace: &str, name: &str, groups: Vec<Group>) -> Authorization {
    Authorization {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        scope: Scope::WorkloadSelector.into(),
        action: Action::Deny.into(),
        groups,
        dry_run: false,
        extensions: Vec::new(),
    }
}
