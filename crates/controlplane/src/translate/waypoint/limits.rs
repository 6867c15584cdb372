//! RateLimits of ours to Envoy's filters: one filter for each limit.

use std::{collections::BTreeSet, time::Duration};

use envoy_types::pb::envoy::{
    config::core::v3::{
        ApiVersion, GrpcService,
        grpc_service::{EnvoyGrpc, TargetSpecifier},
    },
    config::ratelimit::v3::RateLimitServiceConfig,
    config::route::v3::{
        RateLimit as RouteRateLimit,
        rate_limit::{
            Action, Override,
            action::{ActionSpecifier, GenericKey, RequestHeaders},
            r#override::{OverrideSpecifier, RateLimitOverride},
        },
    },
    extensions::{
        common::ratelimit::v3::{
            LocalRateLimitDescriptor, XRateLimitHeadersRfcVersion, rate_limit_descriptor::Entry,
        },
        filters::{
            http::local_ratelimit::v3::LocalRateLimit,
            http::ratelimit::v3::{
                RateLimit as GlobalRateLimit,
                rate_limit::XRateLimitHeadersRfcVersion as GlobalHeaders,
            },
            network::http_connection_manager::v3::HttpFilter,
        },
    },
    r#type::v3::{RateLimitUnit, TokenBucket},
};
use leyline_types::NamespacedName;

use super::{
    listeners::http_filter,
    pb,
    routes::UNKNOWN_CLUSTER,
    rule::Share,
    settings::Settings,
    view::{ServiceView, View},
};
use crate::{
    objects::{
        Kind, ObjectKey, duration,
        l7::rate_limit::{Global, KeyPart, Limit, RateLimit},
    },
    translate::Advice,
};

/// Values of a key that a waypoint tells apart at once; the least used are forgotten first.
const MAX_KEYS: u32 = 10_000;

/// As the object says where it says nothing.
const GLOBAL_TIMEOUT: Duration = Duration::from_millis(20);

/// The filters of a service, in the order of the objects' names.
pub(super) fn filters<'a>(
    view: &View<'a>,
    settings: &Settings<'a>,
    service: &ServiceView<'_>,
) -> Vec<HttpFilter> {
    let limits = &view.index.rate_limits;
    settings
        .applying(limits, service, |limit| limit.spec.target_refs.iter())
        .flat_map(|(name, limit)| filters_of(name, limit, settings))
        .collect()
}

fn filters_of(
    name: &NamespacedName,
    limit: &RateLimit,
    settings: &Settings<'_>,
) -> Vec<HttpFilter> {
    if let Some(service) = &limit.spec.global {
        let config = global(name, &limit.spec.limits, service, settings);
        let prefix = format!("leyline.io/RateLimit/{name}");
        return vec![http_filter(&prefix, pb::any(&config))];
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

/// All limits of an object in one question to its service. Each limit is told with its descriptor, so that the service
/// needs no configuration of its own.
fn global(
    name: &NamespacedName,
    limits: &[Limit],
    service: &Global,
    settings: &Settings<'_>,
) -> GlobalRateLimit {
    let cluster = u16::try_from(service.port).ok();
    let cluster = cluster.and_then(|port| settings.service_cluster(&service.host, port));
    let timeout = service.timeout.as_ref();
    let timeout = timeout.and_then(|text| duration::parse(text).ok());
    GlobalRateLimit {
        domain: service.domain.clone(),
        timeout: pb::duration(timeout.unwrap_or(GLOBAL_TIMEOUT)),
        failure_mode_deny: service.fail_closed,
        rate_limit_service: Some(RateLimitServiceConfig {
            grpc_service: Some(GrpcService {
                target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                    // Where there is no such service, nobody answers.
                    cluster_name: cluster.unwrap_or_else(|| UNKNOWN_CLUSTER.to_owned()),
                    ..EnvoyGrpc::default()
                })),
                ..GrpcService::default()
            }),
            transport_api_version: ApiVersion::V3.into(),
        }),
        enable_x_ratelimit_headers: GlobalHeaders::DraftVersion03.into(),
        enable_retry_after_header: true,
        stat_prefix: format!("leyline.io/RateLimit/{name}"),
        rate_limits: limits
            .iter()
            .enumerate()
            .map(|(index, limit)| {
                let own = Action {
                    action_specifier: Some(ActionSpecifier::GenericKey(GenericKey {
                        descriptor_key: "limit".to_owned(),
                        descriptor_value: format!("{name}/{index}"),
                        default_value: String::new(),
                    })),
                };
                RouteRateLimit {
                    actions: std::iter::once(own)
                        .chain(limit.key.iter().map(action))
                        .collect(),
                    limit: Some(Override {
                        override_specifier: Some(OverrideSpecifier::RateLimit(RateLimitOverride {
                            requests_per_unit: limit.requests,
                            unit: rate_limit_unit(&limit.unit).into(),
                        })),
                    }),
                    ..RouteRateLimit::default()
                }
            })
            .collect(),
        ..GlobalRateLimit::default()
    }
}

fn rate_limit_unit(name: &str) -> RateLimitUnit {
    match name {
        "Second" => RateLimitUnit::Second,
        "Minute" => RateLimitUnit::Minute,
        "Hour" => RateLimitUnit::Hour,
        // Validated: there are no others.
        _ => RateLimitUnit::Day,
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
        let global = limit.spec.global.as_ref();
        let known = |global: &Global| {
            let service = view.services.get(global.host.as_str());
            service.is_some_and(|service| {
                let mut ports = service.ports.iter();
                ports.any(|port| u32::from(port.number) == global.port)
            })
        };
        if let Some(global) = global.filter(|global| !known(global)) {
            advice.push(Advice {
                object: ObjectKey::new(
                    Kind::RateLimit,
                    Some(name.namespace.as_str()),
                    name.name.as_str(),
                ),
                field: "spec.global".to_owned(),
                reason: format!("there is no service {}:{}", global.host, global.port),
            });
        }
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
