//! Inbound HBONE (port 15008): a tunnel from another proxy, and each connection in it.

mod aliases;
mod application;
mod source;

use std::{net::SocketAddr, sync::Arc};

use http::StatusCode;
use leyline_authz::{ConnectionFacts, Permit};
use leyline_hbone::{
    HboneConfig, HboneError, HboneStream,
    server::{self, BadRequest, Request},
    sources::{Kind, TunnelPlace},
};
use leyline_net::{Accepted, into_split_reading, pace};
use leyline_state::{InboundTarget, Service, Snapshot, Workload};
use leyline_telemetry::traffic::{
    Connection, Direction, OpenSocket, Refusal, Reporter, ResponseFlag, Security, WorkloadLabels,
    early_failure,
};
use leyline_tls::{Leaving, ServerTls, TlsError, WorkloadCertificate};
use leyline_types::{Identity, TrustDomain, canonical};
use tokio::{net::TcpStream, time::timeout};
use tracing::debug;

use super::{
    Pod,
    connections::{Admission, Protocol, Shown},
    forward, labels,
    limits::Place,
    no_original_destination,
    on_demand::Caller,
    record::Record,
};

const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;

/// What all connections of one tunnel share.
struct Tunnel {
    pod: Arc<Pod>,
    peer: SocketAddr,
    /// The pod's own address that the tunnel goes to.
    local: SocketAddr,
    identity: Identity,
    own_identity: Identity,
}

/// One tunnel, from accept to end.
pub(super) async fn handle_connection(pod: Arc<Pod>, accepted: Accepted, _place: Place) {
    let _open = OpenSocket::new(Reporter::Destination);
    let Accepted { stream, peer } = accepted;
    let peer = peer.addr();
    let local = match stream.local_addr().map(canonical) {
        Ok(local) => local,
        Err(error) => return no_original_destination(Direction::Inbound, peer, &error),
    };
    let refused = |refusal: Refusal, error: &dyn std::fmt::Display| {
        early_failure(Direction::Inbound, peer, local, refusal, error);
    };

    let Some(place) = pod.sources.enter(peer.ip(), kind_of(&pod, peer)) else {
        forward::reset(stream);
        return refused(Refusal::Limit, &"too many tunnels of this peer");
    };
    let established = tokio::select! {
        established = Box::pin(establish(&pod, &place, stream)) => established,
        // It could carry nothing any more.
        () = pod.drain.started() => Err((Refusal::Draining, "shutting down".to_owned())),
    };
    let Established {
        stream,
        leaving,
        identity,
        certificate,
    } = match established {
        Ok(established) => established,
        Err((refusal, error)) => return refused(refusal, &error),
    };
    debug!(pod = %pod.name, %peer, %identity, "tunnel accepted");
    let tunnel = Arc::new(Tunnel {
        peer,
        local,
        identity,
        own_identity: certificate.identity().clone(),
        pod,
    });
    let handler = {
        let tunnel = tunnel.clone();
        move |request| handle_stream(tunnel.clone(), request)
    };
    let bad_request = {
        let tunnel = tunnel.clone();
        move |reason: BadRequest| note_bad_request(&tunnel, reason)
    };
    let pod = &tunnel.pod;
    let window = place.window(&tunnel.identity);
    let config = hbone_config(pod, window.size());
    let leaving = Box::pin(leaving.asked());
    let served = server::serve_until(stream, &config, &pod.drain, leaving, handler, bad_request);
    tokio::select! {
        ended = served => note_end(&tunnel, ended),
        // The tunnel is dropped, so that its connections break.
        () = Box::pin(aliases::withdrawn(&tunnel)) => {}
    }
}

/// On the heap, as it is needed to the end of the tunnel.
fn hbone_config(pod: &Pod, connection_window: u32) -> Box<HboneConfig> {
    Box::new(HboneConfig {
        connection_window,
        ..pod.shared.config.hbone.clone()
    })
}

