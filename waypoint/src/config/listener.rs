//! The listeners of a waypoint: `connect_terminate` is what the acceptor does anyway (but for `entry`), `main_internal`
//! becomes destinations and chains, `connect_originate` is what the upstream side does anyway.

use std::{collections::HashMap, sync::Arc};

use envoy_types::pb::envoy::{
    config::listener::v3::{Filter, FilterChain, Listener, filter::ConfigType},
    extensions::filters::network::{
        http_connection_manager::v3::HttpConnectionManager, tcp_proxy::v3::TcpProxy,
    },
};
use leyline_types::Str;
use prost::Name;

use super::{
    any::{self, decode},
    destinations::Destinations,
    error::{At, Compiled, Unsupported},
    http::HttpChain,
    tcp::TcpChain,
};

/// How the connections of one service port are served.
#[derive(Debug)]
pub(crate) enum Chain {
    Http(HttpChain),
    Tcp(TcpChain),
    /// Not at all, because of this: closed, never passed on unchecked.
    Refused(Arc<str>),
}

/// A chain with what it was made from, so that one that is sent again unchanged is kept.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    source: Arc<FilterChain>,
    pub(crate) chain: Arc<Chain>,
}

/// `main_internal`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Main {
    pub(crate) destinations: Arc<Destinations>,
    pub(crate) chains: HashMap<Str, Known>,
}

impl Main {
    /// Compiles the listener; chains that `before` has from the same source are taken over.
    pub(crate) fn compile(listener: &Listener, before: &Self) -> Compiled<Self> {
        let matcher = listener.filter_chain_matcher.as_ref();
        let matcher = matcher.ok_or_else(|| Unsupported::missing("filter_chain_matcher"))?;
        let destinations = Destinations::compile(matcher).at("filter_chain_matcher")?;
        let mut chains = HashMap::with_capacity(listener.filter_chains.len());
        for source in &listener.filter_chains {
            let known = match before.chains.get(source.name.as_str()) {
                Some(known) if *known.source == *source => known.clone(),
                Some(_) | None => Known {
                    source: Arc::new(source.clone()),
                    chain: Arc::new(compile_chain(source)),
                },
            };
            chains.insert(source.name.as_str().into(), known);
        }
        Ok(Self {
            destinations: Arc::new(destinations),
            chains,
        })
    }
}

fn compile_chain(source: &FilterChain) -> Chain {
    match try_chain(source) {
        Ok(chain) => chain,
        Err(error) => Chain::Refused(error.to_string().into()),
    }
}

/// Exactly one HTTP connection manager, or network filters before exactly one TCP proxy.
fn try_chain(source: &FilterChain) -> Compiled<Chain> {
    let Some((last, before)) = source.filters.split_last() else {
        return Err(Unsupported::missing("filters"));
    };
    let terminal = typed_config(last)?;
    match terminal.type_url() {
        url if url == HttpConnectionManager::type_url() => {
            network_filters_before_http(before)?;
            let manager: HttpConnectionManager = message(&terminal)?;
            HttpChain::compile(&manager).map(Chain::Http)
        }
        url if url == TcpProxy::type_url() => {
            let proxy: TcpProxy = message(&terminal)?;
            TcpChain::compile(before, &proxy).map(Chain::Tcp)
        }
        url => Err(Unsupported::new(format!("network filter {url}"))),
    }
    .at(format!("filter {}", last.name))
}

/// Filters that publish the destination for other filters: the tunnel's authority is known here without them.
fn network_filters_before_http(filters: &[Filter]) -> Compiled<()> {
    for filter in filters {
        let extension = typed_config(filter)?;
        if !super::tcp::is_set_filter_state(extension.type_url()) {
            let reason = format!("network filter {} before HTTP", extension.type_url());
            return Err(Unsupported::new(reason)).at(format!("filter {}", filter.name));
        }
    }
    Ok(())
}

/// The type and configuration of a network filter.
pub(crate) fn typed_config(filter: &Filter) -> Compiled<any::Extension<'_>> {
    match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) => {
            any::extension(any).at(format!("filter {}", filter.name))
        }
        Some(ConfigType::ConfigDiscovery(_)) => Err(Unsupported::new("configuration by discovery"))
            .at(format!("filter {}", filter.name)),
        None => Err(Unsupported::missing("typed_config")).at(format!("filter {}", filter.name)),
    }
}

/// The configuration of a network filter.
pub(crate) fn message<M: prost::Message + Name + Default>(
    extension: &any::Extension<'_>,
) -> Compiled<M> {
    match extension {
        any::Extension::Message(any) => decode(any),
        any::Extension::Struct(..) => Err(Unsupported::new("configured by a struct")),
    }
}
