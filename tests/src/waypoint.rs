//! The real L7 proxy of one Gateway, in the namespace of its pod.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use http::StatusCode;
use leyline_types::ports;
use serde_json::Value;

use crate::{
    client::Client,
    controlplane::ControlPlane,
    eventually::eventually,
    kubelet::Pod,
    process::{Log, Process, Program},
    run::Run,
};

/// From start to ready, with xDS synchronized.
const READY_DEADLINE: Duration = Duration::from_secs(20);
/// For one request to its own pages.
const ADMIN_DEADLINE: Duration = Duration::from_secs(5);
/// Its own drain deadline is 5 s where nothing is set.
const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// A waypoint.
#[derive(Debug)]
pub struct Waypoint {
    program: Program,
    client: Client,
    process: Option<Process>,
}

impl Waypoint {
    /// Starts the waypoint of the Gateway whose pod this is.
    pub fn start(run: &Run, pod: &Pod, binary: &Path, token: &Path) -> Result<Self> {
        let spec = pod.spec();
        let root = run.state_dir().join("root-cert.pem");
        let env: [(&str, OsString); 11] = [
            ("POD_NAME", spec.name.as_str().into()),
            ("POD_NAMESPACE", spec.namespace.as_str().into()),
            ("SERVICE_ACCOUNT", spec.service_account.as_str().into()),
            ("INSTANCE_IP", pod.addresses().v4.to_string().into()),
            ("ISTIO_META_NODE_NAME", spec.node.as_str().into()),
            ("CA_ADDR", ControlPlane::url().into()),
            ("XDS_ROOT_CA", root.clone().into()),
            ("CA_ROOT_CA", root.into()),
            ("AUTH_TOKEN", token.into()),
            ("RUST_LOG", "info".into()),
            (
                "LEYLINE_RESOLV_CONF",
                run.state_dir().join("resolv.conf").into(),
            ),
        ];
        let program = Program {
            name: format!("waypoint-{}", spec.file()),
            path: binary.to_owned(),
            args: vec!["proxy".into(), "waypoint".into()],
            env: env
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            namespace: pod.namespace().clone(),
        };
        let mut started = Self {
            program,
            client: pod.client(),
            process: None,
        };
        started.start_again(run)?;
        Ok(started)
    }

    /// Starts it after [`Self::kill`] or [`Self::stop`].
    pub fn start_again(&mut self, run: &Run) -> Result<()> {
        self.process = Some(Process::start(run, &self.program)?);
        Ok(())
    }

    /// Whether it was started and not ended by us.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Waits until its readiness server says so.
    pub async fn ready(&mut self) -> Result<Duration> {
        let name = self.program.name.clone();
        let client = self.client.clone();
        let process = self
            .process
            .as_mut()
            .with_context(|| format!("{name} does not run"))?;
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
            Err(e) => Err(e.context(self.log()?.tail())),
        }
    }

    /// Settings for its next start.
    pub fn set_env(&mut self, env: &[(&str, &str)]) {
        let env = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).into()));
        self.program.env.extend(env);
    }

    /// `kill -9`.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill().await?;
        }
        Ok(())
    }

    /// Ends it in order.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.terminate(STOP_DEADLINE).await?;
        }
        Ok(())
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref()?.pid()
    }

    /// Its output since its last start.
    pub fn log(&self) -> Result<&Log> {
        let process = self.process.as_ref();
        Ok(process.context("the waypoint does not run")?.log())
    }

    /// One of its admin pages.
    pub async fn admin(&self, path: &str) -> Result<Value> {
        let reply = self
            .client
            .get(loopback(ports::ADMIN), path, ADMIN_DEADLINE)
            .await?;
        ensure!(
            reply.status == StatusCode::OK,
            "{path} answers {}",
            reply.status
        );
        serde_json::from_slice(&reply.body).with_context(|| format!("reading {path}"))
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
