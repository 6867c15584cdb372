//! Where measurements are made: two nodes, a client pod on one and a server pod on the other, once plain and once in the
//! mesh, with the real control plane and proxies.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use leyline_types::ports::HBONE;
use serde::de::DeserializeOwned;

use super::{
    load::{hold::Held, ports},
    profile::Profile,
    usage,
};
use crate::{
    certificates::{Authority, Credential},
    cluster::{Binaries, Family},
    eventually::eventually,
    kubelet::Pod,
    mesh::{Limits, Mesh, Options, uid},
    process::{Process, Program, output},
    run::Run,
};

/// The nodes of the two proxies: the client's, the server's.
const NODES: [&str; 2] = ["node-a", "node-b"];
/// Connection set-up, the last replies and the end of a client's process, besides the time that it measures.
const SLACK: Duration = Duration::from_secs(20);
/// For 8,000 connections to be opened.
const HOLD_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(10);
const ENROL_DEADLINE: Duration = Duration::from_secs(15);

/// Which of the two pairs of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Route {
    /// Plain veth.
    Direct,
    /// Through both proxies.
    Mesh,
    /// Between two pods of the server's node, inside its proxy.
    Local,
}

impl Route {
    fn client(self) -> &'static str {
        match self {
            Self::Direct => "direct/client",
            Self::Mesh => "mesh/client",
            Self::Local => "mesh/neighbour",
        }
    }

    fn server(self) -> &'static str {
        match self {
            Self::Direct => "direct/server",
            Self::Mesh | Self::Local => "mesh/server",
        }
    }
}

/// A client's result, and the CPU seconds of the proxies of both nodes meanwhile.
pub(super) struct Measured<T> {
    pub(super) result: T,
    pub(super) cpu: [f64; 2],
}

/// The running mesh with its load servers.
pub(super) struct Scene {
    mesh: Mesh,
    load: PathBuf,
    /// They end with the run.
    _servers: Vec<Process>,
    profiles: Option<PathBuf>,
}

impl Scene {
    /// Brings everything up and waits until the mesh pair is enrolled.
    pub(super) async fn start(
        run: Run,
        binaries: &Path,
        profiles: Option<PathBuf>,
        progress: &dyn Fn(&str),
    ) -> Result<Self> {
        let load = binaries.join("leyline-load");
        ensure!(
            load.exists(),
            "{} is not built: run `cargo build --profile dist -p leyline-tests`",
            load.display()
        );
        let options = Options {
            run,
            binaries: Binaries::in_dir(binaries),
            manifests: vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/bench")],
            limits: Limits::DEMO,
            // None are needed here, so none are installed.
            peers: PathBuf::new(),
        };
        let mesh = Mesh::start(options, progress).await?;
        let mut scene = Self {
            mesh,
            load,
            _servers: Vec::new(),
            profiles,
        };
        for route in [Route::Direct, Route::Mesh] {
            let server = scene.start_server(route).await?;
            scene._servers.push(server);
        }
        progress("enrolment");
        scene.enrolled().await?;
        Ok(scene)
    }

    async fn start_server(&self, route: Route) -> Result<Process> {
        let pod = self.mesh.cluster().pod(route.server())?;
        let program = self.program("server", pod, vec!["server".into()]);
        let mut process = Process::start(self.mesh.cluster().run(), &program)?;
        for port in ports::ALL {
            let (client, target) = (pod.client(), pod.v4(port));
            eventually(format!("{} serves", route.server()), STOP_DEADLINE, || {
                let (alive, client) = (process.check_alive(), client.clone());
                async move {
                    alive?;
                    client.connect(target, STOP_DEADLINE).await
                }
            })
            .await?;
        }
        Ok(process)
    }

