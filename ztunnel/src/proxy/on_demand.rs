//! Destinations that the control plane is asked about when somebody calls there (`XDS_ON_DEMAND`, facts XDS-10).
//!
//! A connection waits for the answer within a deadline, and is refused without one: who has not been asked about may be in
//! the mesh. What was asked for stays subscribed, so that the control plane tells of every change.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use leyline_proto::ADDRESS_TYPE;
use leyline_state::{GatewayDestination, OutboundRefusal, OutboundRoute, Snapshot};
use leyline_telemetry::mesh::{self, Demanded};
use leyline_types::NetworkAddress;
use leyline_xds::{client::Interest, session::Update};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::Shared;

/// Names that are subscribed to at once: each new one costs a walk over all of them.
const MAX_NAMES: usize = 16_384;
/// A name that nobody has is given up after this long without a call, when there are too many.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// What was asked for, and what came of it.
#[derive(Debug, Default)]
pub(crate) struct OnDemand {
    names: Mutex<HashMap<String, Asked>>,
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct Asked {
    what: GatewayDestination,
    answer: Answer,
    used: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Awaited,
    /// The snapshot has it.
    Known,
    /// Nobody has it, as far as connections are concerned.
    Absent,
}

/// Whose address it is that is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// A workload that has shown its identity.
    Proven,
    /// Somebody who has opened a connection.
    Anybody,
}

/// Why it is not known who is at a destination.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswered {
    #[error(
        "the control plane has not said within {0:?} who is at {1}, hint: check the control plane logs"
    )]
    Deadline(Duration, String),
    #[error("who is at {0} cannot be asked: more than {MAX_NAMES} destinations are in use")]
    TooMany(String),
}

impl OnDemand {
    /// For the xDS client.
    pub(crate) fn interest(this: &Arc<Self>) -> Interest {
        let names = Arc::clone(this);
        let wanted = move |type_url| (type_url == ADDRESS_TYPE).then(|| names.wanted());
        Interest::on_demand(ADDRESS_TYPE, Arc::new(wanted), Arc::clone(&this.changed))
    }

    fn wanted(&self) -> BTreeSet<String> {
        self.names.lock().keys().cloned().collect()
    }

    /// Returns once it is known who is at an address of our network, or that nobody is.
    pub(super) async fn ask_address(&self, shared: &Shared, ip: IpAddr) -> Result<(), Unanswered> {
        let network = shared.store.snapshot().network().clone();
        let address = NetworkAddress {
            network,
            address: ip,
        };
        self.ask(shared, GatewayDestination::Address(address)).await
    }

    /// Asks who is at the address of a peer, for what is told of its next connections: nobody waits for that. Not beyond
    /// the peer's share of the names, so that destinations have room whoever calls.
    pub(super) fn ask_peer(&self, snapshot: &Snapshot, ip: IpAddr, peer: Caller) {
        let room = match peer {
            Caller::Proven => MAX_NAMES / 2,
            Caller::Anybody => MAX_NAMES / 4,
        };
        let what = GatewayDestination::Address(NetworkAddress {
            network: snapshot.network().clone(),
            address: ip,
        });
        if !snapshot.knows(&what) && self.names.lock().len() < room {
            let name = name_of(&what);
            // An error says that there is no room, which was looked at.
            self.is_answered(snapshot, &name, &what).ok();
        }
    }

    /// Asks about the waypoint that a route lacks; returns whether that may make another route of it.
    async fn ask_waypoint(&self, shared: &Shared, route: &OutboundRoute) -> bool {
        let OutboundRoute::Refused(OutboundRefusal::UnknownWaypoint { waypoint, .. }) = route
        else {
            return false;
        };
        let asked = self.ask(shared, waypoint.destination.clone()).await;
        asked.is_ok()
    }

    async fn ask(&self, shared: &Shared, what: GatewayDestination) -> Result<(), Unanswered> {
        let name = name_of(&what);
        let mut changed = shared.changed.subscribe();
        if self.is_answered(&shared.store.snapshot(), &name, &what)? {
            return Ok(());
        }
        let patience = shared.config.workload_deadline;
        let deadline = Instant::now() + patience;
        loop {
            match timeout_at(deadline, changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => {
                    mesh::demanded(Demanded::Deadline);
                    return Err(Unanswered::Deadline(patience, name));
                }
            }
            if self.is_answered(&shared.store.snapshot(), &name, &what)? {
                mesh::demanded(Demanded::Answered);
                return Ok(());
            }
        }
    }

    /// Asks if it is not asked for yet.
    fn is_answered(
        &self,
        snapshot: &Snapshot,
        name: &str,
        what: &GatewayDestination,
    ) -> Result<bool, Unanswered> {
        if snapshot.knows(what) {
            return Ok(true);
        }
        let now = Instant::now();
        let mut names = self.names.lock();
        if let Some(asked) = names.get_mut(name) {
            asked.used = now;
            return Ok(asked.answer == Answer::Absent);
        }
        if names.len() >= MAX_NAMES {
            names.retain(|_, asked| asked.answer != Answer::Absent || now - asked.used < FORGOTTEN);
        }
        if names.len() >= MAX_NAMES {
            mesh::demanded(Demanded::TooMany);
            return Err(Unanswered::TooMany(name.to_owned()));
        }
        let asked = Asked {
            what: what.clone(),
            answer: Answer::Awaited,
            used: now,
        };
        names.insert(name.to_owned(), asked);
        self.changed.notify_one();
        Ok(false)
    }

    /// Notes what an update says; to be called with the snapshot that it made.
    pub(crate) fn answered(&self, said: &Said, snapshot: &Snapshot) {
        for (name, asked) in self.names.lock().iter_mut() {
            let is_gone = || said.removed.contains(name) || asked.answer == Answer::Known;
            if snapshot.knows(&asked.what) {
                asked.answer = Answer::Known;
            } else if is_gone() || said.aliases.contains(name) {
                // What came under the name is none that is called by it: a pod with the address of its node.
                asked.answer = Answer::Absent;
            }
        }
    }
}

impl Shared {
    /// As [`Self::decide`], where the route may need a waypoint that has to be asked for.
    pub(super) async fn decide_asking(
        &self,
        snapshot: Arc<Snapshot>,
        decide: impl Fn(&Snapshot) -> OutboundRoute,
    ) -> (Arc<Snapshot>, OutboundRoute) {
        let (snapshot, route) = self.decide(snapshot, &decide).await;
        match &self.on_demand {
            Some(on_demand) if Box::pin(on_demand.ask_waypoint(self, &route)).await => {
                self.decide(self.store.snapshot(), &decide).await
            }
            Some(_) | None => (snapshot, route),
        }
    }
}

/// The names that an update speaks of besides those of its resources.
#[derive(Debug, Default)]
pub(crate) struct Said {
    removed: BTreeSet<String>,
    aliases: BTreeSet<String>,
}

impl Said {
    pub(crate) fn of(update: &Update) -> Self {
        Self {
            removed: update.removed.iter().cloned().collect(),
            aliases: update.aliases.iter().cloned().collect(),
        }
    }
}

fn name_of(what: &GatewayDestination) -> String {
    match what {
        GatewayDestination::Service(key) => key.to_string(),
        GatewayDestination::Address(address) => address.to_string(),
    }
}
