//! AuthorizationPolicies of a service or a waypoint to RBAC filters (facts A.8). The client's identity is what it proved
//! to the waypoint; a policy of the `selector` kind is enforced by node proxies and never here.

mod custom;
mod matchers;

use std::collections::BTreeMap;

use envoy_types::pb::{
    envoy::{
        config::{
            listener::v3::{Filter, filter::ConfigType as FilterConfig},
            rbac::v3::{
                Permission, Policy, Principal, permission::Rule as PermissionRule,
                principal::Identifier, rbac::Action as RbacAction,
            },
        },
        extensions::filters::{
            http::rbac::v3::Rbac as HttpRbac,
            network::{http_connection_manager::v3::HttpFilter, rbac::v3::Rbac as TcpRbac},
        },
        r#type::matcher::v3::StringMatcher,
    },
    google::protobuf::Any,
};
use prost::{Name, encoding};

use super::{
    super::resource::append,
    listeners::{Checks, http_filter},
};
use crate::objects::{
    AuthorizationPolicy, AuthorizationPolicySpec, Condition, Operation, Rule, SourceList as From,
};
pub(super) use custom::{Port, custom};
use matchers::{
    all_ids, all_rules, any_id, any_rule, block, bracketed, claim, either_id, either_rule, header,
    id, of_account, of_namespace, of_path, of_port, of_principal, of_trust_domain, pattern,
    request_principal, rule,
};

const HTTP_FILTER: &str = "envoy.filters.http.rbac";
const TCP_FILTER: &str = "envoy.filters.network.rbac";
/// Istio's annotation.
const DRY_RUN: &str = "istio.io/dry-run";

/// One policy with its name.
pub(super) struct Named<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) policy: &'a AuthorizationPolicy,
}

/// By Istio's name of the rule.
type Rules = BTreeMap<String, Policy>;

/// Istio's order, and where Envoy tells what a dry run found.
const STAGES: [(RbacAction, &str, &str); 3] = [
    (RbacAction::Log, "AUDIT", ""),
    (RbacAction::Deny, "DENY", "istio_dry_run_deny_"),
    (RbacAction::Allow, "ALLOW", "istio_dry_run_allow_"),
];

/// The filters of a port, in Istio's order. Policies of a dry run are shadow rules: they are told of and refuse nothing.
pub(super) fn checks(policies: &[Named<'_>]) -> Checks {
    let mut checks = Checks::default();
    for (action, word, told_as) in STAGES {
        let chosen = policies.iter().filter(|named| named.action() == word);
        let (shadow, enforced): (Vec<_>, Vec<_>) = chosen.partition(|named| named.is_dry_run());
        if enforced.is_empty() && shadow.is_empty() {
            continue;
        }
        let told_as = if shadow.is_empty() { "" } else { told_as };
        let of = |layer: Layer| [&enforced, &shadow].map(|policies| some_rules(policies, layer));
        let http = of(Layer::Http(action));
        checks.http.push(http_rbac(action, &http, told_as));
        // Of TCP, nothing is audited.
        if action != RbacAction::Log {
            let tcp = of(Layer::Tcp(action));
            checks.tcp.push(tcp_rbac(action, &tcp, told_as));
        }
    }
    checks
}

impl Named<'_> {
    fn action(&self) -> &str {
        self.policy.spec.action.as_deref().unwrap_or("ALLOW")
    }

    fn is_dry_run(&self) -> bool {
        let annotations = self.policy.metadata.annotations.as_ref();
        annotations
            .and_then(|all| all.get(DRY_RUN))
            .is_some_and(|value| value == "true")
    }
}

/// What can be matched on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer {
    Http(RbacAction),
    Tcp(RbacAction),
}

/// `enforced_and_shadow`; what the shadow rules find is told in the metadata under `told_as`.
fn http_rbac(action: RbacAction, rules: &[Option<Rules>; 2], told_as: &str) -> HttpFilter {
    let config = filter_any::<HttpRbac>(action, rules, &[(3, told_as)]);
    http_filter(HTTP_FILTER, config)
}

fn tcp_rbac(action: RbacAction, rules: &[Option<Rules>; 2], told_as: &str) -> Filter {
    let config = filter_any::<TcpRbac>(action, rules, &[(3, "tcp."), (5, told_as)]);
    Filter {
        name: TCP_FILTER.to_owned(),
        config_type: Some(FilterConfig::TypedConfig(config)),
    }
}

