//! Certificates from SPIRE's Delegated Identity API, in place of a CA that signs requests: one process is given the SVIDs
//! of all pods that it carries.
//!
//! The agent goes by selectors that this process tells it, so that it is this process that answers for them. There is a
//! subscription for each pod, with the selectors of that pod and no other's. What was given last stays in force while
//! the agent is away, each SVID until it expires.

mod answer;
mod given;
mod pod;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
    time::Duration,
};

use futures::{
    StreamExt,
    future::{AbortHandle, Abortable},
    stream::FuturesUnordered,
};
use leyline_types::Identity;
use metrics::{counter, gauge};
use parking_lot::Mutex;
use spiffe::transport::{Endpoint, TransportError, connector};
use spire_api::pb::spire::api::agent::delegatedidentity::v1::{
    SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse, SubscribeToX509sviDsRequest,
    SubscribeToX509sviDsResponse, delegated_identity_client::DelegatedIdentityClient,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tonic::{Code, Status, Streaming, transport::Channel};
use tracing::{debug, info, warn};

use self::{
    answer::Unused,
    given::{Given, Outlook},
};
use crate::{
    certificate::WorkloadCertificate,
    revocation::Revocation,
    spiffe_agent::{ANSWER_DEADLINE, EndpointError, Failures, SvidSourceError, endpoint},
    store::CertificateStore,
};

pub use self::pod::DelegatedPod;

/// Several times what fits on a node.
const MAX_PODS: usize = 1024;
/// A bundle is a few KiB, as is an SVID with its chain; an agent may know of many trust domains.
const MAX_MESSAGE: usize = 4 << 20;
/// An agent that asks its server for an SVID first is silent that long at most; then it is asked again.
const SILENCE_DEADLINE: Duration = Duration::from_secs(60);

type Client = DelegatedIdentityClient<Channel>;

/// What an agent has given for the pods of this process.
pub struct DelegatedIdentity {
    address: String,
    endpoint: Endpoint,
    /// Of the pods; empty where it is not known.
    node: String,
    pods: watch::Sender<Arc<BTreeSet<DelegatedPod>>>,
    given: watch::Sender<Given>,
    /// Why the last try failed.
    failure: Mutex<String>,
}

/// How following the agent, or a stream of it, ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Connect(#[from] TransportError),
    #[error("{}{}", .0.message(), hint(.0))]
    Refused(#[from] Status),
    #[error("no answer within {ANSWER_DEADLINE:?}")]
    Deadline,
    #[error("the agent has ended the stream")]
    Ended,
}

fn hint(status: &Status) -> &'static str {
    match status.code() {
        Code::PermissionDenied => {
            "; is the SPIFFE ID of this process registered, and among authorized_delegates of the agent?"
        }
        Code::Unimplemented => "; is it the agent's admin socket (admin_socket_path)?",
        _ => "",
    }
}

impl DelegatedIdentity {
    /// The API at an address such as `unix:///run/spire/admin.sock`, for pods of this node; nothing is connected yet.
    ///
    /// # Errors
    /// When it is not the address of a Unix socket: the agent knows by it who asks.
    pub fn at(address: &str, node: &str) -> Result<Arc<Self>, EndpointError> {
        let endpoint = endpoint(address)?;
        if !matches!(endpoint, Endpoint::Unix(_)) {
            return Err(EndpointError::not_local(address));
        }
        Ok(Arc::new(Self {
            address: address.to_owned(),
            endpoint,
            node: node.to_owned(),
            pods: watch::Sender::default(),
            given: watch::Sender::default(),
            failure: Mutex::new("it was not asked yet".to_owned()),
        }))
    }

    /// Takes these pods in place of those before: new ones are asked for, and what was given for those that are not among
    /// them is dropped.
    pub(crate) fn carry(&self, pods: &BTreeSet<DelegatedPod>, certificates: &CertificateStore) {
        let pods = bounded(&self.pods.borrow(), pods);
        gauge!("leyline_delegated_identity_pods").set(pods.len() as f64);
        let mut affected = given::Affected::default();
        self.given.send_modify(|given| affected = given.keep(&pods));
        self.pods.send_replace(Arc::new(pods));
        for identity in &affected.forgotten {
            certificates.forget(identity);
        }
        certificates.renew(&affected.renewed);
    }

    /// Follows the agent for ever, and has the store take what is new. Cancel safe.
    pub async fn run(self: Arc<Self>, certificates: Arc<CertificateStore>) {
        let mut failures = Failures::new();
        loop {
            // Boxed: it is large and there is one.
            let broken = Box::pin(self.follow(&certificates, &mut failures)).await;
            let pause = failures.pause();
            counter!("leyline_delegated_identity_failures_total", "of" => "agent").increment(1);
            warn!(endpoint = self.address, error = %broken, retry_in = ?pause, "the SPIRE agent is not followed");
            let why = broken.to_string();
            self.given.send_modify(|given| given.lost(&why));
            *self.failure.lock() = why;
            sleep(pause).await;
        }
    }

