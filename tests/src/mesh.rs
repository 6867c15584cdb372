//! A cluster with the mesh on it: the real control plane, and the real node proxy on each node.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    cluster::{Binaries, Cluster},
    controlplane::ControlPlane,
    daemon::Daemon,
    dump::Dump,
    eventually::eventually,
    manifest::Image,
    preflight,
    run::Run,
    waypoint, ztunnel,
};

/// The label that enrols a namespace.
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// Files that checks write bear this prefix, so that they can be removed whatever became of the check.
const CHECK_PREFIX: &str = "check-";

/// What a mesh is started from.
#[derive(Debug)]
pub struct Options {
    /// Claimed id and directory.
    pub run: Run,
    /// The programs.
    pub binaries: Binaries,
    /// Directories of YAML to start with.
    pub manifests: Vec<PathBuf>,
    /// What counts as late.
    pub limits: Limits,
    /// Where foreign peers are, or are to be installed.
    pub peers: PathBuf,
}

/// Deadlines of the promises that checks look at. A test beside seven others on a busy machine gives more time than the
/// demo, which is to show the promised values.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From an edit of the YAML to its effect on every proxy.
    pub edit: Duration,
    /// From the start of a killed proxy to the first call that works again.
    pub restart: Duration,
    /// For one small call.
    pub call: Duration,
    /// For 50 MB.
    pub transfer: Duration,
    /// For a call through a dead proxy to be refused.
    pub refusal: Duration,
}

impl Limits {
    /// The promises.
    pub const DEMO: Self = Self {
        edit: Duration::from_secs(1),
        restart: Duration::from_secs(1),
        call: Duration::from_secs(5),
        transfer: Duration::from_secs(20),
        refusal: Duration::from_secs(2),
    };
    /// For debug builds that share the machine.
    pub const TEST: Self = Self {
        edit: Duration::from_secs(10),
        restart: Duration::from_secs(10),
        call: Duration::from_secs(10),
        transfer: Duration::from_secs(60),
        refusal: Duration::from_secs(5),
    };
}

/// Whether a namespace is in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolment {
    /// `istio.io/dataplane-mode: ambient`.
    Ambient,
    /// No label.
    None,
}

/// A running mesh.
#[derive(Debug)]
pub struct Mesh {
    ztunnels: BTreeMap<String, Daemon>,
    /// By `namespace/name` of the Gateway.
    waypoints: BTreeMap<String, Daemon>,
    controlplane: ControlPlane,
    limits: Limits,
    peers: PathBuf,
    /// Last: removes what the others have made.
    cluster: Cluster,
}

impl Mesh {
    /// Brings the mesh up; `progress` is told each step.
    pub async fn start(options: Options, progress: impl Fn(&str)) -> Result<Self> {
        let Options {
            run,
            binaries,
            manifests,
            limits,
            peers,
        } = options;
        preflight::check_machine()?;
        binaries.require_all()?;
        progress("nodes and pods");
        let cluster = Box::pin(Cluster::start(run, &binaries, &manifests)).await?;
        progress("control plane");
        let controlplane = ControlPlane::start(
            cluster.run(),
            cluster.fabric().infra(),
            &binaries.controlplane,
        )
        .await?;
        let mut mesh = Self {
            ztunnels: BTreeMap::new(),
            waypoints: BTreeMap::new(),
            controlplane,
            limits,
            peers,
            cluster,
        };
        progress("node proxies");
        mesh.start_ztunnels(&binaries).await?;
        progress("waypoints");
        Box::pin(mesh.start_waypoints(&binaries.waypoint)).await?;
        Ok(mesh)
    }

    async fn start_ztunnels(&mut self, binaries: &Binaries) -> Result<()> {
        let (run, fabric) = (self.cluster.run(), self.cluster.fabric());
        for node in fabric.nodes() {
            let token = self.controlplane.token(run, node).await?;
            let namespace = fabric.node(node)?;
            let mut ztunnel = ztunnel::prepare(run, node, namespace, &binaries.ztunnel, &token);
            ztunnel.start(run)?;
            self.ztunnels.insert(node.to_owned(), ztunnel);
        }
        for ztunnel in self.ztunnels.values_mut() {
            ztunnel.ready().await?;
        }
        Ok(())
    }

    /// Starts the waypoints of pods that have none yet.
    pub async fn start_waypoints(&mut self, binary: &Path) -> Result<()> {
        let run = self.cluster.run();
        for pod in self.cluster.pods() {
            let spec = pod.spec();
            if spec.image != Image::Waypoint || self.waypoints.contains_key(&spec.key()) {
                continue;
            }
            let token = self
                .controlplane
                .account_token(run, &spec.namespace, &spec.service_account)
                .await?;
            let mut waypoint = waypoint::prepare(run, pod, binary, &token);
            waypoint.start(run)?;
            waypoint.ready().await?;
            self.waypoints.insert(spec.key(), waypoint);
        }
        Ok(())
    }

