//! The connections that a pod has now, for policy re-checks, draining and `/config_dump`.
//!
//! Invariant: an inbound connection is registered *before* it is evaluated, and a policy change is published *before*
//! connections are re-checked. So whichever comes first, no connection outlives a policy that forbids it.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use leyline_authz::{ConnectionFacts, Denial, Permit, PolicySet};
use leyline_telemetry::traffic::Direction;
use leyline_types::NamespacedName;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{oneshot, watch};
use tracing::{Level, debug, enabled, field::display, info};

/// What `/config_dump` shows of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Shown {
    pub(crate) src: SocketAddr,
    pub(crate) original_dst: String,
    pub(crate) actual_dst: SocketAddr,
    pub(crate) protocol: Protocol,
}

/// How the far leg of a connection is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) enum Protocol {
    #[serde(rename = "HBONE")]
    Hbone,
    #[serde(rename = "TCP")]
    Tcp,
    /// Inside the process: it has no far leg.
    #[serde(rename = "LOCAL")]
    NodeLocal,
}

/// Where decisions of policies are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum DecisionLevel {
    Info,
    #[default]
    Debug,
}

/// Connections of one pod.
#[derive(Debug)]
pub(crate) struct Connections {
    entries: Mutex<Entries>,
    count: watch::Sender<usize>,
    decisions: DecisionLevel,
}

#[derive(Debug, Default)]
struct Entries {
    next_key: u64,
    by_key: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    direction: Direction,
    shown: Shown,
    /// Inbound connections only.
    admission: Option<Evaluated>,
}

#[derive(Debug)]
struct Evaluated {
    facts: ConnectionFacts,
    /// Taken when the connection is revoked.
    revoke: Option<oneshot::Sender<Denial>>,
}

/// A registered connection; dropping it removes it.
#[derive(Debug)]
pub(crate) struct Registration {
    connections: Arc<Connections>,
    key: u64,
}

/// An inbound connection that policies allowed, as long as they do.
#[derive(Debug)]
pub(crate) struct Admission {
    revoked: oneshot::Receiver<Denial>,
    _registration: Registration,
}

impl Admission {
    /// Resolves when a change of policy or workload forbids the connection. Cancel safe.
    pub(crate) async fn revoked(&mut self) -> Denial {
        match (&mut self.revoked).await {
            Ok(denial) => denial,
            // The sender lives in the entry, which lives as long as the registration beside it.
            Err(_) => std::future::pending().await,
        }
    }

    /// Whether it is still allowed, for a look between two steps. Not to be asked again after an error.
    pub(crate) fn check(&mut self) -> Result<(), Denial> {
        match self.revoked.try_recv() {
            Ok(denial) => Err(denial),
            Err(_) => Ok(()),
        }
    }
}

impl Connections {
    pub(crate) fn new(decisions: DecisionLevel) -> Arc<Self> {
        Arc::new(Self {
            decisions,
            entries: Mutex::default(),
            count: watch::Sender::new(0),
        })
    }

    /// Registers an outbound connection.
    pub(crate) fn track(self: &Arc<Self>, shown: Shown) -> Registration {
        self.insert(Entry {
            direction: Direction::Outbound,
            shown,
            admission: None,
        })
    }

    /// Registers an inbound connection, then evaluates it against the policies of that moment.
    pub(crate) fn admit(
        self: &Arc<Self>,
        shown: Shown,
        facts: ConnectionFacts,
        policies: impl FnOnce() -> PolicySet,
    ) -> Result<(Permit, Admission), Denial> {
        let (revoke, revoked) = oneshot::channel();
        let registration = self.insert(Entry {
            direction: Direction::Inbound,
            shown,
            admission: Some(Evaluated {
                facts: facts.clone(),
                revoke: Some(revoke),
            }),
        });
        let policies = policies();
        let decision = leyline_authz::evaluate(&policies, &facts);
        match self.decisions {
            DecisionLevel::Info if enabled!(Level::INFO) => self.log(&policies, &facts, &decision),
            DecisionLevel::Debug if enabled!(Level::DEBUG) => {
                self.log(&policies, &facts, &decision);
            }
            DecisionLevel::Info | DecisionLevel::Debug => {}
        }
        let permit = decision?;
        Ok((
            permit,
            Admission {
                revoked,
                _registration: registration,
            },
        ))
    }

    /// Evaluates every inbound connection again and revokes those that are no longer allowed; says how many.
    pub(crate) fn recheck(&self, policies: &PolicySet) -> usize {
        // Evaluated outside the lock: there may be thousands.
        let facts: Vec<(u64, ConnectionFacts)> = {
            let entries = self.entries.lock();
            let admitted = entries.by_key.iter().filter_map(|(key, entry)| {
                entry
                    .admission
                    .as_ref()
                    .map(|admission| (*key, admission.facts.clone()))
            });
            admitted.collect()
        };
        let mut revoked = 0;
        for (key, facts) in facts {
            let Err(denial) = leyline_authz::evaluate(policies, &facts) else {
                continue;
            };
            let sender = self
                .entries
                .lock()
                .by_key
                .get_mut(&key)
                .and_then(|entry| entry.admission.as_mut()?.revoke.take());
            if let Some(sender) = sender
                && sender.send(denial).is_ok()
            {
                revoked += 1;
            }
        }
        revoked
    }

