//! Any of Envoy's configuration messages as JSON, by their descriptors (`cargo xtask codegen` takes them out of the protos that
//! `envoy-types` is made of). For people and programs that read a configuration; nothing is decided by it.

use std::sync::LazyLock;

use base64::{Engine, engine::general_purpose::STANDARD};
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::{Map, Value, json};

/// Of the messages that a waypoint is configured by.
const DESCRIPTORS: &[u8] = include_bytes!("gen/envoy.bin");
const PREFIX: &str = "type.googleapis.com/";

/// Made when it is first asked for: it takes some megabytes, which a proxy that nobody looks at has no use for.
static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    // Made by our own build, and looked at by a test.
    DescriptorPool::decode(DESCRIPTORS).unwrap_or_default()
});

/// The message with its type under `@type`, as protobuf has it for `Any`. One that is not known, or that has such in it, is
/// shown by its bytes.
pub fn describe(type_url: &str, message: &[u8]) -> Value {
    let described = known(type_url, message);
    let mut fields = described.unwrap_or_else(|| {
        let mut fields = Map::new();
        fields.insert("value".to_owned(), json!(STANDARD.encode(message)));
        fields
    });
    fields.insert("@type".to_owned(), json!(type_url));
    Value::Object(fields)
}

fn known(type_url: &str, message: &[u8]) -> Option<Map<String, Value>> {
    let descriptor = POOL.get_message_by_name(type_url.strip_prefix(PREFIX)?)?;
    let message = DynamicMessage::decode(descriptor, message).ok()?;
    let options = SerializeOptions::new()
        .skip_default_fields(true)
        .use_proto_field_name(true)
        .stringify_64_bit_integers(true);
    let described = message.serialize_with_options(serde_json::value::Serializer, &options);
    match described.ok()? {
        Value::Object(fields) => Some(fields),
        // Messages that are written as something else are never the whole of a configuration.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::{
        envoy::{
            config::{
                listener::v3::{Filter, FilterChain, Listener, filter::ConfigType},
                route::v3::{RouteConfiguration, VirtualHost},
            },
            extensions::{
                clusters::dynamic_forward_proxy::v3::ClusterConfig,
                filters::{
                    http::dynamic_forward_proxy,
                    network::{
                        http_connection_manager::v3::{
                            HttpConnectionManager, http_connection_manager::RouteSpecifier,
                        },
                        sni_dynamic_forward_proxy,
                    },
                },
            },
        },
        google::protobuf::Any,
    };
    use prost::{Message, Name};

    use super::*;

    fn listener(config: Any) -> Listener {
        Listener {
            name: "main_internal".to_owned(),
            filter_chains: vec![FilterChain {
                name: "chain".to_owned(),
                filters: vec![Filter {
                    name: "manager".to_owned(),
                    config_type: Some(ConfigType::TypedConfig(config)),
                }],
                ..FilterChain::default()
            }],
            ..Listener::default()
        }
    }

    #[test]
    fn a_listener_is_shown_with_what_is_packed_in_it() {
        let manager = HttpConnectionManager {
            stat_prefix: "s".to_owned(),
            route_specifier: Some(RouteSpecifier::RouteConfig(RouteConfiguration {
                virtual_hosts: vec![VirtualHost {
                    domains: vec!["*".to_owned()],
                    ..VirtualHost::default()
                }],
                ..RouteConfiguration::default()
            })),
            ..HttpConnectionManager::default()
        };
        let listener = listener(Any {
            type_url: HttpConnectionManager::type_url(),
            value: manager.encode_to_vec(),
        });
        let shown = describe(&Listener::type_url(), &listener.encode_to_vec());
        let expected = json!({
            "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
            "name": "main_internal",
            "filter_chains": [{
                "name": "chain",
                "filters": [{
                    "name": "manager",
                    "typed_config": {
                        "@type": HttpConnectionManager::type_url(),
                        "stat_prefix": "s",
                        "route_config": { "virtual_hosts": [{ "domains": ["*"] }] },
                    },
                }],
            }],
        });
        assert_eq!(shown, expected);
    }

    /// One that is not would hide the whole listener or cluster that it is packed in.
    #[test]
    fn what_hosts_that_requests_name_are_configured_by_is_known() {
        for type_url in [
            dynamic_forward_proxy::v3::FilterConfig::type_url(),
            sni_dynamic_forward_proxy::v3::FilterConfig::type_url(),
            ClusterConfig::type_url(),
        ] {
            assert_eq!(describe(&type_url, &[]), json!({ "@type": type_url }));
        }
    }

    #[test]
    fn what_is_not_known_is_shown_by_its_bytes() {
        let strange = Any {
            type_url: "type.googleapis.com/strange.Filter".to_owned(),
            value: vec![1, 2, 3],
        };
        let listener = listener(strange).encode_to_vec();
        for (type_url, message) in [
            ("type.googleapis.com/strange.Filter", &[1, 2, 3][..]),
            (&Listener::type_url(), &listener),
            (&Listener::type_url(), &[0xff]),
        ] {
            let shown = describe(type_url, message);
            let expected = json!({ "@type": type_url, "value": STANDARD.encode(message) });
            assert_eq!(shown, expected);
        }
    }
}
