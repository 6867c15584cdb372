//! What a waypoint can be told by its environment, read once at start: as istiod renders it for an `istio-waypoint` (facts
//! F.3), and our own.

mod proxy_config;

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use leyline_hbone::{HboneConfig, StreamTasks, sources::SourceLimits};
use leyline_runtime::{env::Reader, threads};
use leyline_telemetry::log::{Format, LogConfig};
use leyline_tls::control_plane::{ControlPlaneConfig, RootSource, TokenSource};
use leyline_types::{Identity, Network, TrustDomain};

/// Where the token of the pod's service account is mounted.
const TOKEN_PATH: &str = "/var/run/secrets/tokens/istio-token";
/// Where the roots of the control plane are mounted.
const ROOT_PATH: &str = "/var/run/secrets/istio/root-cert.pem";
/// Where the pod's name servers are written.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Envoy has none; a slow client on a bad line needs seconds.
const HEAD_DEADLINE: Duration = Duration::from_secs(60);
/// Half an hour, after which new waypoints have their share of long-lived clients.
const MAX_AGE: Duration = Duration::from_secs(30 * 60);
/// Envoy's default.
const IDLE: Duration = Duration::from_secs(3600);
/// istiod in its default place.
const ISTIOD: &str = "istiod.istio-system.svc:15012";

/// Everything.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) node: NodeSettings,
    pub(crate) identity: Identity,
    pub(crate) proxy: ProxySettings,
    pub(crate) xds: ControlPlaneConfig,
    pub(crate) ca: ControlPlaneConfig,
    pub(crate) log: LogConfig,
    pub(crate) secret_ttl: Duration,
    pub(crate) drain_deadline: Duration,
    pub(crate) worker_threads: usize,
    /// The name servers of the pod.
    pub(crate) resolv_conf: PathBuf,
    /// All of it, for spans that are tagged with it.
    pub(crate) environment: BTreeMap<String, String>,
}

/// Who this waypoint is.
#[derive(Clone, Debug)]
pub(crate) struct NodeSettings {
    pub(crate) pod_name: String,
    pub(crate) pod_namespace: String,
    pub(crate) service_account: String,
    pub(crate) instance_ip: IpAddr,
    pub(crate) network: Network,
    pub(crate) cluster_id: String,
    pub(crate) node_name: String,
    pub(crate) workload_name: String,
    pub(crate) mesh_id: String,
    pub(crate) domain: String,
}

/// The data plane.
#[derive(Clone, Debug)]
pub(crate) struct ProxySettings {
    pub(crate) connect_deadline: Duration,
    pub(crate) handshake_deadline: Duration,
    /// How long a client of a port without a declared protocol may be silent before it is taken for TCP.
    pub(crate) sniff_deadline: Duration,
    pub(crate) hbone: HboneConfig,
    /// Whether tunnels are sent at the pace of the node's congestion control on short paths too.
    pub(crate) pace_tunnels: bool,
    /// What one client pod may hold of this waypoint's tunnels.
    pub(crate) per_source: SourceLimits,
    /// Handshakes that may be unfinished; more wait.
    pub(crate) max_handshakes: usize,
    /// From the start of a request's head to its end: a client that sends a byte now and then holds a task for nothing.
    pub(crate) head_deadline: Duration,
    /// Tunnels and HTTP connections of this age are told to go (GOAWAY), so that long-lived clients spread over waypoints.
    pub(crate) max_connection_age: Option<Duration>,
    /// HTTP connections without a request for so long are ended, where the configuration says nothing.
    pub(crate) idle: Option<Duration>,
}

impl Settings {
    /// Reads the environment; problems collect in `env` and are told together by `env.finish()`.
    pub(crate) fn read(env: &mut Reader<'_>, domain: &str) -> Self {
        let concurrency = proxy_config::read(env);
        let node = NodeSettings::read(env, domain);
        let trust_domain: TrustDomain = env.parse("TRUST_DOMAIN", TrustDomain::default());
        let identity = Identity::new(trust_domain, &node.pod_namespace, &node.service_account);
        let identity = identity.unwrap_or_else(|error| {
            env.reject("SERVICE_ACCOUNT", &node.service_account, error);
            Identity::new(TrustDomain::default(), "default", "default")
                .expect("these names are valid")
        });
        let token = TokenSource::from_setting(&env.string("AUTH_TOKEN", TOKEN_PATH));
        let ca = env.string("CA_ADDR", ISTIOD);
        let ca = env.string("CA_ADDRESS", &ca);
        let xds = env.string("XDS_ADDRESS", &ca);
        let cluster_id = node.cluster_id.clone();
        let control_plane = |env: &mut Reader<'_>, name: &str, address: &str| ControlPlaneConfig {
            address: with_scheme(address),
            root: RootSource::from_setting(&env.string(&format!("{name}_ROOT_CA"), ROOT_PATH)),
            alt_hostname: env.optional(&format!("ALT_{name}_HOSTNAME")),
            token: token.clone(),
            cluster_id: cluster_id.clone(),
            headers: Vec::new(),
        };
        Self {
            environment: env.with_prefix("").into_iter().collect(),
            xds: control_plane(env, "XDS", &xds),
            ca: control_plane(env, "CA", &ca),
            node,
            identity,
            proxy: ProxySettings::read(env),
            log: LogConfig {
                filter: env.string("RUST_LOG", "info"),
                format: match env.string("LOG_FORMAT", "plain").as_str() {
                    "json" => Format::Json,
                    _ => Format::Plain,
                },
            },
            secret_ttl: env.duration("SECRET_TTL", Duration::from_secs(24 * 3600)),
            drain_deadline: env.duration("TERMINATION_DRAIN_DURATION", Duration::from_secs(5)),
            resolv_conf: env.string("LEYLINE_RESOLV_CONF", RESOLV_CONF).into(),
            worker_threads: threads::worker_threads(
                env,
                concurrency,
                std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
            ),
        }
    }

    /// What the log and `/config_dump` show; no secrets.
    pub(crate) fn shown(&self) -> serde_json::Value {
        serde_json::json!({
            "identity": self.identity.to_string(),
            "pod": format!("{}/{}", self.node.pod_namespace, self.node.pod_name),
            "instanceIp": self.node.instance_ip,
            "network": self.node.network,
            "clusterId": self.node.cluster_id,
            "xdsAddress": self.xds.address,
            "caAddress": self.ca.address,
            "workerThreads": self.worker_threads,
        })
    }
}

