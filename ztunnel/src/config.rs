//! What ztunnel can be told by its environment (facts A2), read once at start.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use leyline_capture::{CAPTURE_MARK, SteerProgram};
use leyline_hbone::HboneConfig;
use leyline_net::sockopt::Keepalive;
use leyline_runtime::{env::Reader, threads};
use leyline_telemetry::log::{Format, LogConfig};
use leyline_tls::control_plane::{ControlPlaneConfig, RootSource, TokenSource};
use leyline_types::Network;
use serde::Serialize;

/// Mark of the proxy's own sockets, which capture leaves alone (facts A4).
const PACKET_MARK: u32 = 0x539;
/// Where the token of the pod's service account is mounted.
const TOKEN_PATH: &str = "./var/run/secrets/tokens/istio-token";
/// Where the roots of the control plane are mounted.
const ROOT_PATH: &str = "./var/run/secrets/istio/root-cert.pem";

/// Everything.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) node: NodeConfig,
    pub(crate) proxy: ProxyConfig,
    pub(crate) capture: CaptureConfig,
    pub(crate) xds: ControlPlaneConfig,
    pub(crate) ca: ControlPlaneConfig,
    pub(crate) log: LogConfig,
    /// Lifetime asked for in certificate requests.
    pub(crate) secret_ttl: Duration,
    /// How long connections may finish after SIGTERM.
    pub(crate) drain_deadline: Duration,
    pub(crate) worker_threads: usize,
}

/// Which node, as what.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeConfig {
    pub(crate) node: String,
    pub(crate) network: Network,
    pub(crate) cluster_id: String,
    pub(crate) pod_name: String,
    pub(crate) pod_namespace: String,
    pub(crate) instance_ip: String,
}

/// The data plane.
#[derive(Clone, Debug)]
pub(crate) struct ProxyConfig {
    /// Mark of upstream sockets; capture leaves them alone.
    pub(crate) bypass_mark: u32,
    /// Mark of sockets towards applications; their traffic stays on loopback.
    pub(crate) capture_mark: u32,
    pub(crate) keepalive: Option<Keepalive>,
    /// For the connect to an upstream (SOCK-3).
    pub(crate) connect_deadline: Duration,
    /// For a TLS handshake, either side.
    pub(crate) handshake_deadline: Duration,
    /// How long a connection waits for xDS to say who its pod is (OUT-1).
    pub(crate) workload_deadline: Duration,
    /// Connections that one pod may have open, each direction; more are reset.
    pub(crate) max_connections: usize,
    /// Handshakes that one pod may have unfinished; more wait in the listen queue.
    pub(crate) max_handshakes: usize,
    pub(crate) hbone: HboneConfig,
}

/// Capture of the pods of this node.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CaptureConfig {
    /// Distinguishes this ztunnel's kernel objects from another's on the same machine.
    pub(crate) instance: String,
    pub(crate) bpffs: PathBuf,
    pub(crate) cgroup: Option<PathBuf>,
    /// Holds each pod's network namespace as `namespace_name`.
    pub(crate) pod_netns_dir: PathBuf,
    /// The socket lookup: the best that the kernel takes, or the one for kernels before 5.17.
    #[serde(skip)]
    pub(crate) steer: SteerProgram,
}

impl Config {
    /// Reads the environment; problems collect in `env` and are told together by `env.finish()`.
    pub(crate) fn read(env: &mut Reader<'_>) -> Self {
        let under_kubernetes = !env.string("KUBERNETES_SERVICE_HOST", "").is_empty();
        let istiod = if under_kubernetes {
            "https://istiod.istio-system.svc:15012"
        } else {
            "https://localhost:15012"
        };
        let cluster_id = env.string("CLUSTER_ID", "Kubernetes");
        let cluster_id = env.string("ISTIO_META_CLUSTER_ID", &cluster_id);
        let token = match env.string("AUTH_TOKEN", "").as_str() {
            "" if Path::new(TOKEN_PATH).exists() => TokenSource::File(TOKEN_PATH.into()),
            setting => TokenSource::from_setting(setting),
        };
        let control_plane = |env: &mut Reader<'_>, name: &str| ControlPlaneConfig {
            address: env.string(&format!("{name}_ADDRESS"), istiod),
            root: RootSource::from_setting(&env.string(&format!("{name}_ROOT_CA"), ROOT_PATH)),
            alt_hostname: non_empty(env.string(&format!("ALT_{name}_HOSTNAME"), "")),
            token: token.clone(),
            cluster_id: cluster_id.clone(),
            headers: Vec::new(),
        };
        Self {
            xds: control_plane(env, "XDS"),
            ca: control_plane(env, "CA"),
            node: NodeConfig {
                node: env.string("NODE_NAME", ""),
                network: Network::new(env.string("NETWORK", "")),
                cluster_id: cluster_id.clone(),
                pod_name: env.string("POD_NAME", ""),
                pod_namespace: env.string("POD_NAMESPACE", ""),
                instance_ip: env
                    .parse::<IpAddr>("INSTANCE_IP", [1, 1, 1, 1].into())
                    .to_string(),
            },
            proxy: ProxyConfig::read(env),
            capture: CaptureConfig {
                instance: env.string("LEYLINE_INSTANCE", "ztunnel"),
                bpffs: env.string("LEYLINE_BPFFS", "/sys/fs/bpf").into(),
                cgroup: non_empty(env.string("LEYLINE_CGROUP", "")).map(PathBuf::from),
                pod_netns_dir: env
                    .string("LEYLINE_POD_NETNS_DIR", "/run/leyline/pods")
                    .into(),
                steer: steer(env),
            },
            log: LogConfig {
                filter: env.string("RUST_LOG", "info"),
                format: log_format(env),
            },
            secret_ttl: env.duration("SECRET_TTL", Duration::from_secs(24 * 3600)),
            drain_deadline: drain_deadline(env),
            worker_threads: threads::worker_threads(env, None, cores()),
        }
    }
}

