//! What Istio's ProxyConfig says to a waypoint, as istiod renders it into the variable `PROXY_CONFIG`: how many threads it
//! has, how long it drains, and variables that count where the environment has none.

use leyline_runtime::env::Reader;
use serde_json::{Map, Value};

const VARIABLE: &str = "PROXY_CONFIG";

/// Worker threads, if it says so. What else is understood is found by `env` from here on; the rest is for other proxies.
pub(super) fn read(env: &mut Reader<'_>) -> Option<u32> {
    let text = env.string(VARIABLE, "");
    if text.trim().is_empty() {
        return None;
    }
    let Ok(config) = serde_json::from_str::<Map<String, Value>>(&text) else {
        env.reject(VARIABLE, text, "not a ProxyConfig in JSON");
        return None;
    };
    let metadata = config.get("proxyMetadata").and_then(Value::as_object);
    for (name, value) in metadata.into_iter().flatten() {
        if let Some(value) = value.as_str() {
            env.fall_back(name.clone(), value.to_owned());
        }
    }
    let drain = config.get("terminationDrainDuration");
    if let Some(drain) = drain.and_then(Value::as_str) {
        env.fall_back("TERMINATION_DRAIN_DURATION".to_owned(), drain.to_owned());
    }
    let concurrency = config.get("concurrency")?;
    let number = concurrency.as_u64();
    let number = number.and_then(|number| u32::try_from(number).ok());
    if number.is_none() {
        env.reject(VARIABLE, text.as_str(), "concurrency is no number");
    }
    number
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use leyline_runtime::env::MapEnv;

    use super::super::Settings;
    use super::*;

    const ACCOUNT: (&str, &str) = ("SERVICE_ACCOUNT", "waypoint");

    fn settings<const N: usize>(pairs: [(&str, &str); N]) -> Option<Settings> {
        let env = MapEnv::from(pairs);
        let mut reader = Reader::new(&env);
        let settings = Settings::read(&mut reader, "");
        reader.finish().ok().map(|()| settings)
    }

    #[test]
    fn what_istiod_renders_is_understood() {
        let config = r#"{"concurrency": 3, "terminationDrainDuration": "7s", "statusPort": 15020,
            "proxyMetadata": {"LEYLINE_RESOLV_CONF": "/a", "IDLE_TIMEOUT": "9s"}}"#;
        let idle = ("IDLE_TIMEOUT", "8s");
        let told = settings([("PROXY_CONFIG", config), ACCOUNT, idle]).unwrap();
        assert_eq!(told.worker_threads, 3);
        assert_eq!(told.drain_deadline, Duration::from_secs(7));
        assert_eq!(told.resolv_conf.to_str(), Some("/a"));
        // The environment itself counts before it.
        assert_eq!(told.proxy.idle, Some(Duration::from_secs(8)));
        assert!(settings([("PROXY_CONFIG", "{}\n"), ACCOUNT]).is_some());
    }

    #[test]
    fn what_cannot_be_read_stops_the_start() {
        for config in [
            "concurrency",
            r#"{"concurrency": "many"}"#,
            r#"{"concurrency": -1}"#,
        ] {
            assert!(
                settings([("PROXY_CONFIG", config), ACCOUNT]).is_none(),
                "{config}"
            );
        }
    }
}
