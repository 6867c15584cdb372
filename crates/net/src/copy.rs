//! Moving bytes both ways between two connections, of which either may be a TCP socket or a stream in a tunnel.
//!
//! The proxies call [`bidirectional`] once a connection is admitted and connected. Back-pressure is the rule: a chunk is
//! read only after the one before it was taken by the other side.

use std::{fmt, io};

use bytes::Bytes;

/// The receiving half of a connection.
pub trait Reader: Send {
    /// The next bytes, or `None` at the end of the stream. Cancel safe: a dropped call loses nothing.
    fn read(&mut self) -> impl Future<Output = io::Result<Option<Bytes>>> + Send;
}

/// The sending half of a connection.
pub trait Writer: Send {
    /// Hands over all of `data`, waiting for room.
    fn write(&mut self, data: Bytes) -> impl Future<Output = io::Result<()>> + Send;
    /// Ends this direction politely: FIN or END_STREAM.
    fn finish(&mut self) -> impl Future<Output = io::Result<()>> + Send;
    /// Ends the connection so that the peer knows it is incomplete: RST or RST_STREAM.
    fn abort(&mut self);
}

/// Which of the two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that was accepted.
    Downstream,
    /// The one that was opened for it.
    Upstream,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
        })
    }
}

/// A connection that did not end by itself on both sides.
#[derive(Debug, thiserror::Error)]
#[error("{side}: {source}")]
pub struct CopyError {
    /// Where it broke.
    pub side: Side,
    /// How.
    #[source]
    pub source: io::Error,
}

/// Copies until both directions have ended. `moved` is told of each chunk by the side it came from.
///
/// # Errors
/// When either side breaks; then both are aborted, so that neither mistakes a part for the whole.
pub async fn bidirectional<DR, DW, UR, UW>(
    downstream: (&mut DR, &mut DW),
    upstream: (&mut UR, &mut UW),
    moved: impl Fn(Side, usize) + Sync,
) -> Result<(), CopyError>
where
    DR: Reader,
    DW: Writer,
    UR: Reader,
    UW: Writer,
{
    let (down_read, down_write) = downstream;
    let (up_read, up_write) = upstream;
    let result = tokio::try_join!(
        one_way(Side::Downstream, down_read, up_write, &moved),
        one_way(Side::Upstream, up_read, down_write, &moved),
    );
    if let Err(error) = result {
        down_write.abort();
        up_write.abort();
        return Err(error);
    }
    Ok(())
}

async fn one_way<R: Reader, W: Writer>(
    from: Side,
    reader: &mut R,
    writer: &mut W,
    moved: &(impl Fn(Side, usize) + Sync),
) -> Result<(), CopyError> {
    let to = match from {
        Side::Downstream => Side::Upstream,
        Side::Upstream => Side::Downstream,
    };
    loop {
        let chunk = reader
            .read()
            .await
            .map_err(|source| CopyError { side: from, source })?;
        let Some(chunk) = chunk else {
            return writer
                .finish()
                .await
                .map_err(|source| CopyError { side: to, source });
        };
        moved(from, chunk.len());
        writer
            .write(chunk)
            .await
            .map_err(|source| CopyError { side: to, source })?;
    }
}
