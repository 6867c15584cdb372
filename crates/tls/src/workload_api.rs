//! Certificates from a SPIFFE Workload API, as a SPIRE agent serves it, in place of a CA that signs requests.
//!
//! The agent decides which identities this process may have, and pushes their SVIDs and the bundle of their trust domain
//! whenever one of them changes. What was pushed last stays in force while the agent is away, each SVID until it expires.

use std::{collections::HashMap, fmt, sync::Arc};

use futures::StreamExt;
use leyline_types::Identity;
use metrics::counter;
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use spiffe::{WorkloadApiClient, WorkloadApiError, X509Context, transport::Endpoint};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use crate::{
    certificate::WorkloadCertificate,
    revocation::Revocation,
    spiffe_agent::{ANSWER_DEADLINE, EndpointError, Failures, SvidSourceError, endpoint},
    store::CertificateStore,
};

/// What an agent has given.
pub struct WorkloadApi {
    address: String,
    endpoint: Endpoint,
    current: watch::Sender<Option<Arc<Svids>>>,
    /// Why the last try failed.
    failure: Mutex<String>,
}

type Svids = HashMap<Identity, Svid>;

/// The SVID of an identity, not yet judged.
struct Svid {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    bundle: Vec<CertificateDer<'static>>,
}

/// How following the agent ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Api(#[from] WorkloadApiError),
    #[error("no answer within {ANSWER_DEADLINE:?}")]
    Deadline,
    #[error("the agent has ended the stream")]
    Ended,
}

impl WorkloadApi {
    /// The Workload API at an address such as `unix:///run/spire/agent.sock`; nothing is connected yet.
    ///
    /// # Errors
    /// When it is not an address.
    pub fn at(address: &str) -> Result<Arc<Self>, EndpointError> {
        Ok(Arc::new(Self {
            address: address.to_owned(),
            endpoint: endpoint(address)?,
            current: watch::Sender::new(None),
            failure: Mutex::new("it was not asked yet".to_owned()),
        }))
    }

    /// Follows the agent for ever, and has the store take what is new. Cancel safe.
    pub async fn run(self: Arc<Self>, certificates: Arc<CertificateStore>) {
        let mut failures = Failures::new();
        loop {
            // Boxed: it is large and there is one.
            let broken = Box::pin(self.follow(&certificates, &mut failures)).await;
            let pause = failures.pause();
            counter!("leyline_workload_api_failures_total").increment(1);
            warn!(endpoint = self.address, error = %broken, retry_in = ?pause, "the SPIFFE agent is not followed");
            *self.failure.lock() = broken.to_string();
            sleep(pause).await;
        }
    }

    async fn follow(&self, certificates: &CertificateStore, failures: &mut Failures) -> Broken {
        let first = async {
            let client = WorkloadApiClient::connect(self.endpoint.clone()).await?;
            let mut stream = client.stream_x509_contexts().await?;
            let first = stream.next().await;
            Ok::<_, WorkloadApiError>((stream, first))
        };
        let (mut stream, mut next) = match timeout(ANSWER_DEADLINE, first).await {
            Ok(Ok(started)) => started,
            Ok(Err(error)) => return error.into(),
            Err(_elapsed) => return Broken::Deadline,
        };
        loop {
            match next {
                Some(Ok(context)) => {
                    failures.answered();
                    self.take(&context, certificates);
                }
                Some(Err(error)) => return error.into(),
                None => return Broken::Ended,
            }
            // Without a deadline: the next message comes with the next rotation. A socket of this machine that is gone is
            // noticed at once.
            next = stream.next().await;
        }
    }

    fn take(&self, context: &X509Context, certificates: &CertificateStore) {
        let mut svids = Svids::new();
        for svid in context.svids() {
            let id = svid.spiffe_id();
            let Ok(identity) = id.to_string().parse::<Identity>() else {
                warn!(%id, "an SVID of no workload is not used");
                continue;
            };
            let bundle = context.bundle_set().get(id.trust_domain());
            let certificates = |all: &[spiffe::Certificate]| {
                let der = all.iter().map(|one| one.as_bytes().to_vec());
                der.map(CertificateDer::from).collect::<Vec<_>>()
            };
            // The first counts, as the API says of SVIDs without a hint.
            svids.entry(identity).or_insert_with(|| Svid {
                chain: certificates(svid.cert_chain()),
                key: PrivatePkcs8KeyDer::from(svid.private_key().as_bytes().to_vec()).into(),
                bundle: bundle.map_or_else(Vec::new, |found| certificates(found.authorities())),
            });
        }
        counter!("leyline_workload_api_updates_total").increment(1);
        info!(
            endpoint = self.address,
            svids = svids.len(),
            "SVIDs from the SPIFFE agent"
        );
        self.current.send_replace(Some(Arc::new(svids)));
        certificates.renew_all();
    }

    /// The certificate of an identity, from what the agent gave last. Waits for a first answer as long as the caller does,
    /// but not longer than a little.
    pub(crate) async fn fetch(
        &self,
        identity: &Identity,
        revocation: &Arc<Revocation>,
    ) -> Result<WorkloadCertificate, SvidSourceError> {
        let mut current = self.current.subscribe();
        let there = current.wait_for(Option::is_some);
        let svids = match timeout(ANSWER_DEADLINE, there).await {
            Ok(Ok(svids)) => svids.clone(),
            Ok(Err(_)) | Err(_) => None,
        };
        let Some(svids) = svids else {
            return Err(SvidSourceError::NoAnswer(self.failure.lock().clone()));
        };
        let svid = svids.get(identity);
        let svid = svid.ok_or(SvidSourceError::NotRegistered(svids.len()))?;
        Ok(WorkloadCertificate::from_der(
            identity,
            svid.chain.clone(),
            svid.bundle.clone(),
            svid.key.clone_key(),
            revocation,
        )?)
    }
}

impl fmt::Debug for WorkloadApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadApi")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
