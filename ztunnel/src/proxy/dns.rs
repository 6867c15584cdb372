//! The DNS proxy of a pod (port 15053, facts A16).
//!
//! Names of the mesh are answered from the state; everything else goes to the resolver that the pod asked, out of the
//! pod's own namespace, and comes back as it is. Nothing here is shared between pods.

mod address;
mod cache;
pub(crate) mod config;
pub(super) mod lookup;
mod names;
mod query;
mod resolv_conf;
mod serve;
mod upstream;
mod wire;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use leyline_net::listen::Families;
use leyline_state::{HostView, KnownHost, Snapshot, Workload};
use leyline_telemetry::dns::{DnsMetrics, DnsProtocol};
use parking_lot::Mutex;
use rand::seq::SliceRandom;
use tokio::time::Instant;
use tracing::debug;

use self::{
    cache::Cache,
    names::Answer,
    query::Query,
    resolv_conf::ResolvConf,
    upstream::{Truncated, Upstream, UpstreamError},
};
pub(crate) use self::{config::DnsConfig, serve::DnsListeners};
use super::{Pod, Shared};

/// Where resolvers listen.
const PORT: u16 = 53;
/// How long the pod's resolv.conf is taken to be the same; containers change it rarely, and then their own resolver
/// libraries notice late too.
const CONF_AGE: Duration = Duration::from_secs(30);

/// The DNS proxy of one pod.
pub(super) struct DnsProxy {
    pod: Arc<Pod>,
    cache: Cache,
    conf: Mutex<Option<(Instant, Arc<ResolvConf>)>>,
}

impl DnsProxy {
    fn new(pod: Arc<Pod>) -> Self {
        Self {
            pod,
            cache: Cache::default(),
            conf: Mutex::default(),
        }
    }

    /// Answers one query; `None` if there is nothing that could be said. `resolver` is whom the pod asked, if that is
    /// known.
    async fn answer(&self, query: &Query, resolver: Option<IpAddr>) -> Option<Vec<u8>> {
        let shared = &self.pod.shared;
        let Some((snapshot, client)) = shared.workload(&self.pod.name).await else {
            // DNS-10.
            debug!(target: "dns", pod = %self.pod.name, result = "unknown workload");
            return query.failed();
        };
        let labels = shared.labels.workload(&client);
        let metrics = DnsMetrics::new(query.type_name(), query.protocol(), &labels);
        metrics.request();
        let conf = self.conf().await;
        let name = query.name();
        let known = query
            .is_internet()
            .then(|| self.find(&snapshot, &client, &conf, &name))
            .flatten();
        if let Some(known) = &known
            && query.asks_addresses()
        {
            let addresses = self.addresses_of(&known.host).await;
            log(&client, query, &name, "local", &addresses);
            return query.answered(known.alias.as_deref(), &addresses);
        }
        match self.pass_on(query, resolver, &conf, &metrics).await {
            Ok(mut response) => {
                if known.is_some() {
                    wire::admit_name(&mut response);
                }
                log(&client, query, &name, "forwarded", &[]);
                Some(query.fit(response))
            }
            Err(error) => {
                metrics.upstream_failure();
                debug!(target: "dns", pod = %self.pod.name, domain = name, %error, result = "failed");
                query.failed()
            }
        }
    }

    fn find(
        &self,
        snapshot: &Snapshot,
        client: &Workload,
        conf: &ResolvConf,
        name: &str,
    ) -> Option<Answer> {
        let config = &self.pod.shared.config.dns;
        let view = HostView {
            namespace: &client.name.namespace,
            cluster_domain: &config.cluster_domain,
            preferred_namespace: config.preferred_namespace.as_deref(),
        };
        names::find(snapshot, view, conf, name)
    }