impl Config {
    /// What the log and `/config_dump` show; no secrets.
    pub(crate) fn shown(&self) -> serde_json::Value {
        let seconds = |duration: Duration| format!("{}s", duration.as_secs_f64());
        serde_json::json!({
            "proxyMode": "shared",
            "localNode": self.node.node,
            "network": self.node.network,
            "clusterId": self.node.cluster_id,
            "xdsAddress": self.xds.address,
            "caAddress": self.ca.address,
            "capture": self.capture,
            "packetMark": self.proxy.bypass_mark,
            "secretTtl": seconds(self.secret_ttl),
            "selfTerminationDeadline": seconds(self.drain_deadline),
            "numWorkerThreads": self.worker_threads,
            "poolMaxStreamsPerConn": self.proxy.hbone.outbound_streams,
            "poolUnusedReleaseTimeout": seconds(self.proxy.hbone.idle),
            "windowSize": self.proxy.hbone.stream_window,
            "connectionWindowSize": self.proxy.hbone.connection_window,
            "frameSize": self.proxy.hbone.max_frame_size,
        })
    }
}

impl ProxyConfig {
    fn read(env: &mut Reader<'_>) -> Self {
        let keepalive = Keepalive::default();
        let keepalive = env.bool("KEEPALIVE_ENABLED", true).then(|| Keepalive {
            time: env.duration("KEEPALIVE_TIME", keepalive.time),
            interval: env.duration("KEEPALIVE_INTERVAL", keepalive.interval),
            retries: env.parse("KEEPALIVE_RETRIES", keepalive.retries),
        });
        let defaults = HboneConfig::default();
        Self {
            bypass_mark: env.parse("PACKET_MARK", PACKET_MARK),
            capture_mark: CAPTURE_MARK,
            keepalive,
            connect_deadline: Duration::from_secs(10),
            handshake_deadline: env.duration("LEYLINE_HANDSHAKE_DEADLINE", Duration::from_secs(10)),
            workload_deadline: Duration::from_secs(5),
            max_connections: env.parse("LEYLINE_MAX_CONNECTIONS_PER_POD", 65_536),
            max_handshakes: env.parse("LEYLINE_MAX_HANDSHAKES_PER_POD", 512),
            hbone: HboneConfig {
                outbound_streams: env
                    .parse("POOL_MAX_STREAMS_PER_CONNECTION", defaults.outbound_streams),
                idle: env.duration("POOL_UNUSED_RELEASE_TIMEOUT", defaults.idle),
                stream_window: env.parse("HTTP2_STREAM_WINDOW_SIZE", defaults.stream_window),
                connection_window: env
                    .parse("HTTP2_CONNECTION_WINDOW_SIZE", defaults.connection_window),
                max_frame_size: env.parse("HTTP2_FRAME_SIZE", defaults.max_frame_size),
                ..defaults
            },
        }
    }
}

/// Facts A2: the explicit deadline wins; else a little less than the grace period of the pod; else 5 s.
fn drain_deadline(env: &mut Reader<'_>) -> Duration {
    let grace: u64 = env.parse("TERMINATION_GRACE_PERIOD_SECONDS", 0);
    let default = match grace {
        0 => 5,
        1..=10 => (grace - 1).max(1),
        _ => grace - 5,
    };
    env.duration(
        "CONNECTION_TERMINATION_DEADLINE",
        Duration::from_secs(default),
    )
}

fn steer(env: &mut Reader<'_>) -> SteerProgram {
    let read = |text: &str| match text {
        "by-kernel" => Ok(SteerProgram::ByKernel),
        "before-5.17" => Ok(SteerProgram::Before5_17),
        _ => Err("use by-kernel or before-5.17".to_owned()),
    };
    env.parse_with("LEYLINE_STEER", read)
        .unwrap_or(SteerProgram::ByKernel)
}

fn log_format(env: &mut Reader<'_>) -> Format {
    let read = |text: &str| match text {
        "plain" => Ok(Format::Plain),
        "json" => Ok(Format::Json),
        _ => Err("use plain or json".to_owned()),
    };
    env.parse_with("LOG_FORMAT", read).unwrap_or(Format::Plain)
}

/// Logical cores, as far as this process may use them.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}
