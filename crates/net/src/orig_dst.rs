//! Where a captured connection wanted to go.

use std::io;

use leyline_types::OrigDst;
use socket2::{SockAddr, SockRef};
use tokio::net::TcpStream;

/// How the connections that a listener accepts came to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Redirection {
    /// Steered by our capture: the accepted socket bears the address that the application named.
    #[default]
    Steered,
    /// Rewritten by netfilter (`REDIRECT`), whose connection tracking knows the address (facts A4).
    Rewritten,
}

/// The original destination of a connection that our capture steered here: the kernel gives the accepted socket the
/// address that the application named (facts/capture.md 2.2), so it is the socket's own name.
///
/// # Errors
/// When the socket is already dead.
pub fn of(stream: &TcpStream) -> io::Result<OrigDst> {
    stream.local_addr().map(OrigDst::new)
}

/// The original destination, in whichever way the connection came.
///
/// # Errors
/// When the socket is already dead.
pub fn of_redirected(stream: &TcpStream, redirection: Redirection) -> io::Result<OrigDst> {
    match redirection {
        Redirection::Steered => of(stream),
        Redirection::Rewritten => before_rewriting(stream),
    }
}

/// A connection that was not rewritten has no record, or one with its own address.
fn before_rewriting(stream: &TcpStream) -> io::Result<OrigDst> {
    let local = stream.local_addr().map(OrigDst::new)?;
    let socket = SockRef::from(stream);
    let recorded = if local.addr().is_ipv4() {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    let recorded = recorded.ok().as_ref().and_then(SockAddr::as_socket);
    Ok(recorded.map_or(local, OrigDst::new))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_that_nobody_rewrote_went_where_it_is() {
        let listener = tokio::net::TcpListener::bind("[::]:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for target in ["127.0.0.1", "::1"] {
            let target = std::net::SocketAddr::new(target.parse().unwrap(), port);
            let socket = tokio::net::TcpSocket::new_v4();
            let socket = if target.is_ipv4() {
                socket
            } else {
                tokio::net::TcpSocket::new_v6()
            };
            let (_client, accepted) =
                tokio::join!(socket.unwrap().connect(target), listener.accept());
            let (stream, _peer) = accepted.unwrap();
            for redirection in [Redirection::Steered, Redirection::Rewritten] {
                let found = of_redirected(&stream, redirection).unwrap();
                assert_eq!(found.addr(), target, "{redirection:?}");
            }
        }
    }
}
