//! Datagram sockets: one that serves clients inside a namespace, and connected ones towards servers.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt::{Ipv4OrigDstAddr, Ipv4PacketInfo, Ipv6OrigDstAddr, Ipv6RecvPacketInfo},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::Interest, net::UdpSocket};

use crate::{
    listen::{self, Families},
    netns::NetNs,
    sockopt,
};

/// Serves datagrams that clients of the same namespace send, whichever address they send them to, and those of guests
/// nested in it, which capture brings with the port that they sent them to.
#[derive(Debug)]
pub struct Datagrams {
    socket: UdpSocket,
    domain: Domain,
    port: u16,
    netns: NetNs,
    guest_mark: u32,
}

/// Where a datagram came from and where it was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its length in the buffer.
    pub length: usize,
    /// It was longer than the buffer.
    pub is_cut: bool,
    /// The client.
    pub from: SocketAddr,
    /// The address that the client sent it to.
    pub to: IpAddr,
    /// The port that the client sent it to, where that was not changed on the way.
    pub port: u16,
}

impl Datagrams {
    /// Opens the socket on a port of all addresses, IPv6 and IPv4; IPv4 alone where IPv6 is off. It is bound to the
    /// loopback device: nothing from outside reaches it. `guest_mark` is for answers to guests.
    ///
    /// # Errors
    /// When the port is in use, or an option needs a capability that the process lacks.
    pub fn open(
        netns: &NetNs,
        port: u16,
        families: Families,
        mark: u32,
        guest_mark: u32,
    ) -> io::Result<Self> {
        let open_in = |domain| {
            let socket = Self::open_in(domain, netns, port, mark)?;
            Ok(Self {
                socket,
                domain,
                port,
                netns: netns.clone(),
                guest_mark,
            })
        };
        if families == Families::V4 {
            return open_in(Domain::IPV4);
        }
        match open_in(Domain::IPV6) {
            Err(e) if listen::is_no_ipv6(&e) => open_in(Domain::IPV4),
            other => other,
        }
    }

    fn open_in(domain: Domain, netns: &NetNs, port: u16, mark: u32) -> io::Result<UdpSocket> {
        let socket = datagram_socket(netns, domain)?;
        let all: SocketAddr = if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
            setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
            setsockopt(&socket, Ipv6OrigDstAddr, &true)?;
            (Ipv6Addr::UNSPECIFIED, port).into()
        } else {
            setsockopt(&socket, Ipv4PacketInfo, &true)?;
            (Ipv4Addr::UNSPECIFIED, port).into()
        };
        // Of IPv4's datagrams on the socket for both, too.
        setsockopt(&socket, Ipv4OrigDstAddr, &true)?;
        socket.set_mark(mark)?;
        sockopt::set_transparent(&socket, domain)?;
        // Another instance of the proxy may take over.
        socket.set_reuse_port(true)?;
        socket.bind_device(Some(b"lo"))?;
        socket.bind(&all.into())?;
        UdpSocket::from_std(socket.into())
    }

    /// Waits for a datagram. Cancel safe.
    ///
    /// # Errors
    /// As `recvmsg`, for this datagram or for the socket.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let read = || receive(self.socket.as_raw_fd(), buffer);
        self.socket.async_io(Interest::READABLE, read).await
    }

    /// Sends to a client as the address that the client had asked.
    ///
    /// # Errors
    /// As `sendmsg`; for a guest also when the port that it asked is taken by the namespace as a whole.
    pub async fn answer(&self, data: &[u8], received: &Received) -> io::Result<()> {
        if received.port != self.port {
            return self.answer_guest(data, received);
        }
        let write = || self.send(data, received);
        self.socket.async_io(Interest::WRITABLE, write).await
    }

    /// From a socket of its own, as the port is another, and the way is not that over loopback. What does not fit into the
    /// buffers at once is lost, as on the way.
    fn answer_guest(&self, data: &[u8], received: &Received) -> io::Result<()> {
        let asked = SocketAddr::new(received.to, received.port);
        let domain = Domain::for_address(asked);
        let socket = datagram_socket(&self.netns, domain)?;
        socket.set_mark(self.guest_mark)?;
        sockopt::set_transparent(&socket, domain)?;
        // Several answers may leave from one server at a time.
        socket.set_reuse_address(true)?;
        socket.bind(&asked.into())?;
        socket.send_to(data, &received.from.into())?;
        Ok(())
    }

    fn send(&self, data: &[u8], received: &Received) -> io::Result<()> {
        let (fd, data) = (self.socket.as_raw_fd(), [IoSlice::new(data)]);
        let flags = MsgFlags::MSG_DONTWAIT;
        if self.domain == Domain::IPV6 {
            let client = SockaddrStorage::from(mapped(received.from));
            let source = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: mapped_ip(received.to).octets(),
                },
                ipi6_ifindex: 0,
            };
            let source = [ControlMessage::Ipv6PacketInfo(&source)];
            sendmsg(fd, &data, &source, flags, Some(&client))?;
            return Ok(());
        }
        let IpAddr::V4(asked) = received.to else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        let client = SockaddrStorage::from(received.from);
        let source = libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr {
                s_addr: u32::from_ne_bytes(asked.octets()),
            },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let source = [ControlMessage::Ipv4PacketInfo(&source)];
        sendmsg(fd, &data, &source, flags, Some(&client))?;
        Ok(())
    }
}

impl AsFd for Datagrams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn receive(fd: i32, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = nix::cmsg_space!(
        libc::in6_pktinfo,
        libc::in_pktinfo,
        libc::sockaddr_in6,
        libc::sockaddr_in
    );
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut space), flags)?;
    let (mut to, mut port) = (None, None);
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                to = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).to_canonical());
            }
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                let octets = info.ipi_addr.s_addr.to_ne_bytes();
                to = Some(Ipv4Addr::from(octets).into());
            }
            ControlMessageOwned::Ipv6OrigDstAddr(addr) => port = Some(u16::from_be(addr.sin6_port)),
            ControlMessageOwned::Ipv4OrigDstAddr(addr) => port = Some(u16::from_be(addr.sin_port)),
            _ => {}
        }
    }
    let from = message.address.as_ref().and_then(socket_addr);
    let (Some(from), Some(to), Some(port)) = (from, to, port) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    Ok(Received {
        length: message.bytes,
        is_cut: message.flags.contains(MsgFlags::MSG_TRUNC),
        from,
        to,
        port,
    })
}

fn socket_addr(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v6 = storage
        .as_sockaddr_in6()
        .map(|addr| SocketAddrV6::from(*addr));
    if let Some(v6) = v6 {
        return Some(SocketAddr::new(v6.ip().to_canonical(), v6.port()));
    }
    let v4 = storage.as_sockaddr_in()?;
    Some(SocketAddrV4::from(*v4).into())
}

fn mapped_ip(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn mapped(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(mapped_ip(addr.ip()).into(), addr.port())
}

/// A socket of `netns` that talks to one server only, from a port that the kernel chooses anew.
///
/// # Errors
/// When there is no route, or the mark needs a capability that the process lacks.
pub fn connect_datagrams(netns: &NetNs, server: SocketAddr, mark: u32) -> io::Result<UdpSocket> {
    let socket = datagram_socket(netns, Domain::for_address(server))?;
    socket.set_mark(mark)?;
    socket.connect(&server.into())?;
    UdpSocket::from_std(socket.into())
}

fn datagram_socket(netns: &NetNs, domain: Domain) -> io::Result<Socket> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    netns.run(|| Socket::new(domain, kind, Some(Protocol::UDP)))?
}
