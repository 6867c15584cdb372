//! Inbound plaintext (port 15006): a captured connection that did not come through a tunnel, so without an identity.

use std::{net::SocketAddr, sync::Arc};

use leyline_authz::ConnectionFacts;
use leyline_net::{Accepted, connect, into_split_reading, orig_dst};
use leyline_state::is_proxy_port;
use leyline_telemetry::traffic::{
    AccessLog, Connection, Direction, OpenSocket, Refusal, Reporter, ResponseFlag, Security,
    early_failure,
};
use tokio::net::TcpStream;

use super::{
    Pod,
    connections::{Protocol, Shown},
    forward,
    limits::Place,
    no_original_destination,
    on_demand::Caller,
    record::Record,
};

/// One connection, from accept to end.
pub(super) async fn handle(pod: Arc<Pod>, accepted: Accepted, _place: Place) {
    let _open = OpenSocket::new(Reporter::Destination);
    let peer = accepted.peer.addr();
    let target = match orig_dst::of_redirected(&accepted.stream, pod.shared.config.redirection) {
        Ok(target) => target,
        Err(error) => return no_original_destination(Direction::Inbound, peer, &error),
    };
    let target = target.addr();
    let refused = |stream: TcpStream, refusal, error: &dyn std::fmt::Display| {
        early_failure(Direction::Inbound, peer, target, refusal, error);
        forward::reset(stream);
    };
    if is_proxy_port(target.port()) {
        let error = "attempted recursive call to ourselves";
        return refused(accepted.stream, Refusal::SelfCall, &error);
    }
    let Some((snapshot, workload)) = pod.shared.workload(&pod.name).await else {
        let error = "failed to fetch information about local workload";
        return refused(accepted.stream, Refusal::UnknownDestination, &error);
    };
    if let Some(on_demand) = &pod.shared.on_demand {
        on_demand.ask_peer(&snapshot, peer.ip(), Caller::Anybody);
    }
    let source = snapshot.source_workload(peer.ip(), None);
    let record = Record::open(Connection {
        reporter: Reporter::Destination,
        direction: Direction::Inbound,
        security: Security::Unknown,
        source: source.map(|source| pod.shared.labels.workload(source)),
        destination: Some(pod.shared.labels.workload(&workload)),
        service: None,
        source_identity: None,
        destination_identity: None,
        src_addr: peer,
        dst_addr: target,
        hbone_addr: None,
    });
    let result = carry(&pod, accepted.stream, peer, target, record.log()).await;
    record.end(result);
}

async fn carry(
    pod: &Arc<Pod>,
    stream: TcpStream,
    peer: SocketAddr,
    target: SocketAddr,
    log: &AccessLog,
) -> Result<(), (ResponseFlag, String)> {
    let shown = Shown {
        src: peer,
        original_dst: target.to_string(),
        actual_dst: target,
        protocol: Protocol::Tcp,
    };
    let facts = ConnectionFacts {
        source_identity: None,
        source_ip: peer.ip(),
        destination: target,
    };
    let (permit, mut admission) = match pod.connections.admit(shown, facts, || pod.policies()) {
        Ok(admitted) => admitted,
        Err(denial) => {
            forward::reset(stream);
            let error = format!("connection closed due to policy rejection: {denial}");
            return Err((ResponseFlag::Deny, error));
        }
    };
    let options = pod.application_options(peer.ip(), target.ip());
    let application = match connect(&pod.netns, target, &options).await {
        Ok(application) => application,
        Err(error) => {
            forward::reset(stream);
            return Err((ResponseFlag::Connect, error.to_string()));
        }
    };
    // Policies may have changed while the application was connected.
    if let Err(denial) = admission.check() {
        forward::reset(stream);
        let error = format!("connection closed due to policy change: {denial}");
        return Err((ResponseFlag::Deny, error));
    }
    let (most, limits) = (pod.read_share(), pod.shared.config.idle);
    let client = into_split_reading(stream, most);
    let application = into_split_reading(application, most);
    forward::inbound(permit, admission, client, application, limits, &[log])
        .await
        .map_err(|error| (error.flag(), error.to_string()))
}
