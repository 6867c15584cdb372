//! Accepting connections, with errors sorted into those of one connection and those of the machine.

use std::{io, time::Duration};

use leyline_types::PeerAddr;
use rand::RngExt;
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, warn};

/// First pause when the machine is out of descriptors or memory; doubled up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// Long enough not to spin, short enough that service resumes at once.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted {
    /// The connection; `TCP_NODELAY` is inherited from the listener.
    pub stream: TcpStream,
    /// Who connected.
    pub peer: PeerAddr,
}

/// Waits for the next connection. Cancel safe.
///
/// Connections that died in the queue are skipped; when descriptors or memory run out it pauses with jitter and goes on.
///
/// # Errors
/// Only when the listener itself is of no use any more.
pub async fn accept(listener: &TcpListener) -> io::Result<Accepted> {
    let mut pause = PAUSE_MIN;
    loop {
        let error = match listener.accept().await {
            Ok((stream, peer)) => {
                return Ok(Accepted {
                    stream,
                    peer: PeerAddr::new(peer),
                });
            }
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                warn!(%error, pause_ms = pause.as_millis() as u64, "cannot accept for lack of resources");
                let jitter = rand::rng().random_range(0.8..1.2);
                tokio::time::sleep(pause.mul_f64(jitter)).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP) => {
                return Err(error);
            }
            _ => debug!(%error, "a connection ended before it was accepted"),
        }
    }
}
