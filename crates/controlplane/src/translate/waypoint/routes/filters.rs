//! Settings that a route has for filters of its chain: CORS and injected faults.

use std::collections::HashMap;

use envoy_types::pb::{
    envoy::extensions::filters::{
        common::fault::v3::{FaultDelay, fault_delay::FaultDelaySecifier},
        http::{
            cors::v3::CorsPolicy,
            fault::v3::{FaultAbort, HttpFault, fault_abort::ErrorType},
        },
    },
    google::protobuf::Any,
};

use super::super::{
    pb,
    rule::{Abort, Case, Cors, Fault, HttpRule, Share, UnmatchedPreflights},
};

/// Names that Envoy's filters have for settings of single routes.
const CORS: &str = "envoy.filters.http.cors";
const FAULT: &str = "envoy.filters.http.fault";

pub(super) fn per_filter(rule: &HttpRule) -> HashMap<String, Any> {
    let cors = rule
        .cors
        .as_ref()
        .map(|cors| (CORS.to_owned(), pb::any(&cors_policy(cors))));
    let fault = (rule.fault != Fault::default())
        .then(|| (FAULT.to_owned(), pb::any(&http_fault(&rule.fault))));
    cors.into_iter().chain(fault).collect()
}

fn cors_policy(cors: &Cors) -> CorsPolicy {
    let origins = cors.origins.iter();
    CorsPolicy {
        allow_origin_string_match: origins
            .filter_map(|origin| pb::string_matcher(origin, Case::Told))
            .collect(),
        allow_methods: cors.methods.join(","),
        allow_headers: cors.headers.join(","),
        expose_headers: cors.expose.join(","),
        max_age: cors
            .max_age
            .map(|age| age.as_secs().to_string())
            .unwrap_or_default(),
        allow_credentials: pb::boolean(cors.credentials),
        filter_enabled: pb::runtime_fraction(Share::ALL),
        forward_not_matching_preflights: pb::boolean(
            cors.unmatched == UnmatchedPreflights::Forwarded,
        ),
        ..CorsPolicy::default()
    }
}

fn http_fault(fault: &Fault) -> HttpFault {
    HttpFault {
        delay: fault.delay.map(|(share, delay)| FaultDelay {
            percentage: Some(pb::fraction(share)),
            fault_delay_secifier: pb::duration(delay).map(FaultDelaySecifier::FixedDelay),
        }),
        abort: fault.abort.map(|(share, abort)| FaultAbort {
            percentage: Some(pb::fraction(share)),
            error_type: Some(match abort {
                Abort::Http(status) => ErrorType::HttpStatus(status),
                Abort::Grpc(status) => ErrorType::GrpcStatus(status),
            }),
            ..FaultAbort::default()
        }),
        ..HttpFault::default()
    }
}
