//! A connection that goes through a tunnel, in a new one or one that there is.

use std::{
    error::Error,
    sync::{Arc, OnceLock},
};

use leyline_hbone::{ConnectRequest, HboneError, HboneStream, PoolKey};
use leyline_net::{ConnectError, connect, pace};
use leyline_state::HboneRoute;
use leyline_telemetry::traffic::{Connection, Direction, Reporter, ResponseFlag, Security};
use leyline_tls::{ClientTls, IdentityError, TlsError, Verdict};

use super::{Captured, Failure, Fault};
use crate::proxy::{Pod, labels};

/// What the access log says of the connection.
pub(super) fn connection(captured: Captured<'_>, route: &HboneRoute) -> Connection {
    let Captured { source, peer, .. } = captured;
    let labels = &captured.pod.shared.labels;
    Connection {
        reporter: Reporter::Source,
        direction: Direction::Outbound,
        security: Security::MutualTls,
        source: Some(labels.workload(source)),
        destination: Some(labels.workload(&route.workload)),
        service: route
            .service
            .as_ref()
            .map(|service| labels.service(service)),
        source_identity: Some(source.identity.clone()),
        destination_identity: Some(route.workload.identity.clone()),
        src_addr: peer.addr(),
        dst_addr: route.tunnel,
        hbone_addr: Some(route.authority.to_string()),
    }
}

/// A stream in a tunnel that there is, or in a new one.
pub(super) async fn open_stream(
    captured: Captured<'_>,
    route: &HboneRoute,
) -> Result<HboneStream, Failure> {
    let Captured {
        pod, source, peer, ..
    } = captured;
    let key = PoolKey {
        source: source.identity.clone(),
        destinations: route.expected.to_vec(),
        target: route.tunnel,
        source_ip: peer.ip(),
        workload: route.workload.uid.clone(),
    };
    let service = route.service.as_ref();
    let request = ConnectRequest {
        authority: route.authority.clone(),
        forwarded_for: peer.addr(),
        forwarded_host: service.map(|service| service.hostname.clone()),
        baggage: Some(labels::baggage(source).encode()),
        forwarded_network: None,
    };
    open(pod, key, request).await
}

/// The same for any request.
pub(super) async fn open(
    pod: &Arc<Pod>,
    key: PoolKey,
    request: ConnectRequest,
) -> Result<HboneStream, Failure> {
    let verdict = Arc::new(OnceLock::new());
    let dial = {
        let (pod, key, verdict) = (pod.clone(), key.clone(), verdict.clone());
        async move || dial(&pod, &key, &verdict).await
    };
    let opened = pod.pool.open(&key, request, dial).await;
    opened
        .map(|opened| opened.stream)
        .map_err(|error| failure(&error, &verdict))
}

/// What is to be said and done about a tunnel that could not be had.
pub(super) fn failure(error: &HboneError, verdict: &OnceLock<Verdict>) -> Failure {
    // In TLS 1.3 the server judges our certificate when the handshake has ended on our side.
    match verdict.get().and_then(Verdict::refusal) {
        Some(refusal) => Failure {
            flag: ResponseFlag::TlsFailure,
            error: format!("peer refused us: {refusal}"),
            fault: Fault::Endpoint,
        },
        None => Failure {
            flag: flag_of(error),
            error: explain(error),
            fault: fault_of(error),
        },
    }
}