    async fn enrolled(&self) -> Result<()> {
        eventually("the mesh pair is enrolled", ENROL_DEADLINE, || async {
            for (node, dump) in self.mesh.dumps().await? {
                for pod in [
                    Route::Mesh.client(),
                    Route::Mesh.server(),
                    Route::Local.client(),
                ] {
                    dump.check_enrolled(&uid(pod))
                        .with_context(|| format!("on {node}"))?;
                }
                ensure!(!dump.up.is_empty(), "no pod is served on {node}");
            }
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// Runs a client over `route` and reads what it printed. `{server}` in `args` stands for the server's address.
    pub(super) async fn measure<T: DeserializeOwned>(
        &self,
        route: Route,
        args: &[&str],
        measured: Duration,
    ) -> Result<Measured<T>> {
        let server = self.server(route)?.to_string();
        let args = args
            .iter()
            .map(|arg| arg.replace("{server}", &server).into())
            .collect();
        let pod = self.mesh.cluster().pod(route.client())?;
        self.observe(&self.program("client", pod, args), measured, route)
            .await
    }

    /// Makes tunnels to the server's proxy, from outside the mesh but with a certificate of the mesh.
    pub(super) async fn measure_tunnels<T: DeserializeOwned>(
        &self,
        credential: &Credential,
        measured: Duration,
    ) -> Result<Measured<T>> {
        let seconds = measured.as_secs_f64().to_string();
        let program = self.tunnels(credential, "--seconds", &seconds)?;
        self.observe(&program, measured, Route::Mesh).await
    }

    /// Opens idle tunnels to the server's proxy, with one stream in each, and returns the process that holds them.
    pub(super) async fn hold_tunnels(
        &self,
        credential: &Credential,
        tunnels: usize,
    ) -> Result<Process> {
        let program = self.tunnels(credential, "--hold", &tunnels.to_string())?;
        let mut process = Process::start(self.mesh.cluster().run(), &program)?;
        let line = process.wait_for_line("held", HOLD_DEADLINE).await?;
        let held: Held = serde_json::from_str(&line)?;
        ensure!(held.held == tunnels, "{line}");
        Ok(process)
    }

    /// The client of tunnels, with one more option.
    fn tunnels(&self, credential: &Credential, option: &str, value: &str) -> Result<Program> {
        let proxy = SocketAddr::new(self.server(Route::Mesh)?, HBONE);
        let root = self.mesh.cluster().run().state_dir().join("root-cert.pem");
        let args: Vec<OsString> = vec![
            "tunnels".into(),
            proxy.to_string().into(),
            "--identity".into(),
            spiffe_id(Route::Mesh.client()).into(),
            "--expected".into(),
            spiffe_id(Route::Mesh.server()).into(),
            "--certificate".into(),
            (&credential.certificate).into(),
            "--key".into(),
            (&credential.key).into(),
            "--root".into(),
            root.into(),
            option.into(),
            value.into(),
        ];
        let pod = self.mesh.cluster().pod(Route::Direct.client())?;
        Ok(self.program("tunnels", pod, args))
    }

    /// A certificate of the mesh's client, for [`Self::measure_tunnels`].
    pub(super) fn credential(&self) -> Result<Credential> {
        let run = self.mesh.cluster().run();
        let authority = Authority::of_mesh(&run.state_dir())?;
        authority.issue(
            &run.secrets_dir(),
            "bench",
            &spiffe_id(Route::Mesh.client()),
        )
    }

    async fn observe<T: DeserializeOwned>(
        &self,
        program: &Program,
        measured: Duration,
        route: Route,
    ) -> Result<Measured<T>> {
        let profile = match (&self.profiles, route) {
            (Some(directory), Route::Mesh | Route::Local) => {
                Some(self.profile(directory, program)?)
            }
            (Some(_), Route::Direct) | (None, _) => None,
        };
        let before = self.cpu()?;
        let printed = output(program, measured + SLACK).await?;
        let after = self.cpu()?;
        if let Some(profile) = profile {
            profile.end().await?;
        }
        let result =
            serde_json::from_str(&printed).with_context(|| format!("reading `{printed}`"))?;
        Ok(Measured {
            result,
            cpu: [after[0] - before[0], after[1] - before[1]],
        })
    }

    /// Opens idle connections in the mesh and returns the process that holds them.
    pub(super) async fn hold(&self, connections: usize) -> Result<Process> {
        let pod = self.mesh.cluster().pod(Route::Mesh.client())?;
        let server = self.server(Route::Mesh)?.to_string();
        let args = ["hold", &server, "--connections", &connections.to_string()];
        let program = self.program("hold", pod, args.iter().map(OsString::from).collect());
        let mut process = Process::start(self.mesh.cluster().run(), &program)?;
        let line = process.wait_for_line("held", HOLD_DEADLINE).await?;
        let held: Held = serde_json::from_str(&line)?;
        ensure!(held.held == connections, "{line}");
        Ok(process)
    }

    /// Resident memory of the proxies, in MB.
    pub(super) fn resident(&self) -> Result<[f64; 2]> {
        let [a, b] = self.pids()?;
        Ok([usage::resident_mb(a)?, usage::resident_mb(b)?])
    }

    fn cpu(&self) -> Result<[f64; 2]> {
        let [a, b] = self.pids()?;
        Ok([usage::cpu_seconds(a)?, usage::cpu_seconds(b)?])
    }

    fn pids(&self) -> Result<[u32; 2]> {
        let [a, b] = NODES;
        Ok([self.mesh.ztunnel(a)?.pid()?, self.mesh.ztunnel(b)?.pid()?])
    }

    fn server(&self, route: Route) -> Result<IpAddr> {
        Ok(self
            .mesh
            .cluster()
            .pod_addr(route.server(), Family::V4, 0)?
            .ip())
    }

    fn program(&self, name: &str, pod: &Pod, args: Vec<OsString>) -> Program {
        Program {
            name: format!("load-{name}-{}", pod.spec().file()),
            path: self.load.clone(),
            args,
            env: BTreeMap::new(),
            namespace: pod.namespace().clone(),
        }
    }

    /// Of both proxies.
    fn profile(&self, directory: &Path, program: &Program) -> Result<Profile> {
        // What tells the measurements apart: all before the duration, without the server's address.
        let name: Vec<String> = program
            .args
            .iter()
            .map(|arg| arg.to_string_lossy().into_owned())
            .take_while(|arg| arg != "--seconds" && arg != "--identity")
            .filter(|arg| !arg.starts_with("--") && !arg.contains(['.', ':']))
            .collect();
        let file = directory.join(format!("{}.perf", name.join("-")));
        Profile::start(&file, &self.pids()?)
    }

    /// Ends everything in order.
    pub(super) async fn stop(self) -> Result<()> {
        self.mesh.stop().await
    }
}

/// The service account of every pod here has the pod's name.
fn spiffe_id(pod: &str) -> String {
    let (namespace, name) = pod.split_once('/').unwrap_or(("default", pod));
    format!("spiffe://cluster.local/ns/{namespace}/sa/{name}")
}