    /// Connections of each direction, in order.
    pub(crate) fn dump(&self) -> (Vec<Shown>, Vec<Shown>) {
        let (mut inbound, mut outbound) = (Vec::new(), Vec::new());
        for entry in self.entries.lock().by_key.values() {
            match entry.direction {
                Direction::Inbound => inbound.push(entry.shown.clone()),
                Direction::Outbound => outbound.push(entry.shown.clone()),
            }
        }
        inbound.sort();
        outbound.sort();
        (inbound, outbound)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// Tells what policies decided, and what those would have that are only tried out.
    fn log(
        &self,
        policies: &PolicySet,
        facts: &ConnectionFacts,
        decision: &Result<Permit, Denial>,
    ) {
        let identity = facts.source_identity.as_ref();
        let say = |policy: Option<&NamespacedName>, what: &str| {
            let (policy, identity) = (policy.map(display), identity.map(display));
            let (source, destination) = (facts.source_ip, facts.destination);
            match self.decisions {
                DecisionLevel::Info => {
                    info!(policy, identity, %source, %destination, "{what}");
                }
                DecisionLevel::Debug => {
                    debug!(policy, identity, %source, %destination, "{what}");
                }
            }
        };
        for outcome in leyline_authz::dry_run(policies, facts) {
            say(outcome.policy(), outcome.message());
        }
        match decision {
            // Without policies nothing was decided.
            Ok(_) if policies.policies.is_empty() => {}
            Ok(_) => say(None, "allowed by policies"),
            Err(denial) => say(None, &denial.to_string()),
        }
    }

    fn insert(self: &Arc<Self>, entry: Entry) -> Registration {
        let mut entries = self.entries.lock();
        entries.next_key += 1;
        let key = entries.next_key;
        entries.by_key.insert(key, entry);
        self.count.send_replace(entries.by_key.len());
        Registration {
            connections: self.clone(),
            key,
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut entries = self.connections.entries.lock();
        entries.by_key.remove(&self.key);
        self.connections.count.send_replace(entries.by_key.len());
    }
}

#[cfg(test)]
mod tests {
    use leyline_authz::{Action, Policy, Rule, Scope};

    use super::*;

    fn shown() -> Shown {
        Shown {
            src: ([10, 0, 0, 1], 1000).into(),
            original_dst: "10.0.0.2:80".to_owned(),
            actual_dst: ([10, 0, 0, 2], 80).into(),
            protocol: Protocol::Hbone,
        }
    }

    fn facts() -> ConnectionFacts {
        ConnectionFacts {
            source_identity: None,
            source_ip: [10, 0, 0, 1].into(),
            destination: ([10, 0, 0, 2], 80).into(),
        }
    }

    fn allowed() -> PolicySet {
        PolicySet::default()
    }

    fn denied() -> PolicySet {
        let policy = Policy {
            key: "shop/nobody".parse().unwrap(),
            scope: Scope::Namespace,
            action: Action::Deny,
            rules: vec![Rule { clauses: vec![] }],
            dry_run: false,
        };
        PolicySet {
            policies: vec![Arc::new(policy)],
            missing: vec![],
        }
    }

    #[tokio::test]
    async fn is_registered_before_it_is_evaluated() {
        let connections = Connections::new(DecisionLevel::Debug);
        // The change comes after the connection has read the old policies and before it has evaluated them.
        let read_old_policies = || {
            assert_eq!(connections.count(), 1, "not registered yet");
            assert_eq!(connections.recheck(&denied()), 1);
            allowed()
        };
        let admitted = connections.admit(shown(), facts(), read_old_policies);
        let (_permit, mut admission) = admitted.unwrap();
        assert!(admission.check().is_err(), "it outlives the change");
    }

    #[tokio::test]
    async fn a_change_revokes_what_it_forbids_and_only_once() {
        let connections = Connections::new(DecisionLevel::Debug);
        let (_permit, mut admission) = connections.admit(shown(), facts(), allowed).unwrap();
        let _outbound = connections.track(shown());
        assert_eq!(connections.recheck(&allowed()), 0);
        assert!(admission.check().is_ok());
        assert_eq!(connections.recheck(&denied()), 1);
        assert_eq!(connections.recheck(&denied()), 0);
        let denial = admission.revoked().await;
        assert_eq!(denial.to_string(), "explicitly denied by: shop/nobody");
        assert_eq!(connections.count(), 2);
        drop(admission);
        assert_eq!(connections.dump(), (vec![], vec![shown()]));
    }

    #[test]
    fn what_is_denied_leaves_nothing() {
        let connections = Connections::new(DecisionLevel::Debug);
        assert!(connections.admit(shown(), facts(), denied).is_err());
        assert_eq!(connections.count(), 0);
    }

    #[test]
    fn a_policy_that_is_named_and_missing_denies() {
        let connections = Connections::new(DecisionLevel::Debug);
        let missing = || PolicySet {
            policies: vec![],
            missing: vec!["shop/lost".parse().unwrap()],
        };
        let denial = connections.admit(shown(), facts(), missing).unwrap_err();
        assert!(denial.to_string().contains("shop/lost"), "{denial}");
    }
}
