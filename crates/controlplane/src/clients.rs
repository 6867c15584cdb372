//! The connected proxies: what each has acknowledged and what it rejected. The status page shows it, and un-enrolment
//! waits on it.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use leyline_types::NamespacedName;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;

use crate::xds::TypeStatus;

/// Streams of one account on one node: a proxy, its successor, and attempts whose end is not noticed yet. It bounds what
/// one token can make the control plane hold.
const MAX_OF_ACCOUNT: usize = 16;

/// A connected proxy.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Client {
    /// As it names itself.
    pub(crate) node_id: String,
    /// `namespace/service account` of its token.
    pub(crate) account: String,
    /// The node of its token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<String>,
    pub(crate) address: Option<SocketAddr>,
    /// The pod that a waypoint says it is, of the namespace of its account.
    #[serde(skip)]
    pub(crate) pod: Option<NamespacedName>,
    /// By type, short.
    pub(crate) types: BTreeMap<&'static str, TypeStatus>,
    /// The generation of the mesh up to which it has acknowledged addresses; `None` if it did not subscribe to them.
    pub(crate) addresses_generation: Option<u64>,
}

/// All of them.
#[derive(Clone)]
pub(crate) struct Clients {
    inner: Arc<Inner>,
}

struct Inner {
    clients: Mutex<(u64, BTreeMap<u64, Client>)>,
    /// Ticks whenever one changes or goes.
    changes: watch::Sender<()>,
}

impl Clients {
    pub(crate) fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                clients: Mutex::default(),
                changes: watch::Sender::new(()),
            }),
        }
    }

    /// Lists a client until the returned guard is dropped; `None` when its account has too many on its node.
    pub(crate) fn connect(&self, client: Client) -> Option<Connected> {
        let mut clients = self.inner.clients.lock();
        let same = |other: &&Client| other.account == client.account && other.node == client.node;
        if clients.1.values().filter(same).count() >= MAX_OF_ACCOUNT {
            return None;
        }
        clients.0 += 1;
        let id = clients.0;
        clients.1.insert(id, client);
        Some(Connected {
            inner: Arc::clone(&self.inner),
            id,
        })
    }

    pub(crate) fn list(&self) -> Vec<Client> {
        self.inner.clients.lock().1.values().cloned().collect()
    }

    /// Waits until every connected client has acknowledged the addresses of a generation. Cancel safe.
    pub(crate) async fn acknowledged(&self, generation: u64) {
        let mut changes = self.inner.changes.subscribe();
        loop {
            let behind = |client: &Client| {
                client
                    .addresses_generation
                    .is_some_and(|acked| acked < generation)
            };
            if !self.inner.clients.lock().1.values().any(behind) {
                return;
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

/// A client while it is connected.
pub(crate) struct Connected {
    inner: Arc<Inner>,
    id: u64,
}

impl Connected {
    pub(crate) fn update(&self, change: impl FnOnce(&mut Client)) {
        if let Some(client) = self.inner.clients.lock().1.get_mut(&self.id) {
            change(client);
        }
        self.inner.changes.send_replace(());
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.inner.clients.lock().1.remove(&self.id);
        self.inner.changes.send_replace(());
    }
}
