//! The conditions of objects: as a controller would write them into their `status`.

use std::collections::BTreeMap;

use leyline_types::NamespacedName;
use serde::Serialize;

use crate::{
    clients::Client,
    mesh::Published,
    objects::{Issue, Kind, ObjectKey, Severity, WAYPOINT_CLASS},
    translate::{Finding, Translation},
    xds::TypeStatus,
};

/// What a waypoint is told.
const WAYPOINT_TYPES: [&str; 4] = ["cluster", "endpoint", "listener", "route"];
/// What it is told where its clusters ask for it.
const SECRETS: &str = "secret";

/// One condition of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Condition {
    /// `Accepted`, `Programmed`, `ResolvedRefs`, `ResolvedWaypoints`, or `Warning`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// `True` or `False`.
    status: &'static str,
    reason: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

impl Condition {
    fn holds(kind: &'static str) -> Self {
        Self {
            kind,
            status: "True",
            reason: kind,
            message: String::new(),
        }
    }

    fn not(kind: &'static str, reason: &'static str, message: String) -> Self {
        Self {
            kind,
            status: "False",
            reason,
            message,
        }
    }
}

/// Of every object, by `Kind namespace/name`.
pub(super) fn of(published: &Published, clients: &[Client]) -> BTreeMap<String, Vec<Condition>> {
    let mut issues: BTreeMap<&str, Vec<&Issue>> = BTreeMap::new();
    for issue in &published.issues {
        if let Some(object) = &issue.object {
            issues.entry(object).or_default().push(issue);
        }
    }
    let mut findings: BTreeMap<&ObjectKey, Vec<&Finding>> = BTreeMap::new();
    for finding in &published.translation.findings {
        let of_object = findings.entry(&finding.advice.object).or_default();
        of_object.push(finding);
    }
    let mut all = BTreeMap::new();
    for object in published.origins.keys() {
        let name = object.to_string();
        let issues = issues.remove(name.as_str()).unwrap_or_default();
        let findings = findings.remove(object).unwrap_or_default();
        let mut conditions = accepted(&issues, &findings);
        conditions.extend(programmed(object, published, clients));
        all.insert(name, conditions);
    }
    // Those that were never good.
    for (object, issues) in issues {
        all.insert(object.to_owned(), accepted(&issues, &[]));
    }
    for (object, conditions) in &mut all {
        if conditions.iter().all(|one| one.kind != "Accepted") {
            conditions.insert(0, Condition::holds("Accepted"));
        }
        let is_route = [
            Kind::HttpRoute,
            Kind::GrpcRoute,
            Kind::TcpRoute,
            Kind::TlsRoute,
        ]
        .iter()
        .any(|kind| object.starts_with(kind.as_str()));
        if is_route && conditions.iter().all(|one| one.kind != "ResolvedRefs") {
            conditions.push(Condition::holds("ResolvedRefs"));
        }
    }
    all
}

/// What was found by reading it and by looking at what it refers to; nothing where all is well.
fn accepted(issues: &[&Issue], findings: &[&Finding]) -> Vec<Condition> {
    let mut conditions: Vec<Condition> = Vec::new();
    let mut not = |kind: &'static str, reason: &'static str, message: String| match conditions
        .iter_mut()
        .find(|one| one.kind == kind)
    {
        Some(known) => known.message = format!("{}; {message}", known.message),
        None => conditions.push(Condition::not(kind, reason, message)),
    };
    let said = |field: Option<&str>, reason: &str| match field {
        Some(field) => format!("{field}: {reason}"),
        None => reason.to_owned(),
    };
    for issue in issues {
        if issue.severity == Severity::Rejected {
            not(
                "Accepted",
                "Invalid",
                said(issue.field.as_deref(), &issue.reason),
            );
        }
    }
    for finding in findings {
        let advice = &finding.advice;
        let message = said(Some(&advice.field), &advice.reason);
        not(finding.condition, finding.reason, message);
    }
    let is_found = |issue: &Issue| {
        findings.iter().any(|finding| {
            Some(&finding.advice.field) == issue.field.as_ref()
                && finding.advice.reason == issue.reason
        })
    };
    for issue in issues {
        if issue.severity == Severity::Warning && !is_found(issue) {
            conditions.push(Condition {
                kind: "Warning",
                status: "True",
                reason: "Warning",
                message: said(issue.field.as_deref(), &issue.reason),
            });
        }
    }
    conditions
}