fn fault_of(error: &HboneError) -> Fault {
    match error {
        HboneError::Dial(_) => match dial_failure(error) {
            Some(DialFailure::Connect(_) | DialFailure::Tls(_)) => Fault::Endpoint,
            Some(DialFailure::Identity(_)) | None => Fault::Ours,
        },
        // The application behind it is not there; every other status is a verdict on the request.
        HboneError::Status(http::StatusCode::SERVICE_UNAVAILABLE) => Fault::Endpoint,
        HboneError::Status(_) | HboneError::Request(_) => Fault::Ours,
        HboneError::DialDeadline
        | HboneError::Handshake(_)
        | HboneError::HandshakeDeadline
        | HboneError::ResponseDeadline
        | HboneError::Tunnel(_)
        | HboneError::Transport(_)
        | HboneError::PingDeadline => Fault::Endpoint,
        HboneError::Full | HboneError::TooManyKeys | HboneError::Closed => Fault::Ours,
    }
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialFailure {
    #[error("identity error: {0}")]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("tls handshake failed: {0}")]
    Tls(#[from] TlsError),
}

/// Certificate, connection, handshake: what a tunnel needs before HTTP/2.
/// `verdict` is what the peer will say about our certificate.
async fn dial(
    pod: &Pod,
    key: &PoolKey,
    verdict: &OnceLock<Verdict>,
) -> Result<ClientTls, leyline_hbone::DialError> {
    let dialled = async {
        let certificate = pod.shared.certificates.get(&key.source).await?;
        let stream = connect(&pod.netns, key.target, &pod.tunnel_options()).await?;
        let deadline = pod.shared.config.handshake_deadline;
        let (stream, _identity) =
            leyline_tls::connect(&certificate, stream, &key.destinations, deadline).await?;
        pace::settle(stream.socket(), &pod.netns);
        verdict.get_or_init(|| stream.verdict());
        Ok(stream)
    };
    let dialled: Result<ClientTls, DialFailure> = dialled.await;
    dialled.map_err(leyline_hbone::DialError::new)
}

fn flag_of(error: &HboneError) -> ResponseFlag {
    match dial_failure(error) {
        Some(DialFailure::Identity(_)) => ResponseFlag::IdentityError,
        Some(DialFailure::Tls(TlsError::Revoked)) => ResponseFlag::CertRevoked,
        Some(DialFailure::Tls(_)) => ResponseFlag::TlsFailure,
        Some(DialFailure::Connect(ConnectError::Deadline(_))) => ResponseFlag::NetworkPolicy,
        Some(DialFailure::Connect(_)) => ResponseFlag::Connect,
        None => match error {
            HboneError::Status(http::StatusCode::UNAUTHORIZED) => ResponseFlag::Deny,
            HboneError::Handshake(_) | HboneError::HandshakeDeadline => {
                ResponseFlag::H2HandshakeFailure
            }
            _ => ResponseFlag::Connect,
        },
    }
}

/// The text of the access log, in words that Istio's users look for (LOG-5).
fn explain(error: &HboneError) -> String {
    if let Some(DialFailure::Connect(ConnectError::Deadline(_))) = dial_failure(error) {
        return format!(
            "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: {error}"
        );
    }
    error.to_string()
}

fn dial_failure(error: &HboneError) -> Option<&DialFailure> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(failure) = current.downcast_ref() {
            return Some(failure);
        }
        cause = current.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use leyline_hbone::DialError;

    use super::*;

    fn dial(failure: DialFailure) -> HboneError {
        HboneError::Dial(DialError::new(failure))
    }

    #[test]
    fn every_failure_has_its_flag_and_its_words() {
        let deadline = || ConnectError::Deadline(Duration::from_secs(10));
        let refused = || ConnectError::Io(io::Error::from_raw_os_error(111));
        let identity = IdentityError::Deadline {
            identity: "spiffe://cluster.local/ns/a/sa/b".parse().unwrap(),
            deadline: Duration::from_secs(10),
        };
        let unauthorized = HboneError::Status(http::StatusCode::UNAUTHORIZED);
        let unavailable = HboneError::Status(http::StatusCode::SERVICE_UNAVAILABLE);
        for (error, flag, words) in [
            (
                dial(identity.into()),
                ResponseFlag::IdentityError,
                "identity error: no certificate for spiffe://cluster.local/ns/a/sa/b",
            ),
            (
                dial(TlsError::UnknownRoot.into()),
                ResponseFlag::TlsFailure,
                "tls handshake failed",
            ),
            (
                dial(TlsError::Revoked.into()),
                ResponseFlag::CertRevoked,
                "tls handshake failed: peer certificate has been revoked",
            ),
            (
                dial(deadline().into()),
                ResponseFlag::NetworkPolicy,
                "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008",
            ),
            (
                dial(refused().into()),
                ResponseFlag::Connect,
                "io error: Connection refused (os error 111)",
            ),
            (
                unauthorized,
                ResponseFlag::Deny,
                "http status: 401 Unauthorized",
            ),
            (
                unavailable,
                ResponseFlag::Connect,
                "http status: 503 Service Unavailable",
            ),
            (
                HboneError::HandshakeDeadline,
                ResponseFlag::H2HandshakeFailure,
                "no http/2 preface",
            ),
            (
                HboneError::ResponseDeadline,
                ResponseFlag::Connect,
                "no response",
            ),
            (HboneError::Full, ResponseFlag::Connect, "no room"),
            (HboneError::DialDeadline, ResponseFlag::Connect, "the dial"),
        ] {
            assert_eq!(flag_of(&error), flag, "{error:?}");
            let told = explain(&error);
            assert!(told.starts_with(words), "{told}");
        }
    }
}
