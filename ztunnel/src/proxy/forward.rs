//! The last step of every path: bytes, until both ends are done, one breaks, or somebody says stop.

use leyline_authz::Permit;
use leyline_hbone::HboneStream;
use leyline_net::{
    TcpReader, TcpWriter,
    copy::{self, CopyError, Reader, Side, Writer},
    sockopt,
};
use leyline_telemetry::{
    idle,
    traffic::{AccessLog, ResponseFlag},
};
use tokio::net::TcpStream;
use tracing::debug;

use super::{
    connections::Admission,
    idle::{Idle, IdleLimits, Watch},
};

/// Bytes that the connections of one pod may have read and not passed on, all together, as long as there are few enough of
/// them: then each may read in large pieces.
const READ_AT_ONCE: usize = 8 << 20;
/// The least that a connection may read at once, however many there are: a TLS record.
const LEAST_READ: usize = 16 << 10;

/// Bytes that the tunnelled connections of one pod may have waiting for the socket, all together, likewise.
const WAITING: usize = 16 << 20;
/// The least that may wait of one connection: what one turn of its tunnel sends.
const LEAST_WAITING: usize = 32 << 10;

/// What each of so many connections may read at once.
pub(super) fn read_share(connections: usize) -> usize {
    (READ_AT_ONCE / connections.max(1)).max(LEAST_READ)
}

/// Keeps what waits for the peer of a tunnel small where there are so many connections that their send buffers of this
/// size would be too much.
pub(super) fn limit_send(stream: &mut HboneStream, connections: usize, send_buffer: usize) {
    let share = (WAITING / connections.max(1)).max(LEAST_WAITING);
    if share < send_buffer {
        stream.limit_send(share);
    }
}

/// Why an inbound connection did not end by itself.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardError {
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// Allowed once, and no longer.
    #[error("connection closed due to policy change: {0}")]
    Revoked(leyline_authz::Denial),
    #[error(transparent)]
    Idle(#[from] Idle),
}

impl ForwardError {
    pub(super) fn flag(&self) -> ResponseFlag {
        match self {
            Self::Copy(error) if leyline_tls::is_revocation(&error.source) => {
                ResponseFlag::CertRevoked
            }
            // Either end may break a connection that was carried; that is no refusal of ours.
            Self::Copy(_) | Self::Idle(_) => ResponseFlag::None,
            Self::Revoked(_) => ResponseFlag::Deny,
        }
    }
}

/// Carries an outbound connection of the pod.
pub(super) async fn outbound<UR: Reader, UW: Writer>(
    (down_read, mut down_write): (TcpReader, TcpWriter),
    (up_read, mut up_write): (UR, UW),
    limits: IdleLimits,
    log: &AccessLog,
) -> Result<(), ForwardError> {
    let watch = Watch::new(limits);
    let (mut down_read, mut up_read) = (watch.over(down_read), watch.over(up_read));
    // The copy may be dropped: what it had is reset.
    let idle = tokio::select! {
        result = copy::bidirectional(
            (&mut down_read, &mut down_write),
            (&mut up_read, &mut up_write),
            |from, bytes| moved(log, from, bytes),
        ) => return Ok(result?),
        idle = watch.idle(|| log.moved()) => idle,
    };
    down_write.abort();
    up_write.abort();
    idle::reaped(idle.counted_as());
    Err(idle.into())
}

/// Carries an inbound connection to the pod's application for as long as it stays admitted. The permit is the proof
/// that policies were asked. `logs` are of all that report it.
pub(super) async fn inbound<DR: Reader, DW: Writer>(
    _permit: Permit,
    mut admission: Admission,
    (down_read, mut down_write): (DR, DW),
    (up_read, mut up_write): (TcpReader, TcpWriter),
    limits: IdleLimits,
    logs: &[&AccessLog],
) -> Result<(), ForwardError> {
    let watch = Watch::new(limits);
    let (mut down_read, mut up_read) = (watch.over(down_read), watch.over(up_read));
    let total = || logs.first().map_or(0, |log| log.moved());
    // All branches may be dropped: the copy loses at most what neither end will see completed anyway.
    let end = tokio::select! {
        result = copy::bidirectional(
            (&mut down_read, &mut down_write),
            (&mut up_read, &mut up_write),
            |from, bytes| logs.iter().for_each(|log| moved(log, from, bytes)),
        ) => return Ok(result?),
        denial = admission.revoked() => ForwardError::Revoked(denial),
        idle = watch.idle(total) => {
            idle::reaped(idle.counted_as());
            ForwardError::Idle(idle)
        }
    };
    down_write.abort();
    up_write.abort();
    Err(end)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_connections_read_in_small_pieces() {
        assert_eq!(read_share(0), READ_AT_ONCE);
        assert_eq!(read_share(200), READ_AT_ONCE / 200);
        assert_eq!(read_share(60_000), LEAST_READ);
    }
}
