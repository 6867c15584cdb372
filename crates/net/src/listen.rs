//! Listening sockets.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::{
    netns::NetNs,
    pace,
    sockopt::{self, Keepalive},
};

/// Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// How a listening socket is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListenOptions {
    /// `SO_MARK`, inherited by accepted sockets.
    pub mark: Option<u32>,
    /// Accept connections to addresses that are not the namespace's own (`IP_TRANSPARENT`).
    pub transparent: bool,
    /// `SO_REUSEPORT`: another socket of the same user may listen on the port too.
    pub reuse_port: bool,
    /// Bound to the loopback device: nothing from outside the namespace reaches it.
    pub loopback_only: bool,
    /// Who connects, which decides the pace at which they are sent to ([`pace`]).
    pub peers: Peers,
    /// Inherited by accepted sockets.
    pub keepalive: Option<Keepalive>,
    /// Which families [`listen`] takes.
    pub families: Families,
}

/// Who connects to a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Peers {
    /// They are sent to as the namespace says.
    #[default]
    Anywhere,
    /// Applications of the namespace alone.
    Local,
    /// Proxies, with tunnels that call [`pace::settle`] after their handshake.
    Tunnels,
}

impl Peers {
    /// For tunnels; `paced`: as the namespace says, on short paths too.
    pub fn tunnels(paced: bool) -> Self {
        if paced { Self::Anywhere } else { Self::Tunnels }
    }
}

/// Address families of a listener on all addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Families {
    /// IPv6 and IPv4 by one socket; IPv4 alone where IPv6 is off.
    #[default]
    Both,
    /// IPv4 alone.
    V4,
}

/// Listens on a port of all addresses of `netns`.
///
/// # Errors
/// When the port is in use, or an option needs a capability that the process lacks.
pub fn listen(netns: &NetNs, port: u16, options: &ListenOptions) -> io::Result<TcpListener> {
    let all_v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let all_v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    match options.families {
        Families::V4 => listen_on(netns, all_v4, options),
        Families::Both => match listen_on(netns, all_v6, options) {
            Err(e) if is_no_ipv6(&e) => listen_on(netns, all_v4, options),
            other => other,
        },
    }
}

/// Listens on a port of the loopback addresses of `netns`; where IPv6 is off, of IPv4's alone.
///
/// # Errors
/// As [`listen`].
pub fn listen_on_loopback(
    netns: &NetNs,
    port: u16,
    options: &ListenOptions,
) -> io::Result<Vec<TcpListener>> {
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut all = vec![listen_on(netns, v4, options)?];
    if options.families == Families::Both {
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        match listen_on(netns, v6, options) {
            Err(e) if is_no_ipv6(&e) => {}
            other => all.push(other?),
        }
    }
    Ok(all)
}

/// Listens on one address of `netns`; the unspecified IPv6 address includes IPv4.
///
/// # Errors
/// As [`listen`].
pub fn listen_on(
    netns: &NetNs,
    addr: SocketAddr,
    options: &ListenOptions,
) -> io::Result<TcpListener> {
    let domain = Domain::for_address(addr);
    let socket = netns.run(|| {
        Socket::new(
            domain,
            Type::STREAM.nonblocking().cloexec(),
            Some(Protocol::TCP),
        )
    })??;
    if domain == Domain::IPV6 {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(options.reuse_port)?;
    // Accepted sockets inherit these, which saves the calls for each of them.
    socket.set_tcp_nodelay(true)?;
    if let Some(keepalive) = &options.keepalive {
        sockopt::set_keepalive(&socket, keepalive)?;
    }
    match options.peers {
        Peers::Anywhere => {}
        Peers::Local => pace::unpaced(&socket)?,
        Peers::Tunnels => pace::postponed(&socket)?,
    }
    if let Some(mark) = options.mark {
        socket.set_mark(mark)?;
    }
    if options.transparent {
        sockopt::set_transparent(&socket, domain)?;
    }
    if options.loopback_only {
        socket.bind_device(Some(b"lo"))?;
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

pub(crate) fn is_no_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}