    /// In any order. Endpoints that have only names are looked up, as for a connection to them.
    async fn addresses_of(&self, host: &KnownHost) -> Vec<IpAddr> {
        let Shared {
            config, endpoints, ..
        } = &*self.pod.shared;
        let mut addresses = host.addresses.clone();
        if !host.hostnames.is_empty() {
            let names = &endpoints.hostnames;
            Box::pin(names.resolve(&host.hostnames, config)).await;
            let found = host.hostnames.iter().flat_map(|name| names.all(name));
            addresses.extend(found.filter(|ip| host.serves_family_of(*ip)));
        }
        addresses.retain(|ip| config.families == Families::Both || ip.is_ipv4());
        addresses.shuffle(&mut rand::rng());
        addresses
    }

    /// Asks the pod's resolver; where that is not known, those of its resolv.conf, else ours, one after the other.
    async fn pass_on(
        &self,
        query: &Query,
        resolver: Option<IpAddr>,
        conf: &ResolvConf,
        metrics: &DnsMetrics,
    ) -> Result<Vec<u8>, UpstreamError> {
        let servers = match resolver {
            Some(resolver) => vec![resolver],
            None => usable(&conf.servers),
        };
        let mut failure = UpstreamError::Deadline;
        for server in servers {
            let server = SocketAddr::new(server, PORT);
            if let Some(response) = self.cache.get(server, query) {
                metrics.cache_hit();
                return Ok(response);
            }
            metrics.upstream_request();
            let started = Instant::now();
            let asked = self.ask(server, query).await;
            metrics.upstream_duration(started.elapsed());
            match asked {
                Ok(mut response) => {
                    wire::set_id(&mut response, query.id());
                    self.cache.put(server, query, &response);
                    return Ok(response);
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn ask(&self, server: SocketAddr, query: &Query) -> Result<Vec<u8>, UpstreamError> {
        let upstream = Upstream {
            netns: &self.pod.netns,
            mark: self.pod.shared.config.bypass_mark,
            options: self.pod.upstream_options(),
        };
        let truncated = match query.protocol() {
            DnsProtocol::Udp => Truncated::Taken,
            DnsProtocol::Tcp => Truncated::AskedAgain,
        };
        upstream.ask(server, query.bytes(), truncated).await
    }

    /// The pod's resolv.conf, with our own servers if it has none that can be reached.
    async fn conf(&self) -> Arc<ResolvConf> {
        let known = self.conf.lock().clone();
        if let Some((read, conf)) = known
            && read.elapsed() < CONF_AGE
        {
            return conf;
        }
        let pod = Arc::clone(&self.pod);
        let found = tokio::task::spawn_blocking(move || {
            let domain = &pod.shared.config.dns.cluster_domain;
            let namespace = pod.name.namespace.as_str();
            let of_pod = ResolvConf::of_pod(&pod.netns);
            let mut conf = of_pod.unwrap_or_else(|| ResolvConf::of_kubernetes(namespace, domain));
            if usable(&conf.servers).is_empty()
                && let Ok(own) = ResolvConf::own()
            {
                conf.servers = own.servers;
            }
            conf
        });
        let namespace = self.pod.name.namespace.as_str();
        let domain = &self.pod.shared.config.dns.cluster_domain;
        let conf = found
            .await
            .unwrap_or_else(|_cut| ResolvConf::of_kubernetes(namespace, domain));
        let conf = Arc::new(conf);
        *self.conf.lock() = Some((Instant::now(), Arc::clone(&conf)));
        conf
    }
}

/// Captured queries did not go to loopback, so those resolvers are of another place.
fn usable(servers: &[IpAddr]) -> Vec<IpAddr> {
    let remote = servers.iter().filter(|server| !server.is_loopback());
    remote.take(3).copied().collect()
}

/// DNS-9.
fn log(client: &Workload, query: &Query, name: &str, result: &str, endpoints: &[IpAddr]) {
    debug!(
        target: "dns",
        {
            src.workload = client.name.name.as_str(),
            src.namespace = client.name.namespace.as_str(),
            query = query.type_name(),
            domain = name,
            result,
            endpoints = ?endpoints,
        },
        "query"
    );
}
