//! Services that demand that traffic reach their pods through their waypoint (label `leyline.io/require-waypoint: "true"`).
//!
//! On the wire it is a policy that denies everybody but the waypoint's identities and that the pods name, so that any
//! node proxy of Istio's kind enforces it, on tunnels and on plaintext. A pod of several such services admits the
//! waypoints of all of them; a service that demands a waypoint and has none is not reached at all.

use std::collections::{BTreeMap, BTreeSet};

use leyline_proto::istio::security::{
    Action, Authorization, Group, Match, Rules, Scope, StringMatch, string_match::MatchType,
};
use leyline_types::NamespacedName;

use super::{services::MeshService, trust_domains::TrustDomains, waypoints::Waypoints};

/// Said in the log of whoever is refused.
const PREFIX: &str = "leyline-require-waypoint";

/// The policies that pods name.
#[derive(Debug)]
pub(super) struct RequireWaypoint<'a> {
    /// That a waypoint may be of.
    trust_domains: &'a TrustDomains,
    by_name: BTreeMap<String, Authorization>,
}

impl<'a> RequireWaypoint<'a> {
    pub(super) fn new(trust_domains: &'a TrustDomains) -> Self {
        Self {
            trust_domains,
            by_name: BTreeMap::new(),
        }
    }

    /// The policy that a pod of these services must name, if one of them demands its waypoint.
    pub(super) fn attach<'s>(
        &mut self,
        namespace: &str,
        services: impl Iterator<Item = &'s MeshService>,
        waypoints: &Waypoints<'_>,
    ) -> Option<String> {
        let mut demanded = false;
        let mut names: BTreeSet<&NamespacedName> = BTreeSet::new();
        for service in services.filter(|service| service.requires_waypoint) {
            demanded = true;
            names.extend(&service.waypoints);
        }
        if !demanded {
            return None;
        }
        let mut name = PREFIX.to_owned();
        for waypoint in &names {
            name.push_str(&format!(".{}.{}", waypoint.namespace, waypoint.name));
        }
        let key = format!("{namespace}/{name}");
        self.by_name
            .entry(key.clone())
            .or_insert_with(|| policy(namespace, &name, &names, waypoints, self.trust_domains));
        Some(key)
    }

    pub(super) fn into_wire(self) -> impl Iterator<Item = Authorization> {
        self.by_name.into_values()
    }
}

fn policy(
    namespace: &str,
    name: &str,
    waypoints: &BTreeSet<&NamespacedName>,
    all: &Waypoints<'_>,
    trust_domains: &TrustDomains,
) -> Authorization {
    let accounts: BTreeSet<(String, String)> = waypoints
        .iter()
        .flat_map(|waypoint| all.accounts(waypoint))
        .collect();
    let principals = accounts.into_iter().flat_map(|(namespace, account)| {
        trust_domains.iter().map(move |name| StringMatch {
            match_type: Some(MatchType::Exact(format!(
                "{name}/ns/{namespace}/sa/{account}"
            ))),
        })
    });
    let others = Match {
        not_principals: principals.collect(),
        ..Match::default()
    };
    // Nobody may pass: a rule without conditions is everybody's.
    let rules = if others.not_principals.is_empty() {
        Vec::new()
    } else {
        vec![Rules {
            matches: vec![others],
        }]
    };
    Authorization {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        scope: Scope::WorkloadSelector.into(),
        action: Action::Deny.into(),
        groups: vec![Group { rules }],
        dry_run: false,
        extensions: Vec::new(),
    }
}
