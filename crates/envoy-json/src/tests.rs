use envoy_types::pb::envoy::config::route::v3::rate_limit::action::ActionSpecifier;
use serde_json::json;

use super::*;

/// As in Istio's task "Enabling Rate Limits using Envoy": both forms of names, both forms of enums.
#[test]
fn the_local_filter_that_users_write_is_understood() {
    let value = json!({
        "stat_prefix": "http_local_rate_limiter",
        "token_bucket": {"max_tokens": 4, "tokensPerFill": 4, "fill_interval": "60s"},
        "filter_enabled": {
            "runtime_key": "local_rate_limit_enabled",
            "default_value": {"numerator": 100, "denominator": "HUNDRED"}
        },
        "filter_enforced": {"default_value": {"numerator": 5000, "denominator": 1}},
        "response_headers_to_add": [
            {"append": false, "header": {"key": "x-local-rate-limit", "value": "true"}}
        ],
        "status": {"code": "TooManyRequests"},
        "descriptors": [{
            "entries": [{"key": "client", "value": "one"}],
            "token_bucket": {"max_tokens": 1, "fill_interval": "0.5s"}
        }],
        "rate_limits": [{"actions": [
            {"request_headers": {"header_name": "x-client", "descriptor_key": "client"}}
        ]}],
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03"
    });
    let message = local_rate_limit(&value).unwrap();
    let bucket = message.token_bucket.unwrap();
    assert_eq!(bucket.tokens_per_fill.unwrap().value, 4);
    assert_eq!(bucket.fill_interval.unwrap().seconds, 60);
    let enforced = message.filter_enforced.unwrap().default_value.unwrap();
    assert_eq!((enforced.numerator, enforced.denominator), (5000, 1));
    assert_eq!(message.status.unwrap().code, 429);
    let inner = message.descriptors[0].token_bucket.unwrap();
    assert_eq!(inner.fill_interval.unwrap().nanos, 500_000_000);
    assert_eq!(message.enable_x_ratelimit_headers, 1);
    assert!(matches!(
        message.rate_limits[0].actions[0].action_specifier,
        Some(ActionSpecifier::RequestHeaders(_))
    ));
}

#[test]
fn what_is_not_understood_is_an_error_with_its_place() {
    let check = |value: Value, expected: &str| {
        assert_eq!(
            local_rate_limit(&value).unwrap_err().to_string(),
            expected,
            "{value}"
        );
    };
    check(
        json!({"token_bucket": {"max_tokens": 1}}),
        "token_bucket: fill_interval is missing",
    );
    check(
        json!({"token_bucket": {"max_tokens": 1, "fill_interval": "1h"}}),
        "token_bucket.fill_interval: `1h` is no duration such as 60s or 0.1s",
    );
    check(
        json!({"filter_enabled": {"default_value": {"numerator": 1, "denominator": "DOZEN"}}}),
        "filter_enabled: `DOZEN` is not known",
    );
    check(
        json!({"rate_limits": [{"actions": [{}]}]}),
        "rate_limits[0].actions[0]: nothing that is known is set",
    );
    let unknown = local_rate_limit(&json!({"token_buckets": {}})).unwrap_err();
    assert!(unknown.reason.contains("unknown field"), "{unknown}");
}

#[test]
fn the_global_filter_needs_a_service() {
    let value = json!({
        "domain": "ratelimit", "failure_mode_deny": true, "timeout": "0.5s",
        "rate_limit_service": {
            "grpc_service": {
                "envoy_grpc": {"cluster_name": "outbound|8081||ratelimit.default.svc.cluster.local"}
            },
            "transport_api_version": "V3"
        }
    });
    let message = global_rate_limit(&value).unwrap();
    assert_eq!(message.domain, "ratelimit");
    assert_eq!(message.timeout.unwrap().nanos, 500_000_000);
    assert!(message.rate_limit_service.is_some());
    assert!(global_rate_limit(&json!({"domain": "x"})).is_err());
}

#[test]
fn structs_become_json() {
    let number = |number| envoy_types::pb::google::protobuf::Value {
        kind: Some(Kind::NumberValue(number)),
    };
    let fields = Struct {
        fields: [
            ("whole".to_owned(), number(4.0)),
            ("half".to_owned(), number(0.5)),
        ]
        .into(),
    };
    assert_eq!(from_struct(&fields), json!({"whole": 4, "half": 0.5}));
}
