//! Where a captured connection wanted to go.

use std::io;

use leyline_types::OrigDst;
use tokio::net::TcpStream;

/// The original destination of a connection that our capture steered here: the kernel gives the accepted socket the
/// address that the application named (facts/capture.md 2.2), so it is the socket's own name.
///
/// # Errors
/// When the socket is already dead.
pub fn of(stream: &TcpStream) -> io::Result<OrigDst> {
    stream.local_addr().map(OrigDst::new)
}
