//! A cluster before the mesh: nodes, pods with their apps, services with VIPs that nothing serves.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{
    client::Client,
    config_dir::ConfigDir,
    fabric::Fabric,
    kubelet::{Kubelet, Pod},
    manifest::Manifest,
    run::Run,
};

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// The app of the pods.
    pub echo: PathBuf,
    /// The node proxy.
    pub ztunnel: PathBuf,
    /// The control plane.
    pub controlplane: PathBuf,
    /// The L7 proxy.
    pub waypoint: PathBuf,
}

impl Binaries {
    /// All in `dir`, such as `target/release`.
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            echo: dir.join("leyline-echo"),
            ztunnel: dir.join("ztunnel"),
            controlplane: dir.join("controlplane"),
            waypoint: dir.join("waypoint"),
        }
    }

    /// In the profile directory that the running test was built into.
    pub fn beside_this_test() -> Result<Self> {
        let test = std::env::current_exe().context("finding the running test")?;
        let dir = test
            .parent()
            .and_then(Path::parent)
            .with_context(|| format!("{} is in no target directory", test.display()))?;
        Ok(Self::in_dir(dir))
    }

    /// Says what to build if a program is missing.
    pub fn require_all(&self) -> Result<()> {
        for (path, package) in [
            (&self.echo, "leyline-tests"),
            (&self.ztunnel, "leyline-ztunnel"),
            (&self.controlplane, "leyline-controlplane"),
            (&self.waypoint, "leyline-waypoint"),
        ] {
            ensure!(
                path.exists(),
                "{} is not built: run `cargo build -p {package}`, or all tests by `cargo xtask test`",
                path.display()
            );
        }
        Ok(())
    }
}

/// Which address of a service or pod is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn has(self, address: IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }
}

/// Nodes and pods that run.
#[derive(Debug)]
pub struct Cluster {
    kubelet: Kubelet,
    fabric: Fabric,
    config: ConfigDir,
    /// Last: removes what the others have made.
    run: Run,
}

impl Cluster {
    /// Brings up what the YAML files of `manifests` describe.
    pub async fn start(run: Run, binaries: &Binaries, manifests: &[PathBuf]) -> Result<Self> {
        let config = ConfigDir::new(run.config_dir());
        for directory in manifests {
            config.copy_from(directory)?;
        }
        let mut fabric = Fabric::create(&run).await?;
        for node in Manifest::read(&config.files()?)?.nodes {
            fabric
                .add_node(&run, &node)
                .await
                .with_context(|| format!("making node {node}"))?;
        }
        let kubelet = Kubelet::new(binaries.echo.clone(), config.clone());
        let mut cluster = Self {
            kubelet,
            fabric,
            config,
            run,
        };
        cluster.follow_pods().await?;
        Ok(cluster)
    }

    /// Makes and removes pods after an edit of the YAML.
    pub async fn follow_pods(&mut self) -> Result<()> {
        self.kubelet.follow(&self.run, &mut self.fabric).await
    }

    /// The run.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// The network.
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// The YAML.
    pub fn config(&self) -> &ConfigDir {
        &self.config
    }

    /// A pod by `namespace/name`.
    pub fn pod(&self, key: &str) -> Result<&Pod> {
        self.kubelet.pod(key)
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.kubelet.pods()
    }

    /// A client in a pod.
    pub fn client(&self, pod: &str) -> Result<Client> {
        Ok(self.pod(pod)?.client())
    }

    /// A pod's address with a port.
    pub fn pod_addr(&self, pod: &str, family: Family, port: u16) -> Result<SocketAddr> {
        let pod = self.pod(pod)?;
        Ok(match family {
            Family::V4 => pod.v4(port),
            Family::V6 => pod.v6(port),
        })
    }

    /// A service's VIP with a port.
    pub fn vip(&self, service: &str, family: Family, port: u16) -> Result<SocketAddr> {
        let manifest = Manifest::read(&self.config.files()?)?;
        let vips = manifest
            .vips
            .get(service)
            .with_context(|| format!("no service {service}"))?;
        let vip = vips.iter().find(|vip| family.has(**vip));
        let vip = vip.with_context(|| format!("service {service} has no {family:?} address"))?;
        Ok(SocketAddr::new(*vip, port))
    }

    /// Leaves everything up when this process ends.
    pub fn stay(self) -> Result<()> {
        self.run.stay()
    }
}
