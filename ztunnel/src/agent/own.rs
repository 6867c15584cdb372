//! The process's own HBONE port (SELF-1): who may read its metrics can do so in a tunnel, under the policies of its own
//! workload, as if it were a pod that it serves.

use std::sync::Arc;

use anyhow::{Context, Result};
use leyline_net::{ListenOptions, NetNs, listen};
use leyline_runtime::Drain;
use leyline_types::{Identity, WorkloadName, WorkloadUid, ports};

use crate::{
    config::{Config, NodeConfig, SourceAddress},
    proxy::{Pod, Shared},
};

/// Serves it where the process knows who it is; to be called on the workers.
///
/// # Errors
/// When the port is in use: a sentence for the operator.
pub(super) fn serve(
    config: &Config,
    shared: &Arc<Shared>,
    drain: &Drain,
) -> Result<Option<Arc<Pod>>> {
    let Some(name) = name(&config.node) else {
        return Ok(None);
    };
    let netns = NetNs::current().context("cannot open the process's network namespace")?;
    let options = ListenOptions {
        families: config.proxy.families,
        keepalive: config.proxy.keepalive,
        ..ListenOptions::default()
    };
    let listener = listen(&netns, ports::HBONE, &options)
        .context("cannot listen on port 15008 for the process's own metrics")?;
    let cluster = &config.node.cluster_id;
    let uid = WorkloadUid::new(format!("{cluster}//Pod/{}/{}", name.namespace, name.name));
    // Nobody there cares who calls.
    let source = SourceAddress::Own;
    let identity = identity(&config.node, &name)?;
    let (shared, drain) = (shared.clone(), drain.child());
    let pod = Pod::new(uid, name, netns, None, source, shared, drain);
    pod.serve_own(listener, identity);
    Ok(Some(pod))
}

/// By `TRUST_DOMAIN`; unset, it is in the trust domain that xDS says.
fn identity(node: &NodeConfig, name: &WorkloadName) -> Result<Option<Identity>> {
    let (namespace, account) = (name.namespace.as_str(), name.service_account.as_str());
    let of = |trust_domain| Identity::new(trust_domain, namespace, account);
    let identity = node.trust_domain.clone().map(of).transpose();
    identity.context("POD_NAMESPACE or SERVICE_ACCOUNT is not part of an identity")
}

fn name(node: &NodeConfig) -> Option<WorkloadName> {
    let NodeConfig {
        pod_name,
        pod_namespace,
        service_account,
        ..
    } = node;
    let all = [pod_name, pod_namespace, service_account];
    all.iter()
        .all(|part| !part.is_empty())
        .then(|| WorkloadName {
            name: pod_name.as_str().into(),
            namespace: pod_namespace.as_str().into(),
            service_account: service_account.as_str().into(),
        })
}
