//! A connection that goes without a tunnel.

use std::{net::SocketAddr, sync::Arc};

use leyline_net::connect;
use leyline_state::{Service, Workload};
use leyline_telemetry::traffic::{Connection, Direction, Reporter, ResponseFlag, Security};
use tokio::net::TcpStream;

use super::{Captured, Failure, Fault};

/// A route without a tunnel.
pub(super) struct PlainRoute {
    pub(super) target: SocketAddr,
    pub(super) workload: Option<Arc<Workload>>,
    pub(super) service: Option<Arc<Service>>,
}

/// What the access log says of the connection.
pub(super) fn connection(captured: Captured<'_>, route: &PlainRoute) -> Connection {
    let labels = &captured.pod.shared.labels;
    let workload = route.workload.as_ref();
    let service = route.service.as_ref();
    Connection {
        reporter: Reporter::Source,
        direction: Direction::Outbound,
        security: Security::Unknown,
        source: Some(labels.workload(captured.source)),
        destination: workload.map(|workload| labels.workload(workload)),
        service: service.map(|service| labels.service(service)),
        source_identity: None,
        destination_identity: None,
        src_addr: captured.peer.addr(),
        dst_addr: route.target,
        hbone_addr: None,
    }
}

/// To a destination that is not enrolled, or that is none of the mesh's.
pub(super) async fn open(captured: Captured<'_>, target: SocketAddr) -> Result<TcpStream, Failure> {
    let pod = captured.pod;
    connect(&pod.netns, target, &pod.upstream_options())
        .await
        .map_err(|error| Failure {
            flag: ResponseFlag::Connect,
            error: error.to_string(),
            fault: Fault::Endpoint,
        })
}
