use serde_json::{Value, json};

use super::*;

fn config(value: &Value) -> Config {
    Config::compile(&leyline_envoy_json::local_rate_limit(value).unwrap()).unwrap()
}

fn bucket(max: u32) -> Value {
    json!({"max_tokens": max, "tokens_per_fill": max, "fill_interval": "3600s"})
}

fn client(name: &str) -> Descriptor {
    Descriptor {
        entries: vec![("client".to_owned(), name.to_owned())],
        rate: None,
    }
}

/// How many of so many requests pass.
fn passed(config: &Config, descriptors: &[Descriptor], of: usize) -> usize {
    let allowed = |_: &usize| {
        config
            .take(descriptors)
            .is_none_or(|taken| taken.is_allowed)
    };
    (0..of).filter(allowed).count()
}

#[test]
fn a_descriptor_has_its_own_bucket_and_the_rest_share_the_default() {
    let limit = config(&json!({
        "token_bucket": bucket(3), "always_consume_default_token_bucket": false,
        "descriptors": [
            {"entries": [{"key": "client", "value": "gold"}], "token_bucket": bucket(7)}
        ]
    }));
    assert_eq!(passed(&limit, &[client("gold")], 20), 7);
    assert_eq!(passed(&limit, &[client("other")], 20), 3);
    assert_eq!(passed(&limit, &[], 20), 0);
}

#[test]
fn the_default_counts_for_all_unless_told_otherwise() {
    let limit = config(&json!({
        "token_bucket": bucket(5),
        "descriptors": [
            {"entries": [{"key": "client", "value": "gold"}], "token_bucket": bucket(100)}
        ]
    }));
    assert_eq!(passed(&limit, &[client("gold")], 20), 5);
}

#[test]
fn an_entry_without_a_value_gives_each_value_a_bucket() {
    let limit = config(&json!({
        "token_bucket": bucket(1000), "max_dynamic_descriptors": 100,
        "descriptors": [{"entries": [{"key": "client"}], "token_bucket": bucket(2)}]
    }));
    for name in ["a", "b", "c"] {
        assert_eq!(passed(&limit, &[client(name)], 10), 2, "{name}");
    }
}

#[test]
fn a_bucket_in_shadow_refuses_nobody() {
    let limit = config(&json!({
        "token_bucket": bucket(100),
        "descriptors": [{
            "entries": [{"key": "client", "value": "a"}], "token_bucket": bucket(1),
            "shadow_mode": true
        }]
    }));
    assert_eq!(passed(&limit, &[client("a")], 10), 10);
}

#[test]
fn without_a_fraction_the_filter_is_off() {
    let limit = config(&json!({"token_bucket": bucket(0)}));
    assert!((0..100).all(|number| !limit.enabled.takes(number)));
}

#[test]
fn a_rate_limit_of_ours_keeps_its_buckets_over_changes_of_others() {
    let value = |prefix: &str| json!({"stat_prefix": prefix, "token_bucket": bucket(4)});
    let first = config(&value("leyline.io/shop/a/0"));
    assert_eq!(passed(&first, &[], 3), 3);
    let again = config(&value("leyline.io/shop/a/0"));
    assert_eq!(passed(&again, &[], 3), 1);
    let other = config(&value("leyline.io/shop/b/0"));
    assert_eq!(passed(&other, &[], 3), 3);
    // Of an EnvoyFilter, each port counts alone, as with Envoy.
    let theirs = config(&value("http_local_rate_limiter"));
    assert_eq!(passed(&theirs, &[], 9), 4);
    let theirs = config(&value("http_local_rate_limiter"));
    assert_eq!(passed(&theirs, &[], 9), 4);
}

#[test]
fn a_refusal_says_when_to_come_back() {
    let limit = config(&json!({
        "token_bucket": {"max_tokens": 1, "fill_interval": "60s"},
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
        "response_headers_to_add": [
            {"append": false, "header": {"key": "x-local-rate-limit", "value": "true"}}
        ]
    }));
    limit.take(&[]).unwrap();
    let reply = limit.refuse(&limit.take(&[]).unwrap());
    assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS);
    let value = |name: &str| {
        let mut headers = reply.headers.iter();
        headers
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.to_str().unwrap().to_owned())
    };
    assert_eq!(value("retry-after").as_deref(), Some("60"));
    assert_eq!(value("x-ratelimit-limit").as_deref(), Some("1"));
    assert_eq!(value("x-ratelimit-remaining").as_deref(), Some("0"));
    assert_eq!(value("x-local-rate-limit").as_deref(), Some("true"));
}

#[test]
fn limits_by_connection_are_refused() {
    let proto = LocalRateLimit {
        local_rate_limit_per_downstream_connection: true,
        ..LocalRateLimit::default()
    };
    assert!(Config::compile(&proto).is_err());
}
