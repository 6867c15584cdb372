//! What ztunnel can be told by its environment (facts A2), read once at start.

mod connections;
mod mesh;
mod pods;
mod security;
mod shown;
mod variables;

use std::{
    fmt::Display,
    net::IpAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use leyline_capture::{CAPTURE_MARK, SteerProgram};
use leyline_hbone::HboneConfig;
use leyline_net::{Redirection, listen::Families, sockopt::Keepalive};
use leyline_runtime::{env::Reader, threads};
use leyline_telemetry::{
    log::{Format, LogConfig},
    traffic::KeptLabels,
};
use leyline_tls::{
    CryptoPolicy,
    control_plane::{ControlPlaneConfig, RootSource, TokenSource},
};
use leyline_types::{Network, TrustDomain, ports};
use serde::Serialize;

pub use variables::listing as variables;

use self::mesh::MeshDefaults;
pub(crate) use self::pods::{Carries, PodSource, PortUse};
use crate::{
    local_xds::LocalXds,
    proxy::{DnsConfig, IdleLimits, connections::DecisionLevel},
};

/// Mark of the proxy's own sockets, which capture leaves alone (facts A4).
const PACKET_MARK: u32 = 0x539;
/// Where the token of the pod's service account is mounted.
const TOKEN_PATH: &str = "./var/run/secrets/tokens/istio-token";
/// Where the roots of the control plane are mounted.
const ROOT_PATH: &str = "./var/run/secrets/istio/root-cert.pem";

/// Limits that are none are mistakes: 0 serves nobody, and a node has no more sockets than this.
const COUNT: RangeInclusive<usize> = 1..=1 << 24;
/// Below, not even one tunnel would be of use; above, it is none.
const WINDOWS: RangeInclusive<u64> = 1 << 20..=1 << 40;
/// A handshake takes some milliseconds; a peer that is given minutes holds memory for nothing.
const HANDSHAKE_DEADLINE: RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(300);

/// Everything.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) node: NodeConfig,
    pub(crate) proxy: ProxyConfig,
    pub(crate) capture: CaptureConfig,
    pub(crate) xds: ControlPlaneConfig,
    pub(crate) ca: ControlPlaneConfig,
    pub(crate) log: LogConfig,
    /// What is known before the control plane says anything, and without one.
    pub(crate) local_xds: Option<LocalXds>,
    /// Lifetime asked for in certificate requests.
    pub(crate) secret_ttl: Duration,
    /// Revocation lists.
    pub(crate) crl_path: Option<PathBuf>,
    /// How long tunnels go on when the root of their peer is withdrawn.
    pub(crate) withdrawal_grace: Duration,
    /// Where a SPIFFE agent gives certificates, in place of the CA.
    pub(crate) spiffe_endpoint: Option<String>,
    /// Where a SPIRE agent gives certificates of all pods, in place of the CA.
    pub(crate) spire_admin_endpoint: Option<String>,
    /// How long connections may finish after SIGTERM.
    pub(crate) drain_deadline: Duration,
    pub(crate) worker_threads: usize,
    pub(crate) crypto: CryptoPolicy,
    pub(crate) pages: PagesConfig,
    /// Of the traffic metrics.
    pub(crate) labels: KeptLabels,
}

