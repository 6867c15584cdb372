//! How fast a socket sends what its windows allow: at once, or at the pace of the node's congestion control.
//!
//! BBR paces: a timer of the kernel releases every segment. On a virtual machine each timer is a trip to the hypervisor,
//! and together they are half of a proxy's CPU per byte. What BBR is for (long paths, of which a window in one burst would
//! flood a router's buffer) exists neither on loopback nor between machines of one data centre.
//!
//! A kernel keeps pacing a socket that BBR has had once (`sk_pacing_status`), so that a socket must be spared from its
//! beginning, and be given to BBR later where its path turns out to be long.

use std::{io, time::Duration};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpStream;
use tracing::debug;

use crate::{NetNs, sockopt};

/// Paths below it lie within a data centre: between the zones of one region it takes 1 to 2 ms.
const SHORT: Duration = Duration::from_millis(1);

/// Of every kernel, and open to all (`net.ipv4.tcp_allowed_congestion_control`).
const RENO: &[u8] = b"reno";
/// Better than Reno where the kernel has it.
const CUBIC: &[u8] = b"cubic";
/// With all its versions.
const PACING: &[u8] = b"bbr";

/// For peers within the namespace: no pace. Children of a listener inherit it.
///
/// # Errors
/// As the kernel says.
pub fn unpaced<'s>(socket: impl Into<SockRef<'s>>) -> io::Result<()> {
    socket.into().set_tcp_congestion(RENO)
}

/// For peers whose distance will be known once they are connected, by [`settle`]: until then a congestion control that
/// does not pace in place of one that does; any other stays. Children of a listener inherit it.
///
/// # Errors
/// As the kernel says.
pub fn postponed<'s>(socket: impl Into<SockRef<'s>>) -> io::Result<()> {
    let socket = socket.into();
    if !socket.tcp_congestion()?.starts_with(PACING) {
        return Ok(());
    }
    socket
        .set_tcp_congestion(CUBIC)
        .or_else(|_not_there| socket.set_tcp_congestion(RENO))
}

/// After a handshake on a socket whose pace was [`postponed`]: what `netns` says governs it from here on if its path is
/// not short, by the least round trip that the kernel has seen.
pub fn settle(socket: &TcpStream, netns: &NetNs) {
    if let Err(error) = settle_by(socket, netns, SHORT) {
        // Data flows at any pace.
        debug!(%error, "the congestion control of a tunnel stays as it is");
    }
}

fn settle_by(socket: &TcpStream, netns: &NetNs, short: Duration) -> io::Result<()> {
    match sockopt::least_round_trip(socket)? {
        Some(time) if time < short => Ok(()),
        // Where the kernel has seen none, a segment was lost: not the mark of a short path.
        Some(_) | None => SockRef::from(socket).set_tcp_congestion(name(&default_of(netns)?)),
    }
}

/// What a new socket of the namespace gets.
fn default_of(netns: &NetNs) -> io::Result<Vec<u8>> {
    let fresh = netns.run(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)))??;
    fresh.tcp_congestion()
}

/// Without the zeros with which the kernel fills the buffer.
fn name(padded: &[u8]) -> &[u8] {
    let end = padded.iter().position(|byte| *byte == 0);
    &padded[..end.unwrap_or(padded.len())]
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddr};

    use super::*;
    use crate::{ConnectOptions, ListenOptions, Peers, Source, connect, listen::listen_on};

    fn of(stream: &TcpStream) -> Vec<u8> {
        let padded = SockRef::from(stream).tcp_congestion().unwrap();
        name(&padded).to_vec()
    }

    /// (client, server)
    async fn pair(source: Source, peers: Peers) -> (TcpStream, TcpStream) {
        let netns = NetNs::current().unwrap();
        let any = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
        let options = ListenOptions {
            peers,
            ..ListenOptions::default()
        };
        let listener = listen_on(&netns, any, &options).unwrap();
        let options = ConnectOptions {
            mark: None,
            source,
            deadline: Duration::from_secs(10),
            keepalive: None,
            announce: None,
        };
        let addr = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(connect(&netns, addr, &options), listener.accept());
        (client.unwrap(), accepted.unwrap().0)
    }

    #[tokio::test]
    async fn sockets_towards_local_peers_are_unpaced_and_others_as_the_namespace_says() {
        let default = name(&default_of(&NetNs::current().unwrap()).unwrap()).to_vec();
        for (source, peers, expected) in [
            (Source::Own, Peers::Local, RENO),
            (Source::Routed, Peers::Anywhere, &default[..]),
        ] {
            let (client, server) = pair(source, peers).await;
            assert_eq!(of(&client), expected, "{source:?}");
            assert_eq!(of(&server), expected, "{peers:?}");
        }
    }

    #[tokio::test]
    async fn tunnels_are_paced_on_long_paths_alone() {
        let netns = NetNs::current().unwrap();
        let default = name(&default_of(&netns).unwrap()).to_vec();
        let unpaced = if default.starts_with(PACING) {
            CUBIC
        } else {
            &default[..]
        };
        let (client, server) = pair(Source::Tunnel, Peers::Tunnels).await;
        for end in [&client, &server] {
            // Loopback is shorter than an hour, and longer than nothing.
            for (short, expected) in [
                (Duration::from_secs(3600), unpaced),
                (Duration::ZERO, &default[..]),
            ] {
                settle_by(end, &netns, short).unwrap();
                assert_eq!(of(end), expected, "{short:?}");
            }
        }
    }
}
