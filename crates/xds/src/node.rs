//! How a proxy introduces itself to the control plane. Built by the binaries from their configuration.

use leyline_proto::envoy::config::core::v3::Node;
use prost_types::{ListValue, Struct, Value, value::Kind};
use serde_json::Value as Json;

/// What the first request of a stream says of this process.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// Identifier in Istio's form, see [`node_id`].
    pub id: String,
    /// Cluster name; Istio's control plane does not read it for ztunnel.
    pub cluster: String,
    /// Version of this build, for the control plane's status pages.
    pub version: String,
    /// `NAME`, `NAMESPACE`, `NODE_NAME`, `INSTANCE_IPS` and what the operator added.
    pub metadata: serde_json::Map<String, Json>,
}

/// Istio's node id: `role~ip~pod.namespace~namespace.svc.cluster.local`.
pub fn node_id(role: &str, ip: &str, pod: &str, namespace: &str) -> String {
    format!("{role}~{ip}~{pod}.{namespace}~{namespace}.svc.cluster.local")
}

impl From<NodeInfo> for Node {
    fn from(info: NodeInfo) -> Self {
        Self {
            id: info.id,
            cluster: info.cluster,
            metadata: Some(to_struct(info.metadata)),
            user_agent_name: "leyline".to_owned(),
            user_agent_version: info.version,
        }
    }
}

fn to_struct(map: serde_json::Map<String, Json>) -> Struct {
    let fields = map
        .into_iter()
        .map(|(key, value)| (key, to_value(value)))
        .collect();
    Struct { fields }
}

/// The recursion is as deep as the operator's own JSON, which `serde_json` limits to 128 levels.
fn to_value(json: Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(flag) => Kind::BoolValue(flag),
        // A number beyond the range of f64 cannot be told in a protobuf Struct.
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(values) => Kind::ListValue(ListValue {
            values: values.into_iter().map(to_value).collect(),
        }),
        Json::Object(map) => Kind::StructValue(to_struct(map)),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_becomes_a_struct() {
        let Json::Object(metadata) = serde_json::json!({
            "NAME": "ztunnel-a",
            "PROXY_CONFIG": {"concurrency": 2, "tags": ["x", true, null]},
        }) else {
            panic!("not an object")
        };
        let node = Node::from(NodeInfo {
            id: node_id("ztunnel", "10.0.0.1", "ztunnel-a", "istio-system"),
            metadata,
            ..NodeInfo::default()
        });
        assert_eq!(
            node.id,
            "ztunnel~10.0.0.1~ztunnel-a.istio-system~istio-system.svc.cluster.local"
        );
        let fields = node.metadata.unwrap().fields;
        assert_eq!(
            fields.get("NAME").and_then(|value| value.kind.clone()),
            Some(Kind::StringValue("ztunnel-a".to_owned()))
        );
        let Some(Some(Kind::StructValue(config))) = fields.get("PROXY_CONFIG").map(|v| &v.kind)
        else {
            panic!("not a struct")
        };
        assert_eq!(
            config
                .fields
                .get("concurrency")
                .and_then(|v| v.kind.clone()),
            Some(Kind::NumberValue(2.0))
        );
    }
}
