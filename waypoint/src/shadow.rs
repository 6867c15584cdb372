//! What shadow rules of an RBAC filter found, told in the metadata under Envoy's names. Filters that come later decide by
//! it: an external authorizer is asked where it finds its policy there.

use leyline_authz::RuleAction;
use metrics::counter;
use serde_json::{Map, Value};
use tracing::info;

/// How istiod names what is found for an external authorizer; everything else is a dry run.
const FOR_AUTHORIZER: &str = "istio_ext_authz_";

/// What was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'a> {
    pub(crate) action: RuleAction,
    /// The policy that matches.
    pub(crate) policy: Option<&'a str>,
    /// Who is asking.
    pub(crate) peer: &'a str,
}

/// Tells it under `filter`'s name, each key with the prefix of the filter's configuration.
pub(crate) fn tell(
    metadata: &mut Map<String, Value>,
    filter: &'static str,
    prefix: &str,
    found: Found<'_>,
) {
    let passes = match found.action {
        RuleAction::Allow => found.policy.is_some(),
        RuleAction::Deny => found.policy.is_none(),
        RuleAction::Log => true,
    };
    let result = if passes { "allowed" } else { "denied" };
    if prefix != FOR_AUTHORIZER {
        if !passes {
            let (policy, source_principal) = (found.policy.unwrap_or("none"), found.peer);
            info!(policy, source_principal, "dry run: it would be denied");
        }
        let action = found.action.as_str();
        counter!("leyline_waypoint_dry_run_total", "action" => action, "result" => result)
            .increment(1);
    }
    let told = metadata.entry(filter).or_insert_with(|| Map::new().into());
    let Some(told) = told.as_object_mut() else {
        return;
    };
    told.insert(format!("{prefix}shadow_engine_result"), result.into());
    // As Envoy does it, what an earlier filter found stays.
    if let Some(policy) = found.policy {
        told.insert(format!("{prefix}shadow_effective_policy_id"), policy.into());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_matches_is_told_by_its_name() {
        let mut metadata = Map::new();
        let mut found = Found {
            action: RuleAction::Deny,
            policy: Some("istio-ext-authz-a-ns[shop]-policy[p]-rule[0]"),
            peer: "",
        };
        tell(&mut metadata, "f", FOR_AUTHORIZER, found);
        found.policy = None;
        tell(&mut metadata, "f", FOR_AUTHORIZER, found);
        found.action = RuleAction::Allow;
        tell(&mut metadata, "f", "dry_", found);
        let expected = json!({"f": {
            "istio_ext_authz_shadow_engine_result": "allowed",
            "istio_ext_authz_shadow_effective_policy_id":
                "istio-ext-authz-a-ns[shop]-policy[p]-rule[0]",
            "dry_shadow_engine_result": "denied",
        }});
        assert_eq!(Value::from(metadata), expected);
    }
}
