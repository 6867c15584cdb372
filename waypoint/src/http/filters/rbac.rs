//! `envoy.filters.http.rbac`: AuthorizationPolicy on a waypoint (facts A.8). Conditions are compiled in `config::rbac` and
//! evaluated in `leyline-authz`.

use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use leyline_authz::{Permit, RequestDenial, RequestFacts, RequestRules, evaluate_request};
use metrics::counter;
use tracing::info;

use crate::config::{
    error::{At, Compiled, Unsupported},
    rbac,
};

/// One filter: enforced rules, and rules that only tell what they would do.
#[derive(Debug)]
pub(crate) struct Config {
    rules: Option<RequestRules>,
    shadow: Option<RequestRules>,
}

impl Config {
    pub(crate) fn compile(filter: &Rbac) -> Compiled<Self> {
        if filter.matcher.is_some() || filter.shadow_matcher.is_some() {
            return Err(Unsupported::new("matcher"));
        }
        let rules = filter.rules.as_ref().map(rbac::rules);
        let shadow = filter.shadow_rules.as_ref().map(rbac::rules);
        Ok(Self {
            rules: rules.transpose().at("rules")?,
            shadow: shadow.transpose().at("shadow_rules")?,
        })
    }
}

/// Asks one filter.
///
/// # Errors
/// Why the request does not pass.
pub(crate) fn check(filter: &Config, facts: &RequestFacts<'_>) -> Result<Permit, RequestDenial> {
    if let Some(shadow) = &filter.shadow {
        let result = match evaluate_request([shadow], facts) {
            Ok(_permit) => "allowed",
            Err(denial) => {
                info!(%denial, source_principal = facts.peer, "dry run: the request would be denied");
                "denied"
            }
        };
        let action = shadow.action.as_str();
        counter!("leyline_waypoint_dry_run_total", "action" => action, "result" => result)
            .increment(1);
    }
    evaluate_request(&filter.rules, facts)
}
