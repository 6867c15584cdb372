//! A connection that goes without a tunnel.

use std::{net::SocketAddr, sync::Arc};

use leyline_net::{connect, into_split_reading};
use leyline_state::{Service, Workload};
use leyline_telemetry::traffic::{Connection, Direction, Reporter, ResponseFlag, Security};
use leyline_types::{OrigDst, PeerAddr};
use tokio::net::TcpStream;

use crate::proxy::{
    Pod,
    connections::{Protocol, Shown},
    forward,
    record::Record,
};

/// A route without a tunnel.
pub(super) struct PlainRoute {
    pub(super) target: SocketAddr,
    pub(super) workload: Option<Arc<Workload>>,
    pub(super) service: Option<Arc<Service>>,
}

impl PlainRoute {
    pub(super) fn to(
        target: SocketAddr,
        workload: Option<Arc<Workload>>,
        service: Option<Arc<Service>>,
    ) -> Self {
        Self {
            target,
            workload,
            service,
        }
    }
}

/// To a destination that is not enrolled, or that is none of the mesh's.
pub(super) async fn carry(
    pod: &Arc<Pod>,
    source: &Arc<Workload>,
    stream: TcpStream,
    peer: PeerAddr,
    orig_dst: OrigDst,
    route: PlainRoute,
) {
    let labels = &pod.shared.labels;
    let target: SocketAddr = route.target;
    let record = Record::open(Connection {
        reporter: Reporter::Source,
        direction: Direction::Outbound,
        security: Security::Unknown,
        source: Some(labels.workload(source)),
        destination: route
            .workload
            .as_ref()
            .map(|workload| labels.workload(workload)),
        service: route
            .service
            .as_ref()
            .map(|service| labels.service(service)),
        source_identity: None,
        destination_identity: None,
        src_addr: peer.addr(),
        dst_addr: target,
        hbone_addr: None,
    });
    let _registered = pod.connections.track(Shown {
        src: peer.addr(),
        original_dst: orig_dst.to_string(),
        actual_dst: target,
        protocol: Protocol::Tcp,
    });
    let upstream = match connect(&pod.netns, target, &pod.upstream_options()).await {
        Ok(upstream) => upstream,
        Err(error) => {
            forward::reset(stream);
            return record.end(Err((ResponseFlag::Connect, error)));
        }
    };
    let most = pod.read_share();
    let upstream = into_split_reading(upstream, most);
    let carried = forward::outbound(stream, upstream, most, record.log()).await;
    record.end(carried.map_err(|error| (error.flag(), error)));
}
