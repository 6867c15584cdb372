//! What an agent has given for which pods, and what that means for an identity. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use leyline_types::{Identity, TrustDomain};
use rustls::pki_types::CertificateDer;

use super::{
    answer::{Svid, Unused},
    pod::DelegatedPod,
};
use crate::spiffe_agent::SvidSourceError;

/// Enough to see what is wrong.
const MAX_TOLD: usize = 4;

/// The state of all subscriptions.
#[derive(Default)]
pub(super) struct Given {
    /// None before the agent has told of them.
    bundles: Option<HashMap<TrustDomain, Vec<CertificateDer<'static>>>>,
    pods: BTreeMap<DelegatedPod, Subscription>,
}

/// What was given for one pod.
#[derive(Default)]
struct Subscription {
    svids: Vec<Arc<Svid>>,
    /// What was given and is not used.
    unused: Vec<Unused>,
    phase: Phase,
}

#[derive(Default)]
enum Phase {
    #[default]
    Asked,
    Answered,
    /// What was given before stays.
    Failed(String),
}

/// What there is for an identity.
pub(super) enum Outlook {
    /// An answer is under way.
    Wait,
    /// The best first.
    Take {
        svids: Vec<Arc<Svid>>,
        roots: Vec<CertificateDer<'static>>,
    },
    Fail(SvidSourceError),
}

/// Identities to do something about.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Affected {
    /// Another SVID is the best one now.
    pub(super) renewed: Vec<Identity>,
    /// The last pod has gone.
    pub(super) forgotten: Vec<Identity>,
}

impl Given {
    /// From now on these are the pods.
    pub(super) fn keep(&mut self, pods: &BTreeSet<DelegatedPod>) -> Affected {
        let before = self.best_of(self.identities());
        self.pods.retain(|pod, _| pods.contains(pod));
        for pod in pods {
            if !self.pods.contains_key(pod) {
                self.pods.insert(pod.clone(), Subscription::default());
            }
        }
        let mut affected = Affected::default();
        for (identity, leaf) in before {
            if !self.pods.keys().any(|pod| pod.is_of(&identity)) {
                affected.forgotten.push(identity);
            } else if self.best(&identity).map(Svid::leaf) != Some(leaf.as_slice()) {
                affected.renewed.push(identity);
            }
        }
        affected
    }

    /// The agent has answered for a pod. Says whose best SVID is another one now.
    pub(super) fn answered(
        &mut self,
        pod: &DelegatedPod,
        svids: Vec<Arc<Svid>>,
        unused: Vec<Unused>,
    ) -> Vec<Identity> {
        let Some(subscription) = self.pods.get(pod) else {
            return Vec::new();
        };
        let concerned = subscription.svids.iter().chain(&svids);
        let concerned: BTreeSet<Identity> = concerned.map(|svid| svid.identity.clone()).collect();
        let before = self.best_of(concerned.clone());
        let answered = Subscription {
            svids,
            unused,
            phase: Phase::Answered,
        };
        self.pods.insert(pod.clone(), answered);
        let now = self.best_of(concerned.clone());
        let changed = |identity: &Identity| before.get(identity) != now.get(identity);
        concerned.into_iter().filter(changed).collect()
    }

    /// The agent does not answer for a pod.
    pub(super) fn failed(&mut self, pod: &DelegatedPod, why: &str) {
        if let Some(subscription) = self.pods.get_mut(pod) {
            subscription.phase = Phase::Failed(why.to_owned());
        }
    }

    /// The agent does not answer at all.
    pub(super) fn lost(&mut self, why: &str) {
        for subscription in self.pods.values_mut() {
            subscription.phase = Phase::Failed(why.to_owned());
        }
    }

    /// Takes the bundles in place of those before. Says whether they are others.
    pub(super) fn take_bundles(
        &mut self,
        bundles: HashMap<TrustDomain, Vec<CertificateDer<'static>>>,
    ) -> bool {
        let bundles = Some(bundles);
        let differ = self.bundles != bundles;
        self.bundles = bundles;
        differ
    }

