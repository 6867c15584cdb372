//! The options of the binary.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use leyline_controlplane::{Caller, ServerConfig, translate::MeshSettings};
use leyline_runtime::env::parse_duration;
use leyline_types::{NamespacedName, TrustDomain};

use crate::commands::{StatusArgs, ValidateArgs};

/// The control plane of Leyline: discovery, certificates and enrolment for the proxies of a mesh.
#[derive(Debug, Parser)]
#[command(name = "controlplane", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve discovery, certificates and enrolment from directories of Kubernetes YAML.
    Serve(ServeArgs),
    /// Print a token with which a proxy authenticates itself.
    Token(TokenArgs),
    /// Say what is wrong in files before they are applied; fails if anything is that would be rejected.
    Validate(ValidateArgs),
    /// Show every object with its conditions, and each proxy with what it has acknowledged.
    Status(StatusArgs),
}

#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    /// A directory of *.yaml and *.yml files; may be given several times.
    #[arg(long = "config", value_name = "DIR", required = true)]
    config: Vec<PathBuf>,
    /// Holds the CA's key, the token key and root-cert.pem; made with mode 0700.
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// Sign with an operator's CA: the files of istiod's `cacerts` (ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem),
    /// which may be replaced at any time. By default the CA is our own, made in the state directory.
    #[arg(long, value_name = "DIR")]
    ca_dir: Option<PathBuf>,
    /// Where proxies connect, with TLS.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:15012")]
    listen: SocketAddr,
    /// Where /ready, /status and /metrics are served, without TLS or authentication; loopback is advised. None by default.
    #[arg(long, value_name = "ADDR:PORT")]
    admin: Option<SocketAddr>,
    /// Trust domain of every identity.
    #[arg(long, default_value = TrustDomain::DEFAULT)]
    trust_domain: TrustDomain,
    /// First part of every workload's uid.
    #[arg(long, default_value = "Kubernetes", value_parser = name)]
    cluster_id: String,
    /// Namespace of mesh-wide policies.
    #[arg(long, default_value = "istio-system", value_parser = name)]
    root_namespace: String,
    /// Suffix of service host names.
    #[arg(long, default_value = "cluster.local", value_parser = name)]
    cluster_domain: String,
    /// A further DNS name or address for the server's certificate; may be given several times.
    #[arg(long = "san", value_name = "NAME", value_parser = server_name)]
    names: Vec<String>,
    /// Service accounts of node proxies, which may ask for the identities of their pods.
    #[arg(
        long = "node-account",
        value_name = "NAMESPACE/NAME",
        default_value = "istio-system/ztunnel"
    )]
    node_accounts: Vec<NamespacedName>,
    /// Levels of the log: `info`, or `info,leyline_controlplane::xds=debug`.
    #[arg(long, default_value = "info")]
    pub(crate) log: String,
    /// Log as JSON.
    #[arg(long)]
    pub(crate) log_json: bool,
    /// Worker threads.
    #[arg(long, default_value_t = 2, value_parser = threads)]
    pub(crate) threads: usize,
}

impl ServeArgs {
    pub(crate) fn into_config(self) -> ServerConfig {
        ServerConfig {
            config_dirs: self.config,
            state_dir: self.state_dir,
            ca_dir: self.ca_dir,
            listen: self.listen,
            admin: self.admin,
            names: self.names,
            mesh: MeshSettings {
                trust_domain: self.trust_domain,
                cluster_id: self.cluster_id,
                root_namespace: self.root_namespace,
                cluster_domain: self.cluster_domain,
                node_accounts: self.node_accounts,
            },
        }
    }
}

/// What Kubernetes calls things: it becomes part of identities, where `:` and `/` mean something.
fn name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == '_';
    if text.is_empty() || text.len() > 253 || !text.chars().all(allowed) {
        return Err("not a name: only letters, digits, `-`, `.` and `_`".to_owned());
    }
    Ok(text.to_owned())
}

fn server_name(text: &str) -> Result<String, String> {
    match text.parse::<IpAddr>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => name(text),
    }
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=1024) => Ok(count),
        Ok(_) | Err(_) => Err("must be a number from 1 to 1024".to_owned()),
    }
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = parse_duration(text)?;
    if lifetime < Duration::from_secs(1) {
        return Err("a token must be valid for a second at least".to_owned());
    }
    Ok(lifetime)
}

#[derive(Args, Debug)]
pub(crate) struct TokenArgs {
    /// The state directory of the control plane that will be called.
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: PathBuf,
    /// Namespace of the service account; that of ztunnel is istio-system.
    #[arg(long, value_parser = name)]
    namespace: String,
    /// The service account; that of a node proxy is ztunnel.
    #[arg(long, value_parser = name)]
    service_account: String,
    /// The node that the token is bound to; a node proxy needs one.
    #[arg(long, value_parser = name)]
    node: Option<String>,
    /// The pod that the token is bound to.
    #[arg(long, value_parser = name)]
    pod: Option<String>,
    /// How long the token is valid: `12h`, `30m`. Streams opened with it end with it.
    #[arg(long, default_value = "12h", value_parser = lifetime)]
    pub(crate) ttl: Duration,
}

impl TokenArgs {
    pub(crate) fn caller(&self) -> Caller {
        Caller {
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
            node: self.node.clone(),
            pod: self.pod.clone(),
        }
    }
}
