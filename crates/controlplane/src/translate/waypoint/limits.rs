//! RateLimits of ours to Envoy's filters: one filter for each limit.

use std::{collections::BTreeSet, time::Duration};

use envoy_types::pb::envoy::{
    config::route::v3::{
        RateLimit as RouteRateLimit,
        rate_limit::{
            Action,
            action::{ActionSpecifier, GenericKey, RequestHeaders},
        },
    },
    extensions::{
        common::ratelimit::v3::{
            LocalRateLimitDescriptor, XRateLimitHeadersRfcVersion, rate_limit_descriptor::Entry,
        },
        filters::{
            http::local_ratelimit::v3::LocalRateLimit,
            network::http_connection_manager::v3::HttpFilter,
        },
    },
    r#type::v3::TokenBucket,
};
use leyline_types::NamespacedName;

use super::{
    listeners::http_filter,
    pb,
    rule::Share,
    settings::Settings,
    view::{ServiceView, View},
};
use crate::{
    objects::{
        Kind, ObjectKey,
        l7::rate_limit::{KeyPart, Limit, RateLimit},
    },
    translate::Advice,
};

/// Values of a key that a waypoint tells apart at once; the least used are forgotten first.
const MAX_KEYS: u32 = 10_000;

/// The filters of a service, in the order of the objects' names.
pub(super) fn filters(
    view: &View<'_>,
    settings: &Settings<'_>,
    service: &ServiceView<'_>,
) -> Vec<HttpFilter> {
    let limits = view.objects.rate_limits.iter();
    let targeted = limits.filter(|(name, limit)| {
        let mut targets = limit.spec.target_refs.iter();
        targets.any(|target| settings.targets(target, name.namespace.as_str(), service))
    });
    targeted
        .flat_map(|(name, limit)| filters_of(name, limit))
        .collect()
}

fn filters_of(name: &NamespacedName, limit: &RateLimit) -> Vec<HttpFilter> {
    if limit.spec.global.is_some() {
        return Vec::new();
    }
    let limits = limit.spec.limits.iter().enumerate();
    limits
        .map(|(index, limit)| {
            // The waypoint keeps the buckets of a RateLimit by this name.
            let prefix = format!("leyline.io/RateLimit/{name}/{index}");
            http_filter(&prefix, pb::any(&local(limit, &prefix)))
        })
        .collect()
}

fn local(limit: &Limit, prefix: &str) -> LocalRateLimit {
    let bucket = TokenBucket {
        max_tokens: limit.requests.saturating_add(limit.burst.unwrap_or(0)),
        tokens_per_fill: pb::uint32(limit.requests),
        fill_interval: pb::duration(unit(&limit.unit)),
    };
    // Requests without the key are not limited.
    let unlimited = TokenBucket {
        max_tokens: u32::MAX,
        tokens_per_fill: pb::uint32(u32::MAX),
        fill_interval: pb::duration(Duration::from_secs(1)),
    };
    let entries = limit.key.iter().map(|part| Entry {
        key: key_name(part),
        value: String::new(),
    });
    let has_key = !limit.key.is_empty();
    LocalRateLimit {
        stat_prefix: prefix.to_owned(),
        token_bucket: Some(if has_key { unlimited } else { bucket }),
        filter_enabled: pb::runtime_fraction(Share::ALL),
        filter_enforced: pb::runtime_fraction(Share::ALL),
        enable_x_ratelimit_headers: XRateLimitHeadersRfcVersion::DraftVersion03.into(),
        enable_retry_after_header: true,
        always_consume_default_token_bucket: pb::boolean(false),
        descriptors: has_key
            .then(|| LocalRateLimitDescriptor {
                entries: entries.collect(),
                token_bucket: Some(bucket),
                shadow_mode: false,
            })
            .into_iter()
            .collect(),
        rate_limits: has_key
            .then(|| RouteRateLimit {
                actions: limit.key.iter().map(action).collect(),
                ..RouteRateLimit::default()
            })
            .into_iter()
            .collect(),
        max_dynamic_descriptors: pb::uint32(MAX_KEYS),
        ..LocalRateLimit::default()
    }
}

/// What the descriptor calls a part of the key.
fn key_name(part: &KeyPart) -> String {
    match part {
        KeyPart {
            header: Some(name), ..
        } => name.to_ascii_lowercase(),
        KeyPart { path: Some(_), .. } => "path".to_owned(),
        KeyPart {
            client_identity: Some(_),
            ..
        } => "client_identity".to_owned(),
        KeyPart { .. } => "client_ip".to_owned(),
    }
}

fn action(part: &KeyPart) -> Action {
    let generic = |value: &str| {
        ActionSpecifier::GenericKey(GenericKey {
            descriptor_key: key_name(part),
            descriptor_value: value.to_owned(),
            default_value: String::new(),
        })
    };
    let specifier = match part {
        KeyPart {
            header: Some(name), ..
        } => ActionSpecifier::RequestHeaders(RequestHeaders {
            header_name: name.to_ascii_lowercase(),
            descriptor_key: key_name(part),
            skip_if_absent: false,
        }),
        KeyPart { path: Some(_), .. } => generic("%PATH(NQ)%"),
        KeyPart {
            client_identity: Some(_),
            ..
        } => generic("%FILTER_STATE(io.istio.peer_principal:PLAIN)%"),
        // Not what `x-forwarded-for` says: a client could say anything.
        KeyPart { .. } => generic("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"),
    };
    Action {
        action_specifier: Some(specifier),
    }
}

fn unit(name: &str) -> Duration {
    Duration::from_secs(match name {
        "Second" => 1,
        "Minute" => 60,
        "Hour" => 3600,
        // Validated: there are no others.
        _ => 86_400,
    })
}

/// Tells of targets that no waypoint serves: there the limit does nothing.
pub(super) fn advise(
    view: &View<'_>,
    gateways: &BTreeSet<NamespacedName>,
    advice: &mut Vec<Advice>,
) {
    for (name, limit) in &view.objects.rate_limits {
        for (index, target) in limit.spec.target_refs.iter().enumerate() {
            let named = NamespacedName {
                namespace: name.namespace.clone(),
                name: target.name.as_str().into(),
            };
            let mut services = view.services.values();
            let served = match target.kind.as_str() {
                "Gateway" => gateways.contains(&named),
                _ => services.any(|service| {
                    service.namespace == name.namespace.as_str()
                        && service.name == target.name
                        && !service.waypoints.is_empty()
                }),
            };
            if served {
                continue;
            }
            advice.push(Advice {
                object: ObjectKey::new(
                    Kind::RateLimit,
                    Some(name.namespace.as_str()),
                    name.name.as_str(),
                ),
                field: format!("spec.targetRefs[{index}]"),
                reason: format!(
                    "there is no waypoint for {} {}: its requests are not limited",
                    target.kind, target.name
                ),
            });
        }
    }
}
