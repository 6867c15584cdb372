use envoy_types::pb::{
    envoy::{
        config::core::v3::{BackoffStrategy, HttpUri, RetryPolicy},
        extensions::filters::http::jwt_authn::v3::JwksAsyncFetch,
    },
    google::protobuf::{Duration as ProtoDuration, UInt32Value},
};
use tokio::time::advance;

use super::*;

const KEYS: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"ed",
"x":"WlLjN-INW53MwyMZwM_OsAxw5a7Q7jLSXI7Z1qH9v5A"}]}"#;

fn seconds(seconds: i64) -> Option<ProtoDuration> {
    Some(ProtoDuration { seconds, nanos: 0 })
}

fn proto() -> RemoteJwks {
    RemoteJwks {
        http_uri: Some(HttpUri {
            uri: "https://issuer.example:8443/keys?v=1".to_owned(),
            timeout: seconds(2),
            http_upstream_type: Some(HttpUpstreamType::Cluster("issuer".to_owned())),
        }),
        cache_duration: seconds(100),
        ..RemoteJwks::default()
    }
}

fn source(change: impl Fn(&mut RemoteJwks)) -> RemoteSource {
    let mut proto = proto();
    change(&mut proto);
    RemoteSource::compile(&proto).unwrap()
}

#[test]
fn a_source_is_where_the_uri_says() {
    let plain = source(|_| {});
    assert_eq!(plain.target.cluster, "issuer");
    assert_eq!(plain.target.authority, "issuer.example:8443");
    assert_eq!(plain.path, "/keys?v=1");
    assert_eq!(plain.retry.retries, 0);
    assert!(!plain.keeps);
    let tried = source(|proto| {
        proto.async_fetch = Some(JwksAsyncFetch::default());
        proto.retry_policy = Some(RetryPolicy {
            num_retries: Some(UInt32Value { value: 3 }),
            retry_back_off: Some(BackoffStrategy {
                base_interval: seconds(1),
                max_interval: None,
            }),
            ..RetryPolicy::default()
        });
    });
    let second = Duration::from_secs(1);
    let retry = Retry {
        retries: 3,
        base: second,
        max: 10 * second,
    };
    assert_eq!(tried.retry, retry);
    assert!(tried.keeps);
    let bad = |change: &dyn Fn(&mut HttpUri)| {
        let mut proto = proto();
        change(proto.http_uri.as_mut().unwrap());
        RemoteSource::compile(&proto).unwrap_err().to_string()
    };
    assert!(bad(&|http| http.uri = "/keys".to_owned()).contains("http_uri"));
    assert!(bad(&|http| http.http_upstream_type = None).contains("cluster"));
}

#[tokio::test(start_paused = true)]
async fn keys_are_fetched_before_they_expire_and_are_of_no_use_after() {
    let fetch = JwksAsyncFetch::default();
    for (keeps, after) in [(None, false), (Some(fetch), true)] {
        let store = KeyStore::default();
        let keys = store.of(&source(|proto| proto.async_fetch = keeps));
        let due = |seconds| {
            let due = keys.due(Instant::now()).unwrap();
            due.saturating_duration_since(Instant::now()) == Duration::from_secs(seconds)
        };
        assert!(keys.current().is_none() && due(0));
        keys.begin();
        assert!(keys.due(Instant::now()).is_none());
        keys.end(FetchedKeys::parse(KEYS.as_bytes()));
        assert!(keys.current().is_some() && due(80));
        advance(Duration::from_secs(80)).await;
        // The issuer is away: it is asked at growing intervals.
        for pause in [1, 2, 4, 8, 16, 30, 30] {
            keys.begin();
            keys.end(None);
            assert!(due(pause), "{pause}");
        }
        assert!(keys.current().is_some());
        advance(Duration::from_secs(21)).await;
        assert_eq!(keys.current().is_some(), after);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_key_has_the_issuer_asked_now_and_then() {
    let store = Arc::new(KeyStore::default());
    let source = source(|_| {});
    let renew = async || store.renew(std::iter::once(&source)).await;
    let answer = async || {
        store.asked.notified().await;
        let keys = store.of(&source);
        assert_eq!(keys.due(Instant::now()), Some(Instant::now()));
        keys.begin();
        keys.end(FetchedKeys::parse(KEYS.as_bytes()));
    };
    let (asked, ()) = tokio::join!(renew(), answer());
    assert!(asked);
    assert!(!renew().await, "too soon");
    advance(UNKNOWN_KEY).await;
    let (asked, ()) = tokio::join!(renew(), answer());
    assert!(asked);

    // Nobody answers.
    advance(UNKNOWN_KEY).await;
    let before = Instant::now();
    assert!(renew().await);
    assert_eq!(before.elapsed(), MAX_WAIT);
}

#[test]
fn sources_that_nobody_names_are_forgotten_and_others_are_kept() {
    let store = KeyStore::default();
    let one = source(|_| {});
    let other = source(|proto| proto.cache_duration = seconds(7));
    let first = store.of(&one);
    first.end(FetchedKeys::parse(KEYS.as_bytes()));
    assert_eq!(store.follow([&one, &other, &one].into_iter()).len(), 2);
    assert!(Arc::ptr_eq(&store.of(&one), &first));
    assert!(store.follow(std::iter::empty()).is_empty());
    assert!(store.of(&one).current().is_none());
}

#[test]
fn a_set_without_keys_is_no_answer() {
    for text in [
        "",
        "<html>",
        "{\"keys\":[]}",
        "{\"keys\":[{\"kty\":\"oct\",\"k\":\"YQ\"}]}",
    ] {
        assert!(FetchedKeys::parse(text.as_bytes()).is_none(), "{text}");
    }
}