impl ProxySettings {
    fn read(env: &mut Reader<'_>) -> Self {
        let hbone = HboneConfig {
            // A request is work for many cores.
            stream_tasks: StreamTasks::Own,
            ..HboneConfig::default()
        };
        Self {
            connect_deadline: Duration::from_secs(10),
            handshake_deadline: Duration::from_secs(10),
            sniff_deadline: env.duration("LEYLINE_SNIFF_DEADLINE", Duration::from_secs(5)),
            pace_tunnels: env.bool("LEYLINE_PACE_TUNNELS", false),
            per_source: SourceLimits {
                tunnels: at_least_one(env, "LEYLINE_MAX_TUNNELS_PER_SOURCE", 512),
                window: hbone.connection_window,
                windows: at_least_one(env, "LEYLINE_MAX_WINDOW_PER_SOURCE", 128 << 20),
                identity_windows: at_least_one(env, "LEYLINE_MAX_WINDOW_PER_IDENTITY", 512 << 20),
            },
            max_handshakes: at_least_one(env, "LEYLINE_MAX_HANDSHAKES_PER_POD", 512),
            hbone,
            head_deadline: env.duration("LEYLINE_HEADERS_DEADLINE", HEAD_DEADLINE),
            max_connection_age: Some(env.duration("LEYLINE_MAX_CONNECTION_AGE", MAX_AGE)),
            idle: Some(env.duration("IDLE_TIMEOUT", IDLE)),
        }
    }
}

impl NodeSettings {
    /// As Envoy calls itself.
    /// As Istio names clusters of proxies.
    pub(crate) fn cluster(&self) -> String {
        format!("{}.{}", self.service_account, self.pod_namespace)
    }

    pub(crate) fn id(&self) -> String {
        format!(
            "waypoint~{}~{}.{}~{}",
            self.instance_ip, self.pod_name, self.pod_namespace, self.domain
        )
    }

    fn read(env: &mut Reader<'_>, domain: &str) -> Self {
        let service_account = env.string("SERVICE_ACCOUNT", "");
        let service_account = env.string("ISTIO_META_SERVICE_ACCOUNT", &service_account);
        let pod_namespace = env.string("POD_NAMESPACE", "default");
        Self {
            pod_name: env.string("POD_NAME", "waypoint"),
            domain: if domain.is_empty() {
                format!("{pod_namespace}.svc.cluster.local")
            } else {
                domain.to_owned()
            },
            pod_namespace,
            service_account,
            instance_ip: env.parse("INSTANCE_IP", [127, 0, 0, 1].into()),
            network: Network::new(env.string("ISTIO_META_NETWORK", "")),
            cluster_id: env.string("ISTIO_META_CLUSTER_ID", "Kubernetes"),
            node_name: env.string("ISTIO_META_NODE_NAME", ""),
            workload_name: env.string("ISTIO_META_WORKLOAD_NAME", ""),
            mesh_id: env.string("ISTIO_META_MESH_ID", ""),
        }
    }
}

/// A limit under the name that it has at node proxies. None at all would serve nobody.
fn at_least_one<T: std::str::FromStr + std::fmt::Display + Copy + From<u8> + PartialOrd>(
    env: &mut Reader<'_>,
    name: &str,
    default: T,
) -> T
where
    T::Err: std::fmt::Display,
{
    let limit = env.parse(name, default);
    if limit < T::from(1) {
        env.reject(name, limit, "must be at least 1");
        return default;
    }
    limit
}

/// istiod renders `host:port`.
fn with_scheme(address: &str) -> String {
    if address.contains("://") {
        address.to_owned()
    } else {
        format!("https://{address}")
    }
}

#[cfg(test)]
mod tests {
    use leyline_runtime::env::MapEnv;

    use super::*;

    #[test]
    fn the_environment_that_istiod_renders_is_understood() {
        let env = MapEnv::from([
            ("CA_ADDR", "istiod-canary.istio-system.svc:15012"),
            ("POD_NAME", "waypoint-abc"),
            ("POD_NAMESPACE", "shop"),
            ("INSTANCE_IP", "10.0.0.7"),
            ("SERVICE_ACCOUNT", "waypoint"),
            ("TRUST_DOMAIN", "example.org"),
            ("ISTIO_META_NETWORK", "n1"),
            ("ISTIO_META_CLUSTER_ID", "c1"),
        ]);
        let mut reader = Reader::new(&env);
        let settings = Settings::read(&mut reader, "");
        reader.finish().unwrap();
        assert_eq!(
            settings.identity.to_string(),
            "spiffe://example.org/ns/shop/sa/waypoint"
        );
        assert_eq!(
            settings.xds.address,
            "https://istiod-canary.istio-system.svc:15012"
        );
        assert_eq!(settings.node.domain, "shop.svc.cluster.local");
    }

    #[test]
    fn without_a_service_account_nothing_starts() {
        let env = MapEnv::from([("POD_NAMESPACE", "shop")]);
        let mut reader = Reader::new(&env);
        Settings::read(&mut reader, "");
        assert!(reader.finish().is_err());
    }
}