    /// One connection. The bundles come first, so that an SVID can be judged as soon as it is there; with their stream
    /// all others end.
    async fn follow(&self, certificates: &CertificateStore, failures: &mut Failures) -> Broken {
        let (client, mut bundles, first) = match timeout(ANSWER_DEADLINE, self.open()).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(broken)) => return broken,
            Err(_elapsed) => return Broken::Deadline,
        };
        failures.answered();
        info!(endpoint = self.address, "following the SPIRE agent");
        self.take_bundles(&first, certificates);
        let mut pods = self.pods.subscribe();
        let mut running = FuturesUnordered::new();
        let mut subscribed: HashMap<DelegatedPod, AbortHandle> = HashMap::new();
        loop {
            let wanted = Arc::clone(&pods.borrow_and_update());
            subscribed.retain(|pod, subscription| {
                let stays = wanted.contains(pod);
                if !stays {
                    subscription.abort();
                }
                stays
            });
            for pod in wanted.iter() {
                if !subscribed.contains_key(pod) {
                    let (handle, registration) = AbortHandle::new_pair();
                    let following = self.follow_pod(client.clone(), pod.clone(), certificates);
                    running.push(Abortable::new(following, registration));
                    subscribed.insert(pod.clone(), handle);
                }
            }
            // Three things can happen: other bundles, other pods, and a subscription that ends, which is one that was
            // aborted. All of them are cancel safe. The bundles have no deadline: they come with the next rotation.
            tokio::select! {
                message = bundles.message() => match message {
                    Ok(Some(message)) => self.take_bundles(&message, certificates),
                    Ok(None) => return Broken::Ended,
                    Err(status) => return status.into(),
                },
                changed = pods.changed() => if changed.is_err() {
                    return Broken::Ended;
                },
                _aborted = running.next(), if !running.is_empty() => {}
            }
        }
    }

    async fn open(
        &self,
    ) -> Result<
        (
            Client,
            Streaming<SubscribeToX509BundlesResponse>,
            SubscribeToX509BundlesResponse,
        ),
        Broken,
    > {
        let channel = connector::connect(&self.endpoint).await?;
        let mut client = Client::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let request = SubscribeToX509BundlesRequest {};
        let mut bundles = client
            .subscribe_to_x509_bundles(request)
            .await?
            .into_inner();
        let first = bundles.message().await?.ok_or(Broken::Ended)?;
        Ok((client, bundles, first))
    }

    /// Follows one pod until it is aborted.
    async fn follow_pod(&self, client: Client, pod: DelegatedPod, certificates: &CertificateStore) {
        let mut failures = Failures::new();
        loop {
            let broken = self
                .subscribe(client.clone(), &pod, certificates, &mut failures)
                .await;
            let pause = failures.pause();
            counter!("leyline_delegated_identity_failures_total", "of" => "pod").increment(1);
            // Each pod has its own when the agent goes, and what a certificate lacks is told with it.
            debug!(pod = %pod.name, error = %broken, retry_in = ?pause, "the SPIRE agent does not answer for the pod");
            let why = broken.to_string();
            self.given.send_modify(|given| given.failed(&pod, &why));
            sleep(pause).await;
        }
    }

    async fn subscribe(
        &self,
        mut client: Client,
        pod: &DelegatedPod,
        certificates: &CertificateStore,
        failures: &mut Failures,
    ) -> Broken {
        let request = SubscribeToX509sviDsRequest {
            selectors: pod.selectors(&self.node),
            pid: 0,
        };
        let first = async {
            let mut stream = client.subscribe_to_x509svi_ds(request).await?.into_inner();
            let first = stream.message().await;
            Ok::<_, Status>((stream, first))
        };
        let mut first = std::pin::pin!(first);
        let started = match timeout(ANSWER_DEADLINE, &mut first).await {
            Ok(started) => Ok(started),
            Err(_elapsed) => {
                // Nobody is to wait for it any longer, and it may still come: the agent asks its server.
                let why = Broken::Deadline.to_string();
                self.given.send_modify(|given| given.failed(pod, &why));
                timeout(SILENCE_DEADLINE, first).await
            }
        };
        let (mut stream, mut next) = match started {
            Ok(Ok(started)) => started,
            Ok(Err(status)) => return status.into(),
            Err(_elapsed) => return Broken::Deadline,
        };
        loop {
            match next {
                Ok(Some(answer)) => {
                    failures.answered();
                    self.take(pod, &answer, certificates);
                }
                Ok(None) => return Broken::Ended,
                Err(status) => return status.into(),
            }
            // Without a deadline: the next message comes with the next rotation. A socket of this machine that is gone
            // is noticed at once.
            next = stream.message().await;
        }
    }

    fn take(
        &self,
        pod: &DelegatedPod,
        answer: &SubscribeToX509sviDsResponse,
        certificates: &CertificateStore,
    ) {
        let (svids, unused) = answer::svids(pod, answer);
        tell(&unused, Some(pod));
        let count = svids.len();
        let mut changed = Vec::new();
        self.given.send_modify(|given| {
            changed = given.answered(pod, svids, unused);
        });
        counter!("leyline_delegated_identity_updates_total", "of" => "svids").increment(1);
        debug!(pod = %pod.name, svids = count, changed = changed.len(), "SVIDs from the SPIRE agent");
        certificates.renew(&changed);
        // What is missing may be missing for another reason now.
        certificates.renew_missing(|identity| pod.is_of(identity));
    }

    fn take_bundles(
        &self,
        message: &SubscribeToX509BundlesResponse,
        certificates: &CertificateStore,
    ) {
        let (bundles, unused) = answer::bundles(message);
        tell(&unused, None);
        counter!("leyline_delegated_identity_updates_total", "of" => "bundles").increment(1);
        debug!(
            trust_domains = bundles.len(),
            "bundles from the SPIRE agent"
        );
        let mut differ = false;
        self.given.send_modify(|given| {
            differ = given.take_bundles(bundles);
        });
        if differ {
            certificates.renew_all();
        }
    }

    /// The certificate of an identity, from what the agent gave last. Waits for an answer as long as the caller does, but
    /// not longer than a little.
    pub(crate) async fn fetch(
        &self,
        identity: &Identity,
        revocation: &Arc<Revocation>,
    ) -> Result<WorkloadCertificate, SvidSourceError> {
        let mut given = self.given.subscribe();
        let settled = given.wait_for(|given| !matches!(given.outlook(identity), Outlook::Wait));
        let outlook = match timeout(ANSWER_DEADLINE, settled).await {
            Ok(Ok(given)) => given.outlook(identity),
            // The sender is our own.
            Ok(Err(_)) | Err(_) => Outlook::Wait,
        };
        match outlook {
            Outlook::Take { svids, roots } => {
                let mut failure = None;
                for svid in svids {
                    let (chain, key) = (svid.chain.clone(), svid.key.clone_key());
                    let roots = roots.clone();
                    match WorkloadCertificate::from_der(identity, chain, roots, key, revocation) {
                        Ok(certificate) => return Ok(certificate),
                        Err(error) => failure = failure.or(Some(error)),
                    }
                }
                Err(failure.map_or_else(|| self.no_answer(), Into::into))
            }
            Outlook::Fail(error) => Err(error),
            Outlook::Wait if self.given.borrow().knows(identity) => Err(self.no_answer()),
            Outlook::Wait => Err(SvidSourceError::NoPod),
        }
    }

    fn no_answer(&self) -> SvidSourceError {
        SvidSourceError::NoAnswer(self.failure.lock().clone())
    }
}

