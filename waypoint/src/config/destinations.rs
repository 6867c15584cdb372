//! Where a tunnelled connection goes: the matcher tree of `main_internal` as look-up tables.
//!
//! The tree has a fixed shape (facts A.4.2): by the CONNECT's authority as a host name, else by address, then by port,
//! then by protocol. A part of another shape makes the destinations under it refused; it never matches something else.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use envoy_types::pb::{
    envoy::extensions::matching::common_inputs::network::v3::{
        ApplicationProtocolInput, DestinationIpInput, DestinationPortInput, FilterStateInput,
    },
    google::protobuf::StringValue,
    xds::{
        core::v3::TypedExtensionConfig,
        r#type::matcher::v3::{
            Matcher,
            matcher::{MatcherTree, MatcherType, OnMatch, matcher_tree::TreeType, on_match},
        },
    },
};
use ipnet::IpNet;
use leyline_proto::{IP_MATCHER_TYPE, xds::matcher::v3 as ip};
use leyline_types::{HboneAuthority, Str};
use prost::Name;

use super::{
    any::{decode, decode_bytes},
    error::{At, Compiled, Unsupported},
};

/// The key under which a CONNECT's authority is matched.
const AUTHORITY_KEY: &str = "io.istio.connect_authority";
/// Nested matchers; the tree of a waypoint is four deep.
const MAX_DEPTH: usize = 8;

/// Protocols that the HTTP inspector names, as they are written in the tree.
const HTTP_PROTOCOLS: [&str; 3] = ["'h2c'", "'http/1.1'", "'http/1.0'"];

/// How a connection to one destination is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leaf {
    /// By this chain.
    Chain(Str),
    /// By what the client speaks first.
    Sniff { http: Str, other: Option<Str> },
    /// Not at all, because of this.
    Refused(Arc<str>),
}

/// One service, or the workloads that are addressed directly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ports {
    by_port: HashMap<u16, Leaf>,
    any: Option<Leaf>,
}

/// The look-up tables.
#[derive(Debug, Default)]
pub(crate) struct Destinations {
    hosts: HashMap<String, Leaf>,
    addresses: HashMap<IpAddr, Arc<Ports>>,
    /// Longest prefix first.
    blocks: Vec<(IpNet, Arc<Ports>)>,
}

impl Destinations {
    /// How a connection is served; `None` when nothing is known of its destination.
    pub(crate) fn find(&self, authority: &HboneAuthority) -> Option<&Leaf> {
        match authority {
            HboneAuthority::Address(addr) => self.at_address(*addr),
            HboneAuthority::Host { .. } => self.hosts.get(&authority.to_string()),
        }
    }

    fn at_address(&self, addr: SocketAddr) -> Option<&Leaf> {
        let ip = addr.ip().to_canonical();
        let ports = self.addresses.get(&ip).or_else(|| {
            let block = self.blocks.iter().find(|(block, _)| block.contains(&ip))?;
            Some(&block.1)
        })?;
        ports.by_port.get(&addr.port()).or(ports.any.as_ref())
    }

    /// Destinations that are refused, as text with the reason.
    pub(crate) fn refused(&self) -> Vec<(String, String)> {
        let mut refused = Vec::new();
        let mut note = |what: String, leaf: &Leaf| {
            if let Leaf::Refused(reason) = leaf {
                refused.push((what, reason.to_string()));
            }
        };
        for (host, leaf) in &self.hosts {
            note(host.clone(), leaf);
        }
        let addresses = self
            .addresses
            .iter()
            .map(|(ip, ports)| (ip.to_string(), ports));
        let blocks = self
            .blocks
            .iter()
            .map(|(block, ports)| (block.to_string(), ports));
        for (what, ports) in addresses.chain(blocks) {
            for (port, leaf) in &ports.by_port {
                note(format!("{what} port {port}"), leaf);
            }
            if let Some(leaf) = &ports.any {
                note(what, leaf);
            }
        }
        refused.sort();
        refused
    }

