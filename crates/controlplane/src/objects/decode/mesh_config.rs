//! The ConfigMap `istio`: YAML within YAML. Fields that are not acted on do not reject it, or nobody could use the
//! ConfigMap that Istio's installation makes; they are kept for a warning.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::Value;

use super::strict;
use crate::objects::{
    document::Node,
    field::Field,
    mesh_config::{MESH_CONFIG_KEY, MeshConfig, MeshConfigMap},
    validate::{self, Invalid},
};

/// Networks of a mesh that has one only, as Istio's installation writes them.
const NO_NETWORKS: (&str, &str) = ("meshNetworks", "networks: {}");

pub(super) fn decode(value: Value) -> Result<Arc<MeshConfigMap>, Vec<Invalid>> {
    let map: Arc<ConfigMap> = strict(value, |_: &ConfigMap, _| {})?;
    let data = map.data.iter().flatten();
    let mut unknown: Vec<String> = data
        .filter(|(key, text)| *key != MESH_CONFIG_KEY && (key.as_str(), text.trim()) != NO_NETWORKS)
        .map(|(key, _)| format!("key {key}"))
        .collect();
    let text = map.data.as_ref().and_then(|data| data.get(MESH_CONFIG_KEY));
    let mesh = read(text.map_or("", String::as_str), &mut unknown).map_err(|one| vec![one])?;
    let object = MeshConfigMap {
        metadata: map.metadata.clone(),
        mesh,
        unknown,
    };
    let mut found = Vec::new();
    validate::mesh_config(&object, &mut found);
    if found.is_empty() {
        Ok(Arc::new(object))
    } else {
        Err(found)
    }
}

fn read(text: &str, unknown: &mut Vec<String>) -> Result<MeshConfig, Invalid> {
    let invalid = |path: &Field, reason: String| {
        let place = if path.segments().is_empty() {
            String::new()
        } else {
            format!("{path}: ")
        };
        Invalid {
            field: Field::of("data.mesh"),
            reason: format!("{place}{reason}"),
        }
    };
    let none = Field::default();
    let node = Node::parse(text).map_err(|error| {
        let line = error.line.map(|line| format!(" (line {line} of it)"));
        invalid(&none, error.reason + &line.unwrap_or_default())
    })?;
    if node.is_null() {
        return Ok(MeshConfig::default());
    }
    super::typed(node.to_value(), &mut |path| unknown.push(path.to_string()))
        .map_err(|error| invalid(&error.field, error.reason))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn decode_text(mesh: &str) -> Result<Arc<MeshConfigMap>, Vec<String>> {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "istio", "namespace": "istio-system"},
            "data": {"mesh": mesh, "meshNetworks": "networks: {}"},
        });
        decode(map).map_err(|invalid| {
            let invalid = invalid.into_iter();
            invalid
                .map(|one| format!("{}: {}", one.field, one.reason))
                .collect()
        })
    }

    #[test]
    fn what_istio_installs_is_read_and_the_rest_is_named() {
        let map = decode_text(
            "accessLogFile: /dev/stdout
defaultConfig:
  discoveryAddress: istiod.istio-system.svc:15012
  tracing: {sampling: 12.5}
defaultProviders: {metrics: [prometheus]}
enablePrometheusMerge: true
extensionProviders:
- name: authorizer
  envoyExtAuthzGrpc: {service: authz.foo.svc.cluster.local, port: 9000, timeout: 2s}
- name: mirror
  skywalking: {service: s, port: 1}
pathNormalization: {normalization: MERGE_SLASHES}
trustDomainAliases: [old.example]
",
        )
        .unwrap();
        let mesh = &map.mesh;
        assert_eq!(mesh.access_log_file, "/dev/stdout");
        assert_eq!(
            mesh.default_config.tracing.as_ref().unwrap().sampling,
            Some(12.5)
        );
        assert_eq!(mesh.default_providers.metrics, ["prometheus"]);
        assert_eq!(mesh.trust_domain_aliases, ["old.example"]);
        let grpc = mesh
            .provider("authorizer")
            .unwrap()
            .envoy_ext_authz_grpc
            .as_ref();
        assert_eq!(grpc.map(|grpc| grpc.port), Some(9000));
        assert_eq!(
            map.unknown,
            [
                "defaultConfig.discoveryAddress",
                "enablePrometheusMerge",
                "extensionProviders[1].skywalking"
            ]
        );
        assert!(decode_text("").unwrap().unknown.is_empty());
    }

    #[test]
    fn mistakes_are_named() {
        let check = |mesh: &str, reason: &str| {
            let errors = decode_text(mesh).unwrap_err();
            assert!(
                errors.iter().any(|error| error.contains(reason)),
                "{errors:?}"
            );
        };
        check("a: [", "data.mesh:");
        check("accessLogEncoding: XML", "none of TEXT, JSON");
        check("accessLogFile: [1]", "data.mesh: accessLogFile: ");
        let provider = |rest: &str| format!("extensionProviders: [{{name: a, {rest}}}]");
        check(
            &provider("envoyExtAuthzHttp: {service: s, port: 0}"),
            "data.mesh.extensionProviders[0].envoyExtAuthzHttp.port: 0 is not a port",
        );
        check(
            &provider("envoyExtAuthzGrpc: {service: s, port: 1, statusOnError: \"99\"}"),
            "`99` is not an HTTP status",
        );
        check(
            "extensionProviders: [{name: a, prometheus: {}}, {name: a, prometheus: {}}]",
            "the name of another provider",
        );
        check(
            "trustDomainAliases: [good.example, 'no/domain']",
            "data.mesh.trustDomainAliases[1]: `no/domain` is no trust domain",
        );
        check(
            "pathNormalization: {normalization: ALL}",
            "`ALL` is none of",
        );
    }
}
