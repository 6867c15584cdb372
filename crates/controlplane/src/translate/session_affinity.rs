//! `sessionAffinity: ClientIP` of a Service, for node proxies that keep it. Istio's wire has no field for it: ours is an
//! extension, which others ignore.

use k8s_openapi::api::core::v1::ServiceSpec;
use leyline_proto::istio::workload::Extension;
use leyline_types::{NamespacedName, SESSION_AFFINITY};
use prost::Message;

use super::Advice;
use crate::objects::{Kind, ObjectKey};

/// Kubernetes' default of `sessionAffinityConfig.clientIP.timeoutSeconds`: three hours.
const DEFAULT_SECONDS: i64 = 10_800;
/// Its limit: a day.
const MAX_SECONDS: i64 = 86_400;

/// The extensions of a service.
pub(super) fn extensions(
    name: &NamespacedName,
    spec: &ServiceSpec,
    advice: &mut Vec<Advice>,
) -> Vec<Extension> {
    let mut advise = |field: &str, reason: String| {
        let (namespace, name) = (name.namespace.as_str(), name.name.as_str());
        advice.push(Advice {
            object: ObjectKey::new(Kind::Service, Some(namespace), name),
            field: field.to_owned(),
            reason,
        });
    };
    match spec.session_affinity.as_deref() {
        Some("ClientIP") => {}
        None | Some("None" | "") => return Vec::new(),
        Some(other) => {
            let reason = format!("`{other}` is neither ClientIP nor None; there is no affinity");
            advise("spec.sessionAffinity", reason);
            return Vec::new();
        }
    }
    let client = spec.session_affinity_config.as_ref();
    let configured = client.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    let wanted = configured.map_or(DEFAULT_SECONDS, i64::from);
    let seconds = wanted.clamp(1, MAX_SECONDS);
    if seconds != wanted {
        advise(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            format!("{wanted} is not between 1 and {MAX_SECONDS}; {seconds} is used"),
        );
    }
    let timeout = prost_types::Duration { seconds, nanos: 0 };
    vec![Extension {
        name: SESSION_AFFINITY.to_owned(),
        config: Some(prost_types::Any {
            type_url: "type.googleapis.com/google.protobuf.Duration".to_owned(),
            value: timeout.encode_to_vec(),
        }),
    }]
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ClientIPConfig, SessionAffinityConfig};

    use super::*;

    // tidy: table
    #[test]
    fn clients_stay_for_as_long_as_the_service_says() {
        let check =
            |affinity: Option<&str>, seconds: Option<i32>, expected: Option<i64>, advised| {
                let spec = ServiceSpec {
                    session_affinity: affinity.map(str::to_owned),
                    session_affinity_config: seconds.map(|seconds| SessionAffinityConfig {
                        client_ip: Some(ClientIPConfig {
                            timeout_seconds: Some(seconds),
                        }),
                    }),
                    ..ServiceSpec::default()
                };
                let mut advice = Vec::new();
                let name = "shop/server".parse().unwrap();
                let extensions = extensions(&name, &spec, &mut advice);
                let timeout = extensions.first().map(|extension| {
                    assert_eq!(extension.name, "leyline.io/session-affinity");
                    let value = &extension.config.as_ref().unwrap().value;
                    prost_types::Duration::decode(&value[..]).unwrap().seconds
                });
                assert_eq!(timeout, expected, "{affinity:?} {seconds:?}");
                assert_eq!(advice.len(), advised, "{advice:?}");
            };
        check(None, None, None, 0);
        check(Some("None"), None, None, 0);
        check(Some("ClientIP"), None, Some(10_800), 0);
        check(Some("ClientIP"), Some(60), Some(60), 0);
        check(Some("ClientIP"), Some(86_400), Some(86_400), 0);
        check(Some("ClientIP"), Some(0), Some(1), 1);
        check(Some("ClientIP"), Some(90_000), Some(86_400), 1);
        check(Some("clientip"), None, None, 1);
    }
}