    /// Compiles the tree.
    pub(crate) fn compile(matcher: &Matcher) -> Compiled<Self> {
        let mut destinations = Self::default();
        destinations.add(matcher, 0)?;
        destinations
            .blocks
            .sort_by_key(|(block, _)| std::cmp::Reverse(block.prefix_len()));
        Ok(destinations)
    }

    fn add(&mut self, matcher: &Matcher, depth: usize) -> Compiled<()> {
        if depth > MAX_DEPTH {
            return Err(Unsupported::new("matchers are nested too deep"));
        }
        let tree = tree(matcher)?;
        let input = tree
            .input
            .as_ref()
            .ok_or_else(|| Unsupported::missing("input"))?;
        match (input_type(input), &tree.tree_type) {
            (url, Some(TreeType::ExactMatchMap(map))) if url == FilterStateInput::type_url() => {
                require_authority(input)?;
                for (host, next) in &map.map {
                    self.hosts.insert(host.to_ascii_lowercase(), leaf(next));
                }
            }
            (url, Some(TreeType::CustomMatch(custom))) if url == DestinationIpInput::type_url() => {
                self.add_addresses(custom)?;
            }
            (url, _) => {
                return Err(Unsupported::new(format!(
                    "matcher by {url} is not known here"
                )));
            }
        }
        match matcher
            .on_no_match
            .as_deref()
            .and_then(|next| next.on_match.as_ref())
        {
            None => Ok(()),
            Some(on_match::OnMatch::Matcher(next)) => self.add(next, depth + 1).at("on_no_match"),
            Some(on_match::OnMatch::Action(_)) => {
                Err(Unsupported::new("a default chain for unknown destinations"))
            }
        }
    }

    fn add_addresses(&mut self, custom: &TypedExtensionConfig) -> Compiled<()> {
        let config = custom.typed_config.as_ref();
        let config = config.ok_or_else(|| Unsupported::missing("typed_config"))?;
        if config.type_url != IP_MATCHER_TYPE {
            return Err(Unsupported::new(format!("matcher {}", config.type_url)));
        }
        let matcher: ip::IpMatcher = decode_bytes(&config.value)?;
        for (index, range) in matcher.range_matchers.iter().enumerate() {
            let next: OnMatch = decode_bytes(&range.on_match).at_item("range_matchers", index)?;
            let ports = Arc::new(ports(&next));
            for cidr in &range.ranges {
                let block = block(cidr).at_item("range_matchers", index)?;
                if block.prefix_len() == block.max_prefix_len() {
                    self.addresses
                        .entry(block.addr())
                        .or_insert_with(|| ports.clone());
                } else {
                    self.blocks.push((block, ports.clone()));
                }
            }
        }
        Ok(())
    }
}

fn tree(matcher: &Matcher) -> Compiled<&MatcherTree> {
    match &matcher.matcher_type {
        Some(MatcherType::MatcherTree(tree)) => Ok(tree),
        Some(MatcherType::MatcherList(_)) => Err(Unsupported::new("matcher list")),
        None => Err(Unsupported::missing("matcher_tree")),
    }
}

fn input_type(input: &TypedExtensionConfig) -> &str {
    input
        .typed_config
        .as_ref()
        .map_or("", |any| any.type_url.as_str())
}

fn require_authority(input: &TypedExtensionConfig) -> Compiled<()> {
    let any = input.typed_config.as_ref();
    let any = any.ok_or_else(|| Unsupported::missing("typed_config"))?;
    let FilterStateInput { key, .. } = decode(any)?;
    if key == AUTHORITY_KEY {
        Ok(())
    } else {
        Err(Unsupported::new(format!("matcher by filter state {key}")))
    }
}