fn kind_of(pod: &Pod, peer: SocketAddr) -> Kind {
    let snapshot = pod.shared.store.snapshot();
    match snapshot.local_workload(&pod.name) {
        Some(local) if snapshot.is_from_network_gateway(local, peer.ip()) => Kind::NetworkGateway,
        Some(_) | None => Kind::Other,
    }
}

/// What a tunnel needs before HTTP/2: our certificate, and the peer's identity.
struct Established {
    stream: ServerTls,
    leaving: Leaving,
    identity: Identity,
    certificate: Arc<WorkloadCertificate>,
}

async fn establish(
    pod: &Pod,
    place: &TunnelPlace,
    stream: TcpStream,
) -> Result<Established, (Refusal, String)> {
    let (certificate, workload) = certificate(pod).await?;
    let aliases = &workload.trust_domain_aliases;
    let (stream, identity) = handshake(pod, (&certificate, aliases), place, stream)
        .await
        .map_err(|error| (refusal_of(&error), error.to_string()))?;
    pace::settle(stream.socket(), &pod.netns);
    Ok(Established {
        // Here and not where the stream is given away: what was borrowed stays in a future to its end.
        leaving: stream.leaving(),
        stream,
        identity,
        certificate,
    })
}

/// The certificate of the pod's identity, fetched now if it is not here yet, and what is known of the pod.
async fn certificate(
    pod: &Pod,
) -> Result<(Arc<WorkloadCertificate>, Arc<Workload>), (Refusal, String)> {
    let Some((_, workload)) = pod.shared.workload(&pod.name).await else {
        let error = "failed to fetch information about local workload".to_owned();
        return Err((Refusal::UnknownDestination, error));
    };
    let identity = pod.identity.get().unwrap_or(&workload.identity);
    let fetched = pod.shared.certificates.get(identity).await;
    let fetched = fetched.map_err(|error| (Refusal::NoCertificate, error.to_string()))?;
    Ok((fetched, workload))
}

/// Unfinished handshakes are few per pod and fewer per source; the deadline includes the wait for a turn. The peer may be
/// of the certificate's trust domain or of an alias.
async fn handshake(
    pod: &Pod,
    (certificate, aliases): (&Arc<WorkloadCertificate>, &[TrustDomain]),
    place: &TunnelPlace,
    stream: TcpStream,
) -> Result<(ServerTls, Identity), TlsError> {
    let deadline = pod.shared.config.handshake_deadline;
    let work = async {
        let _turn = place.turn().await;
        leyline_tls::accept(certificate, stream, aliases, deadline).await
    };
    timeout(deadline, work)
        .await
        .unwrap_or(Err(TlsError::Deadline(deadline)))
}

/// The metric's reason for a handshake that failed.
fn refusal_of(error: &TlsError) -> Refusal {
    match error {
        TlsError::Deadline(_) => Refusal::TlsDeadline,
        TlsError::NoCertificate => Refusal::TlsNoPeerCertificate,
        TlsError::UnknownRoot => Refusal::TlsUnknownRoot,
        TlsError::Expired | TlsError::NotYetValid => Refusal::TlsExpired,
        TlsError::Revoked => Refusal::TlsRevoked,
        TlsError::NotSpiffe(_) => Refusal::TlsNotSpiffe,
        TlsError::TrustDomain { .. } => Refusal::TlsTrustDomain,
        TlsError::Identity { .. } => Refusal::TlsIdentity,
        TlsError::Version => Refusal::TlsVersion,
        TlsError::Alpn => Refusal::TlsAlpn,
        TlsError::Purpose
        | TlsError::BadCertificate(_)
        | TlsError::Parameters(_)
        | TlsError::Malformed(_)
        | TlsError::Protocol(_)
        | TlsError::Refused(_)
        | TlsError::Closed
        | TlsError::Io(_) => Refusal::Tls,
    }
}

