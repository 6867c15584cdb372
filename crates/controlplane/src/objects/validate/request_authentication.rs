//! RequestAuthentication: what Istio's admission refuses.

use super::{
    Invalid,
    http::{self, each, time},
    metadata_of, push,
};
use crate::objects::{
    field::Field,
    key::Kind,
    l7::request_authentication::{JwtRule, RequestAuthentication},
};

/// RequestAuthentication.
pub(crate) fn request_authentication(object: &RequestAuthentication, found: &mut Vec<Invalid>) {
    metadata_of(Kind::RequestAuthentication, &object.metadata, found);
    let field = Field::of("spec");
    let spec = &object.spec;
    let targeted = spec.target_ref.is_some() || !spec.target_refs.is_empty();
    if targeted && spec.selector.is_some() {
        push(
            found,
            field.key("selector"),
            "cannot be combined with targetRefs",
        );
    }
    each(&field.key("jwtRules"), &spec.jwt_rules, found, jwt_rule);
}

fn jwt_rule(field: &Field, rule: &JwtRule, found: &mut Vec<Invalid>) {
    if rule.issuer.is_empty() {
        push(found, field.key("issuer"), "is needed");
    }
    if rule.jwks.is_some() && rule.jwks_uri.is_some() {
        push(found, field.key("jwks"), "cannot be combined with jwksUri");
    }
    if let Some(uri) = &rule.jwks_uri {
        let scheme = uri.parse::<::http::Uri>().ok();
        let scheme = scheme.as_ref().and_then(::http::Uri::scheme_str);
        if !matches!(scheme, Some("http" | "https")) {
            push(
                found,
                field.key("jwksUri"),
                format!("`{uri}` is not an http or https address"),
            );
        }
    }
    if let Some(keys) = &rule.jwks {
        let read = serde_json::from_str::<serde_json::Value>(keys);
        if !read.is_ok_and(|keys| keys.get("keys").is_some_and(serde_json::Value::is_array)) {
            push(
                found,
                field.key("jwks"),
                "is not a JSON Web Key Set (RFC 7517)",
            );
        }
    }
    each(
        &field.key("fromHeaders"),
        &rule.from_headers,
        found,
        |field, header, found| {
            http::header_name(&field.key("name"), &header.name, found);
        },
    );
    if let Some(name) = &rule.output_payload_to_header {
        http::header_name(&field.key("outputPayloadToHeader"), name, found);
    }
    each(
        &field.key("outputClaimToHeaders"),
        &rule.output_claim_to_headers,
        found,
        |field, out, found| {
            http::header_name(&field.key("header"), &out.header, found);
            if out.claim.is_empty() {
                push(found, field.key("claim"), "is needed");
            }
        },
    );
    time(&field.key("timeout"), rule.timeout.as_ref(), found);
}