/// Where the process's own pages are served; the port of readiness is fixed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PagesConfig {
    pub(crate) admin_port: u16,
    pub(crate) metrics_port: u16,
    pub(crate) families: Families,
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
    pub(crate) service_account: String,
    /// Of this process's own identity; unset, as xDS says.
    #[serde(skip)]
    pub(crate) trust_domain: Option<TrustDomain>,
    pub(crate) instance_ip: String,
    /// What the operator wants the control plane to know of this proxy.
    pub(crate) metadata: serde_json::Map<String, serde_json::Value>,
    /// The version of Istio that this proxy is rolled out with.
    pub(crate) istio_version: String,
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
    /// Tunnels that one source address may have into one pod; more are reset.
    pub(crate) max_tunnels_per_source: usize,
    /// Bytes that one source address may have sent into one pod's tunnels and nobody has read, all of them together;
    /// further tunnels get small windows.
    pub(crate) max_window_per_source: u64,
    pub(crate) max_window_per_identity: u64,
    /// Whether application tunnels end at the pod's loopback address and not at its own.
    pub(crate) localhost_app_tunnel: bool,
    /// Whether the control plane is asked about each destination, and does not tell all.
    pub(crate) on_demand: bool,
    /// How long a connection may move nothing.
    pub(crate) idle: IdleLimits,
    /// Of the listeners in pods.
    pub(crate) families: Families,
    /// How connections come to them.
    pub(crate) redirection: Redirection,
    pub(crate) port_use: PortUse,
    pub(crate) carries: Carries,
    /// What the application sees as the source of a connection.
    pub(crate) source_address: SourceAddress,
    pub(crate) certificates_for: CertificatesFor,
    /// Whether the 200 of a tunnelled connection says who answered.
    pub(crate) response_baggage: bool,
    pub(crate) decisions: DecisionLevel,
    /// Whether connections between pods of this node stay inside the process.
    pub(crate) node_local: bool,
    /// Whether tunnels are sent at the pace of the node's congestion control on short paths too.
    pub(crate) pace_tunnels: bool,
    /// Whether applications may ask for connections by SOCKS5.
    pub(crate) socks5: bool,
    pub(crate) hbone: HboneConfig,
    pub(crate) dns: DnsConfig,
}

/// What an application sees as the source of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceAddress {
    /// The client's address.
    Client,
    /// The pod's own (`ENABLE_ORIG_SRC=false`).
    Own,
}

/// Whose certificates are fetched before they are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CertificatesFor {
    /// Those of all workloads of the node (CRT-8).
    AllLocal,
    /// Those of pods that are carried. With one workload, every other one of the mesh counts as local; and a SPIRE agent
    /// is asked about pods.
    WhoAsks,
}

/// Capture of the pods of this node.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CaptureConfig {
    /// Distinguishes this ztunnel's kernel objects from another's on the same machine.
    pub(crate) instance: String,
    /// Who names the pods.
    pub(crate) source: PodSource,
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
        let mesh = MeshDefaults::read(env);
        let istiod = istiod(env, &mesh);
        let cluster_id = env.string("CLUSTER_ID", "Kubernetes");
        let cluster_id = env.string("ISTIO_META_CLUSTER_ID", &cluster_id);
        let token = match env.string("AUTH_TOKEN", "").as_str() {
            "" if Path::new(TOKEN_PATH).exists() => TokenSource::File(TOKEN_PATH.into()),
            setting => TokenSource::from_setting(setting),
        };
        let control_plane = |env: &mut Reader<'_>, name: &str| ControlPlaneConfig {
            address: env.string(&format!("{name}_ADDRESS"), &istiod),
            root: RootSource::from_setting(&env.string(&format!("{name}_ROOT_CA"), ROOT_PATH)),
            alt_hostname: non_empty(env.string(&format!("ALT_{name}_HOSTNAME"), "")),
            token: token.clone(),
            cluster_id: cluster_id.clone(),
            headers: env
                .with_prefix(&format!("{name}_HEADER_"))
                .into_iter()
                .collect(),
        };
        refuse_test_features(env);
        let families = families(env);
        let source = PodSource::read(env);
        let redirection = pods::redirection(env, &source);
        let spiffe_endpoint = security::spiffe_endpoint(env);
        let spire_admin_endpoint =
            security::spire_admin_endpoint(env, &source, spiffe_endpoint.as_deref());
        let certificates_for = security::certificates_for(&source, spire_admin_endpoint.as_deref());
        Self {
            xds: control_plane(env, "XDS"),
            ca: control_plane(env, "CA"),
            node: NodeConfig::read(env, &cluster_id),
            proxy: ProxyConfig::read(env, families, redirection, &source, certificates_for),
            capture: CaptureConfig::read(env, source),
            log: LogConfig {
                filter: env.string("RUST_LOG", "info"),
                format: log_format(env),
            },
            local_xds: LocalXds::read(env),
            secret_ttl: security::secret_ttl(env),
            crl_path: security::crl_path(env),
            withdrawal_grace: security::withdrawal_grace(env),
            spiffe_endpoint,
            spire_admin_endpoint,
            drain_deadline: drain_deadline(env),
            worker_threads: threads::worker_threads(env, mesh.concurrency, cores()),
            crypto: security::crypto(env),
            labels: env
                .parse_with("LEYLINE_METRIC_LABELS_REMOVED", KeptLabels::without)
                .unwrap_or(KeptLabels::ALL),
            pages: PagesConfig {
                admin_port: mesh.proxy_admin_port.unwrap_or(ports::ADMIN),
                metrics_port: mesh.stats_port.unwrap_or(ports::METRICS),
                families,
            },
        }
    }
}