fn block(cidr: &ip::CidrRange) -> Compiled<IpNet> {
    let bad = |error: &dyn std::fmt::Display| {
        Unsupported::new(format!("address `{}`: {error}", cidr.address_prefix))
    };
    let address: IpAddr = cidr.address_prefix.parse().map_err(|error| bad(&error))?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let length = u8::try_from(cidr.prefix_len.unwrap_or(longest)).unwrap_or(u8::MAX);
    let block = IpNet::new(address, length).map_err(|error| bad(&error))?;
    Ok(block.trunc())
}

fn ports(next: &OnMatch) -> Ports {
    match compile_ports(next) {
        Ok(ports) => ports,
        Err(error) => Ports {
            any: Some(refused(&error)),
            ..Ports::default()
        },
    }
}

/// By port, or the same for all ports.
fn compile_ports(next: &OnMatch) -> Compiled<Ports> {
    if let Some(on_match::OnMatch::Matcher(matcher)) = &next.on_match
        && let tree = tree(matcher)?
        && tree.input.as_ref().map(input_type) == Some(DestinationPortInput::type_url().as_str())
    {
        let Some(TreeType::ExactMatchMap(map)) = &tree.tree_type else {
            return Err(Unsupported::new("ports are matched exactly"));
        };
        let mut ports = Ports::default();
        for (port, next) in &map.map {
            let number = port
                .parse()
                .map_err(|_not_a_port| Unsupported::new(format!("port `{port}`")))?;
            ports.by_port.insert(number, leaf(next));
        }
        return Ok(ports);
    }
    Ok(Ports {
        any: Some(leaf(next)),
        ..Ports::default()
    })
}

fn leaf(next: &OnMatch) -> Leaf {
    compile_leaf(next).unwrap_or_else(|error| refused(&error))
}

fn refused(error: &Unsupported) -> Leaf {
    Leaf::Refused(error.to_string().into())
}

fn compile_leaf(next: &OnMatch) -> Compiled<Leaf> {
    match &next.on_match {
        Some(on_match::OnMatch::Action(action)) => chain_name(action).map(Leaf::Chain),
        Some(on_match::OnMatch::Matcher(matcher)) => by_protocol(matcher),
        None => Err(Unsupported::missing("on_match")),
    }
}

fn by_protocol(matcher: &Matcher) -> Compiled<Leaf> {
    let tree = tree(matcher)?;
    let input = tree.input.as_ref().map_or("", input_type);
    let Some(TreeType::ExactMatchMap(map)) = &tree.tree_type else {
        return Err(Unsupported::new("protocols are matched exactly"));
    };
    if input != ApplicationProtocolInput::type_url() {
        return Err(Unsupported::new(format!(
            "matcher by {input} is not known here"
        )));
    }
    let mut http: Option<Str> = None;
    for (protocol, next) in &map.map {
        if !HTTP_PROTOCOLS.contains(&protocol.as_str()) {
            return Err(Unsupported::new(format!("protocol {protocol}")));
        }
        let name = action_of(next)?;
        if http.as_ref().is_some_and(|known| *known != name) {
            return Err(Unsupported::new("different chains for versions of HTTP"));
        }
        http = Some(name);
    }
    let other = matcher.on_no_match.as_deref().map(action_of).transpose()?;
    let http = http.ok_or_else(|| Unsupported::missing("a chain for HTTP"))?;
    Ok(Leaf::Sniff { http, other })
}

fn action_of(next: &OnMatch) -> Compiled<Str> {
    match &next.on_match {
        Some(on_match::OnMatch::Action(action)) => chain_name(action),
        Some(on_match::OnMatch::Matcher(_)) | None => Err(Unsupported::missing("action")),
    }
}

fn chain_name(action: &TypedExtensionConfig) -> Compiled<Str> {
    let any = action.typed_config.as_ref();
    let any = any.ok_or_else(|| Unsupported::missing("typed_config"))?;
    let StringValue { value } = decode(any)?;
    Ok(value.into())
}
