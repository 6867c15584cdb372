//! BackendTLSPolicy: what its CRD refuses.

use super::{
    Invalid,
    http::{self, each, one_of},
    metadata_of, push,
};
use crate::objects::{
    field::Field,
    key::Kind,
    l7::backend_tls_policy::{BackendTlsPolicy, SubjectAltName, Validation},
};

/// BackendTLSPolicy.
pub(crate) fn backend_tls_policy(object: &BackendTlsPolicy, found: &mut Vec<Invalid>) {
    metadata_of(Kind::BackendTlsPolicy, &object.metadata, found);
    let field = Field::of("spec");
    let spec = &object.spec;
    if spec.target_refs.is_empty() {
        push(found, field.key("targetRefs"), "needs at least one target");
    }
    let targets = field.key("targetRefs");
    each(
        &targets,
        &spec.target_refs,
        found,
        |field, target, found| {
            if target.name.is_empty() {
                push(found, field.key("name"), "is needed");
            }
        },
    );
    validation(&field.key("validation"), &spec.validation, found);
}

fn validation(field: &Field, validation: &Validation, found: &mut Vec<Invalid>) {
    if validation.hostname.is_empty() {
        push(found, field.key("hostname"), "is needed");
    } else if let Err(reason) = super::text::dns_subdomain(&validation.hostname) {
        push(found, field.key("hostname"), reason);
    }
    let given = !validation.ca_certificate_refs.is_empty();
    match &validation.well_known_ca_certificates {
        Some(_) if given => push(
            found,
            field.key("wellKnownCACertificates"),
            "cannot be combined with caCertificateRefs",
        ),
        Some(known) => {
            one_of(
                &field.key("wellKnownCACertificates"),
                known,
                &["System"],
                found,
            );
        }
        None if !given => push(
            found,
            field.key("caCertificateRefs"),
            "needs one, or wellKnownCACertificates in its place",
        ),
        None => {}
    }
    let roots = field.key("caCertificateRefs");
    each(
        &roots,
        &validation.ca_certificate_refs,
        found,
        |field, one, found| {
            if one.name.is_empty() {
                push(found, field.key("name"), "is needed");
            }
        },
    );
    let names = field.key("subjectAltNames");
    each(
        &names,
        &validation.subject_alt_names,
        found,
        subject_alt_name,
    );
}

fn subject_alt_name(field: &Field, name: &SubjectAltName, found: &mut Vec<Invalid>) {
    one_of(&field.key("type"), &name.kind, &["Hostname", "URI"], found);
    if name.name().is_none() {
        push(
            found,
            field.clone(),
            "needs hostname or uri, as its type says",
        );
    }
    if let Some(host) = &name.hostname {
        http::host(&field.key("hostname"), host, found);
    }
}
