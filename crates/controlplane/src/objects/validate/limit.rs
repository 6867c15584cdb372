//! RateLimit, our own kind.

use super::{
    Invalid,
    http::{self, each, one_of, time},
    metadata_of, push,
};
use crate::objects::{
    field::Field,
    key::Kind,
    l7::rate_limit::{KeyPart, Limit, RateLimit},
};

/// What `targetRefs` may name, by group and kind.
const TARGETS: [(&str, &str); 3] = [
    ("", "Service"),
    ("networking.istio.io", "ServiceEntry"),
    ("gateway.networking.k8s.io", "Gateway"),
];

/// RateLimit.
pub(crate) fn rate_limit(object: &RateLimit, found: &mut Vec<Invalid>) {
    metadata_of(Kind::RateLimit, &object.metadata, found);
    let field = Field::of("spec");
    let spec = &object.spec;
    if spec.target_refs.is_empty() {
        push(found, field.key("targetRefs"), "needs at least one target");
    }
    each(
        &field.key("targetRefs"),
        &spec.target_refs,
        found,
        |field, target, found| {
            let of = |(group, kind): &(&str, &str)| target.group == *group && target.kind == *kind;
            if !TARGETS.iter().any(of) {
                let reason = "must be a Service, a ServiceEntry or a Gateway, with its group";
                push(found, field.clone(), reason);
            }
            if target
                .namespace
                .as_deref()
                .is_some_and(|of| Some(of) != object.metadata.namespace.as_deref())
            {
                push(
                    found,
                    field.key("namespace"),
                    "must be that of the RateLimit",
                );
            }
        },
    );
    if spec.limits.is_empty() {
        push(found, field.key("limits"), "needs at least one limit");
    }
    each(&field.key("limits"), &spec.limits, found, limit);
    if let Some(global) = &spec.global {
        let field = field.key("global");
        http::host(&field.key("host"), &global.host, found);
        http::port(&field.key("port"), global.port.into(), found);
        if global.domain.is_empty() {
            push(found, field.key("domain"), "is needed");
        }
        time(&field.key("timeout"), global.timeout.as_ref(), found);
    }
}

fn limit(field: &Field, limit: &Limit, found: &mut Vec<Invalid>) {
    if limit.requests == 0 {
        push(
            found,
            field.key("requests"),
            "must be at least 1; to refuse all, use an AuthorizationPolicy",
        );
    }
    let units = ["Second", "Minute", "Hour", "Day"];
    one_of(&field.key("unit"), &limit.unit, &units, found);
    each(&field.key("key"), &limit.key, found, key_part);
}

fn key_part(field: &Field, part: &KeyPart, found: &mut Vec<Invalid>) {
    let forms = [
        part.header.is_some(),
        part.path.is_some(),
        part.client_identity.is_some(),
        part.client_ip.is_some(),
    ];
    if forms.into_iter().filter(|set| *set).count() != 1 {
        push(
            found,
            field.clone(),
            "needs one of header, path, clientIdentity and clientIp",
        );
    }
    if let Some(name) = &part.header {
        http::header_name(&field.key("header"), name, found);
    }
}
