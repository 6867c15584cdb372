//! Both rate limit filters, and the actions that make descriptors.

use envoy_types::pb::envoy::{
    config::{
        ratelimit::v3::RateLimitServiceConfig,
        route::v3::{
            RateLimit as RouteRateLimit,
            rate_limit::{
                Action,
                action::{self, ActionSpecifier},
            },
        },
    },
    extensions::{
        common::ratelimit::v3::{
            LocalRateLimitDescriptor, VhRateLimitsOptions, XRateLimitHeadersRfcVersion,
            rate_limit_descriptor::Entry,
        },
        filters::http::{
            local_ratelimit::v3::LocalRateLimit,
            ratelimit::v3::{
                RateLimit, RateLimitPerRoute, rate_limit::XRateLimitHeadersRfcVersion as OfGlobal,
                rate_limit_per_route::VhRateLimitsOptions as OfRoute,
            },
        },
    },
};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    JsonError,
    common::{
        AddedHeader, Bucket, Fraction, Grpc, HeaderTest, Status, TextTest, Word, each, flag,
        number, only_one,
    },
    decode,
};

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Local {
    stat_prefix: String,
    status: Option<Status>,
    token_bucket: Option<Bucket>,
    filter_enabled: Option<Fraction>,
    filter_enforced: Option<Fraction>,
    request_headers_to_add_when_not_enforced: Vec<AddedHeader>,
    response_headers_to_add: Vec<AddedHeader>,
    descriptors: Vec<Descriptor>,
    stage: u32,
    local_rate_limit_per_downstream_connection: bool,
    enable_x_ratelimit_headers: Word,
    vh_rate_limits: Word,
    always_consume_default_token_bucket: Option<bool>,
    rate_limited_as_resource_exhausted: bool,
    rate_limits: Vec<Limit>,
    max_dynamic_descriptors: Option<u32>,
    enable_retry_after_header: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Descriptor {
    entries: Vec<KeyValue>,
    token_bucket: Bucket,
    shadow_mode: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct KeyValue {
    key: String,
    value: String,
}

/// `envoy.filters.http.local_ratelimit`.
///
/// # Errors
/// What is not understood.
pub fn local_rate_limit(value: &Value) -> Result<LocalRateLimit, JsonError> {
    let local: Local = decode(value)?;
    let fraction = |path: &str, fraction: &Option<Fraction>| {
        let fraction = fraction.as_ref();
        fraction.map(|fraction| fraction.message(path)).transpose()
    };
    let status = local.status.as_ref();
    let bucket = local.token_bucket.as_ref();
    Ok(LocalRateLimit {
        stat_prefix: local.stat_prefix,
        status: status.map(|it| it.message("status")).transpose()?,
        token_bucket: bucket.map(|it| it.message("token_bucket")).transpose()?,
        filter_enabled: fraction("filter_enabled", &local.filter_enabled)?,
        filter_enforced: fraction("filter_enforced", &local.filter_enforced)?,
        request_headers_to_add_when_not_enforced: each(
            "request_headers_to_add_when_not_enforced",
            &local.request_headers_to_add_when_not_enforced,
            AddedHeader::message,
        )?,
        response_headers_to_add: each(
            "response_headers_to_add",
            &local.response_headers_to_add,
            AddedHeader::message,
        )?,
        descriptors: each("descriptors", &local.descriptors, Descriptor::message)?,
        stage: local.stage,
        local_rate_limit_per_downstream_connection: local
            .local_rate_limit_per_downstream_connection,
        enable_x_ratelimit_headers: local
            .enable_x_ratelimit_headers
            .number("enable_x_ratelimit_headers", |name| {
                XRateLimitHeadersRfcVersion::from_str_name(name).map(i32::from)
            })?,
        vh_rate_limits: local.vh_rate_limits.number("vh_rate_limits", |name| {
            VhRateLimitsOptions::from_str_name(name).map(i32::from)
        })?,
        always_consume_default_token_bucket: flag(local.always_consume_default_token_bucket),
        rate_limited_as_resource_exhausted: local.rate_limited_as_resource_exhausted,
        rate_limits: each("rate_limits", &local.rate_limits, Limit::message)?,
        max_dynamic_descriptors: number(local.max_dynamic_descriptors),
        local_cluster_rate_limit: None,
        enable_retry_after_header: local.enable_retry_after_header,
    })
}

impl Descriptor {
    fn message(&self, path: &str) -> Result<LocalRateLimitDescriptor, JsonError> {
        let entry = |entry: &KeyValue| Entry {
            key: entry.key.clone(),
            value: entry.value.clone(),
        };
        Ok(LocalRateLimitDescriptor {
            entries: self.entries.iter().map(entry).collect(),
            token_bucket: Some(self.token_bucket.message(&format!("{path}.token_bucket"))?),
            shadow_mode: self.shadow_mode,
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Global {
    domain: String,
    stage: u32,
    request_type: String,
    timeout: Option<String>,
    failure_mode_deny: bool,
    rate_limited_as_resource_exhausted: bool,
    rate_limit_service: Option<Service>,
    enable_x_ratelimit_headers: Word,
    disable_x_envoy_ratelimited_header: bool,
    rate_limited_status: Option<Status>,
    status_on_error: Option<Status>,
    response_headers_to_add: Vec<AddedHeader>,
    stat_prefix: String,
    filter_enabled: Option<Fraction>,
    filter_enforced: Option<Fraction>,
    failure_mode_deny_percent: Option<Fraction>,
    rate_limits: Vec<Limit>,
    enable_retry_after_header: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Service {
    grpc_service: Grpc,
    transport_api_version: Word,
}

/// `envoy.filters.http.ratelimit`.
///
/// # Errors
/// What is not understood.
pub fn global_rate_limit(value: &Value) -> Result<RateLimit, JsonError> {
    use envoy_types::pb::envoy::config::core::v3::ApiVersion;
    let global: Global = decode(value)?;
    let fraction = |path: &str, fraction: &Option<Fraction>| {
        let fraction = fraction.as_ref();
        fraction.map(|fraction| fraction.message(path)).transpose()
    };
    let status = |path: &str, status: &Option<Status>| {
        let status = status.as_ref();
        status.map(|status| status.message(path)).transpose()
    };
    let service = global.rate_limit_service.as_ref();
    let service = service.ok_or_else(|| JsonError::new("", "rate_limit_service is missing"))?;
    let version = |name: &str| ApiVersion::from_str_name(name).map(i32::from);
    let service = RateLimitServiceConfig {
        grpc_service: Some(
            service
                .grpc_service
                .message("rate_limit_service.grpc_service")?,
        ),
        transport_api_version: service
            .transport_api_version
            .number("rate_limit_service.transport_api_version", version)?,
    };
    let timeout = global.timeout.as_deref();
    Ok(RateLimit {
        timeout: timeout
            .map(|text| crate::common::duration("timeout", text))
            .transpose()?,
        rate_limit_service: Some(service),
        enable_x_ratelimit_headers: global
            .enable_x_ratelimit_headers
            .number("enable_x_ratelimit_headers", |name| {
                OfGlobal::from_str_name(name).map(i32::from)
            })?,
        rate_limited_status: status("rate_limited_status", &global.rate_limited_status)?,
        status_on_error: status("status_on_error", &global.status_on_error)?,
        response_headers_to_add: each(
            "response_headers_to_add",
            &global.response_headers_to_add,
            AddedHeader::message,
        )?,
        filter_enabled: fraction("filter_enabled", &global.filter_enabled)?,
        filter_enforced: fraction("filter_enforced", &global.filter_enforced)?,
        failure_mode_deny_percent: fraction(
            "failure_mode_deny_percent",
            &global.failure_mode_deny_percent,
        )?,
        rate_limits: each("rate_limits", &global.rate_limits, Limit::message)?,
        domain: global.domain,
        stage: global.stage,
        request_type: global.request_type,
        failure_mode_deny: global.failure_mode_deny,
        rate_limited_as_resource_exhausted: global.rate_limited_as_resource_exhausted,
        disable_x_envoy_ratelimited_header: global.disable_x_envoy_ratelimited_header,
        stat_prefix: global.stat_prefix,
        enable_retry_after_header: global.enable_retry_after_header,
        ..RateLimit::default()
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PerRoute {
    vh_rate_limits: Word,
    rate_limits: Vec<Limit>,
    domain: String,
}

/// What a route overrides of the global filter.
///
/// # Errors
/// What is not understood.
pub fn rate_limit_per_route(value: &Value) -> Result<RateLimitPerRoute, JsonError> {
    let route: PerRoute = decode(value)?;
    Ok(RateLimitPerRoute {
        vh_rate_limits: route.vh_rate_limits.number("vh_rate_limits", |name| {
            OfRoute::from_str_name(name).map(i32::from)
        })?,
        rate_limits: each("rate_limits", &route.rate_limits, Limit::message)?,
        domain: route.domain,
        ..RateLimitPerRoute::default()
    })
}

/// `rate_limits` of a route or a virtual host.
///
/// # Errors
/// What is not understood.
pub fn route_rate_limits(value: &Value) -> Result<Vec<RouteRateLimit>, JsonError> {
    let limits: Vec<Limit> = decode(value)?;
    each("", &limits, Limit::message)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Limit {
    stage: Option<u32>,
    disable_key: String,
    actions: Vec<Step>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Step {
    source_cluster: Option<Empty>,
    destination_cluster: Option<Empty>,
    remote_address: Option<Empty>,
    request_headers: Option<RequestHeaders>,
    query_parameters: Option<QueryParameters>,
    generic_key: Option<GenericKey>,
    header_value_match: Option<HeaderValueMatch>,
    query_parameter_value_match: Option<QueryParameterValueMatch>,
    masked_remote_address: Option<Masked>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RequestHeaders {
    header_name: String,
    descriptor_key: String,
    skip_if_absent: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct QueryParameters {
    query_parameter_name: String,
    descriptor_key: String,
    skip_if_absent: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct GenericKey {
    descriptor_value: String,
    default_value: String,
    descriptor_key: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HeaderValueMatch {
    descriptor_value: String,
    default_value: String,
    descriptor_key: String,
    expect_match: Option<bool>,
    headers: Vec<HeaderTest>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct QueryParameterValueMatch {
    descriptor_value: String,
    default_value: String,
    descriptor_key: String,
    expect_match: Option<bool>,
    query_parameters: Vec<QueryTest>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct QueryTest {
    name: String,
    string_match: Option<TextTest>,
    present_match: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Masked {
    v4_prefix_mask_len: Option<u32>,
    v6_prefix_mask_len: Option<u32>,
}

impl Limit {
    fn message(&self, path: &str) -> Result<RouteRateLimit, JsonError> {
        Ok(RouteRateLimit {
            stage: number(self.stage),
            disable_key: self.disable_key.clone(),
            actions: each(&format!("{path}.actions"), &self.actions, Step::message)?,
            ..RouteRateLimit::default()
        })
    }
}

impl Step {
    fn message(&self, path: &str) -> Result<Action, JsonError> {
        let header_value = self.header_value_match.as_ref();
        let query_value = self.query_parameter_value_match.as_ref();
        let forms = [
            self.source_cluster
                .as_ref()
                .map(|Empty {}| ActionSpecifier::SourceCluster(action::SourceCluster {})),
            self.destination_cluster
                .as_ref()
                .map(|Empty {}| ActionSpecifier::DestinationCluster(action::DestinationCluster {})),
            self.remote_address
                .as_ref()
                .map(|Empty {}| ActionSpecifier::RemoteAddress(action::RemoteAddress {})),
            self.request_headers.as_ref().map(|it| {
                ActionSpecifier::RequestHeaders(action::RequestHeaders {
                    header_name: it.header_name.clone(),
                    descriptor_key: it.descriptor_key.clone(),
                    skip_if_absent: it.skip_if_absent,
                })
            }),
            self.query_parameters.as_ref().map(|it| {
                ActionSpecifier::QueryParameters(action::QueryParameters {
                    query_parameter_name: it.query_parameter_name.clone(),
                    descriptor_key: it.descriptor_key.clone(),
                    skip_if_absent: it.skip_if_absent,
                })
            }),
            self.generic_key.as_ref().map(|it| {
                ActionSpecifier::GenericKey(action::GenericKey {
                    descriptor_value: it.descriptor_value.clone(),
                    default_value: it.default_value.clone(),
                    descriptor_key: it.descriptor_key.clone(),
                })
            }),
            header_value.map(|it| it.message(path)).transpose()?,
            query_value.map(|it| it.message(path)).transpose()?,
            self.masked_remote_address.as_ref().map(|it| {
                ActionSpecifier::MaskedRemoteAddress(action::MaskedRemoteAddress {
                    v4_prefix_mask_len: number(it.v4_prefix_mask_len),
                    v6_prefix_mask_len: number(it.v6_prefix_mask_len),
                })
            }),
        ];
        Ok(Action {
            action_specifier: Some(only_one(path, forms)?),
        })
    }
}

impl HeaderValueMatch {
    fn message(&self, path: &str) -> Result<ActionSpecifier, JsonError> {
        let headers = each(
            &format!("{path}.headers"),
            &self.headers,
            HeaderTest::message,
        )?;
        Ok(ActionSpecifier::HeaderValueMatch(
            action::HeaderValueMatch {
                descriptor_value: self.descriptor_value.clone(),
                default_value: self.default_value.clone(),
                descriptor_key: self.descriptor_key.clone(),
                expect_match: flag(self.expect_match),
                headers,
            },
        ))
    }
}

impl QueryParameterValueMatch {
    fn message(&self, path: &str) -> Result<ActionSpecifier, JsonError> {
        use envoy_types::pb::envoy::config::route::v3::{
            QueryParameterMatcher, query_parameter_matcher::QueryParameterMatchSpecifier,
        };
        let one = |test: &QueryTest, path: &str| {
            let text = test.string_match.as_ref();
            let text = text.map(|text| text.message(path)).transpose()?;
            let present = test.present_match.unwrap_or(true);
            let specifier = text.map_or(
                QueryParameterMatchSpecifier::PresentMatch(present),
                QueryParameterMatchSpecifier::StringMatch,
            );
            Ok(QueryParameterMatcher {
                name: test.name.clone(),
                query_parameter_match_specifier: Some(specifier),
            })
        };
        let path = format!("{path}.query_parameters");
        Ok(ActionSpecifier::QueryParameterValueMatch(
            action::QueryParameterValueMatch {
                descriptor_value: self.descriptor_value.clone(),
                default_value: self.default_value.clone(),
                descriptor_key: self.descriptor_key.clone(),
                expect_match: flag(self.expect_match),
                query_parameters: each(&path, &self.query_parameters, one)?,
            },
        ))
    }
}
