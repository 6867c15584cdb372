//! The certificates of this node's workloads: where they come from, and what makes them be fetched anew.

use std::sync::Arc;

use anyhow::{Context, Result};
use leyline_runtime::{Drain, spawn};
use leyline_tls::{
    CaClient, CertificateConfig, CertificateSource, CertificateStore, Revocation, WorkloadApi,
    control_plane::RootWatcher,
};
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

/// Has new connections made in new tunnels where the certificate of their pod has another issuer, or fewer roots, than
/// when the old ones were opened. Runs for ever. Cancel safe.
pub(crate) async fn replace_tunnels(shared: Arc<Shared>, pods: Arc<PodSet>) {
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
