//! The configuration as the log and `/config_dump` show it: all that is in force, under Istio's keys; no secrets.

use std::time::Duration;

use leyline_net::{Redirection, listen::Families};
use leyline_tls::{KeyExchange, OldestVersion};
use serde_json::{Value, json};

use super::{Carries, Config, PodSource, PortUse, SourceAddress};
use crate::proxy::connections::DecisionLevel;

impl Config {
    /// What the log and `/config_dump` show.
    // tidy: table
    pub(crate) fn shown(&self) -> Value {
        let Self { node, proxy, .. } = self;
        let hbone = &proxy.hbone;
        let mut shown = json!({
            "proxyMode": match self.capture.source {
                PodSource::ControlPlane | PodSource::Zds(_) => "shared",
                PodSource::Dedicated(_) => "dedicated",
            },
            "localNode": node.node,
            "network": node.network,
            "clusterId": node.cluster_id,
            "trustDomain": node.trust_domain.as_ref().map(ToString::to_string),
            "proxy": proxy.carries == Carries::Connections,
            "xdsAddress": self.xds.address,
            "xdsOnDemand": proxy.on_demand,
            "localXds": self.local_xds,
            "altXdsHostname": self.xds.alt_hostname,
            "proxyMetadata": node.metadata,
            "istioVersion": node.istio_version,
            "capture": self.capture,
            "nodeLocal": proxy.node_local,
            "paceTunnels": proxy.pace_tunnels,
            "socks5": proxy.socks5,
            "redirection": match proxy.redirection {
                Redirection::Steered => "ebpf",
                Redirection::Rewritten => "cni",
            },
            "inpodPortReuse": proxy.port_use == PortUse::Shared,
            "packetMark": proxy.bypass_mark,
            "requireOriginalSource": proxy.source_address == SourceAddress::Client,
            "ipv6Enabled": proxy.families == Families::Both,
            "selfTerminationDeadline": seconds(self.drain_deadline),
            "numWorkerThreads": self.worker_threads,
            "adminPort": self.pages.admin_port,
            "statsPort": self.pages.metrics_port,
            "socketConfig": proxy.keepalive.map(|keepalive| json!({
                "keepaliveTime": seconds(keepalive.time),
                "keepaliveInterval": seconds(keepalive.interval),
                "keepaliveRetries": keepalive.retries,
                "userTimeoutEnabled": keepalive.user_timeout,
            })),
            "enableEnhancedBaggage": proxy.response_baggage,
            "authzPolicyInfoLogging": proxy.decisions == DecisionLevel::Info,
            "compliancePolicy": match self.crypto.key_exchange {
                KeyExchange::HybridOnly => "pqc",
                KeyExchange::PreferHybrid => "",
            },
            "tls12Enabled": self.crypto.oldest == OldestVersion::Tls12,
            "limits": limits(self),
            "poolMaxStreamsPerConn": hbone.outbound_streams,
            "poolUnusedReleaseTimeout": seconds(hbone.idle),
            "windowSize": hbone.stream_window,
            "connectionWindowSize": hbone.connection_window,
            "frameSize": hbone.max_frame_size,
        });
        if let (Some(shown), Value::Object(more)) = (shown.as_object_mut(), certificates(self)) {
            shown.extend(more);
        }
        shown
    }
}

/// Where certificates come from. On its own: the macro goes one step deeper with each entry, and has a limit.
fn certificates(config: &Config) -> Value {
    json!({
        "caAddress": config.ca.address,
        "altCaHostname": config.ca.alt_hostname,
        "secretTtl": seconds(config.secret_ttl),
        "crlPath": config.crl_path,
        "spiffeEndpointSocket": config.spiffe_endpoint,
        "spireAdminEndpointSocket": config.spire_admin_endpoint,
    })
}

fn limits(config: &Config) -> Value {
    let proxy = &config.proxy;
    json!({
        "withdrawnRootGrace": seconds(config.withdrawal_grace),
        "maxConnectionsPerPod": proxy.max_connections,
        "maxHandshakesPerPod": proxy.max_handshakes,
        "maxTunnelsPerSource": proxy.max_tunnels_per_source,
        "maxWindowPerSource": proxy.max_window_per_source,
        "maxWindowPerIdentity": proxy.max_window_per_identity,
        "handshakeDeadline": seconds(proxy.handshake_deadline),
        "halfClosedTimeout": proxy.idle.half_closed.map(seconds),
        "idleTimeout": proxy.idle.open.map(seconds),
    })
}

fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}
