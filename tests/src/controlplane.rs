//! The real control plane, in the infrastructure namespace.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use leyline_net::NetNs;
use serde_json::Value;

use crate::{
    client::Client,
    eventually::eventually,
    fabric::CONTROL_PLANE,
    process::{Log, Process, Program},
    run::Run,
};

/// Port of xDS, CA and enrolment.
pub const PORT: u16 = 15012;
/// Readiness, status and metrics, on the loopback of the infrastructure; the port is that of istiod's.
pub const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15014);
/// It makes a root on first start and reads some files.
const READY_DEADLINE: Duration = Duration::from_secs(15);
const PROBE_DEADLINE: Duration = Duration::from_secs(1);
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// The running control plane.
#[derive(Debug)]
pub struct ControlPlane {
    program: Program,
    process: Option<Process>,
}

impl ControlPlane {
    /// Starts it and waits until it serves.
    pub async fn start(run: &Run, namespace: &NetNs, binary: &Path) -> Result<Self> {
        let mut args: Vec<OsString> = vec![
            "serve".into(),
            "--config".into(),
            run.config_dir().into(),
            "--state-dir".into(),
            run.state_dir().into(),
            "--listen".into(),
            format!("[::]:{PORT}").into(),
            "--admin".into(),
            ADMIN.to_string().into(),
        ];
        for name in CONTROL_PLANE {
            args.extend(["--san".into(), name.to_string().into()]);
        }
        let program = Program {
            name: "controlplane".to_owned(),
            path: binary.to_owned(),
            args,
            env: BTreeMap::new(),
            namespace: namespace.clone(),
        };
        let mut started = Self {
            program,
            process: None,
        };
        started.start_again(run).await?;
        Ok(started)
    }

    /// Starts it after [`Self::stop`].
    pub async fn start_again(&mut self, run: &Run) -> Result<()> {
        let mut process = Process::start(run, &self.program)?;
        let client = Client::new(self.program.namespace.clone());
        eventually("the control plane serves", READY_DEADLINE, || {
            let (alive, client) = (process.check_alive(), client.clone());
            async move {
                alive?;
                let reply = client.get(ADMIN, "/ready", PROBE_DEADLINE).await?;
                ensure!(
                    reply.status == StatusCode::OK,
                    "/ready answers {}",
                    reply.status
                );
                Ok(())
            }
        })
        .await
        .with_context(|| process.log().tail())?;
        self.process = Some(process);
        Ok(())
    }

    /// Has it sign with the CA of a directory from its next start on.
    pub fn set_ca_dir(&mut self, directory: &Path) {
        self.program
            .args
            .extend(["--ca-dir".into(), directory.into()]);
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
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
        Ok(self
            .process
            .as_ref()
            .context("the control plane is stopped")?
            .log())
    }

    /// Its status page: objects with their conditions, and proxies with what they have acknowledged.
    pub async fn status(&self) -> Result<Value> {
        let client = Client::new(self.program.namespace.clone());
        let reply = client.get(ADMIN, "/status", PROBE_DEADLINE).await?;
        serde_json::from_slice(&reply.body).context("reading /status")
    }

    /// The address that proxies are given.
    pub fn url() -> String {
        match CONTROL_PLANE[0] {
            IpAddr::V4(ip) => format!("https://{ip}:{PORT}"),
            IpAddr::V6(ip) => format!("https://[{ip}]:{PORT}"),
        }
    }

    /// Has it issue the token of a node, and returns the file that holds it.
    pub async fn token(&self, run: &Run, node: &str) -> Result<PathBuf> {
        let account = [
            "--namespace",
            "istio-system",
            "--service-account",
            "ztunnel",
        ];
        let bound = ["--node", node];
        self.issue(run, node, &[&account[..], &bound[..]].concat())
            .await
    }

    /// Likewise of a service account.
    pub async fn account_token(&self, run: &Run, namespace: &str, name: &str) -> Result<PathBuf> {
        let account = ["--namespace", namespace, "--service-account", name];
        self.issue(run, &format!("{namespace}-{name}"), &account)
            .await
    }

    async fn issue(&self, run: &Run, file: &str, args: &[&str]) -> Result<PathBuf> {
        let output = tokio::process::Command::new(&self.program.path)
            .env_clear()
            .arg("token")
            .arg("--state-dir")
            .arg(run.state_dir())
            .args(args)
            .output()
            .await
            .with_context(|| format!("running {}", self.program.path.display()))?;
        ensure!(
            output.status.success(),
            "`controlplane token` for {file}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let path = run.secrets_dir().join(format!("{file}.token"));
        fs::write(&path, String::from_utf8(output.stdout)?.trim())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(path)
    }
}
