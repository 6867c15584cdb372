//! Outgoing connections, made inside a network namespace, with a mark, a source and always a deadline.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use rand::RngExt;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::{
    netns::NetNs,
    pace,
    sockopt::{self, Keepalive},
};

/// Ports that a spoofed connection takes. They lie below the range from which clients take theirs by default, so that
/// (client, port) is never that of the client's own connection, which lives in the same namespace (facts/capture.md 2.3).
const SPOOFED_PORTS: std::ops::Range<u16> = 1024..32768;
/// A random port is free far more often than not; eight misses mean that something else is wrong.
const SPOOFED_TRIES: usize = 8;

/// From which address a connection is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Whichever the routing table gives.
    Routed,
    /// The same, for a tunnel that calls [`pace::settle`] after its handshake.
    Tunnel,
    /// The same, towards an application of the namespace.
    Own,
    /// The address of a remote client, towards an application of the namespace, through its loopback.
    Spoofed(IpAddr),
    /// The same by the namespace's own routes, where rules on marks bring the answers back (facts A4).
    SpoofedRouted(IpAddr),
}

impl Source {
    /// For a tunnel; `paced`: as the namespace says, on short paths too.
    pub fn tunnel(paced: bool) -> Self {
        if paced { Self::Routed } else { Self::Tunnel }
    }
}

/// Told of a spoofed connection before it is made, with the addresses of both ends; what it returns is kept until the
/// connection is made. For capture on kernels that cannot recognise such a connection by itself.
pub type Announce<'a> =
    &'a (dyn Fn(SocketAddr, SocketAddr) -> io::Result<Box<dyn Send>> + Send + Sync);

/// How to connect.
#[derive(Clone, Copy)]
pub struct ConnectOptions<'a> {
    /// `SO_MARK`.
    pub mark: Option<u32>,
    /// From where.
    pub source: Source,
    /// For the whole attempt.
    pub deadline: Duration,
    /// Probing of a silent peer.
    pub keepalive: Option<Keepalive>,
    /// For [`Source::Spoofed`].
    pub announce: Option<Announce<'a>>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The peer did not answer.
    #[error("connection timed out after {0:?}")]
    Deadline(Duration),
    /// The kernel or the peer refused.
    #[error("io error: {0}")]
    Io(#[from] io::Error),
    /// No free port towards the application for a client's address.
    #[error("no free source port to reach {target} as {client}")]
    NoPort {
        /// Spoofed source.
        client: IpAddr,
        /// Application.
        target: SocketAddr,
    },
}

/// Connects to `target` from inside `netns`, with `TCP_NODELAY`; to an application of it without pace
/// ([`pace::unpaced`]).
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(
    netns: &NetNs,
    target: SocketAddr,
    options: &ConnectOptions<'_>,
) -> Result<TcpStream, ConnectError> {
    let attempt = async {
        match options.source {
            Source::Spoofed(client) | Source::SpoofedRouted(client)
                if client.is_ipv4() == target.is_ipv4() =>
            {
                connect_as(netns, target, client, options).await
            }
            // An address of the other family cannot be kept.
            Source::Spoofed(_)
            | Source::SpoofedRouted(_)
            | Source::Own
            | Source::Routed
            | Source::Tunnel => {
                let socket = socket(netns, target, options)?;
                Ok(into_tokio(socket).connect(target).await?)
            }
        }
    };
    tokio::time::timeout(options.deadline, attempt)
        .await
        .unwrap_or(Err(ConnectError::Deadline(options.deadline)))
}

/// Reaches the application at `target` as if `client` had connected.
async fn connect_as(
    netns: &NetNs,
    target: SocketAddr,
    client: IpAddr,
    options: &ConnectOptions<'_>,
) -> Result<TcpStream, ConnectError> {
    for _ in 0..SPOOFED_TRIES {
        let socket = socket(netns, target, options)?;
        sockopt::set_transparent(&socket, Domain::for_address(target))?;
        if matches!(options.source, Source::Spoofed(_)) {
            // Makes the route, and with it the connection's arrival, that of loopback (facts/capture.md 2.3).
            socket.bind_device(Some(b"lo"))?;
        }
        socket.set_reuse_address(true)?;
        let source = SocketAddr::new(client, rand::rng().random_range(SPOOFED_PORTS));
        match socket.bind(&source.into()) {
            Err(e) if is_port_taken(&e) => continue,
            result => result?,
        }
        let announced = options
            .announce
            .map(|announce| announce(source, target))
            .transpose()?;
        let connected = into_tokio(socket).connect(target).await;
        drop(announced);
        match connected {
            Err(e) if is_port_taken(&e) => {}
            result => return Ok(result?),
        }
    }
    Err(ConnectError::NoPort { client, target })
}

fn socket(netns: &NetNs, target: SocketAddr, options: &ConnectOptions<'_>) -> io::Result<Socket> {
    let socket = netns.run(|| {
        Socket::new(
            Domain::for_address(target),
            Type::STREAM.nonblocking().cloexec(),
            Some(Protocol::TCP),
        )
    })??;
    if let Some(mark) = options.mark {
        socket.set_mark(mark)?;
    }
    if let Some(keepalive) = &options.keepalive {
        sockopt::set_keepalive(&socket, keepalive)?;
    }
    match options.source {
        Source::Routed => {}
        Source::Tunnel => pace::postponed(&socket)?,
        Source::Own | Source::Spoofed(_) | Source::SpoofedRouted(_) => pace::unpaced(&socket)?,
    }
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

fn into_tokio(socket: Socket) -> TcpSocket {
    TcpSocket::from_std_stream(socket.into())
}

fn is_port_taken(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EADDRINUSE | libc::EADDRNOTAVAIL)
    )
}
