//! The certificates of this node's workloads: where they come from, and what makes them be fetched anew.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::{Context, Result};
use leyline_runtime::{Drain, spawn};
use leyline_tls::{
    CaClient, CertificateConfig, CertificateSource, CertificateStore, DelegatedIdentity,
    DelegatedPod, Revocation, WorkloadApi, control_plane::RootWatcher,
};
use leyline_types::{WorkloadName, WorkloadUid};
use tracing::{Span, debug};

use crate::{
    agent::pods::PodSet,
    config::{Config, PodSource},
    proxy::Shared,
};

/// A store that is filled until the drain ends.
///
/// # Errors
/// When the address of the CA or of the SPIFFE agent, or the CA's roots, cannot be used.
pub(crate) fn start(config: &Config, background: &Drain) -> Result<Arc<CertificateStore>> {
    let settings = CertificateConfig {
        ttl: config.secret_ttl,
        revocation: revocation(config, background),
        withdrawal_grace: config.withdrawal_grace,
        ..CertificateConfig::default()
    };
    if let Some(address) = &config.spiffe_endpoint {
        let api = WorkloadApi::at(address).context("SPIFFE_ENDPOINT_SOCKET")?;
        let source = CertificateSource::WorkloadApi(api.clone());
        let certificates = fill(source, settings, background);
        let following = api.run(certificates.clone());
        spawn("spiffe", Span::none(), background, following);
        return Ok(certificates);
    }
    if let Some(address) = &config.spire_admin_endpoint {
        let agent = DelegatedIdentity::at(address, &config.node.node);
        let agent = agent.context("SPIRE_ADMIN_ENDPOINT_SOCKET")?;
        let source = CertificateSource::DelegatedIdentity(agent.clone());
        let certificates = fill(source, settings, background);
        let following = agent.run(certificates.clone());
        spawn("spire", Span::none(), background, following);
        return Ok(certificates);
    }
    let ca = match &config.capture.source {
        PodSource::ControlPlane | PodSource::Zds(_) => CaClient::new(&config.ca),
        // It has its own identity, as its token says (facts A6).
        PodSource::Dedicated(_) => CaClient::own(&config.ca),
    };
    let ca = Arc::new(ca.context("CA address or root")?);
    let certificates = fill(CertificateSource::Ca(ca.clone()), settings, background);
    if let Some(watcher) = RootWatcher::of(&config.ca.root) {
        let following = watcher.run(ca, certificates.clone());
        spawn("roots", Span::none(), background, following);
    }
    Ok(certificates)
}

fn fill(
    source: CertificateSource,
    settings: CertificateConfig,
    background: &Drain,
) -> Arc<CertificateStore> {
    let (certificates, worker) = CertificateStore::new(source, settings);
    spawn("certificates", Span::none(), background, worker.run());
    certificates
}

/// What keeps certificates and pods in step, from the first pod to the end of the drain.
pub(crate) fn attend(shared: &Arc<Shared>, pods: &Arc<PodSet>, background: &Drain) {
    let replacing = replace_tunnels(shared.clone(), pods.clone());
    spawn("tunnel replacement", Span::none(), background, replacing);
    let carrying = carry(shared.clone(), pods.clone());
    spawn("certificates of pods", Span::none(), background, carrying);
}

/// Tells the store which pods there are. Runs for ever. Cancel safe.
async fn carry(shared: Arc<Shared>, pods: Arc<PodSet>) {
    let mut follow = pods.follow();
    let mut told = BTreeSet::new();
    loop {
        let served = follow.borrow_and_update().clone();
        let carried = served
            .served
            .iter()
            .map(|pod| described(&pod.name, &pod.uid));
        let carried: BTreeSet<DelegatedPod> = carried.collect();
        if carried != told {
            shared.certificates.carry(&carried);
            told = carried;
        }
        // The sender is in `pods`.
        if follow.changed().await.is_err() {
            return;
        }
    }
}

/// istio-cni's uid of a pod is the one that Kubernetes gave it; another is the workload's in xDS, whose parts have slashes
/// between them.
fn described(name: &WorkloadName, uid: &WorkloadUid) -> DelegatedPod {
    let uid = uid.as_str();
    DelegatedPod {
        name: name.clone(),
        uid: (!uid.contains('/')).then(|| uid.to_owned()),
    }
}

/// Has new connections made in new tunnels where the certificate of their pod has another issuer, or fewer roots, than
/// when the old ones were opened. Runs for ever. Cancel safe.
async fn replace_tunnels(shared: Arc<Shared>, pods: Arc<PodSet>) {
    loop {
        let reissued = shared.certificates.reissued().await;
        for pod in &pods.now().served {
            let renewed = pod.pool.renew_where(|key| reissued.contains(&key.source));
            if renewed > 0 {
                debug!(pod = %pod.name, renewed, "tunnels are to be replaced");
            }
        }
    }
}

/// The lists hold before the first tunnel.
fn revocation(config: &Config, background: &Drain) -> Arc<Revocation> {
    let Some(path) = &config.crl_path else {
        return Revocation::off();
    };
    let (revocation, mut watcher) = Revocation::of_file(path.clone());
    watcher.look();
    spawn("revocation lists", Span::none(), background, watcher.run());
    revocation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uid_of_kubernetes_is_told_and_no_other() {
        let name = WorkloadName {
            name: "web-0".into(),
            namespace: "shop".into(),
            service_account: "web".into(),
        };
        for (uid, expected) in [
            ("0a1b2c3d-0000-4000-8000-000000000000", true),
            ("Kubernetes//Pod/shop/web-0", false),
            ("//Pod/shop/web-0", false),
        ] {
            let pod = described(&name, &WorkloadUid::new(uid));
            assert_eq!(pod.uid.as_deref(), expected.then_some(uid));
            assert_eq!(pod.name, name);
        }
    }
}
