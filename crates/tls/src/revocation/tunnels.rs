//! The open tunnels by the issuers of their peers' certificates, so that a new list is compared with few of them.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use metrics::counter;
use tokio::sync::oneshot;

use super::{Link, Reporter, Revocation};

/// Tunnels that are followed; further ones are judged at their handshake only, and counted. Several times what a node
/// carries, at some hundred bytes each.
const MAX_TUNNELS: usize = 65_536;

#[derive(Debug, Default)]
pub(super) struct Tunnels {
    next_key: u64,
    by_key: HashMap<u64, Tunnel>,
    by_issuer: HashMap<Box<[u8]>, HashSet<u64>>,
}

#[derive(Debug)]
struct Tunnel {
    reporter: Reporter,
    chain: Arc<[Link]>,
    /// Taken when the tunnel is cut.
    cut: Option<oneshot::Sender<()>>,
}

impl Tunnels {
    /// Each tunnel with one of these issuers, once.
    pub(super) fn with_issuers<'a>(
        &self,
        issuers: impl Iterator<Item = &'a [u8]>,
    ) -> HashMap<u64, Arc<[Link]>> {
        let keys = issuers
            .filter_map(|issuer| self.by_issuer.get(issuer))
            .flatten();
        let found = keys.filter_map(|key| Some((*key, Arc::clone(&self.by_key.get(key)?.chain))));
        found.collect()
    }

    /// Cuts a tunnel if it is there and not cut already.
    pub(super) fn cut(&mut self, key: u64) -> Option<Reporter> {
        let tunnel = self.by_key.get_mut(&key)?;
        // A tunnel that is being closed does not listen any more.
        tunnel.cut.take()?.send(()).ok()?;
        Some(tunnel.reporter)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty() && self.by_issuer.is_empty()
    }

    fn insert(&mut self, tunnel: Tunnel) -> Option<u64> {
        if self.by_key.len() >= MAX_TUNNELS {
            return None;
        }
        self.next_key += 1;
        let key = self.next_key;
        for link in &*tunnel.chain {
            let keys = self.by_issuer.entry(link.issuer.clone()).or_default();
            keys.insert(key);
        }
        self.by_key.insert(key, tunnel);
        Some(key)
    }

    fn remove(&mut self, key: u64) {
        let Some(tunnel) = self.by_key.remove(&key) else {
            return;
        };
        for link in &*tunnel.chain {
            if let Some(keys) = self.by_issuer.get_mut(&link.issuer) {
                keys.remove(&key);
                if keys.is_empty() {
                    self.by_issuer.remove(&link.issuer);
                }
            }
        }
    }
}

/// A tunnel's place among those that are followed; dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct Tracked(State);

#[derive(Debug)]
enum State {
    Never,
    Following(Place),
    Cut,
}

#[derive(Debug)]
struct Place {
    revocation: Arc<Revocation>,
    key: u64,
    cut: oneshot::Receiver<()>,
}

impl Tracked {
    /// Of a tunnel that is not followed.
    pub(super) fn never() -> Self {
        Self(State::Never)
    }

    pub(super) fn register(
        revocation: &Arc<Revocation>,
        reporter: Reporter,
        chain: Arc<[Link]>,
    ) -> Self {
        let (sender, cut) = oneshot::channel();
        let tunnel = Tunnel {
            reporter,
            chain,
            cut: Some(sender),
        };
        let Some(key) = revocation.tunnels.lock().insert(tunnel) else {
            counter!("istio_crl_untracked_connections_total", "reporter" => reporter.as_str())
                .increment(1);
            return Self::never();
        };
        Self(State::Following(Place {
            revocation: Arc::clone(revocation),
            key,
            cut,
        }))
    }

    /// Whether the peer has been revoked; wakes the caller when it is.
    pub(crate) fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let place = match &mut self.0 {
            State::Never => return Poll::Pending,
            State::Cut => return Poll::Ready(()),
            State::Following(place) => place,
        };
        match Pin::new(&mut place.cut).poll(cx) {
            Poll::Pending => Poll::Pending,
            // The sender leaves only by being used: it lives in the entry, which lives as long as this.
            Poll::Ready(_) => {
                self.0 = State::Cut;
                Poll::Ready(())
            }
        }
    }

    pub(crate) fn is_cut(&self) -> bool {
        matches!(self.0, State::Cut)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.revocation.tunnels.lock().remove(self.key);
    }
}