    pub(super) fn outlook(&self, identity: &Identity) -> Outlook {
        let svids = self.svids(identity);
        if !svids.is_empty() {
            let domain = identity.trust_domain();
            return match self.bundles.as_ref().map(|bundles| bundles.get(domain)) {
                None => Outlook::Wait,
                Some(None) => Outlook::Fail(SvidSourceError::NoBundle(domain.clone())),
                Some(Some(roots)) => Outlook::Take {
                    svids,
                    roots: roots.clone(),
                },
            };
        }
        let mut pods = 0;
        let mut failure = None;
        for subscription in self.of(identity) {
            pods += 1;
            match &subscription.phase {
                Phase::Asked => return Outlook::Wait,
                Phase::Answered => {}
                Phase::Failed(why) => failure = Some(why),
            }
        }
        match failure {
            Some(why) => Outlook::Fail(SvidSourceError::NoAnswer(why.clone())),
            // Whoever asks may be ahead of who tells of the pod.
            None if pods == 0 => Outlook::Wait,
            None => Outlook::Fail(SvidSourceError::NoEntry {
                pods,
                instead: self.instead(identity),
            }),
        }
    }

    /// Whether there is a pod of the identity.
    pub(super) fn knows(&self, identity: &Identity) -> bool {
        self.of(identity).next().is_some()
    }

    fn of(&self, identity: &Identity) -> impl Iterator<Item = &Subscription> {
        let pods = self.pods.iter();
        pods.filter(|(pod, _)| pod.is_of(identity))
            .map(|(_, subscription)| subscription)
    }

    /// Those that live longest first, each once: pods of one entry are given the same.
    fn svids(&self, identity: &Identity) -> Vec<Arc<Svid>> {
        let all = self.of(identity).flat_map(|one| &one.svids);
        let all = all.filter(|svid| svid.identity == *identity);
        let mut all: Vec<Arc<Svid>> = all.cloned().collect();
        all.sort_by(|one, other| order(other).cmp(&order(one)));
        all.dedup_by(|one, other| one.leaf() == other.leaf());
        all
    }

    fn best(&self, identity: &Identity) -> Option<&Svid> {
        let all = self.of(identity).flat_map(|one| &one.svids);
        let all = all.filter(|svid| svid.identity == *identity);
        all.map(Arc::as_ref).max_by_key(|svid| order(svid))
    }

    /// The leaves that are the best.
    fn best_of(
        &self,
        identities: impl IntoIterator<Item = Identity>,
    ) -> BTreeMap<Identity, Vec<u8>> {
        let leaf = |identity: Identity| {
            let leaf = self.best(&identity)?.leaf().to_vec();
            Some((identity, leaf))
        };
        identities.into_iter().filter_map(leaf).collect()
    }

    fn identities(&self) -> BTreeSet<Identity> {
        let svids = self.pods.values().flat_map(|one| &one.svids);
        svids.map(|svid| svid.identity.clone()).collect()
    }

    /// What the agent gives for the pods of an identity, and is not of use.
    fn instead(&self, identity: &Identity) -> String {
        let others = self.of(identity).flat_map(|one| &one.svids);
        let others = others.map(|svid| format!("{} is of another trust domain", svid.identity));
        let unused = self.of(identity).flat_map(|one| &one.unused);
        let told: BTreeSet<String> = others.chain(unused.map(ToString::to_string)).collect();
        let told: Vec<String> = told.into_iter().take(MAX_TOLD).collect();
        told.join("; ")
    }
}

/// By how long it lives; the rest makes it the same whatever came first.
fn order(svid: &Svid) -> (i64, &[u8]) {
    (svid.expires_at, svid.leaf())
}

#[cfg(test)]
mod tests;