    /// Kills the waypoint of a Gateway.
    pub async fn kill_waypoint(&mut self, gateway: &str) -> Result<()> {
        self.waypoint_mut(gateway)?.kill().await
    }

    /// Starts it again, without waiting.
    pub fn start_waypoint(&mut self, gateway: &str) -> Result<()> {
        let found = self.waypoints.get_mut(gateway);
        found
            .with_context(|| format!("no waypoint of {gateway}"))?
            .start(self.cluster.run())
    }

    /// The waypoint of a Gateway.
    pub fn waypoint(&self, gateway: &str) -> Result<&Daemon> {
        let found = self.waypoints.get(gateway);
        found.with_context(|| format!("no waypoint of {gateway}"))
    }

    /// The same, to do something to it.
    pub fn waypoint_mut(&mut self, gateway: &str) -> Result<&mut Daemon> {
        let found = self.waypoints.get_mut(gateway);
        found.with_context(|| format!("no waypoint of {gateway}"))
    }

    /// Ends a waypoint in order and starts it again with these settings.
    pub async fn restart_waypoint(&mut self, gateway: &str, env: &[(&str, &str)]) -> Result<()> {
        let found = self.waypoints.get_mut(gateway);
        let waypoint = found.with_context(|| format!("no waypoint of {gateway}"))?;
        waypoint.stop().await?;
        waypoint.set_env(env);
        waypoint.start(self.cluster.run())?;
        waypoint.ready().await.map(|_after| ())
    }