impl NodeConfig {
    fn read(env: &mut Reader<'_>, cluster_id: &str) -> Self {
        Self {
            node: env.string("NODE_NAME", ""),
            network: Network::new(env.string("NETWORK", "")),
            cluster_id: cluster_id.to_owned(),
            pod_name: env.string("POD_NAME", ""),
            pod_namespace: env.string("POD_NAMESPACE", ""),
            service_account: env.string("SERVICE_ACCOUNT", ""),
            trust_domain: security::trust_domain(env),
            instance_ip: env
                .parse::<IpAddr>("INSTANCE_IP", [1, 1, 1, 1].into())
                .to_string(),
            istio_version: env.string("ISTIO_META_ISTIO_VERSION", "unknown"),
            metadata: mesh::node_metadata(env),
        }
    }
}

impl CaptureConfig {
    fn read(env: &mut Reader<'_>, source: PodSource) -> Self {
        Self {
            source,
            instance: env.string("LEYLINE_INSTANCE", "ztunnel"),
            bpffs: env.string("LEYLINE_BPFFS", "/sys/fs/bpf").into(),
            cgroup: non_empty(env.string("LEYLINE_CGROUP", "")).map(PathBuf::from),
            pod_netns_dir: env
                .string("LEYLINE_POD_NETNS_DIR", "/run/leyline/pods")
                .into(),
            steer: steer(env),
        }
    }
}

impl ProxyConfig {
    fn read(
        env: &mut Reader<'_>,
        families: Families,
        redirection: Redirection,
        source: &PodSource,
        certificates_for: CertificatesFor,
    ) -> Self {
        let dns = DnsConfig::read(env);
        Self {
            bypass_mark: bypass_mark(env),
            capture_mark: CAPTURE_MARK,
            keepalive: connections::keepalive(env),
            connect_deadline: Duration::from_secs(10),
            handshake_deadline: duration(
                env,
                "LEYLINE_HANDSHAKE_DEADLINE",
                Duration::from_secs(10),
                HANDSHAKE_DEADLINE,
            ),
            workload_deadline: Duration::from_secs(5),
            max_connections: within(env, "LEYLINE_MAX_CONNECTIONS_PER_POD", 65_536, COUNT),
            max_handshakes: within(env, "LEYLINE_MAX_HANDSHAKES_PER_POD", 512, COUNT),
            // A pool of ours opens half as many for one destination, and a gateway has a few for each of its threads.
            max_tunnels_per_source: within(env, "LEYLINE_MAX_TUNNELS_PER_SOURCE", 512, COUNT),
            max_window_per_source: within(env, "LEYLINE_MAX_WINDOW_PER_SOURCE", 128 << 20, WINDOWS),
            max_window_per_identity: within(
                env,
                "LEYLINE_MAX_WINDOW_PER_IDENTITY",
                512 << 20,
                WINDOWS,
            ),
            idle: connections::idle_limits(env),
            on_demand: connections::on_demand(env, &dns),
            localhost_app_tunnel: env.bool("LOCALHOST_APP_TUNNEL", true),
            families,
            redirection,
            port_use: pods::port_use(env),
            carries: pods::carries(env, redirection, dns.enabled),
            source_address: source_address(env, source),
            certificates_for,
            response_baggage: env.bool("ENABLE_RESPONSE_BAGGAGE", true),
            decisions: decisions(env),
            node_local: env.bool("LEYLINE_NODE_LOCAL", true),
            pace_tunnels: env.bool("LEYLINE_PACE_TUNNELS", false),
            socks5: env.bool("UNSTABLE_ENABLE_SOCKS5", false),
            hbone: connections::hbone(env),
            dns,
        }
    }
}

