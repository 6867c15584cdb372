//! A connection between two pods of this node: from the socket of the one to the socket of the other, inside the process.
//!
//! Nothing leaves the process, so there is no tunnel and nothing to encrypt; everything else is as by the wire. Both
//! identities must be ones that the CA has certified for this node, the destination's policies are asked for the same
//! facts and revoke the connection as they change, both reporters count it, and it belongs to the drains of both pods.
//!
//! Invariant: what cannot be proven here without a wire goes by the tunnel, which proves it. That is the source's address
//! (it must be the workload's own), the destination's (the kernel must have it in the pod's namespace) and its identity.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Weak},
};

use leyline_authz::{ConnectionFacts, Permit};
use leyline_net::{connect, has_address, into_split_reading};
use leyline_runtime::within;
use leyline_state::{Delivery, HboneRoute, InboundTarget, Service, Snapshot, Workload};
use leyline_telemetry::{
    mesh,
    traffic::{self, Carrier, Direction, Refusal, Reporter, ResponseFlag, Security, early_failure},
};
use leyline_types::{HboneAuthority, Identity, OrigDst, PeerAddr, WorkloadName};
use parking_lot::{Mutex, RwLock};
use tokio::net::TcpStream;
use tracing::debug;

use super::{
    Pod,
    client::{Client, client_gone},
    connections::{Admission, Protocol, Shown},
    forward,
    record::Record,
};

/// The pods that take connections inside the process. Each enters itself when it begins to serve.
#[derive(Debug, Default)]
pub(crate) struct LocalPods(RwLock<HashMap<WorkloadName, Weak<Pod>>>);

impl LocalPods {
    pub(super) fn enter(&self, pod: &Arc<Pod>) {
        let mut pods = self.0.write();
        // Those that are gone left their names behind.
        pods.retain(|_, pod| pod.strong_count() > 0);
        pods.insert(pod.name.clone(), Arc::downgrade(pod));
    }

    /// The pod as long as it takes new connections.
    fn find(&self, name: &WorkloadName) -> Option<Arc<Pod>> {
        let pod = self.0.read().get(name)?.upgrade()?;
        (!pod.is_draining()).then_some(pod)
    }
}

/// Addresses that the kernel was seen to have in a pod's namespace. A pod keeps its addresses for life.
#[derive(Debug, Default)]
pub(super) struct OwnAddresses(Mutex<Vec<IpAddr>>);

/// The other end of a connection that stays inside the process.
pub(super) struct Destination {
    pod: Arc<Pod>,
    workload: Arc<Workload>,
    /// The application.
    target: InboundTarget,
}

/// The pod of a route, if the connection can be carried inside the process. Called once a route is chosen.
pub(super) fn destination(
    pod: &Pod,
    snapshot: &Snapshot,
    source: &Workload,
    peer: PeerAddr,
    route: &HboneRoute,
) -> Option<Destination> {
    if !pod.shared.config.node_local {
        return None;
    }
    let found = pod.shared.local_pods.find(&route.workload.name)?;
    let workload = snapshot.local_workload(&found.name)?;
    let (HboneAuthority::Address(asked), tunnel) = (&route.authority, route.tunnel.ip()) else {
        return None;
    };
    // A waypoint or a gateway is asked for another address than its own.
    let direct = Arc::ptr_eq(workload, &route.workload) && asked.ip() == tunnel;
    if !direct {
        return None;
    }
    let reason = if !source.addresses.contains(&peer.ip()) {
        "source_address"
    } else if !route.expected.contains(&workload.identity) {
        "identity"
    } else if !has_own_address(&found, tunnel) {
        "destination_address"
    } else {
        let target = snapshot.resolve_inbound(workload, tunnel, &route.authority);
        match target {
            Ok(target) if target.delivery == Delivery::Direct => {
                return Some(Destination {
                    workload: workload.clone(),
                    pod: found,
                    target,
                });
            }
            // The wire knows how to tell it.
            Ok(_) | Err(_) => "target",
        }
    };
    debug!(source = %pod.name, destination = %found.name, reason, "not carried inside the node");
    mesh::node_local_declined(reason);
    None
}

pub(super) fn has_own_address(pod: &Pod, ip: IpAddr) -> bool {
    if pod.own_addresses.0.lock().contains(&ip) {
        return true;
    }
    // Outside the lock: it enters the namespace. Two that look at once see the same.
    let found = has_address(&pod.netns, ip).unwrap_or_else(|error| {
        debug!(pod = %pod.name, %ip, %error, "a pod's namespace cannot be asked for its addresses");
        false
    });
    if found {
        let mut known = pod.own_addresses.0.lock();
        if !known.contains(&ip) {
            known.push(ip);
        }
    }
    found
}

/// A connection that is to stay inside the process. It may last for days, so that it has its own ends and not the mesh.
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) source: Arc<Workload>,
    pub(super) peer: PeerAddr,
    pub(super) orig_dst: OrigDst,
    pub(super) service: Option<Arc<Service>>,
    pub(super) destination: Destination,
}

