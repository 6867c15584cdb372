//! A TCP chain: what is checked before, and where the bytes go.

use std::time::Duration;

use envoy_types::pb::envoy::{
    config::listener::v3::Filter,
    extensions::filters::network::{
        ext_authz::v3::ExtAuthz,
        rbac::v3::Rbac,
        sni_dynamic_forward_proxy::v3::{FilterConfig as SniForward, filter_config::PortSpecifier},
        tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier},
    },
    r#type::v3::hash_policy::PolicySpecifier,
};
use leyline_types::Str;
use prost::Name;

use super::{
    any::{self, limit},
    error::{At, Compiled, Unsupported},
    listener::{message, typed_config},
    telemetry::{MetricsPlan, STATS, Telemetry},
    weighted::Weighted,
};
use crate::tcp::{
    checks::{Authorizer, Check},
    rbac,
};

/// Envoy's default.
const IDLE: Duration = Duration::from_secs(3600);

/// Network filters without an effect on who may pass: left out with a warning where they are not known.
const OBSERVING: [&str; 3] = [
    STATS,
    "type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange",
    "type.googleapis.com/io.istio.http.peer_metadata.Config",
];

/// A compiled TCP chain.
#[derive(Debug)]
pub(crate) struct TcpChain {
    pub(crate) telemetry: Telemetry,
    /// In the order of the chain: CUSTOM, DENY, ALLOW.
    pub(crate) checks: Vec<Check>,
    pub(crate) clusters: Weighted<Str>,
    /// A connection without bytes either way for so long is closed.
    pub(crate) idle: Option<Duration>,
    /// However busy it is, a connection is closed after so long.
    pub(crate) max_duration: Option<Duration>,
    /// Connections go to this port of the server that the client names in TLS.
    pub(crate) port_by_name: Option<u16>,
    /// The client's address ties its connections to an endpoint, where the cluster balances by hash.
    pub(crate) by_client: bool,
}

impl TcpChain {
    pub(crate) fn compile(before: &[Filter], proxy: &TcpProxy) -> Compiled<Self> {
        let mut checks = Vec::new();
        let mut metrics = MetricsPlan::default();
        let mut port_by_name = None;
        for filter in before {
            let extension = typed_config(filter)?;
            if let any::Extension::Struct(url, config) = &extension
                && url == STATS
            {
                metrics = MetricsPlan::compile(config).at(format!("filter {}", filter.name))?;
            }
            match extension.type_url() {
                url if is_set_filter_state(url) || OBSERVING.contains(&url) => Ok(()),
                url if url == Rbac::type_url() => message(&extension)
                    .and_then(|filter| rbac::Config::compile(&filter))
                    .map(|filter| checks.push(Check::Rbac(filter))),
                url if url == ExtAuthz::type_url() => message(&extension)
                    .and_then(|filter| Authorizer::compile(&filter))
                    .map(|authorizer| checks.push(Check::ExtAuthz(authorizer))),
                url if url == SniForward::type_url() => message(&extension)
                    .and_then(|filter| port_of(&filter))
                    .map(|port| port_by_name = Some(port)),
                url => Err(Unsupported::new(format!("network filter {url}"))),
            }
            .at(format!("filter {}", filter.name))?;
        }
        if proxy.tunneling_config.is_some() {
            return Err(Unsupported::new("tunneling_config"));
        }
        let idle = match &proxy.idle_timeout {
            Some(_) => limit(proxy.idle_timeout.as_ref()).at("idle_timeout")?,
            None => Some(IDLE),
        };
        Ok(Self {
            telemetry: Telemetry::compile(&proxy.access_log, metrics, None)?,
            checks,
            clusters: clusters(proxy)?,
            idle,
            max_duration: limit(proxy.max_downstream_connection_duration.as_ref())
                .at("max_downstream_connection_duration")?,
            by_client: by_client(proxy)?,
            port_by_name,
        })
    }
}

/// Envoy's default is the port of HTTPS.
fn port_of(filter: &SniForward) -> Compiled<u16> {
    match filter.port_specifier {
        None => Ok(443),
        Some(PortSpecifier::PortValue(port)) => {
            u16::try_from(port).map_err(|_too_large| Unsupported::new("port_value"))
        }
    }
}

fn by_client(proxy: &TcpProxy) -> Compiled<bool> {
    let mut policies = proxy.hash_policy.iter();
    if policies.any(|policy| !matches!(policy.policy_specifier, Some(PolicySpecifier::SourceIp(_))))
    {
        return Err(Unsupported::new("hash_policy that is not source_ip"));
    }
    Ok(!proxy.hash_policy.is_empty())
}

fn clusters(proxy: &TcpProxy) -> Compiled<Weighted<Str>> {
    match &proxy.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => Ok(Weighted::one(name.as_str().into())),
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            let clusters = weighted.clusters.iter();
            Weighted::new(clusters.map(|cluster| (cluster.weight, cluster.name.as_str().into())))
                .at("weighted_clusters")
        }
        None => Err(Unsupported::missing("cluster")),
    }
}

/// Makes facts of the connection known to other filters; here they are known without it.
pub(crate) fn is_set_filter_state(url: &str) -> bool {
    url == "type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config"
}