/// A tunnel that breaks fails its connections, which say so themselves; here only what no connection tells.
fn note_end(tunnel: &Tunnel, ended: Result<(), HboneError>) {
    let Err(error) = ended else {
        return debug!(peer = %tunnel.peer, "tunnel ended");
    };
    if matches!(
        error,
        HboneError::Handshake(_) | HboneError::HandshakeDeadline
    ) {
        early_failure(
            Direction::Inbound,
            tunnel.peer,
            tunnel.local,
            Refusal::Http2,
            error,
        );
    } else {
        debug!(peer = %tunnel.peer, %error, "tunnel broke");
    }
}

fn note_bad_request(tunnel: &Tunnel, reason: BadRequest) {
    let refusal = match reason {
        BadRequest::Method | BadRequest::Protocol => Refusal::Method,
        BadRequest::Authority => Refusal::Authority,
        BadRequest::Headers => Refusal::Headers,
        BadRequest::TooMany => Refusal::Limit,
    };
    let error = format_args!(
        "bad request in the tunnel of {}: {}",
        tunnel.identity,
        reason.reason()
    );
    early_failure(
        Direction::Inbound,
        tunnel.peer,
        tunnel.local,
        refusal,
        error,
    );
}

/// One connection of a tunnel, from CONNECT to end.
async fn handle_stream(tunnel: Arc<Tunnel>, request: Request) {
    // What only the set-up needs is given back before bytes flow: a connection may last for days.
    if let Some(admitted) = Box::pin(set_up(&tunnel, request)).await {
        admitted.carry(&tunnel.pod).await;
    }
}

/// A connection that policies allow, to an application that has taken it.
struct Admitted {
    _place: Place,
    record: Record,
    permit: Permit,
    admission: Admission,
    stream: HboneStream,
    application: TcpStream,
}

impl Admitted {
    /// A box, because a future would hold what it is given beside what it takes out of it.
    async fn carry(self: Box<Self>, pod: &Pod) {
        let Self {
            _place,
            record,
            permit,
            admission,
            stream,
            application,
        } = *self;
        let application = into_split_reading(application, pod.read_share());
        let (stream, limits) = (stream.into_split(), pod.shared.config.idle);
        let logs = [record.log()];
        let carried = forward::inbound(permit, admission, stream, application, limits, &logs).await;
        record.end(carried.map_err(|error| (error.flag(), error.to_string())));
    }
}

/// `None` where it was refused, and that was told.
async fn set_up(tunnel: &Arc<Tunnel>, request: Request) -> Option<Box<Admitted>> {
    let refuse = |request: Request, status, refusal, error: &dyn std::fmt::Display| {
        early_failure(
            Direction::Inbound,
            tunnel.peer,
            tunnel.local,
            refusal,
            error,
        );
        request.refuse(status);
        None
    };
    let pod = &tunnel.pod;
    let Some(place) = pod.inbound_places.take() else {
        let error = format!("{} has too many connections", pod.name);
        return refuse(request, UNAVAILABLE, Refusal::Limit, &error);
    };
    let Some((snapshot, workload)) = pod.shared.workload(&pod.name).await else {
        let error = "failed to fetch information about local workload";
        return refuse(request, UNAVAILABLE, Refusal::UnknownDestination, &error);
    };
    if let Some(on_demand) = &pod.shared.on_demand {
        on_demand.ask_peer(&snapshot, tunnel.peer.ip(), Caller::Proven);
    }
    let target = match snapshot.resolve_inbound(&workload, tunnel.local.ip(), request.authority()) {
        Ok(target) => target,
        Err(error) => {
            let status = if error.is_bad_request() {
                StatusCode::BAD_REQUEST
            } else {
                UNAVAILABLE
            };
            return refuse(request, status, Refusal::WrongTarget, &error);
        }
    };

    let service = target
        .service
        .clone()
        .or_else(|| called_service(&snapshot, &workload, &request));
    let source = source::labels_of(tunnel, &snapshot, &workload, &request);
    let record = open_record(tunnel, &workload, source, service, &request);
    match admit(tunnel, &workload, &target, request).await {
        Ok((permit, admission, stream, application)) => Some(Box::new(Admitted {
            _place: place,
            record,
            permit,
            admission,
            stream,
            application,
        })),
        Err(failure) => {
            record.end(Err(failure));
            None
        }
    }
}

