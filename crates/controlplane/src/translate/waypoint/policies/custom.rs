//! Action CUSTOM: Istio's pair of filters for each authorizer. The first only finds out which rule matches and tells it in
//! the metadata of the request; the second asks where it finds the name of a rule of its authorizer there.
//!
//! An authorizer that cannot be asked refuses what its policies match.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::{
    listener::v3::{Filter, filter::ConfigType as FilterConfig},
    rbac::v3::rbac::Action as RbacAction,
};

use super::{
    super::{
        super::Advice,
        authorizers::{self, Authorizer, Condition as Asked},
        listeners::{Checks, http_filter},
        view::PortProtocol,
    },
    HTTP_FILTER, Layer, Named, TCP_FILTER, http_rbac, rules, tcp_rbac,
};
use crate::objects::{Kind, ObjectKey};

const HTTP_ASKS: &str = "envoy.filters.http.ext_authz";
const TCP_ASKS: &str = "envoy.filters.network.ext_authz";
/// Istio's: what the metadata is named by, and the rules.
const TOLD_AS: &str = "istio_ext_authz_";
const RULE_PREFIX: &str = "istio-ext-authz-";
/// Istio's name of rules that refuse because their authorizer cannot be asked.
const CANNOT_ASK: &str = "-deny-due-to-bad-CUSTOM-action";
/// What the policies of a dry run would ask about.
const DRY_RUN_TOLD_AS: &str = "istio_dry_run_custom_";

/// The port whose filters are made.
#[derive(Clone, Copy)]
pub(in super::super) struct Port<'a> {
    pub(in super::super) protocol: PortProtocol,
    pub(in super::super) authorizers: &'a authorizers::Authorizers<'a>,
}

/// The filters of all policies of this action, by the name of their authorizer.
pub(in super::super) fn custom(
    policies: &[Named<'_>],
    port: Port<'_>,
    advice: &mut Vec<Advice>,
) -> Checks {
    let mut by_provider: BTreeMap<&str, Vec<&Named<'_>>> = BTreeMap::new();
    for named in policies.iter().filter(|named| named.action() == "CUSTOM") {
        let provider = named.policy.spec.provider.as_ref();
        let provider = provider.map_or("", |provider| provider.name.as_str());
        by_provider.entry(provider).or_default().push(named);
        if asks_for_token(named) {
            advice.push(advise(
                named,
                "spec.rules",
                "authorizers are asked before tokens are verified: rules that look at a token \
                 match nothing that has one"
                    .to_owned(),
            ));
        }
    }
    let mut checks = Checks::default();
    for (provider, policies) in by_provider {
        let (shadow, enforced): (Vec<_>, Vec<_>) =
            policies.into_iter().partition(|named| named.is_dry_run());
        if !shadow.is_empty() {
            dry_run(&shadow, &mut checks);
        }
        if enforced.is_empty() {
            continue;
        }
        match port.authorizers.of(provider) {
            Ok(authorizer) => ask(&enforced, provider, authorizer, port, &mut checks, advice),
            Err(reason) => {
                let told = format!("{reason}: what the policy matches is refused");
                let told = |named: &&Named<'_>| advise(named, "spec.provider.name", told.clone());
                advice.extend(enforced.iter().map(told));
                refuse(&enforced, &mut checks);
            }
        }
    }
    checks
}

fn ask(
    policies: &[&Named<'_>],
    provider: &str,
    authorizer: Authorizer,
    port: Port<'_>,
    checks: &mut Checks,
    advice: &mut Vec<Advice>,
) {
    let action = RbacAction::Deny;
    let prefix = format!("{RULE_PREFIX}{provider}-");
    let named = |layer| Some(rules(policies, layer, |id| format!("{prefix}{id}")));
    let asked = |filter| Asked {
        filter,
        key: format!("{TOLD_AS}shadow_effective_policy_id"),
        prefix: prefix.clone(),
    };
    let http = [None, named(Layer::Http(action))];
    checks.http.push(http_rbac(action, &http, TOLD_AS));
    let config = authorizer.http(asked(HTTP_FILTER));
    checks.http.push(http_filter(HTTP_ASKS, config));
    if let Some(config) = authorizer.tcp(asked(TCP_FILTER)) {
        let tcp = [None, named(Layer::Tcp(action))];
        checks.tcp.push(tcp_rbac(action, &tcp, TOLD_AS));
        checks.tcp.push(Filter {
            name: TCP_ASKS.to_owned(),
            config_type: Some(FilterConfig::TypedConfig(config)),
        });
    } else if port.protocol.may_be_tcp() {
        // Istio lets these connections pass; here nobody passes who should have been asked about.
        let mut refusing = Checks::default();
        refuse(policies, &mut refusing);
        checks.tcp.extend(refusing.tcp);
        let told = |named: &&Named<'_>| {
            let reason = format!(
                "provider {provider} is asked by HTTP and cannot be asked about TCP: connections \
                 that the policy matches are refused"
            );
            advise(named, "spec.provider.name", reason)
        };
        advice.extend(policies.iter().map(told));
    }
}

fn refuse(policies: &[&Named<'_>], checks: &mut Checks) {
    let action = RbacAction::Deny;
    let named = |layer| Some(rules(policies, layer, |id| id + CANNOT_ASK));
    let http = [named(Layer::Http(action)), None];
    checks.http.push(http_rbac(action, &http, ""));
    let tcp = [named(Layer::Tcp(action)), None];
    checks.tcp.push(tcp_rbac(action, &tcp, ""));
}

/// Nobody is asked: it is told which requests somebody would be asked about.
fn dry_run(policies: &[&Named<'_>], checks: &mut Checks) {
    let action = RbacAction::Deny;
    let named = |layer| Some(rules(policies, layer, |id| id));
    let http = [None, named(Layer::Http(action))];
    checks.http.push(http_rbac(action, &http, DRY_RUN_TOLD_AS));
    let tcp = [None, named(Layer::Tcp(action))];
    checks.tcp.push(tcp_rbac(action, &tcp, DRY_RUN_TOLD_AS));
}

fn asks_for_token(named: &Named<'_>) -> bool {
    let rules = named.policy.spec.rules.iter().flatten();
    let mut rules = rules.into_iter();
    rules.any(|rule| {
        let sources = rule.from.iter().flatten();
        let mut sources = sources.filter_map(|from| from.source.as_ref());
        let mut conditions = rule.when.iter().flatten();
        sources.any(|source| {
            !source.request_principals.is_empty() || !source.not_request_principals.is_empty()
        }) || conditions.any(|condition| condition.key.starts_with("request.auth."))
    })
}

fn advise(named: &Named<'_>, field: &str, reason: String) -> Advice {
    Advice {
        object: ObjectKey::new(Kind::AuthorizationPolicy, Some(named.namespace), named.name),
        field: field.to_owned(),
        reason,
    }
}