/// Whether the instances of a waypoint have what it was told last.
fn programmed(object: &ObjectKey, published: &Published, clients: &[Client]) -> Option<Condition> {
    let name = NamespacedName {
        namespace: object.namespace.as_str().into(),
        name: object.name.as_str().into(),
    };
    let gateway = published.objects.gateways.get(&name)?;
    if object.kind != Kind::Gateway || !gateway.is_of_class(WAYPOINT_CLASS) {
        return None;
    }
    let translation = &published.translation;
    let instances: Vec<&Client> = clients
        .iter()
        .filter(|client| is_instance(client, &name, translation))
        .collect();
    for client in &instances {
        for kind in WAYPOINT_TYPES.into_iter().chain([SECRETS]) {
            let status = client.types.get(kind);
            if let Some(reason) = status.and_then(|status| status.rejecting()) {
                let message = format!("{} has rejected a {kind}: {reason}", client.node_id);
                return Some(Condition::not("Programmed", "Invalid", message));
            }
        }
    }
    let current = |client: &&&Client| {
        let has = |status: &TypeStatus| status.has_acknowledged(published.generation);
        let mut kinds = WAYPOINT_TYPES.iter().map(|kind| client.types.get(kind));
        kinds.all(|status| status.is_some_and(has)) && client.types.get(SECRETS).is_none_or(has)
    };
    let ready = instances.iter().filter(current).count();
    Some(match (ready, instances.len()) {
        (_, 0) => {
            let message = "no waypoint of it is connected".to_owned();
            Condition::not("Programmed", "Pending", message)
        }
        (ready, all) if ready < all => {
            let message = format!("{ready} of {all} instances have acknowledged the last change");
            Condition::not("Programmed", "Pending", message)
        }
        (_, all) => Condition {
            message: format!("{all} instances are up to date"),
            ..Condition::holds("Programmed")
        },
    })
}

fn is_instance(client: &Client, gateway: &NamespacedName, translation: &Translation) -> bool {
    let pod = client.pod.as_ref();
    let pod = pod.and_then(|name| translation.waypoint_pods.get(name));
    pod.is_some_and(|pod| {
        let account = format!("{}/{}", gateway.namespace, pod.service_account);
        pod.gateway == *gateway && client.account == account
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issue(field: &str, severity: Severity) -> Issue {
        Issue {
            file: "a.yaml".into(),
            document: 1,
            line: None,
            object: Some("HTTPRoute shop/a".to_owned()),
            field: Some(field.to_owned()),
            reason: "is wrong".to_owned(),
            severity,
        }
    }

    #[test]
    fn what_was_found_is_said_once() {
        use crate::translate::Advice;
        let finding = Finding {
            condition: "ResolvedRefs",
            reason: "BackendNotFound",
            advice: Advice {
                object: ObjectKey::new(Kind::HttpRoute, Some("shop"), "a"),
                field: "spec.b".to_owned(),
                reason: "is wrong".to_owned(),
            },
        };
        let issues = [
            issue("spec.a", Severity::Rejected),
            issue("spec.b", Severity::Warning),
            issue("spec.c", Severity::Warning),
            issue("spec.d", Severity::Rejected),
        ];
        let issues: Vec<&Issue> = issues.iter().collect();
        let seen = accepted(&issues, &[&finding]);
        let seen: Vec<_> = seen
            .iter()
            .map(|one| (one.kind, one.status, one.reason, one.message.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                (
                    "Accepted",
                    "False",
                    "Invalid",
                    "spec.a: is wrong; spec.d: is wrong"
                ),
                (
                    "ResolvedRefs",
                    "False",
                    "BackendNotFound",
                    "spec.b: is wrong"
                ),
                ("Warning", "True", "Warning", "spec.c: is wrong"),
            ]
        );
    }
}
