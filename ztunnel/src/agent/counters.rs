//! What capture in the kernel has decided, as metrics: read from the BPF maps at each scrape.

use std::sync::Arc;

use leyline_capture::{NodeCounter, NodeCounters, PodCounter};
use leyline_telemetry::metrics::{MetricsHandle, Samples};
use tracing::debug;

use super::pods::PodSet;

const NODE: &str = "leyline_capture_connects_total";
const NODE_HELP: &str =
    "Decisions of the connect hook of the node, all of them about enrolled pods.";
const POD: &str = "leyline_capture_steered_total";
const POD_HELP: &str =
    "Connections that a pod's socket lookup handed to the proxy, left alone or dropped.";

/// Shows the counters of the node, and of each pod as long as it is served. Behind istio-cni's rules there are none.
pub(crate) fn export(metrics: &MetricsHandle, node: Option<NodeCounters>, pods: Arc<PodSet>) {
    metrics.add_source(move |samples| append(samples, node.as_ref(), &pods));
}

fn append(samples: &mut Samples, node: Option<&NodeCounters>, pods: &PodSet) {
    let Some(node) = node else {
        return;
    };
    for counter in NodeCounter::ALL {
        match node.get(counter) {
            Ok(value) => samples.counter(NODE, NODE_HELP, &[("decision", counter.as_str())], value),
            Err(error) => debug!(%error, "a counter of capture cannot be read"),
        }
    }
    // While an earlier life of a pod drains, the kernel's counters are those of the one that captures.
    for pod in pods.now().served.iter().filter(|pod| !pod.is_draining()) {
        let Some(capture) = &pod.capture else {
            continue;
        };
        for counter in PodCounter::ALL {
            let labels = [
                ("namespace", pod.name.namespace.as_str()),
                ("pod", pod.name.name.as_str()),
                ("decision", counter.as_str()),
            ];
            match capture.counter(counter) {
                Ok(value) => samples.counter(POD, POD_HELP, &labels, value),
                Err(error) => {
                    debug!(pod = %pod.name, %error, "a counter of capture cannot be read")
                }
            }
        }
    }
}