/// Of both filters `rules` is field 1 and `shadow_rules` field 2; the map of policies is field 2 of the rules. `texts`
/// are further fields.
fn filter_any<M: Name>(
    action: RbacAction,
    enforced_and_shadow: &[Option<Rules>; 2],
    texts: &[(u32, &str)],
) -> Any {
    let mut outer = Vec::new();
    for (field, rules) in (1..).zip(enforced_and_shadow) {
        let Some(rules) = rules else { continue };
        let mut inner = Vec::new();
        encoding::int32::encode(1, &action.into(), &mut inner);
        for (name, policy) in rules {
            let mut entry = Vec::new();
            encoding::string::encode(1, name, &mut entry);
            encoding::message::encode(2, policy, &mut entry);
            append(2, &entry, &mut inner);
        }
        append(field, &inner, &mut outer);
    }
    for (field, text) in texts.iter().filter(|(_, text)| !text.is_empty()) {
        encoding::string::encode(*field, &(*text).to_owned(), &mut outer);
    }
    Any {
        type_url: M::type_url(),
        value: outer,
    }
}

/// Without policies there is nothing to enforce; policies without rules that fit here are another thing.
fn some_rules(policies: &[&Named<'_>], layer: Layer) -> Option<Rules> {
    (!policies.is_empty()).then(|| rules(policies, layer, |id| id))
}

/// By Istio's name of each rule, which `name` may change.
fn rules(policies: &[&Named<'_>], layer: Layer, name: impl Fn(String) -> String) -> Rules {
    let mut all = Rules::new();
    for Named {
        namespace,
        name: policy_name,
        policy,
    } in policies
    {
        let AuthorizationPolicySpec { rules, .. } = &policy.spec;
        for (index, rule) in rules.iter().flatten().enumerate() {
            let id = format!("ns[{namespace}]-policy[{policy_name}]-rule[{index}]");
            if let Some(rule) = to_policy(rule, layer) {
                all.insert(name(id), rule);
            }
        }
    }
    all
}

/// `None`: nothing that could match. On a TCP port what only HTTP has is never there, so that a rule that asks for it
/// never allows; a rule that denies is taken without that part, and so denies more rather than less.
fn to_policy(rule: &Rule, layer: Layer) -> Option<Policy> {
    let is_http = matches!(layer, Layer::Http(_));
    let allows = layer == Layer::Tcp(RbacAction::Allow) || layer == Layer::Http(RbacAction::Allow);
    let unknown = rule.when.iter().flatten().any(|one| !is_known(&one.key));
    if allows && (unknown || (!is_http && asks_for_http(rule))) {
        return None;
    }
    let conditions: Vec<&Condition> = rule
        .when
        .iter()
        .flatten()
        .filter(|one| is_http || !is_http_key(&one.key))
        .collect();
    let sources = rule.from.iter().flatten();
    let mut principals: Vec<Principal> = sources
        .map(|from| all_ids(source_ids(from, is_http)))
        .collect();
    if principals.is_empty() {
        principals.push(any_id());
    }
    let of_conditions: Vec<Principal> = conditions
        .iter()
        .flat_map(|one| condition_ids(one))
        .collect();
    if !of_conditions.is_empty() {
        principals = principals
            .into_iter()
            .map(|id| all_ids(std::iter::once(id).chain(of_conditions.clone()).collect()))
            .collect();
    }
    let operations = rule.to.iter().flatten();
    let mut permissions: Vec<Permission> = operations
        .map(|to| all_rules(operation_rules(to.operation.as_ref(), is_http)))
        .collect();
    if permissions.is_empty() {
        permissions.push(any_rule());
    }
    let of_conditions: Vec<Permission> = conditions
        .iter()
        .flat_map(|one| condition_rules(one))
        .collect();
    if !of_conditions.is_empty() {
        permissions = permissions
            .into_iter()
            .map(|rule| all_rules(std::iter::once(rule).chain(of_conditions.clone()).collect()))
            .collect();
    }
    Some(Policy {
        permissions,
        principals,
        ..Policy::default()
    })
}

/// Conditions that can be expressed. A rule that allows with another one never holds; one that denies holds without it.
fn is_known(key: &str) -> bool {
    let named = [
        "source.ip",
        "remote.ip",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "destination.ip",
        "destination.port",
        "connection.sni",
    ];
    named.contains(&key)
        || bracketed(key, "request.headers").is_some()
        || key.starts_with("request.auth.claims[")
}

fn is_http_key(key: &str) -> bool {
    key.starts_with("request.") || key.starts_with("experimental.") || key == "remote.ip"
}

fn asks_for_http(rule: &Rule) -> bool {
    let of_source = rule.from.iter().flatten().any(|from| {
        from.source.as_ref().is_some_and(|source| {
            [
                &source.request_principals,
                &source.not_request_principals,
                &source.remote_ip_blocks,
                &source.not_remote_ip_blocks,
            ]
            .iter()
            .any(|list| !list.is_empty())
        })
    });
    let of_operation = rule.to.iter().flatten().any(|to| {
        to.operation.as_ref().is_some_and(|operation| {
            [
                &operation.hosts,
                &operation.not_hosts,
                &operation.methods,
                &operation.not_methods,
                &operation.paths,
                &operation.not_paths,
            ]
            .iter()
            .any(|list| !list.is_empty())
        })
    });
    let of_condition = rule.when.iter().flatten().any(|one| is_http_key(&one.key));
    of_source || of_operation || of_condition
}

fn source_ids(from: &From, is_http: bool) -> Vec<Principal> {
    let Some(source) = &from.source else {
        return Vec::new();
    };
    let mut ids = either_id(&source.principals, &source.not_principals, of_principal);
    ids.extend(either_id(
        &source.namespaces,
        &source.not_namespaces,
        of_namespace,
    ));
    ids.extend(either_id(
        &source.service_accounts,
        &source.not_service_accounts,
        of_account,
    ));
    ids.extend(either_id(
        &source.trust_domains,
        &source.not_trust_domains,
        of_trust_domain,
    ));
    ids.extend(either_id(
        &source.ip_blocks,
        &source.not_ip_blocks,
        |value| id(Identifier::DirectRemoteIp(block(value))),
    ));
    if is_http {
        ids.extend(either_id(
            &source.remote_ip_blocks,
            &source.not_remote_ip_blocks,
            |value| id(Identifier::RemoteIp(block(value))),
        ));
        ids.extend(either_id(
            &source.request_principals,
            &source.not_request_principals,
            request_principal,
        ));
    }
    ids
}

/// Conditions on the client.
fn condition_ids(condition: &Condition) -> Vec<Principal> {
    let Condition {
        key,
        values,
        not_values,
    } = condition;
    let each = |one: &dyn Fn(&str) -> Principal| either_id(values, not_values, one);
    match key.as_str() {
        "source.ip" => each(&|value| id(Identifier::DirectRemoteIp(block(value)))),
        "remote.ip" => each(&|value| id(Identifier::RemoteIp(block(value)))),
        "source.namespace" => each(&of_namespace),
        "source.principal" => each(&of_principal),
        "source.serviceAccount" => each(&of_account),
        "request.auth.principal" => each(&request_principal),
        "request.auth.audiences" => each(&|value| claim(&["aud"], value)),
        "request.auth.presenter" => each(&|value| claim(&["azp"], value)),
        key => {
            if let Some(name) = bracketed(key, "request.headers") {
                return each(&|value| id(Identifier::Header(header(name, pattern(value, "")))));
            }
            if let Some(rest) = key.strip_prefix("request.auth.claims") {
                let path: Vec<&str> = rest
                    .split(['[', ']'])
                    .filter(|part| !part.is_empty())
                    .collect();
                return each(&|value| claim(&path, value));
            }
            Vec::new()
        }
    }
}

fn operation_rules(operation: Option<&Operation>, is_http: bool) -> Vec<Permission> {
    let Some(operation) = operation else {
        return Vec::new();
    };
    let mut rules = either_rule(&operation.ports, &operation.not_ports, of_port);
    if is_http {
        rules.extend(either_rule(
            &operation.hosts,
            &operation.not_hosts,
            |value| {
                let matcher = StringMatcher {
                    ignore_case: value != "*",
                    ..pattern(value, "")
                };
                rule(PermissionRule::Header(header(":authority", matcher)))
            },
        ));
        rules.extend(either_rule(
            &operation.methods,
            &operation.not_methods,
            |value| {
                rule(PermissionRule::Header(header(
                    ":method",
                    pattern(value, ""),
                )))
            },
        ));
        rules.extend(either_rule(&operation.paths, &operation.not_paths, of_path));
    }
    rules
}

/// Conditions on the call.
fn condition_rules(condition: &Condition) -> Vec<Permission> {
    let Condition {
        key,
        values,
        not_values,
    } = condition;
    match key.as_str() {
        "destination.port" => either_rule(values, not_values, of_port),
        "destination.ip" => either_rule(values, not_values, |value| {
            rule(PermissionRule::DestinationIp(block(value)))
        }),
        "connection.sni" => either_rule(values, not_values, |value| {
            rule(PermissionRule::RequestedServerName(pattern(value, "")))
        }),
        _ => Vec::new(),
    }
}
