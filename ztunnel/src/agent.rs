//! The part of ztunnel that decides which pods it carries: what istio-cni is to Istio's ztunnel, or its counterpart.

pub(crate) mod counters;
pub(crate) mod enrolment;
mod own;
pub(crate) mod pods;
pub(crate) mod zds;

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use leyline_capture::{NodeCapture, NodeCounters};
use leyline_net::{NetNs, Redirection, netns};
use leyline_proto::leyline::enrolment::v1::enrolment_service_client::EnrolmentServiceClient;
use leyline_runtime::{Drain, ReadinessTask, spawn};
use leyline_tls::control_plane;
use leyline_types::{WorkloadName, WorkloadUid};
use tokio::{runtime::Handle, sync::mpsc};
use tracing::{Span, warn};

use self::pods::{Command, Order, Outcome, PodManager, PodSet};
use crate::{
    config::{CaptureConfig, Config, PodSource},
    proxy::{Extent, Shared},
};

/// The running agent.
pub(crate) struct Agent {
    pub(crate) pods: Arc<PodSet>,
    /// What capture counts in the kernel; none where istio-cni's rules capture.
    pub(crate) kernel: Option<NodeCounters>,
    /// Tells why the process must end.
    pub(crate) failures: mpsc::Receiver<zds::Mismatch>,
}

/// Capture and enrolment of this node's pods; their connections run on the workers.
///
/// # Errors
/// When a capability is missing, or capture cannot be attached: a sentence for the operator.
pub(crate) fn start(
    config: &Config,
    shared: &Arc<Shared>,
    drain: &Drain,
    background: &Drain,
    workers: &Handle,
    ready: ReadinessTask,
) -> Result<Agent> {
    let capture = match config.proxy.redirection {
        Redirection::Rewritten => None,
        Redirection::Steered => Some(
            NodeCapture::attach(capture_config(config)).context("cannot capture on this node")?,
        ),
    };
    let kernel = capture.as_ref().map(NodeCapture::counters);
    let (orders, ordered) = mpsc::channel(pods::COMMANDS);
    let (outcomes, reported) = mpsc::channel(pods::COMMANDS);
    let outcomes = match config.capture.source {
        PodSource::ControlPlane => Some(outcomes),
        PodSource::Zds(_) | PodSource::Dedicated(_) => None,
    };
    let mut manager = PodManager::new(
        shared.clone(),
        config.capture.clone(),
        capture,
        drain.child(),
        orders.clone(),
        outcomes,
        ready,
    );
    let pods = manager.set();
    let (failed, failures) = mpsc::channel(1);
    let _on_workers = workers.enter();
    if !matches!(config.capture.source, PodSource::Dedicated(_)) {
        // Else port 15008 is the workload's.
        manager.set_own(own::serve(config, shared, drain)?);
    }
    let run = manager.run(ordered);
    spawn("workload proxy manager", Span::none(), drain, run);
    match &config.capture.source {
        PodSource::Zds(socket) => {
            tell_what_istio_cni_keeps(config);
            let follow = follow_cni(socket.clone(), orders, drain.clone(), failed);
            spawn("zds", Span::none(), background, follow);
        }
        PodSource::ControlPlane => follow_control_plane(config, &orders, reported, background)?,
        PodSource::Dedicated(name) => {
            let only = only_workload(config, name.clone(), &orders)?;
            spawn("dedicated", Span::none(), background, only);
        }
    }
    Ok(Agent {
        pods,
        kernel,
        failures,
    })
}

/// Annotations of pods are for istio-cni's rules; those who put another capture in their place must know.
fn tell_what_istio_cni_keeps(config: &Config) {
    if config.proxy.redirection == Redirection::Steered {
        let annotations = "ambient.istio.io/dns-capture, ambient.istio.io/bypass-inbound-capture, \
            istio.io/reroute-virtual-interfaces";
        warn!(
            annotations,
            "annotations of pods have no effect: istio-cni does not pass them on to the capture in place of its rules"
        );
    }
}

/// Orders the one workload of this process, in the process's own namespace.
fn only_workload(
    config: &Config,
    name: WorkloadName,
    orders: &mpsc::Sender<Order>,
) -> Result<impl Future<Output = ()> + use<>> {
    let netns = NetNs::current().context("cannot open the process's network namespace")?;
    let cluster = &config.node.cluster_id;
    let uid = WorkloadUid::new(format!("{cluster}//Pod/{}/{}", name.namespace, name.name));
    let netns = Some(netns);
    let orders = orders.clone();
    Ok(async move {
        let all = [
            Command::SnapshotBegins,
            Command::Add {
                uid,
                name,
                netns,
                extent: Extent::default(),
            },
            Command::SnapshotSent,
        ];
        for command in all {
            // Fails only at shutdown.
            if orders.send(command.into()).await.is_err() {
                return;
            }
        }
    })
}

async fn follow_cni(
    socket: PathBuf,
    orders: mpsc::Sender<Order>,
    drain: Drain,
    failed: mpsc::Sender<zds::Mismatch>,
) {
    if let Err(mismatch) = zds::follow(socket, orders, drain).await {
        // Fails only at shutdown.
        failed.send(mismatch).await.ok();
    }
}

fn follow_control_plane(
    config: &Config,
    orders: &mpsc::Sender<Order>,
    reported: mpsc::Receiver<Outcome>,
    background: &Drain,
) -> Result<()> {
    if config.xds.address.is_empty() {
        return Ok(());
    }
    let channel = control_plane::channel(&config.xds).context("xDS address or root")?;
    let client = EnrolmentServiceClient::with_interceptor(
        channel,
        control_plane::AuthInterceptor::new(&config.xds)?,
    );
    let follow = enrolment::follow(client, config.node.node.clone(), orders.clone(), reported);
    spawn("enrolment", Span::none(), background, follow);
    Ok(())
}

/// Better at start than at the first pod (PRC-8).
///
/// # Errors
/// When one is missing: a sentence for the operator.
pub(crate) fn check_capabilities(mark: u32) -> Result<()> {
    let check = NetNs::current().and_then(|own| netns::check_capabilities(&own, mark));
    check.context("a capability is missing: NET_ADMIN, SYS_ADMIN and NET_RAW are needed")
}

/// The settings of capture on this node.
fn capture_config(config: &Config) -> leyline_capture::NodeConfig {
    let CaptureConfig {
        bpffs,
        cgroup,
        instance,
        steer,
        ..
    } = &config.capture;
    leyline_capture::NodeConfig {
        bpffs: bpffs.clone(),
        cgroup: cgroup.clone(),
        bypass_mark: config.proxy.bypass_mark,
        steer: *steer,
        ..leyline_capture::NodeConfig::new(instance)
    }
}
