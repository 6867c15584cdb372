//! The last step of every path: bytes, until both ends are done, one breaks, or somebody says stop.

use leyline_authz::Permit;
use leyline_net::{
    copy::{self, CopyError, Reader, Side, Writer},
    into_split, sockopt,
};
use leyline_telemetry::traffic::{AccessLog, ResponseFlag};
use tokio::net::TcpStream;
use tracing::debug;

use super::connections::Admission;

/// Why an inbound connection did not end by itself.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardError {
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// Allowed once, and no longer.
    #[error("connection closed due to policy change: {0}")]
    Revoked(leyline_authz::Denial),
}

impl ForwardError {
    pub(super) fn flag(&self) -> ResponseFlag {
        match self {
            // Either end may break a connection that was carried; that is no refusal of ours.
            Self::Copy(_) => ResponseFlag::None,
            Self::Revoked(_) => ResponseFlag::Deny,
        }
    }
}

/// Carries an outbound connection of the pod.
pub(super) async fn outbound<UR: Reader, UW: Writer>(
    downstream: TcpStream,
    upstream: (UR, UW),
    log: &AccessLog,
) -> Result<(), ForwardError> {
    let (mut down_read, mut down_write) = into_split(downstream);
    let (mut up_read, mut up_write) = upstream;
    copy::bidirectional(
        (&mut down_read, &mut down_write),
        (&mut up_read, &mut up_write),
        |from, bytes| moved(log, from, bytes),
    )
    .await?;
    Ok(())
}

/// Carries an inbound connection to the pod's application for as long as it stays admitted. The permit is the proof
/// that policies were asked.
pub(super) async fn inbound<DR: Reader, DW: Writer>(
    _permit: Permit,
    mut admission: Admission,
    downstream: (DR, DW),
    application: TcpStream,
    log: &AccessLog,
) -> Result<(), ForwardError> {
    let (mut down_read, mut down_write) = downstream;
    let (mut up_read, mut up_write) = into_split(application);
    // Both branches may be dropped: the copy loses at most what neither end will see completed anyway.
    let denial = tokio::select! {
        result = copy::bidirectional(
            (&mut down_read, &mut down_write),
            (&mut up_read, &mut up_write),
            |from, bytes| moved(log, from, bytes),
        ) => return Ok(result?),
        denial = admission.revoked() => denial,
    };
    down_write.abort();
    up_write.abort();
    Err(ForwardError::Revoked(denial))
}

fn moved(log: &AccessLog, from: Side, bytes: usize) {
    match from {
        Side::Downstream => log.moved_from_downstream(bytes as u64),
        Side::Upstream => log.moved_from_upstream(bytes as u64),
    }
}

/// Ends a connection with RST, so that its owner sees a failure and not an end.
pub(super) fn reset(stream: TcpStream) {
    if let Err(error) = sockopt::reset_on_close(&stream) {
        debug!(%error, "a connection was gone before it could be reset");
    }
    drop(stream);
}