/// Admission, the application, then the answer: a peer is told 200 only once somebody listens.
async fn admit(
    tunnel: &Arc<Tunnel>,
    workload: &Workload,
    target: &InboundTarget,
    mut request: Request,
) -> Result<(Permit, Admission, HboneStream, TcpStream), (ResponseFlag, String)> {
    let pod = &tunnel.pod;
    let shown = Shown {
        src: tunnel.peer,
        original_dst: request.authority().to_string(),
        actual_dst: target.addr,
        protocol: Protocol::Hbone,
    };
    let facts = ConnectionFacts {
        source_identity: Some(tunnel.identity.clone()),
        source_ip: tunnel.peer.ip(),
        destination: target.addr,
    };
    let (permit, mut admission) = match pod.connections.admit(shown, facts, || pod.policies()) {
        Ok(admitted) => admitted,
        Err(denial) => {
            request.refuse(StatusCode::UNAUTHORIZED);
            let error = format!("connection closed due to policy rejection: {denial}");
            return Err((ResponseFlag::Deny, error));
        }
    };
    let application = match application::reach(tunnel, target, &mut request).await {
        Ok(application) => application,
        Err((flag, error)) => {
            request.refuse(UNAVAILABLE);
            return Err((flag, error));
        }
    };
    // Policies may have changed while the application was connected.
    if let Err(denial) = admission.check() {
        request.refuse(StatusCode::UNAUTHORIZED);
        let error = format!("connection closed due to policy change: {denial}");
        return Err((ResponseFlag::Deny, error));
    }
    let baggage = (pod.shared.config.response_baggage).then(|| labels::baggage(workload).encode());
    let mut stream: HboneStream = request
        .accept(baggage.as_deref())
        .map_err(|error| (ResponseFlag::None, error.to_string()))?;
    pod.limit_send(&mut stream);
    Ok((permit, admission, stream, application))
}

/// The service that the client called, as its proxy says (HB-13). Believed only where this workload serves it.
fn called_service(
    snapshot: &Snapshot,
    workload: &Workload,
    request: &Request,
) -> Option<Arc<Service>> {
    let forwarded = request.forwarded().ok()??;
    let service = snapshot.service_by_host(forwarded.host?.as_str(), &workload.name.namespace)?;
    workload
        .services
        .contains_key(&service.key())
        .then(|| service.clone())
}

fn open_record(
    tunnel: &Tunnel,
    workload: &Arc<Workload>,
    source: Arc<WorkloadLabels>,
    service: Option<Arc<Service>>,
    request: &Request,
) -> Record {
    let labels = &tunnel.pod.shared.labels;
    Record::open(Connection {
        reporter: Reporter::Destination,
        direction: Direction::Inbound,
        security: Security::MutualTls,
        source: Some(source),
        destination: Some(labels.workload(workload)),
        service: service.map(|service| labels.service(&service)),
        source_identity: Some(tunnel.identity.clone()),
        destination_identity: Some(tunnel.own_identity.clone()),
        src_addr: tunnel.peer,
        dst_addr: tunnel.local,
        hbone_addr: Some(request.authority().to_string()),
    })
}

/// Bytes of the future of one connection in a tunnel.
#[cfg(test)]
pub(super) fn stream_size() -> usize {
    fn size<F>(_handle: fn(Arc<Tunnel>, Request) -> F) -> usize {
        size_of::<F>()
    }
    size(handle_stream)
}
