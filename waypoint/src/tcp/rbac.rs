//! `envoy.filters.network.rbac`: AuthorizationPolicy on a TCP port (facts A.8). Decided before the first byte goes
//! either way, so that a server that speaks first tells nothing to whom it may not serve; Envoy waits for the
//! client's first byte. A rule that asks for what only HTTP has refuses the chain.

use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac;
use leyline_authz::{ConnectionRules, Permit, RequestDenial, TunnelFacts, evaluate_connection};
use serde_json::{Map, Value};

use crate::{
    config::{
        error::{At, Compiled, Unsupported},
        rbac,
    },
    shadow::{self, Found},
};

/// What the metadata is named by, whatever the filter is called.
const FILTER: &str = "envoy.filters.network.rbac";

/// One filter: enforced rules, and rules that only tell what they would do.
#[derive(Debug)]
pub(crate) struct Config {
    rules: Option<ConnectionRules>,
    shadow: Option<ConnectionRules>,
    told_as: String,
}

impl Config {
    pub(crate) fn compile(filter: &Rbac) -> Compiled<Self> {
        if filter.matcher.is_some() || filter.shadow_matcher.is_some() {
            return Err(Unsupported::new("matcher"));
        }
        let compile = |rules| {
            let rules = rbac::rules(rules)?;
            ConnectionRules::new(rules).map_err(|error| Unsupported::new(error.to_string()))
        };
        let rules = filter.rules.as_ref().map(compile);
        let shadow = filter.shadow_rules.as_ref().map(compile);
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
/// Why the connection does not pass.
pub(super) fn check(
    filter: &Config,
    facts: &TunnelFacts<'_>,
    metadata: &mut Map<String, Value>,
) -> Result<Permit, RequestDenial> {
    if let Some(rules) = &filter.shadow {
        let found = Found {
            action: rules.action(),
            policy: rules.matching(facts),
            peer: facts.peer.unwrap_or_default(),
        };
        shadow::tell(metadata, FILTER, &filter.told_as, found);
    }
    evaluate_connection(&filter.rules, facts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::rbac::v3::{
        Permission, Policy, Principal, Rbac as Rules, permission::Rule, principal::Identifier,
        rbac::Action,
    };

    fn filter(action: Action, rule: Rule) -> Rbac {
        let policy = Policy {
            permissions: vec![Permission { rule: Some(rule) }],
            principals: vec![Principal {
                identifier: Some(Identifier::Any(true)),
            }],
            ..Policy::default()
        };
        Rbac {
            rules: Some(Rules {
                action: action.into(),
                policies: [("p".to_owned(), policy)].into(),
                ..Rules::default()
            }),
            ..Rbac::default()
        }
    }

    fn passes(filters: &[Config], port: u16) -> bool {
        let facts = TunnelFacts {
            peer: Some("spiffe://cluster.local/ns/shop/sa/client"),
            source_ip: [10, 1, 0, 2].into(),
            destination: Some(([10, 96, 0, 9], port).into()),
            destination_port: port,
        };
        let mut metadata = Map::new();
        let mut filters = filters.iter();
        filters.all(|filter| check(filter, &facts, &mut metadata).is_ok())
    }

    #[test]
    fn enforces_rules_and_only_tells_of_shadow_rules() {
        let deny = filter(Action::Deny, Rule::DestinationPort(9000));
        let enforced = [Config::compile(&deny).unwrap()];
        assert!(!passes(&enforced, 9000) && passes(&enforced, 9001));
        let shadow = Rbac {
            shadow_rules: deny.rules,
            ..Rbac::default()
        };
        assert!(passes(&[Config::compile(&shadow).unwrap()], 9000));
        let allow = filter(Action::Allow, Rule::DestinationPort(9000));
        let [deny] = enforced;
        let both = [deny, Config::compile(&allow).unwrap()];
        assert!(!passes(&both, 9000) && !passes(&both, 9001));
        assert!(passes(&[], 9000));
    }

    #[test]
    fn refuses_what_only_http_has() {
        let header = envoy_types::pb::envoy::config::route::v3::HeaderMatcher {
            name: ":method".to_owned(),
            ..Default::default()
        };
        let error = Config::compile(&filter(Action::Deny, Rule::Header(header)));
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("which a TCP connection does not have"),
            "{error}"
        );
    }
}
