//! The real node proxy of one node, in the node's namespace.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::ExitStatus,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use http::StatusCode;
use leyline_net::NetNs;
use leyline_types::ports;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    client::{Client, Reply},
    controlplane::ControlPlane,
    eventually::eventually,
    metrics::Metrics,
    process::{Log, Process, Program},
    run::Run,
};

/// From start to ready, with xDS synchronized and all pods of the node enrolled.
const READY_DEADLINE: Duration = Duration::from_secs(20);
/// For one request to its admin, metrics or readiness server.
const ADMIN_DEADLINE: Duration = Duration::from_secs(5);
/// Its own drain deadline is 5 s where nothing is set.
const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// A node's proxy.
#[derive(Debug)]
pub struct Ztunnel {
    program: Program,
    client: Client,
    process: Option<Process>,
}

impl Ztunnel {
    /// Starts the proxy of `node`.
    pub fn start(
        run: &Run,
        node: &str,
        namespace: &NetNs,
        binary: &Path,
        token: &Path,
    ) -> Result<Self> {
        let mut prepared = Self::prepare(run, node, namespace, binary, token);
        prepared.start_again(run)?;
        Ok(prepared)
    }

    /// The same without starting it yet.
    pub fn prepare(run: &Run, node: &str, namespace: &NetNs, binary: &Path, token: &Path) -> Self {
        let root = run.state_dir().join("root-cert.pem");
        let env = [
            ("NODE_NAME", node.into()),
            ("XDS_ADDRESS", ControlPlane::url().into()),
            ("CA_ADDRESS", ControlPlane::url().into()),
            ("XDS_ROOT_CA", root.clone().into()),
            ("CA_ROOT_CA", root.into()),
            ("AUTH_TOKEN", token.into()),
            ("CLUSTER_ID", "Kubernetes".into()),
            ("RUST_LOG", "info".into()),
            // Short, so that the check of a peer that never speaks is short too.
            ("LEYLINE_HANDSHAKE_DEADLINE", "2s".into()),
            ("LEYLINE_POD_NETNS_DIR", run.pods_dir().into()),
            ("LEYLINE_INSTANCE", format!("{}-{node}", run.id()).into()),
            ("LEYLINE_BPFFS", run.bpffs().into()),
        ];
        let program = Program {
            name: format!("ztunnel-{node}"),
            path: binary.to_owned(),
            args: vec!["proxy".into()],
            env: env
                .into_iter()
                .map(|(name, value): (&str, OsString)| (name.to_owned(), value))
                .collect::<BTreeMap<_, _>>(),
            namespace: namespace.clone(),
        };
        Self {
            program,
            client: Client::new(namespace.clone()),
            process: None,
        }
    }

    /// Starts it after [`Self::kill`] or [`Self::stop`].
    pub fn start_again(&mut self, run: &Run) -> Result<()> {
        self.process = Some(Process::start(run, &self.program)?);
        Ok(())
    }

    /// How it is started; a change counts from the next start on.
    pub fn program_mut(&mut self) -> &mut Program {
        &mut self.program
    }

    /// Sends a signal and does not wait.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.running()?.signal(signal)
    }

    /// Waits until it has ended by itself.
    pub async fn ended_by_itself(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let status = self.running_mut()?.ended_by_itself(deadline).await?;
        self.process = None;
        Ok(status)
    }

    /// A request to one of its own pages, whatever it answers.
    pub async fn ask(&self, method: &str, port: u16, path: &str) -> Result<Reply> {
        let target = loopback(port);
        let nothing = bytes::Bytes::new();
        self.client
            .request(method, target, path, nothing, ADMIN_DEADLINE)
            .await
    }

    /// Starts another proxy for the same node, in another namespace: the next version during an upgrade.
    pub fn start_successor(&self, run: &Run, namespace: &NetNs) -> Result<Self> {
        let mut program = self.program.clone();
        program.name = format!("{}-next", program.name);
        program.namespace = namespace.clone();
        let mut started = Self {
            program,
            client: Client::new(namespace.clone()),
            process: None,
        };
        started.start_again(run)?;
        Ok(started)
    }

    /// Whether it was started and not ended by us.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Its process id, to look at what it uses.
    pub fn pid(&self) -> Result<u32> {
        self.running()?
            .pid()
            .with_context(|| format!("{} has ended", self.program.name))
    }

    /// Waits until its readiness server says so.
    pub async fn ready(&mut self) -> Result<Duration> {
        let name = self.program.name.clone();
        let client = self.client.clone();
        let process = self.running_mut()?;
        let ready = eventually(format!("{name} is ready"), READY_DEADLINE, || {
            let (alive, client) = (process.check_alive(), client.clone());
            async move {
                alive?;
                let target = loopback(ports::READINESS);
                let reply = client.get(target, "/healthz/ready", ADMIN_DEADLINE).await?;
                if reply.status != StatusCode::OK {
                    bail!("{}", String::from_utf8_lossy(&reply.body).trim().to_owned());
                }
                Ok(())
            }
        })
        .await;
        match ready {
            Ok(((), after)) => Ok(after),
            Err(e) => Err(e.context(self.running()?.log().tail())),
        }
    }

    /// `kill -9`.
    pub async fn kill(&mut self) -> Result<()> {
        self.running_mut()?.kill().await?;
        self.process = None;
        Ok(())
    }

    /// Ends it in order.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.terminate(STOP_DEADLINE).await?;
        }
        Ok(())
    }

    /// Its output since its last start.
    pub fn log(&self) -> Result<&Log> {
        Ok(self.running()?.log())
    }

    /// A scrape.
    pub async fn metrics(&self) -> Result<Metrics> {
        let reply = self.get(ports::METRICS, "/metrics").await?;
        Metrics::parse(std::str::from_utf8(&reply.body)?)
    }

    /// What it knows, as `istioctl ztunnel-config` would ask for it.
    pub async fn config_dump(&self) -> Result<Value> {
        let reply = self.get(ports::ADMIN, "/config_dump").await?;
        serde_json::from_slice(&reply.body).context("reading /config_dump")
    }

    async fn get(&self, port: u16, path: &str) -> Result<Reply> {
        let reply = self
            .client
            .get(loopback(port), path, ADMIN_DEADLINE)
            .await?;
        ensure!(
            reply.status == StatusCode::OK,
            "{} answers {} to {path}",
            self.program.name,
            reply.status
        );
        Ok(reply)
    }

    fn running(&self) -> Result<&Process> {
        self.process
            .as_ref()
            .with_context(|| format!("{} does not run", self.program.name))
    }

    fn running_mut(&mut self) -> Result<&mut Process> {
        self.process
            .as_mut()
            .with_context(|| format!("{} does not run", self.program.name))
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
