//! Configurations for tests.

use envoy_types::pb::{
    envoy::{
        config::listener::v3::{FilterChain, Listener},
        extensions::matching::common_inputs::network::v3::DestinationIpInput,
    },
    google::protobuf::Any,
    xds::{
        core::v3::TypedExtensionConfig,
        r#type::matcher::v3::{
            Matcher,
            matcher::{MatcherTree, MatcherType, matcher_tree::TreeType},
        },
    },
};
use leyline_proto::{IP_MATCHER_TYPE, LISTENER_TYPE};
use leyline_xds::session::{Resource, Update};
use prost::{Message, Name};

/// `main_internal` with chains of these names, which nobody is led to.
pub(crate) fn with_chains(names: &[&str]) -> Update {
    let chains = names.iter().map(|name| FilterChain {
        name: (*name).to_owned(),
        ..FilterChain::default()
    });
    let empty = |name: &str, type_url: &str| TypedExtensionConfig {
        name: name.to_owned(),
        typed_config: Some(Any {
            type_url: type_url.to_owned(),
            value: Vec::new(),
        }),
    };
    let tree = MatcherTree {
        input: Some(empty("ip", &DestinationIpInput::type_url())),
        tree_type: Some(TreeType::CustomMatch(empty("ip", IP_MATCHER_TYPE))),
    };
    let listener = Listener {
        name: "main_internal".to_owned(),
        filter_chains: chains.collect(),
        filter_chain_matcher: Some(Matcher {
            matcher_type: Some(MatcherType::MatcherTree(tree)),
            ..Matcher::default()
        }),
        ..Listener::default()
    };
    Update {
        type_url: LISTENER_TYPE,
        resources: vec![Resource {
            name: listener.name.clone(),
            version: String::new(),
            body: listener.encode_to_vec(),
        }],
        removed: Vec::new(),
        aliases: Vec::new(),
    }
}
