//! AuthorizationPolicy and PeerAuthentication: what Istio's admission refuses.

use super::{Invalid, metadata_of, net, push, text};
use crate::objects::{
    field::Field,
    key::Kind,
    security::{
        AuthorizationPolicy, Condition, MutualTls, Operation, PeerAuthentication, Rule, Selector,
        Source,
    },
};

/// AuthorizationPolicy.
pub(crate) fn authorization_policy(object: &AuthorizationPolicy, found: &mut Vec<Invalid>) {
    metadata_of(Kind::AuthorizationPolicy, &object.metadata, found);
    let field = Field::of("spec");
    let spec = &object.spec;
    selector(&field, spec.selector.as_ref(), found);
    let targeted = spec.target_ref.is_some() || !spec.target_refs.is_empty();
    if targeted && spec.selector.is_some() {
        push(
            found,
            field.key("selector"),
            "cannot be combined with targetRefs",
        );
    }
    let action = spec.action.as_deref().unwrap_or("ALLOW");
    match action {
        "ALLOW" | "AUDIT" => {}
        "DENY" => {
            if spec.rules.as_ref().is_none_or(Vec::is_empty) {
                push(
                    found,
                    field.key("rules"),
                    "a DENY policy without rules can never deny anything",
                );
            }
        }
        "CUSTOM" => {
            if spec
                .provider
                .as_ref()
                .is_none_or(|provider| provider.name.is_empty())
            {
                push(
                    found,
                    field.key("provider"),
                    "action CUSTOM needs provider.name",
                );
            }
        }
        _ => {
            let reason = format!("`{action}` is not ALLOW, DENY, AUDIT or CUSTOM");
            push(found, field.key("action"), reason);
        }
    }
    if spec.provider.is_some() && action != "CUSTOM" {
        push(found, field.key("provider"), "is only for action CUSTOM");
    }
    for (index, rule) in spec.rules.iter().flatten().enumerate() {
        check_rule(&field.key("rules").index(index), rule, found);
    }
}

fn check_rule(field: &Field, rule: &Rule, found: &mut Vec<Invalid>) {
    let empty = |list: Option<usize>| list == Some(0);
    if empty(rule.from.as_ref().map(Vec::len)) {
        push(
            found,
            field.key("from"),
            "must not be an empty list; leave it out to mean anyone",
        );
    }
    if empty(rule.to.as_ref().map(Vec::len)) {
        push(
            found,
            field.key("to"),
            "must not be an empty list; leave it out to mean anything",
        );
    }
    if empty(rule.when.as_ref().map(Vec::len)) {
        push(found, field.key("when"), "must not be an empty list");
    }
    for (index, from) in rule.from.iter().flatten().enumerate() {
        let field = field.key("from").index(index);
        match &from.source {
            Some(source) => check_source(&field.key("source"), source, found),
            None => push(found, field, "needs a source"),
        }
    }
    for (index, to) in rule.to.iter().flatten().enumerate() {
        let field = field.key("to").index(index);
        match &to.operation {
            Some(operation) => check_operation(&field.key("operation"), operation, found),
            None => push(found, field, "needs an operation"),
        }
    }
    for (index, condition) in rule.when.iter().flatten().enumerate() {
        check_condition(&field.key("when").index(index), condition, found);
    }
}

fn check_source(field: &Field, source: &Source, found: &mut Vec<Invalid>) {
    let lists = [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ];
    no_empty_values(field, &lists, found);
    for (name, list) in &lists[10..] {
        each(
            &field.key(name),
            list,
            |text| net::parse_block(text).map(drop),
            found,
        );
    }
    for (name, list) in &lists[6..8] {
        each(&field.key(name), list, service_account, found);
    }
    let used = |lists: &[&Vec<String>]| lists.iter().any(|list| !list.is_empty());
    let by_account = used(&[&source.service_accounts, &source.not_service_accounts]);
    let by_name = used(&[
        &source.principals,
        &source.not_principals,
        &source.namespaces,
        &source.not_namespaces,
    ]);
    if by_account && by_name {
        let reason = "cannot be combined with principals or namespaces";
        push(found, field.key("serviceAccounts"), reason);
    }
}

fn check_operation(field: &Field, operation: &Operation, found: &mut Vec<Invalid>) {
    let lists = [
        ("ports", &operation.ports),
        ("notPorts", &operation.not_ports),
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ];
    no_empty_values(field, &lists, found);
    for (name, list) in &lists[..2] {
        each(&field.key(name), list, port, found);
    }
}

