//! Kubelet's part: a pod in the YAML becomes a namespace with the echo app in it, and its addresses are written back as a
//! status document.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use leyline_net::NetNs;

use crate::{
    client::Client,
    config_dir::ConfigDir,
    eventually::eventually,
    fabric::{Addresses, Fabric, PodNetwork},
    manifest::{self, Image, Manifest, PodSpec},
    process::{Process, Program},
    run::Run,
};

/// The app only binds its ports; even a busy machine does that at once.
const APP_DEADLINE: Duration = Duration::from_secs(10);
/// For one attempt to reach it.
const PROBE_DEADLINE: Duration = Duration::from_secs(1);
/// Files with the pods of Gateways are called so.
const WAYPOINT_FILES: &str = "made-for-gateway.";
/// The port of every demo app's HTTP server.
pub const HTTP_PORT: u16 = 8080;

/// The pods that run.
#[derive(Debug)]
pub struct Kubelet {
    echo: PathBuf,
    config: ConfigDir,
    pods: BTreeMap<String, Pod>,
}

/// A running pod.
#[derive(Debug)]
pub struct Pod {
    spec: PodSpec,
    network: PodNetwork,
    /// None where it is started by who knows how: a waypoint needs a control plane first.
    app: Option<Process>,
}

impl Pod {
    /// What was asked for.
    pub fn spec(&self) -> &PodSpec {
        &self.spec
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &NetNs {
        &self.network.namespace
    }

    /// Its addresses.
    pub fn addresses(&self) -> Addresses {
        self.network.addresses
    }

    /// Its IPv4 address with a port.
    pub fn v4(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.network.addresses.v4), port)
    }

    /// Its IPv6 address with a port.
    pub fn v6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V6(self.network.addresses.v6), port)
    }

    /// A client in the pod.
    pub fn client(&self) -> Client {
        Client::new(self.network.namespace.clone())
    }
}

impl Kubelet {
    /// A kubelet without pods, for the documents in `config`.
    pub fn new(echo: PathBuf, config: ConfigDir) -> Self {
        Self {
            echo,
            config,
            pods: BTreeMap::new(),
        }
    }

    /// Makes the pods that the YAML has and removes those that it no longer has. The nodes must be there.
    pub async fn follow(&mut self, run: &Run, fabric: &mut Fabric) -> Result<()> {
        self.make_waypoints()?;
        let manifest = Manifest::read(&self.config.files()?)?;
        let wanted: BTreeSet<String> = manifest.pods.iter().map(PodSpec::key).collect();
        let gone: Vec<String> = self
            .pods
            .keys()
            .filter(|key| !wanted.contains(*key))
            .cloned()
            .collect();
        for key in gone {
            self.remove(run, fabric, &key).await?;
        }
        let mut made = Vec::new();
        for spec in manifest.pods {
            let key = spec.key();
            if !self.pods.contains_key(&key) {
                let pod = self
                    .make(run, fabric, spec)
                    .await
                    .with_context(|| format!("starting pod {key}"))?;
                self.pods.insert(key.clone(), pod);
                made.push(key);
            }
        }
        for key in made {
            self.report_running(&key).await?;
        }
        Ok(())
    }

    /// The part of the controller of Gateways: pods for each. A Gateway that comes with a pod of its name is left to who
    /// wrote it.
    fn make_waypoints(&self) -> Result<()> {
        let files = self.config.files()?;
        let manifest = Manifest::read(&files)?;
        let mut wanted = BTreeSet::new();
        for waypoint in &manifest.waypoints {
            let (namespace, name) = (&waypoint.namespace, &waypoint.name);
            let file = format!("{WAYPOINT_FILES}{namespace}.{name}.yaml");
            let has_pod = manifest
                .pods
                .iter()
                .any(|pod| (&pod.namespace, &pod.name) == (namespace, name));
            if !has_pod {
                ensure!(!manifest.nodes.is_empty(), "no node for {file}");
                let document = manifest::waypoint(waypoint, &manifest.nodes);
                self.config.write(&file, &document)?;
            }
            wanted.insert(file);
        }
        for (file, _) in &files {
            if file.starts_with(WAYPOINT_FILES) && !wanted.contains(file) {
                self.config.remove(file)?;
            }
        }
        Ok(())
    }

    /// A pod by `namespace/name`.
    pub fn pod(&self, key: &str) -> Result<&Pod> {
        self.pods.get(key).with_context(|| format!("no pod {key}"))
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    async fn make(&self, run: &Run, fabric: &mut Fabric, spec: PodSpec) -> Result<Pod> {
        let network = fabric.add_pod(run, &spec.node, &spec.file()).await?;
        if spec.image == Image::Waypoint {
            let app = None;
            return Ok(Pod { spec, network, app });
        }
        let env = spec
            .env
            .iter()
            .map(|(name, value)| (name.clone(), value.into()));
        let mut args: Vec<OsString> = spec.args.iter().map(OsString::from).collect();
        args.push(format!("--pod={}", spec.name).into());
        args.push(format!("--namespace={}", spec.namespace).into());
        let program = Program {
            name: format!("pod-{}", spec.file()),
            path: self.echo.clone(),
            args,
            env: env.collect(),
            namespace: network.namespace.clone(),
        };
        let app = Some(Process::start(run, &program)?);
        Ok(Pod { spec, network, app })
    }

    /// Waits for the app and writes the status, as kubelet does when the readiness probe passes.
    async fn report_running(&mut self, key: &str) -> Result<()> {
        let pod = self
            .pods
            .get_mut(key)
            .with_context(|| format!("no pod {key}"))?;
        let (client, target) = (pod.client(), pod.v4(HTTP_PORT));
        if let Some(app) = &mut pod.app {
            eventually(
                format!("the app of pod {key} answers"),
                APP_DEADLINE,
                || {
                    let (alive, client) = (app.check_alive(), client.clone());
                    async move {
                        alive?;
                        client.connect(target, PROBE_DEADLINE).await
                    }
                },
            )
            .await?;
        }
        let document = manifest::status(&pod.spec, pod.network.addresses);
        self.config.write(&status_file(&pod.spec), &document)
    }

    async fn remove(&mut self, run: &Run, fabric: &Fabric, key: &str) -> Result<()> {
        let Some(mut pod) = self.pods.remove(key) else {
            return Ok(());
        };
        self.config.remove(&status_file(&pod.spec))?;
        if let Some(mut app) = pod.app.take() {
            app.kill().await?;
        }
        fabric
            .remove_pod(run, &pod.spec.node, &pod.spec.file(), &pod.network)
            .await
    }
}

fn status_file(spec: &PodSpec) -> String {
    format!("status.{}.{}.yaml", spec.namespace, spec.name)
}
