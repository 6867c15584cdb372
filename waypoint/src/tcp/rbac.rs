//! `envoy.filters.network.rbac`: AuthorizationPolicy on a TCP port (facts A.8). Decided before the first byte goes
//! either way, so that a server that speaks first tells nothing to whom it may not serve; Envoy waits for the
//! client's first byte. A rule that asks for what only HTTP has refuses the chain.

use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac;
use leyline_authz::{ConnectionRules, Permit, RequestDenial, TunnelFacts, evaluate_connection};
use metrics::counter;
use tracing::info;

use crate::{
    config::{
        error::{At, Compiled, Unsupported},
        rbac,
    },
    http::server::Destination,
    listener::Client,
};

/// One filter: enforced rules, and rules that only tell what they would do.
#[derive(Debug)]
pub(crate) struct Config {
    rules: Option<ConnectionRules>,
    shadow: Option<ConnectionRules>,
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
        })
    }
}

/// Asks all filters of the chain, in its order.
///
/// # Errors
/// Why the connection does not pass.
pub(crate) fn check(
    filters: &[Config],
    client: &Client,
    destination: &Destination,
) -> Result<Permit, RequestDenial> {
    let facts = TunnelFacts {
        peer: Some(&client.principal),
        source_ip: client.addr.ip(),
        destination: destination.address(),
        destination_port: destination.port(),
    };
    for shadow in filters.iter().filter_map(|filter| filter.shadow.as_ref()) {
        tell(shadow, &facts);
    }
    let permit = evaluate_connection(
        filters.iter().filter_map(|filter| filter.rules.as_ref()),
        &facts,
    );
    if let Err(denial) = &permit {
        counter!("leyline_waypoint_refused_total", "reason" => "policy").increment(1);
        // Whether or not there is an access log.
        info!(%denial, source_principal = facts.peer, %destination, "connection refused");
    }
    permit
}

fn tell(shadow: &ConnectionRules, facts: &TunnelFacts<'_>) {
    let action = shadow.action().as_str();
    let result = match evaluate_connection([shadow], facts) {
        Ok(_permit) => "allowed",
        Err(denial) => {
            info!(%denial, source_principal = facts.peer, "dry run: the connection would be denied");
            "denied"
        }
    };
    counter!("leyline_waypoint_dry_run_total", "action" => action, "result" => result).increment(1);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use envoy_types::pb::envoy::config::rbac::v3::{
        Permission, Policy, Principal, Rbac as Rules, permission::Rule, principal::Identifier,
        rbac::Action,
    };
    use leyline_types::HboneAuthority;

    use super::*;

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
        let client = Client {
            addr: ([10, 1, 0, 2], 40_000).into(),
            identity: "spiffe://cluster.local/ns/shop/sa/client".parse().unwrap(),
            principal: Arc::from("spiffe://cluster.local/ns/shop/sa/client"),
        };
        let destination = Destination(HboneAuthority::Address(([10, 96, 0, 9], port).into()));
        check(filters, &client, &destination).is_ok()
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
