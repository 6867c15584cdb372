//! A program of ours that runs for long: a node's proxy or a waypoint, with its pages on the ports that both have.

use std::{
    net::{Ipv4Addr, SocketAddr},
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
    eventually::eventually,
    metrics::Metrics,
    process::{Log, Process, Program},
    run::Run,
};

/// From start to ready, with xDS synchronized and, on a node, all its pods enrolled.
const READY_DEADLINE: Duration = Duration::from_secs(20);
/// For one request to its admin, metrics or readiness server.
const ADMIN_DEADLINE: Duration = Duration::from_secs(5);
/// Its own drain deadline is 5 s where nothing is set.
const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// A proxy, running or not.
#[derive(Debug)]
pub struct Daemon {
    program: Program,
    client: Client,
    process: Option<Process>,
}

impl Daemon {
    /// One that does not run yet.
    pub(crate) fn new(program: Program) -> Self {
        Self {
            client: Client::new(program.namespace.clone()),
            program,
            process: None,
        }
    }

    /// Starts it, also again after [`Self::kill`] or [`Self::stop`].
    pub fn start(&mut self, run: &Run) -> Result<()> {
        self.process = Some(Process::start(run, &self.program)?);
        Ok(())
    }

    /// How it is started; a change counts from the next start on.
    pub fn program_mut(&mut self) -> &mut Program {
        &mut self.program
    }

    /// Settings for its next start.
    pub fn set_env(&mut self, env: &[(&str, &str)]) {
        let env = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).into()));
        self.program.env.extend(env);
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
        self.ask_patiently(method, port, path, ADMIN_DEADLINE).await
    }

    /// The same of a page that takes its time.
    pub async fn ask_patiently(
        &self,
        method: &str,
        port: u16,
        path: &str,
        deadline: Duration,
    ) -> Result<Reply> {
        let nothing = bytes::Bytes::new();
        let target = loopback(port);
        self.client
            .request(method, target, path, nothing, deadline)
            .await
    }

    /// Starts another proxy for the same node, in another namespace: the next version during an upgrade.
    pub fn start_successor(&self, run: &Run, namespace: &NetNs) -> Result<Self> {
        let mut program = self.program.clone();
        program.name = format!("{}-next", program.name);
        program.namespace = namespace.clone();
        let mut started = Self::new(program);
        started.start(run)?;
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

    /// What it knows, as `istioctl` would ask for it.
    pub async fn config_dump(&self) -> Result<Value> {
        self.admin("/config_dump").await
    }

    /// One of its admin pages.
    pub async fn admin(&self, path: &str) -> Result<Value> {
        let reply = self.get(ports::ADMIN, path).await?;
        serde_json::from_slice(&reply.body).with_context(|| format!("reading {path}"))
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
