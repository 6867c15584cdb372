//! What Istio's `ProxyConfig` says to ztunnel: the `defaultConfig` of the mesh configuration's file, and the variable
//! `PROXY_CONFIG` over it (facts A2).

use std::{collections::BTreeMap, fs, io};

use leyline_runtime::env::Reader;
use serde::Deserialize;

/// Where the mesh's configuration is mounted.
const MESH_CONFIG: &str = "./etc/istio/config/mesh";
/// Variables that describe this proxy to the control plane.
const META: &str = "ISTIO_META_";

/// The fields that ztunnel uses; the others are for other proxies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct MeshDefaults {
    pub(super) discovery_address: Option<String>,
    pub(super) proxy_admin_port: Option<u16>,
    pub(super) stats_port: Option<u16>,
    pub(super) concurrency: Option<u32>,
    pub(super) proxy_metadata: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MeshConfig {
    default_config: MeshDefaults,
}

impl MeshDefaults {
    /// Reads file and variable. From here on, `proxyMetadata` is found by `env` where the environment says nothing.
    pub(super) fn read(env: &mut Reader<'_>) -> Self {
        let file = match fs::read_to_string(MESH_CONFIG) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                env.reject(MESH_CONFIG, "", format!("cannot read the file: {error}"));
                String::new()
            }
        };
        let variable = env.string("PROXY_CONFIG", "");
        let merged = Self::merge(env, &file, &variable);
        for (name, value) in &merged.proxy_metadata {
            let name = name.strip_prefix(META).unwrap_or(name);
            env.fall_back(format!("{META}{name}"), value.clone());
        }
        merged
    }

    fn merge(env: &mut Reader<'_>, file: &str, variable: &str) -> Self {
        let mut base = from_yaml::<MeshConfig>(file)
            .unwrap_or_else(|why| {
                env.reject(MESH_CONFIG, "", why);
                MeshConfig::default()
            })
            .default_config;
        let over = from_yaml::<Self>(variable).unwrap_or_else(|why| {
            env.reject("PROXY_CONFIG", variable, why);
            Self::default()
        });
        base.proxy_metadata.extend(over.proxy_metadata);
        Self {
            discovery_address: over.discovery_address.or(base.discovery_address),
            proxy_admin_port: over.proxy_admin_port.or(base.proxy_admin_port),
            stats_port: over.stats_port.or(base.stats_port),
            concurrency: over.concurrency.or(base.concurrency),
            proxy_metadata: base.proxy_metadata,
        }
    }
}

/// Text without content is a document without settings.
fn from_yaml<T: Default + for<'de> Deserialize<'de>>(text: &str) -> Result<T, String> {
    if text.trim().is_empty() {
        return Ok(T::default());
    }
    serde_saphyr::from_str(text).map_err(|error| {
        // After the first line comes a picture of the place.
        let shown = error.to_string();
        let reason = shown.lines().next().unwrap_or_default();
        format!("not a valid ProxyConfig: {reason}")
    })
}

/// Node metadata for xDS: `ISTIO_META_NAME=text` and `ISTIO_METAJSON_NAME=json`, under their bare names.
pub(super) fn node_metadata(env: &mut Reader<'_>) -> serde_json::Map<String, serde_json::Value> {
    let mut metadata = serde_json::Map::new();
    for (name, value) in env.with_prefix(META) {
        metadata.insert(name, value.into());
    }
    for (name, value) in env.with_prefix("ISTIO_METAJSON_") {
        match serde_json::from_str(&value) {
            Ok(json) => {
                metadata.insert(name, json);
            }
            Err(error) => env.reject(
                &format!("ISTIO_METAJSON_{name}"),
                value,
                format!("not valid JSON: {error}"),
            ),
        }
    }
    metadata
}

#[cfg(test)]
mod tests {
    use leyline_runtime::env::MapEnv;

    use super::*;

    const FILE: &str = "
rootNamespace: istio-system
defaultConfig:
  discoveryAddress: istiod-blue.istio-system.svc:15012
  concurrency: 4
  tracing: {zipkin: {address: z:9411}}
  proxyMetadata: {ISTIO_META_DNS_CAPTURE: true, SIZE: 3, A: x}
";

    #[test]
    fn the_variable_is_merged_over_the_file() {
        let env = MapEnv::default();
        let mut reader = Reader::new(&env);
        let variable = "{concurrency: 2, statsPort: 15022, proxyMetadata: {A: y}}";
        let merged = MeshDefaults::merge(&mut reader, FILE, variable);
        reader.finish().unwrap();
        let metadata = [
            ("A", "y"),
            ("ISTIO_META_DNS_CAPTURE", "true"),
            ("SIZE", "3"),
        ];
        let expected = MeshDefaults {
            discovery_address: Some("istiod-blue.istio-system.svc:15012".to_owned()),
            proxy_admin_port: None,
            stats_port: Some(15022),
            concurrency: Some(2),
            proxy_metadata: metadata
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        };
        assert_eq!(merged, expected);
    }

    #[test]
    fn what_is_no_proxy_config_is_told() {
        for (file, variable, named) in [
            ("defaultConfig: [1]", "", MESH_CONFIG),
            ("", "concurrency: many", "PROXY_CONFIG"),
            ("", "statsPort: 70000", "PROXY_CONFIG"),
        ] {
            let env = MapEnv::default();
            let mut reader = Reader::new(&env);
            MeshDefaults::merge(&mut reader, file, variable);
            let error = reader.finish().unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn metadata_comes_from_both_prefixes_and_from_the_proxy_config() {
        let env = MapEnv::from([
            ("PROXY_CONFIG", "proxyMetadata: {ISTIO_META_A: file, B: 1}"),
            ("ISTIO_META_A", "env"),
            ("ISTIO_METAJSON_LABELS", r#"{"app":"ztunnel"}"#),
        ]);
        let mut reader = Reader::new(&env);
        MeshDefaults::read(&mut reader);
        let metadata = node_metadata(&mut reader);
        reader.finish().unwrap();
        let expected = serde_json::json!({"A": "env", "B": "1", "LABELS": {"app": "ztunnel"}});
        assert_eq!(serde_json::Value::Object(metadata), expected);
        let env = MapEnv::from([("ISTIO_METAJSON_X", "{")]);
        let mut reader = Reader::new(&env);
        node_metadata(&mut reader);
        assert!(reader.finish().is_err());
    }
}