fn no_empty_values(field: &Field, lists: &[(&str, &Vec<String>)], found: &mut Vec<Invalid>) {
    if lists.iter().all(|(_, list)| list.is_empty()) {
        push(
            found,
            field.clone(),
            "needs at least one field with a value",
        );
    }
    for (name, list) in lists {
        each(&field.key(name), list, not_empty, found);
    }
}

fn not_empty(text: &str) -> Result<(), String> {
    if text.is_empty() {
        Err("must not be empty".to_owned())
    } else {
        Ok(())
    }
}

fn each(
    field: &Field,
    values: &[String],
    check: impl Fn(&str) -> Result<(), String>,
    found: &mut Vec<Invalid>,
) {
    for (index, value) in values.iter().enumerate() {
        if let Err(reason) = check(value) {
            push(found, field.index(index), reason);
        }
    }
}

fn port(text: &str) -> Result<(), String> {
    match text.parse::<i64>() {
        Ok(number) => net::port(number),
        Err(_) => Err(format!("`{text}` is not a port number")),
    }
}

fn service_account(value: &str) -> Result<(), String> {
    let (namespace, name) = value.split_once('/').unwrap_or(("default", value));
    text::dns_label(namespace)?;
    text::dns_subdomain(name)
}

fn check_condition(field: &Field, condition: &Condition, found: &mut Vec<Invalid>) {
    if condition.values.is_empty() && condition.not_values.is_empty() {
        push(found, field.clone(), "needs values or notValues");
    }
    let lists = [
        ("values", &condition.values),
        ("notValues", &condition.not_values),
    ];
    for (name, values) in lists {
        let field = field.key(name);
        each(&field, values, not_empty, found);
        match condition.key.as_str() {
            "source.ip" | "destination.ip" | "remote.ip" => {
                each(
                    &field,
                    values,
                    |text| net::parse_block(text).map(drop),
                    found,
                );
            }
            "destination.port" => each(&field, values, port, found),
            "source.serviceAccount" => each(&field, values, service_account, found),
            _ => {}
        }
    }
    if !is_known_attribute(&condition.key) {
        let reason = format!(
            "`{}` is not an attribute that a condition can name",
            condition.key
        );
        push(found, field.key("key"), reason);
    }
}

/// The attributes of Istio's documents on authorization conditions.
fn is_known_attribute(key: &str) -> bool {
    const EXACT: [&str; 11] = [
        "source.ip",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "remote.ip",
        "destination.ip",
        "destination.port",
        "connection.sni",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
    ];
    const KEYED: [&str; 3] = [
        "request.headers[",
        "request.auth.claims[",
        "experimental.envoy.filters.",
    ];
    EXACT.contains(&key) || KEYED.iter().any(|prefix| key.starts_with(prefix))
}

/// PeerAuthentication.
pub(crate) fn peer_authentication(object: &PeerAuthentication, found: &mut Vec<Invalid>) {
    metadata_of(Kind::PeerAuthentication, &object.metadata, found);
    let field = Field::of("spec");
    let spec = &object.spec;
    selector(&field, spec.selector.as_ref(), found);
    mode(&field.key("mtls"), spec.mtls.as_ref(), found);
    let everywhere = spec
        .selector
        .as_ref()
        .is_none_or(|selector| selector.match_labels.is_empty());
    if everywhere && !spec.port_level_mtls.is_empty() {
        let reason = "needs a selector: ports are those of chosen workloads";
        push(found, field.key("portLevelMtls"), reason);
    }
    for (number, mtls) in &spec.port_level_mtls {
        let field = field.key("portLevelMtls").key(number);
        if let Err(reason) = port(number) {
            push(found, field.clone(), reason);
        }
        mode(&field, Some(mtls), found);
    }
}

fn mode(field: &Field, mtls: Option<&MutualTls>, found: &mut Vec<Invalid>) {
    let mode = mtls
        .and_then(|mtls| mtls.mode.as_deref())
        .unwrap_or("UNSET");
    if !["UNSET", "DISABLE", "PERMISSIVE", "STRICT"].contains(&mode) {
        let reason = format!("`{mode}` is not UNSET, DISABLE, PERMISSIVE or STRICT");
        push(found, field.key("mode"), reason);
    }
}

fn selector(field: &Field, selector: Option<&Selector>, found: &mut Vec<Invalid>) {
    for (key, value) in selector
        .into_iter()
        .flat_map(|selector| &selector.match_labels)
    {
        if let Err(reason) = text::label_key(key).and_then(|()| text::label_value(value)) {
            push(
                found,
                field.key("selector").key("matchLabels").key(key),
                reason,
            );
        }
    }
}
