//! Identities that have left the node while tunnels of theirs are still open. Nobody fetches certificates for them any more,
//! yet a root that is withdrawn ends their tunnels too: they hear of it by the certificates of the others.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use leyline_types::Identity;

use crate::{certificate::WorkloadCertificate, standing::Anchors};

/// Bounded by the tunnels that are open.
#[derive(Default)]
pub(super) struct Departed(HashMap<Identity, Weak<Anchors>>);

impl Departed {
    pub(super) fn add(&mut self, identity: Identity, anchors: &Arc<Anchors>) {
        self.0.retain(|_, anchors| anchors.strong_count() > 0);
        self.0.insert(identity, Arc::downgrade(anchors));
    }

    /// The tunnels of an identity that is here again, if there are some.
    pub(super) fn come_back(&mut self, identity: &Identity) -> Option<Arc<Anchors>> {
        self.0.remove(identity)?.upgrade()
    }

    /// To be called with each new certificate. What all trust is the same within a trust domain.
    pub(super) fn publish(&self, certificate: &WorkloadCertificate) {
        let domain = certificate.identity().trust_domain();
        let of_domain = self.0.iter().filter(|(it, _)| it.trust_domain() == domain);
        for anchors in of_domain.filter_map(|(_, anchors)| anchors.upgrade()) {
            // No new tunnels are opened for it, so that it does not matter whether younger ones would be better.
            anchors.publish(certificate);
        }
    }
}
