//! AuthorizationPolicy to the authorization resources of node proxies: scope, action, and which workload names which.

use std::collections::{BTreeMap, HashMap};

use leyline_proto::istio::security::{Action, Authorization, Scope};
use leyline_types::NamespacedName;

use super::{
    Advice, MeshSettings,
    conditions::{self, Effect},
    selectors::Selectors,
    trust_domains::AuthorizationPolicies,
};
use crate::objects::{AuthorizationPolicy, AuthorizationPolicySpec, Kind, ObjectKey};

const DRY_RUN: &str = "istio.io/dry-run";

struct Converted {
    wire: Authorization,
    /// Empty: not by labels.
    selector: BTreeMap<String, String>,
}

/// The policies that node proxies enforce.
pub(super) struct Policies {
    root_namespace: String,
    converted: Vec<Authorization>,
    /// Names, by the namespace and the labels that a policy chooses by.
    selecting: HashMap<String, Selectors<String>>,
}

impl Policies {
    pub(super) fn new(
        all: &AuthorizationPolicies,
        mesh: &MeshSettings,
        advice: &mut Vec<Advice>,
    ) -> Self {
        let mut policies = Self {
            root_namespace: mesh.root_namespace.clone(),
            converted: Vec::new(),
            selecting: HashMap::new(),
        };
        for (name, policy) in all {
            let Some(Converted { wire, selector }) = convert(name, policy, mesh, advice) else {
                continue;
            };
            let of_namespace = policies.selecting.entry(wire.namespace.clone());
            let full_name = format!("{}/{}", wire.namespace, wire.name);
            of_namespace.or_default().insert(&selector, full_name);
            policies.converted.push(wire);
        }
        policies
    }

    /// Names of the policies that choose a workload by its labels; those of the root namespace choose in all.
    pub(super) fn selecting(
        &self,
        namespace: &str,
        labels: Option<&BTreeMap<String, String>>,
    ) -> Vec<String> {
        let root = (namespace != self.root_namespace).then_some(self.root_namespace.as_str());
        let namespaces = std::iter::once(namespace).chain(root);
        namespaces
            .filter_map(|namespace| self.selecting.get(namespace))
            .flat_map(|selectors| selectors.matching(labels))
            .cloned()
            .collect()
    }

    pub(super) fn into_wire(self) -> Vec<Authorization> {
        self.converted
    }
}

fn convert(
    name: &NamespacedName,
    policy: &AuthorizationPolicy,
    mesh: &MeshSettings,
    advice: &mut Vec<Advice>,
) -> Option<Converted> {
    let mut advise = |field: String, reason: String| {
        let (namespace, name) = (name.namespace.as_str(), name.name.as_str());
        advice.push(Advice {
            object: ObjectKey::new(Kind::AuthorizationPolicy, Some(namespace), name),
            field,
            reason,
        });
    };
    let spec = &policy.spec;
    if spec.target_ref.is_some() || !spec.target_refs.is_empty() {
        // For waypoints, which are told of it in their own configuration.
        return None;
    }
    let (effect, action) = match enforced_action(spec) {
        Ok(action) => action,
        Err((field, reason)) => {
            advise(field.to_owned(), reason);
            return None;
        }
    };
    let selector = spec
        .selector
        .as_ref()
        .map(|selector| selector.match_labels.clone())
        .unwrap_or_default();
    let rules = spec.rules.as_deref().unwrap_or_default();
    let conversion = conditions::convert(rules, effect, name.namespace.as_str());
    for (field, reason) in conversion.findings {
        advise(field, reason);
    }
    let dry_run = policy
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(DRY_RUN));
    Some(Converted {
        wire: Authorization {
            name: name.name.to_string(),
            namespace: name.namespace.to_string(),
            scope: scope(name, &selector, mesh).into(),
            action: action.into(),
            groups: conversion.groups,
            dry_run: dry_run.is_some_and(|value| value == "true"),
            extensions: Vec::new(),
        },
        selector,
    })
}

/// What a node proxy does with a policy; or the field and the reason why nothing.
fn enforced_action(
    spec: &AuthorizationPolicySpec,
) -> Result<(Effect, Action), (&'static str, String)> {
    match spec.action.as_deref() {
        None | Some("ALLOW") => Ok((Effect::Allow, Action::Allow)),
        Some("DENY") => Ok((Effect::Deny, Action::Deny)),
        Some(other) => {
            let reason = format!("action {other} is not supported yet, the policy is not enforced");
            Err(("spec.action", reason))
        }
    }
}

fn scope(name: &NamespacedName, selector: &BTreeMap<String, String>, mesh: &MeshSettings) -> Scope {
    if !selector.is_empty() {
        Scope::WorkloadSelector
    } else if name.namespace == mesh.root_namespace.as_str() {
        Scope::Global
    } else {
        Scope::Namespace
    }
}
