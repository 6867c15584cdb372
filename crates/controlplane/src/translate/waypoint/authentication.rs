//! RequestAuthentications of a service or a waypoint to the JWT filter (facts A.9). Keys are put in: those that the object
//! has, or those that were fetched from where it says. Where there are none yet, no token of the issuer is good.

use std::collections::BTreeMap;

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{DataSource, data_source::Specifier},
            route::v3::{RouteMatch, route_match::PathSpecifier},
        },
        extensions::filters::http::jwt_authn::v3::{
            JwtAuthentication, JwtClaimToHeader, JwtHeader, JwtProvider, JwtRequirement,
            JwtRequirementOrList, RequirementRule,
            jwt_provider::{JwksSourceSpecifier, NormalizePayload},
            jwt_requirement::RequiresType,
            requirement_rule::RequirementType,
        },
        extensions::filters::network::http_connection_manager::v3::HttpFilter,
    },
    google::protobuf::{Any, Empty},
};
use prost::{Message, Name, encoding};

use super::{
    super::{
        keys::{KeySets, KeySource},
        resource::append,
    },
    claims::{JWT_FILTER, PAYLOAD},
    listeners::http_filter,
};
use crate::objects::l7::request_authentication::{JwtRule, RequestAuthentication};

/// A key set without keys.
const NO_KEYS: &str = r#"{"keys":[]}"#;
/// Claims that are lists in one text (RFC 8693, 4.2), as Istio takes them.
const SPACE_DELIMITED: [&str; 2] = ["permission", "scope"];

/// The filter of a port; `None` where nothing is said about tokens.
pub(super) fn filter(policies: &[&RequestAuthentication], keys: &KeySets) -> Option<HttpFilter> {
    let rules = policies.iter().flat_map(|policy| &policy.spec.jwt_rules);
    let mut rules: Vec<&JwtRule> = rules.collect();
    if rules.is_empty() {
        return None;
    }
    rules.sort_by(|one, other| one.issuer.cmp(&other.issuer));
    let providers = rules
        .iter()
        .enumerate()
        .map(|(index, rule)| (format!("origins-{index}"), provider(rule, keys)));
    let providers: BTreeMap<String, JwtProvider> = providers.collect();

    // A token of one of them, or none.
    let names = providers.keys().cloned();
    let requirements = names
        .map(RequiresType::ProviderName)
        .chain([RequiresType::AllowMissing(Empty {})]);
    let requirements = requirements.map(|one| JwtRequirement {
        requires_type: Some(one),
    });
    let any = RequiresType::RequiresAny(JwtRequirementOrList {
        requirements: requirements.collect(),
    });
    let filter = JwtAuthentication {
        rules: vec![RequirementRule {
            r#match: Some(RouteMatch {
                path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
                ..RouteMatch::default()
            }),
            requirement_type: Some(RequirementType::Requires(JwtRequirement {
                requires_type: Some(any),
            })),
        }],
        bypass_cors_preflight: true,
        ..JwtAuthentication::default()
    };
    Some(http_filter(JWT_FILTER, in_order(&filter, &providers)))
}

/// Field 1 is the map of providers, which has no order of its own.
fn in_order(filter: &JwtAuthentication, providers: &BTreeMap<String, JwtProvider>) -> Any {
    let mut value = Vec::new();
    for (name, provider) in providers {
        let mut entry = Vec::new();
        encoding::string::encode(1, name, &mut entry);
        encoding::message::encode(2, provider, &mut entry);
        append(1, &entry, &mut value);
    }
    value.extend(filter.encode_to_vec());
    Any {
        type_url: JwtAuthentication::type_url(),
        value,
    }
}

fn provider(rule: &JwtRule, keys: &KeySets) -> JwtProvider {
    let text = match KeySource::of(rule) {
        Some(source) => keys.get(&source).cloned(),
        None => rule.jwks.as_deref().map(Into::into),
    };
    let spaces = SPACE_DELIMITED.into_iter().map(str::to_owned);
    let spaces = spaces.chain(rule.space_delimited_claims.iter().cloned());
    let mut space_delimited_claims: Vec<String> = spaces.collect();
    space_delimited_claims.sort();
    space_delimited_claims.dedup();
    let headers = rule.from_headers.iter().map(|header| JwtHeader {
        name: header.name.clone(),
        value_prefix: header.prefix.clone().unwrap_or_default(),
    });
    let claims = rule.output_claim_to_headers.iter();
    let claims = claims.map(|claim| JwtClaimToHeader {
        header_name: claim.header.clone(),
        claim_name: claim.claim.clone(),
        ..JwtClaimToHeader::default()
    });
    JwtProvider {
        issuer: rule.issuer.clone(),
        audiences: rule.audiences.clone(),
        forward: rule.forward_original_token,
        from_headers: headers.collect(),
        from_params: rule.from_params.clone(),
        from_cookies: rule.from_cookies.clone(),
        forward_payload_header: rule.output_payload_to_header.clone().unwrap_or_default(),
        payload_in_metadata: PAYLOAD.to_owned(),
        normalize_payload_in_metadata: Some(NormalizePayload {
            space_delimited_claims,
        }),
        claim_to_headers: claims.collect(),
        // Routes may match claims.
        clear_route_cache: true,
        jwks_source_specifier: Some(JwksSourceSpecifier::LocalJwks(DataSource {
            specifier: Some(Specifier::InlineString(
                text.as_deref().unwrap_or(NO_KEYS).to_owned(),
            )),
            ..DataSource::default()
        })),
        ..JwtProvider::default()
    }
}