impl Connection {
    /// Carries it to its end.
    pub(super) async fn carry(self: Box<Self>, pod: &Arc<Pod>) {
        let Self {
            client,
            source,
            peer,
            orig_dst,
            service,
            destination,
        } = *self;
        let endpoints = &pod.shared.endpoints;
        let _load = endpoints.begin(&destination.workload.uid);
        if let Some(service) = &service {
            endpoints.keep(peer.ip(), service, &destination.workload.uid);
        }
        let peer = peer.addr();
        let outbound = open_record(
            Reporter::Source,
            pod,
            &source,
            service.as_ref(),
            peer,
            &destination,
        );
        let _registered = pod
            .connections
            .track(shown(peer, orig_dst.addr(), &destination));
        let to = destination.pod.clone();
        let drain = &to.drain;
        let way = Way {
            from: pod,
            source: &source,
            service: service.as_ref(),
            peer,
            to: &destination,
        };
        // Cut at the destination's deadline it drops what it has, which is reset.
        match within(drain, Box::pin(way.carry(client, &outbound))).await {
            Some(result) => outbound.end(result),
            None => drop(outbound),
        }
    }
}

/// One connection on its way in.
struct Way<'a> {
    from: &'a Arc<Pod>,
    source: &'a Arc<Workload>,
    service: Option<&'a Arc<Service>>,
    peer: SocketAddr,
    to: &'a Destination,
}

impl Way<'_> {
    /// The destination's part, in the order of the wire: a place, a record, admission, the application, bytes.
    async fn carry(&self, client: Client, outbound: &Record) -> Result<(), (ResponseFlag, String)> {
        let pod = &self.to.pod;
        if let Err(failure) = self.certified().await {
            client.turn_away(failure.0).await;
            return Err(failure);
        }
        let Some(_place) = pod.inbound_places.take() else {
            let error = format!("{} has too many connections", pod.name);
            let target = self.to.target.addr;
            early_failure(
                Direction::Inbound,
                self.peer,
                target,
                Refusal::Limit,
                &error,
            );
            client.turn_away(ResponseFlag::Connect).await;
            return Err((ResponseFlag::Connect, error));
        };
        let inbound = open_record(
            Reporter::Destination,
            self.from,
            self.source,
            self.service,
            self.peer,
            self.to,
        );
        let (permit, admission, application) = match self.reach().await {
            Ok(reached) => reached,
            Err((flag, error)) => {
                client.turn_away(flag).await;
                inbound.end(Err((flag, error.clone())));
                return Err((flag, error));
            }
        };
        let stream = match client.welcome().await {
            Ok(stream) => stream,
            Err(error) => {
                let gone = client_gone(&error);
                inbound.end(Err(gone.clone()));
                return Err(gone);
            }
        };
        let most = self.from.read_share().min(pod.read_share());
        let limits = pod.shared.config.idle;
        let logs = [outbound.log(), inbound.log()];
        let downstream = into_split_reading(stream, most);
        let carried = forward::inbound(
            permit,
            admission,
            downstream,
            into_split_reading(application, most),
            limits,
            &logs,
        )
        .await;
        let result = carried.map_err(|error| (error.flag(), error.to_string()));
        inbound.end(result.clone());
        result
    }

    /// The CA decides who may run on this node; without its word nobody is believed to be who xDS says.
    async fn certified(&self) -> Result<(), (ResponseFlag, String)> {
        let certificates = &self.from.shared.certificates;
        for identity in [self.identity(), &self.to.workload.identity] {
            if let Err(error) = certificates.get(identity).await {
                let error = format!("identity error: {error}");
                return Err((ResponseFlag::IdentityError, error));
            }
        }
        Ok(())
    }

    /// Admission, then the application.
    async fn reach(&self) -> Result<(Permit, Admission, TcpStream), (ResponseFlag, String)> {
        let pod = &self.to.pod;
        let target = self.to.target.addr;
        let facts = ConnectionFacts {
            source_identity: Some(self.identity().clone()),
            source_ip: self.peer.ip(),
            destination: target,
        };
        let shown = shown(self.peer, target, self.to);
        let admitted = pod.connections.admit(shown, facts, || pod.policies());
        let (permit, mut admission) = admitted.map_err(|denial| {
            let error = format!("connection closed due to policy rejection: {denial}");
            (ResponseFlag::Deny, error)
        })?;
        let options = pod.application_options(self.peer.ip(), target.ip());
        let connected = connect(&pod.netns, target, &options).await;
        let application = connected.map_err(|error| (ResponseFlag::Connect, error.to_string()))?;
        // Policies may have changed while the application was connected.
        admission.check().map_err(|denial| {
            let error = format!("connection closed due to policy change: {denial}");
            (ResponseFlag::Deny, error)
        })?;
        Ok((permit, admission, application))
    }

    fn identity(&self) -> &Identity {
        &self.source.identity
    }
}

fn shown(peer: SocketAddr, original_dst: SocketAddr, destination: &Destination) -> Shown {
    Shown {
        src: peer,
        original_dst: original_dst.to_string(),
        actual_dst: destination.target.addr,
        protocol: Protocol::NodeLocal,
    }
}

fn open_record(
    reporter: Reporter,
    pod: &Pod,
    source: &Arc<Workload>,
    service: Option<&Arc<Service>>,
    peer: SocketAddr,
    destination: &Destination,
) -> Record {
    let labels = &pod.shared.labels;
    let connection = traffic::Connection {
        reporter,
        direction: match reporter {
            Reporter::Source => Direction::Outbound,
            Reporter::Destination => Direction::Inbound,
        },
        // Both ends are certified to this process; there is no wire that could tell otherwise.
        security: Security::MutualTls,
        source: Some(labels.workload(source)),
        destination: Some(labels.workload(&destination.workload)),
        service: service.map(|service| labels.service(service)),
        source_identity: Some(source.identity.clone()),
        destination_identity: Some(destination.workload.identity.clone()),
        src_addr: peer,
        dst_addr: destination.target.addr,
        hbone_addr: None,
    };
    Record::open_carried_by(connection, Carrier::Node)
}