/// A mark that tells the proxy's own sockets: without one, capture would send their connections back to the proxy.
fn bypass_mark(env: &mut Reader<'_>) -> u32 {
    let mark = env.parse("PACKET_MARK", PACKET_MARK);
    if mark == 0 || mark == CAPTURE_MARK {
        env.reject(
            "PACKET_MARK",
            mark,
            "must not be 0 or the mark of captured connections",
        );
    }
    mark
}

/// A number that has bounds.
fn within<T>(env: &mut Reader<'_>, name: &str, default: T, bounds: RangeInclusive<T>) -> T
where
    T: Copy + Display + FromStr<Err: Display> + PartialOrd,
{
    let value = env.parse(name, default);
    if !bounds.contains(&value) {
        let (least, most) = (bounds.start(), bounds.end());
        env.reject(name, value, format!("must be between {least} and {most}"));
    }
    value
}

/// A duration that has bounds.
fn duration(
    env: &mut Reader<'_>,
    name: &str,
    default: Duration,
    bounds: RangeInclusive<Duration>,
) -> Duration {
    let value = env.duration(name, default);
    if !bounds.contains(&value) {
        let (least, most) = (bounds.start(), bounds.end());
        let shown = format!("{value:?}");
        env.reject(
            name,
            shown,
            format!("must be between {least:?} and {most:?}"),
        );
    }
    value
}

/// Where the control plane is when nothing else is said.
fn istiod(env: &mut Reader<'_>, mesh: &MeshDefaults) -> String {
    let under_kubernetes = !env.string("KUBERNETES_SERVICE_HOST", "").is_empty();
    match &mesh.discovery_address {
        Some(address) => address.clone(),
        None if under_kubernetes => "https://istiod.istio-system.svc:15012".to_owned(),
        None => "https://localhost:15012".to_owned(),
    }
}

/// What Istio has in builds for tests, and ours does not have.
fn refuse_test_features(env: &mut Reader<'_>) {
    if env.bool("FAKE_CA", false) {
        let why = "a CA that anybody knows is not built in";
        env.reject("FAKE_CA", true, why);
    }
}

fn families(env: &mut Reader<'_>) -> Families {
    if env.bool("IPV6_ENABLED", true) {
        Families::Both
    } else {
        Families::V4
    }
}

/// `true` and unset are the same for a node's pods: a listener that cannot be transparent is an error in either case.
/// Beside its only workload the process keeps the client's address where it is told to.
fn source_address(env: &mut Reader<'_>, source: &PodSource) -> SourceAddress {
    let keeps = !matches!(source, PodSource::Dedicated(_));
    if env.bool("ENABLE_ORIG_SRC", keeps) {
        SourceAddress::Client
    } else {
        SourceAddress::Own
    }
}

fn decisions(env: &mut Reader<'_>) -> DecisionLevel {
    if env.bool("AUTHZ_POLICY_INFO_LOGGING", false) {
        DecisionLevel::Info
    } else {
        DecisionLevel::Debug
    }
}

/// Facts A2: the explicit deadline wins; else a little less than the grace period of the pod; else 5 s.
fn drain_deadline(env: &mut Reader<'_>) -> Duration {
    let grace: Option<u64> = env.parse_optional("TERMINATION_GRACE_PERIOD_SECONDS");
    let default = match grace {
        None => 5,
        Some(grace @ 0..=10) => grace.saturating_sub(1).max(1),
        Some(grace) => grace - 5,
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

#[cfg(test)]
mod tests {
    use leyline_runtime::env::MapEnv;

    use super::*;

    fn read<const N: usize>(vars: [(&str, &str); N]) -> Result<Config, String> {
        let env = MapEnv::from(vars);
        let mut reader = Reader::new(&env);
        let config = Config::read(&mut reader);
        reader.finish().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn defaults_are_istios() {
        let config = read([]).unwrap();
        assert_eq!(config.xds.address, "https://localhost:15012");
        assert_eq!(config.proxy.bypass_mark, 1337);
        assert_eq!(config.proxy.keepalive, Some(Keepalive::default()));
        assert_eq!(config.proxy.hbone.outbound_streams, 100);
        assert_eq!(config.secret_ttl, Duration::from_secs(24 * 3600));
        assert_eq!(config.node.cluster_id, "Kubernetes");
        let config = read([("KUBERNETES_SERVICE_HOST", "10.96.0.1")]).unwrap();
        assert_eq!(config.ca.address, "https://istiod.istio-system.svc:15012");
    }

    #[test]
    fn what_is_set_counts() {
        let config = read([
            ("CLUSTER_ID", "one"),
            ("ISTIO_META_CLUSTER_ID", "two"),
            ("KEEPALIVE_ENABLED", "false"),
            ("XDS_HEADER_X-A", "1"),
            ("CA_HEADER_X-B", "2"),
            ("LEYLINE_MAX_CONNECTIONS_PER_POD", "7"),
        ])
        .unwrap();
        assert_eq!(config.xds.cluster_id, "two");
        assert_eq!(config.proxy.keepalive, None);
        assert_eq!(config.xds.headers, [("X-A".to_owned(), "1".to_owned())]);
        assert_eq!(config.ca.headers, [("X-B".to_owned(), "2".to_owned())]);
        assert_eq!(config.proxy.max_connections, 7);
    }

    /// Facts A2: a variable, a value, and what becomes of it.
    // tidy: table
    #[test]
    fn each_variable_reaches_its_place() {
        type Shown = fn(&Config) -> String;
        let shown = |key: &'static str| move |config: &Config| config.shown()[key].to_string();
        let checks: &[(&str, &str, Shown, &str)] = &[
            ("XDS_ADDRESS", "a:1", |c| c.xds.address.clone(), "a:1"),
            ("XDS_ADDRESS", "", |c| c.xds.address.clone(), ""),
            ("CA_ADDRESS", "b:1", |c| c.ca.address.clone(), "b:1"),
            (
                "XDS_ROOT_CA",
                "SYSTEM",
                |c| format!("{:?}", c.xds.root),
                "System",
            ),
            (
                "CA_ROOT_CA",
                "/r.pem",
                |c| format!("{:?}", c.ca.root),
                "File(\"/r.pem\")",
            ),
            (
                "ALT_XDS_HOSTNAME",
                "x",
                |c| format!("{:?}", c.xds.alt_hostname),
                "Some(\"x\")",
            ),
            (
                "ALT_CA_HOSTNAME",
                "y",
                |c| format!("{:?}", c.ca.alt_hostname),
                "Some(\"y\")",
            ),
            (
                "AUTH_TOKEN",
                "./t",
                |c| format!("{:?}", c.ca.token),
                "File(\"./t\")",
            ),
            (
                "PROXY_CONFIG",
                "discoveryAddress: p:1",
                |c| c.ca.address.clone(),
                "p:1",
            ),
            (
                "PROXY_CONFIG",
                "proxyAdminPort: 1",
                |c| c.pages.admin_port.to_string(),
                "1",
            ),
            (
                "PROXY_CONFIG",
                "statsPort: 2",
                |c| c.pages.metrics_port.to_string(),
                "2",
            ),
            (
                "PROXY_CONFIG",
                "concurrency: 7",
                |c| c.worker_threads.to_string(),
                "7",
            ),
            (
                "ZTUNNEL_WORKER_THREADS",
                "9",
                |c| c.worker_threads.to_string(),
                "9",
            ),
            (
                "ISTIO_META_ISTIO_VERSION",
                "1.31.0",
                |c| c.node.istio_version.clone(),
                "1.31.0",
            ),
            (
                "ISTIO_META_X",
                "1",
                |c| c.node.metadata["X"].to_string(),
                "\"1\"",
            ),
            (
                "ISTIO_METAJSON_X",
                "[1]",
                |c| c.node.metadata["X"].to_string(),
                "[1]",
            ),
            ("NODE_NAME", "n", |c| c.node.node.clone(), "n"),
            ("NETWORK", "net", |c| c.node.network.to_string(), "net"),
            ("POD_NAME", "p", |c| c.node.pod_name.clone(), "p"),
            ("POD_NAMESPACE", "q", |c| c.node.pod_namespace.clone(), "q"),
            (
                "SERVICE_ACCOUNT",
                "r",
                |c| c.node.service_account.clone(),
                "r",
            ),
            (
                "TRUST_DOMAIN",
                "td.example",
                |c| {
                    format!(
                        "{:?}",
                        c.node.trust_domain.as_ref().map(ToString::to_string)
                    )
                },
                "Some(\"td.example\")",
            ),
            ("INSTANCE_IP", "::1", |c| c.node.instance_ip.clone(), "::1"),
            (
                "SECRET_TTL",
                "1h",
                |c| format!("{:?}", c.secret_ttl),
                "3600s",
            ),
            (
                "CRL_PATH",
                "/crl.pem",
                |c| format!("{:?}", c.crl_path),
                "Some(\"/crl.pem\")",
            ),
            (
                "LEYLINE_WITHDRAWN_ROOT_GRACE",
                "0",
                |c| format!("{:?}", c.withdrawal_grace),
                "0ns",
            ),
            (
                "SPIFFE_ENDPOINT_SOCKET",
                "unix:///a.sock",
                |c| format!("{:?}", c.spiffe_endpoint),
                "Some(\"unix:///a.sock\")",
            ),
            (
                "SPIRE_ADMIN_ENDPOINT_SOCKET",
                "unix:///b.sock",
                |c| {
                    format!(
                        "{:?} {:?}",
                        c.spire_admin_endpoint, c.proxy.certificates_for
                    )
                },
                "Some(\"unix:///b.sock\") WhoAsks",
            ),
            (
                "COMPLIANCE_POLICY",
                "pqc",
                |c| format!("{:?}", c.crypto.key_exchange),
                "HybridOnly",
            ),
            (
                "COMPLIANCE_POLICY",
                "fips-140-2",
                |c| format!("{:?}", c.crypto.key_exchange),
                "PreferHybrid",
            ),
            (
                "TLS12_ENABLED",
                "true",
                |c| format!("{:?}", c.crypto.oldest),
                "Tls12",
            ),
            (
                "IPV6_ENABLED",
                "false",
                |c| format!("{:?}", c.proxy.families),
                "V4",
            ),
            (
                "ENABLE_ORIG_SRC",
                "false",
                |c| format!("{:?}", c.proxy.source_address),
                "Own",
            ),
            (
                "ENABLE_RESPONSE_BAGGAGE",
                "false",
                |c| c.proxy.response_baggage.to_string(),
                "false",
            ),
            (
                "AUTHZ_POLICY_INFO_LOGGING",
                "true",
                |c| format!("{:?}", c.proxy.decisions),
                "Info",
            ),
            (
                "USER_TIMEOUT_ENABLED",
                "true",
                |c| format!("{:?}", c.proxy.keepalive.map(|k| k.user_timeout)),
                "Some(true)",
            ),
            (
                "LEYLINE_HALF_CLOSED_TIMEOUT",
                "0",
                |c| format!("{:?}", c.proxy.idle.half_closed),
                "None",
            ),
            (
                "LEYLINE_IDLE_TIMEOUT",
                "1h",
                |c| format!("{:?}", c.proxy.idle.open),
                "Some(3600s)",
            ),
            ("PACKET_MARK", "7", |c| c.proxy.bypass_mark.to_string(), "7"),
            (
                "POOL_MAX_STREAMS_PER_CONNECTION",
                "5",
                |c| c.proxy.hbone.outbound_streams.to_string(),
                "5",
            ),
            (
                "POOL_UNUSED_RELEASE_TIMEOUT",
                "1m",
                |c| format!("{:?}", c.proxy.hbone.idle),
                "60s",
            ),
            (
                "HTTP2_FRAME_SIZE",
                "16384",
                |c| c.proxy.hbone.max_frame_size.to_string(),
                "16384",
            ),
            (
                "LOG_FORMAT",
                "json",
                |c| format!("{:?}", c.log.format),
                "Json",
            ),
            ("RUST_LOG", "debug", |c| c.log.filter.clone(), "debug"),
            (
                "UNSTABLE_ENABLE_SOCKS5",
                "true",
                |c| c.proxy.socks5.to_string(),
                "true",
            ),
        ];
        for (name, value, found, expected) in checks {
            let config = read([(name, value)]).unwrap();
            assert_eq!(found(&config), *expected, "{name}={value}");
        }
        let config = read([("KEEPALIVE_TIME", "7s")]).unwrap();
        let socket: serde_json::Value = shown("socketConfig")(&config).parse().unwrap();
        assert_eq!(socket["keepaliveTime"], "7s");
    }

    #[test]
    fn drain_deadlines() {
        let check = |vars: &[(&str, &str)], seconds: u64| {
            let pairs = vars.iter();
            let env = MapEnv(
                pairs
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect(),
            );
            let config = Config::read(&mut Reader::new(&env));
            assert_eq!(
                config.drain_deadline,
                Duration::from_secs(seconds),
                "{vars:?}"
            );
        };
        let grace = "TERMINATION_GRACE_PERIOD_SECONDS";
        check(&[], 5);
        check(&[(grace, "0")], 1);
        check(&[(grace, "1")], 1);
        check(&[(grace, "10")], 9);
        check(&[(grace, "11")], 6);
        check(&[(grace, "30")], 25);
        let explicit = ("CONNECTION_TERMINATION_DEADLINE", "0");
        check(&[(grace, "30"), explicit], 0);
    }

    #[test]
    fn every_setting_that_nothing_could_work_with_is_told_at_once() {
        let bad = [
            ("PROXY_MODE", "sidecar"),
            ("PACKET_MARK", "0"),
            ("KEEPALIVE_TIME", "500ms"),
            ("KEEPALIVE_INTERVAL", "10h"),
            ("KEEPALIVE_RETRIES", "0"),
            ("HTTP2_FRAME_SIZE", "1024"),
            ("HTTP2_STREAM_WINDOW_SIZE", "4294967295"),
            ("HTTP2_CONNECTION_WINDOW_SIZE", "many"),
            ("POOL_MAX_STREAMS_PER_CONNECTION", "0"),
            ("LEYLINE_MAX_CONNECTIONS_PER_POD", "0"),
            ("LEYLINE_MAX_HANDSHAKES_PER_POD", "-1"),
            ("LEYLINE_HANDSHAKE_DEADLINE", "0"),
            ("LEYLINE_MAX_WINDOW_PER_SOURCE", "0"),
            ("LEYLINE_MAX_WINDOW_PER_IDENTITY", "0"),
            ("SECRET_TTL", "0"),
            ("LEYLINE_METRIC_LABELS_REMOVED", "reporter"),
            ("IPV6_ENABLED", "1"),
            ("ENABLE_ORIG_SRC", "yes"),
            ("ENABLE_RESPONSE_BAGGAGE", "True"),
            ("USER_TIMEOUT_ENABLED", "0"),
            ("TLS12_ENABLED", ""),
            ("AUTHZ_POLICY_INFO_LOGGING", "on"),
            ("FAKE_CA", "true"),
            ("UNSTABLE_ENABLE_SOCKS5", "1"),
            ("PROXY_CONFIG", "concurrency: x"),
            ("ISTIO_METAJSON_A", "{"),
            ("ZTUNNEL_WORKER_THREADS", "0%"),
            ("ZTUNNEL_CPU_LIMIT", "2G"),
            ("TERMINATION_GRACE_PERIOD_SECONDS", "30s"),
            ("CONNECTION_TERMINATION_DEADLINE", "soon"),
            ("POOL_UNUSED_RELEASE_TIMEOUT", "1.5s"),
            ("IPV6_ENABLED_TYPO_IS_IGNORED", "1"),
            ("KEEPALIVE_ENABLED", "true"),
            ("LOG_FORMAT", "xml"),
            ("INSTANCE_IP", "here"),
            ("LEYLINE_IDLE_TIMEOUT", "1ms"),
            ("TRUST_DOMAIN", "a/b"),
            ("XDS_ON_DEMAND", "true"),
            ("ENABLE_PROXY", "false"),
        ];
        let error = read(bad).unwrap_err();
        for (name, value) in bad {
            let told = error.contains(&format!("invalid env var {name}="));
            let fine = name == "KEEPALIVE_ENABLED" || name == "IPV6_ENABLED_TYPO_IS_IGNORED";
            assert_eq!(told, !fine, "{name}={value}: {error}");
        }
        assert_eq!(error.lines().count(), bad.len() - 2, "{error}");
    }

    #[test]
    fn secrets_are_not_shown() {
        let config = read([("AUTH_TOKEN", "very-secret")]).unwrap();
        let shown = format!("{} {config:?}", config.shown());
        assert!(!shown.contains("very-secret"), "{shown}");
    }
}