    /// Nodes, pods and YAML.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The same, to follow edits of pods.
    pub fn cluster_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }

    /// Deadlines.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Where foreign peers are installed.
    pub fn peers_dir(&self) -> &Path {
        &self.peers
    }

    /// The control plane.
    pub fn controlplane(&self) -> &ControlPlane {
        &self.controlplane
    }

    /// The same, to do something to it.
    pub fn controlplane_mut(&mut self) -> &mut ControlPlane {
        &mut self.controlplane
    }

    /// Ends the control plane in order.
    pub async fn stop_controlplane(&mut self) -> Result<()> {
        self.controlplane.stop().await
    }

    /// Starts it again.
    pub async fn start_controlplane(&mut self) -> Result<()> {
        self.controlplane.start_again(self.cluster.run()).await
    }

    /// The proxy of a node.
    pub fn ztunnel(&self, node: &str) -> Result<&Daemon> {
        self.ztunnels
            .get(node)
            .with_context(|| format!("no proxy on node {node}"))
    }

    /// The proxy of the node on which a pod is.
    pub fn ztunnel_of(&self, pod: &str) -> Result<&Daemon> {
        self.ztunnel(&self.cluster.pod(pod)?.spec().node)
    }

    /// Kills the proxy of a node.
    pub async fn kill_ztunnel(&mut self, node: &str) -> Result<()> {
        self.ztunnel_mut(node)?.kill().await
    }

    /// Starts it again, without waiting.
    pub fn start_ztunnel(&mut self, node: &str) -> Result<()> {
        let ztunnel = self
            .ztunnels
            .get_mut(node)
            .with_context(|| format!("no proxy on node {node}"))?;
        ztunnel.start(self.cluster.run())
    }

    /// Waits until the proxy of a node is ready.
    pub async fn ztunnel_ready(&mut self, node: &str) -> Result<Duration> {
        self.ztunnel_mut(node)?.ready().await
    }

    /// Ends the proxy of a node in order and starts it again with these variables set.
    pub async fn restart_ztunnel(&mut self, node: &str, env: &[(&str, &str)]) -> Result<()> {
        let ztunnel = self.ztunnel_mut(node)?;
        ztunnel.stop().await?;
        ztunnel.set_env(env);
        self.start_ztunnel(node)?;
        self.ztunnel_ready(node).await?;
        Ok(())
    }

    /// The proxy of a node, to do something to it.
    pub fn ztunnel_mut(&mut self, node: &str) -> Result<&mut Daemon> {
        self.ztunnels
            .get_mut(node)
            .with_context(|| format!("no proxy on node {node}"))
    }

    /// What every proxy knows, by node.
    pub async fn dumps(&self) -> Result<BTreeMap<String, Dump>> {
        let mut dumps = BTreeMap::new();
        for (node, ztunnel) in &self.ztunnels {
            let dump = Dump::read(&ztunnel.config_dump().await?)
                .with_context(|| format!("reading the dump of {node}"))?;
            dumps.insert(node.clone(), dump);
        }
        Ok(dumps)
    }

    /// Writes the label of a namespace whose file is `<namespace>-namespace.yaml`, and does not wait.
    pub fn write_label(&self, namespace: &str, enrolment: Enrolment) -> Result<()> {
        let config = self.cluster.config();
        let file = format!("{namespace}-namespace.yaml");
        let old = config.read(&file)?;
        let new = with_label(&old, enrolment);
        ensure!(
            old == new || new.contains(DATAPLANE_MODE) || enrolment == Enrolment::None,
            "{file} has no `labels:` to add to"
        );
        config.write(&file, &new)
    }

    /// Sets the label and waits until every proxy goes by it. Returns how long that took.
    pub async fn set_enrolment(&self, namespace: &str, enrolment: Enrolment) -> Result<Duration> {
        self.write_label(namespace, enrolment)?;
        let pods: Vec<(String, String)> = self
            .cluster
            .pods()
            .filter(|pod| pod.spec().namespace == namespace)
            .map(|pod| (uid(pod.spec().key().as_str()), pod.spec().node.clone()))
            .collect();
        let what = format!("every proxy sees namespace {namespace} as {enrolment:?}");
        let ((), after) = eventually(what, self.limits.edit, || async {
            let dumps = self.dumps().await?;
            for (uid, node) in &pods {
                for dump in dumps.values() {
                    match enrolment {
                        Enrolment::Ambient => dump.check_enrolled(uid)?,
                        Enrolment::None => dump.check_not_enrolled(uid)?,
                    }
                }
                let served = dumps.get(node).is_some_and(|dump| dump.up.contains(uid));
                ensure!(
                    served == (enrolment == Enrolment::Ambient),
                    "{uid} is {} on {node}",
                    if served { "served" } else { "not served" }
                );
            }
            Ok(())
        })
        .await?;
        Ok(after)
    }

    /// Writes a document of a check, replacing the one of the same name.
    pub fn write_check_file(&self, name: &str, text: &str) -> Result<()> {
        self.cluster
            .config()
            .write(&format!("{CHECK_PREFIX}{name}.yaml"), text)
    }

    /// Removes it.
    pub fn remove_check_file(&self, name: &str) -> Result<()> {
        self.cluster
            .config()
            .remove(&format!("{CHECK_PREFIX}{name}.yaml"))
    }

    /// Puts the mesh back to where every check starts: all programs run, and no document of a check is in force.
    pub async fn reset(&mut self) -> Result<()> {
        if !self.controlplane.is_running() {
            self.start_controlplane().await?;
        }
        for (file, _text) in self.cluster.config().files()? {
            if file.starts_with(CHECK_PREFIX) {
                self.cluster.config().remove(&file)?;
            }
        }
        let dead: Vec<String> = self
            .ztunnels
            .iter()
            .filter(|(_, ztunnel)| !ztunnel.is_running())
            .map(|(node, _)| node.clone())
            .collect();
        for node in dead {
            self.start_ztunnel(&node)?;
            self.ztunnel_ready(&node).await?;
        }
        for waypoint in self.waypoints.values_mut() {
            if !waypoint.is_running() {
                waypoint.start(self.cluster.run())?;
                waypoint.ready().await?;
            }
        }
        // Not the time of an edit alone: a control plane that was started just now is found again after a pause.
        eventually(
            "no policy of a check is in force",
            self.limits.edit + self.limits.call,
            || async {
                for (node, dump) in self.dumps().await? {
                    for (uid, workload) in dump.workloads {
                        ensure!(
                            workload.policies.is_empty(),
                            "{uid} has {:?} on {node}",
                            workload.policies
                        );
                    }
                    // Istio's control plane always serves its own static ones, in the root namespace.
                    let left = dump
                        .policies
                        .iter()
                        .find(|name| !name.starts_with("istio-system/"));
                    ensure!(left.is_none(), "{left:?} is still on {node}");
                }
                Ok(())
            },
        )
        .await?;
        Ok(())
    }

    /// Ends all programs in order and removes everything.
    pub async fn stop(mut self) -> Result<()> {
        // Node proxies would wait for the connections that waypoints keep to endpoints.
        let stops = self.waypoints.values_mut().map(Daemon::stop);
        let waypoints = futures::future::try_join_all(stops).await;
        let stops = self.ztunnels.values_mut().map(Daemon::stop);
        let proxies = futures::future::try_join_all(stops).await;
        let controlplane = self.controlplane.stop().await;
        proxies?;
        waypoints?;
        controlplane
    }

    /// Leaves everything up when this process ends.
    pub fn stay(self) -> Result<()> {
        self.cluster.stay()
    }
}

/// The uid under which the control plane publishes the pod `namespace/name`.
pub fn uid(pod: &str) -> String {
    format!("Kubernetes//Pod/{pod}")
}

fn with_label(text: &str, enrolment: Enrolment) -> String {
    let mut lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with(DATAPLANE_MODE))
        .collect();
    let label = format!("    {DATAPLANE_MODE}: ambient");
    if enrolment == Enrolment::Ambient
        && let Some(at) = lines.iter().position(|line| line.trim_end() == "  labels:")
    {
        lines.insert(at + 1, &label);
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_goes_on_once_and_off_again() {
        let plain = "kind: Namespace\nmetadata:\n  name: shop\n  labels:\n    a: b\n";
        let labelled = with_label(plain, Enrolment::Ambient);
        assert!(labelled.contains("  labels:\n    istio.io/dataplane-mode: ambient\n    a: b\n"));
        assert_eq!(with_label(&labelled, Enrolment::Ambient), labelled);
        assert_eq!(with_label(&labelled, Enrolment::None), plain);
    }
}
