//! `envoy.filters.http.rbac`: AuthorizationPolicy on a waypoint (facts A.8). Conditions are compiled in `config::rbac` and
//! evaluated in `leyline-authz`.

use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use leyline_authz::{Permit, RequestDenial, RequestRules, evaluate_request};

use crate::{
    config::{
        error::{At, Compiled, Unsupported},
        rbac,
    },
    http::{pipeline::Exchange, server::HttpConnection},
    shadow::{self, Found},
};

/// What the metadata is named by, whatever the filter is called.
const FILTER: &str = "envoy.filters.http.rbac";

/// One filter: enforced rules, and rules that only tell what they would do.
#[derive(Debug)]
pub(crate) struct Config {
    rules: Option<RequestRules>,
    shadow: Option<RequestRules>,
    told_as: String,
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
            told_as: filter.shadow_rules_stat_prefix.clone(),
        })
    }
}

/// Asks one filter. What its shadow rules find is told in the metadata.
///
/// # Errors
/// Why the request does not pass.
pub(crate) fn check(
    filter: &Config,
    exchange: &mut Exchange,
    conn: &HttpConnection,
) -> Result<Permit, RequestDenial> {
    if let Some(rules) = &filter.shadow {
        let policy = rules.matching(&exchange.facts(conn));
        let found = Found {
            action: rules.action,
            policy: policy.map(|policy| policy.id.as_str()),
            peer: &conn.client.principal,
        };
        shadow::tell(&mut exchange.metadata, FILTER, &filter.told_as, found);
    }
    evaluate_request(&filter.rules, &exchange.facts(conn))
}