/// Those of before come first.
fn bounded(
    before: &BTreeSet<DelegatedPod>,
    pods: &BTreeSet<DelegatedPod>,
) -> BTreeSet<DelegatedPod> {
    let (stay, new) = pods
        .iter()
        .partition::<Vec<_>, _>(|pod| before.contains(pod));
    let excess = pods.len().saturating_sub(MAX_PODS);
    if excess > 0 {
        counter!("leyline_delegated_identity_pods_refused_total").increment(excess as u64);
        warn!(
            excess,
            limit = MAX_PODS,
            "no SVIDs are asked for some pods: there are too many"
        );
    }
    stay.into_iter()
        .chain(new)
        .take(MAX_PODS)
        .cloned()
        .collect()
}

fn tell(unused: &[Unused], pod: Option<&DelegatedPod>) {
    let pod = pod.map(|pod| tracing::field::display(&pod.name));
    for why in unused {
        counter!("leyline_delegated_identity_unused_total", "reason" => why.reason()).increment(1);
        match why {
            // A pod may have other names beside its own.
            Unused::Other(_) => debug!(pod, %why, "an SVID of the SPIRE agent is not used"),
            Unused::Unreadable(_) | Unused::Mismatch { .. } | Unused::Excess | Unused::Twice(_) => {
                warn!(pod, %why, "what the SPIRE agent has sent is not used");
            }
        }
    }
}

impl fmt::Debug for DelegatedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DelegatedIdentity")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
