//! Changes of the network interfaces of a namespace and of their addresses, as the kernel tells of them (rtnetlink).

use std::{io, os::fd::AsRawFd};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
    },
};
use tokio::{io::Interest, net::UdpSocket};

use crate::netns::NetNs;

/// The groups of messages about interfaces and about addresses of both families (linux/rtnetlink.h).
const GROUPS: u32 = 0x1 | 0x10 | 0x100;
/// A message is looked at for its presence alone.
const BUFFER: usize = 64;

/// Tells that something about the interfaces of a namespace, or their addresses, has changed, but not what.
#[derive(Debug)]
pub struct LinkEvents {
    /// Registered with the runtime under a name that is not its kind's: only its readiness is used.
    socket: UdpSocket,
}

impl LinkEvents {
    /// Listens from here on.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or has no room for another socket.
    pub fn open(netns: &NetNs) -> io::Result<Self> {
        let socket = netns.run(|| {
            socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkRoute,
            )
        })??;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        let socket = UdpSocket::from_std(socket.into())?;
        Ok(Self { socket })
    }

    /// Waits for a change; those that came together are one. Cancel safe.
    ///
    /// # Errors
    /// When the socket is of no use any more.
    pub async fn changed(&self) -> io::Result<()> {
        let drain = || drain(self.socket.as_raw_fd());
        self.socket.async_io(Interest::READABLE, drain).await
    }
}

/// Takes all that is there; `WouldBlock` when that is nothing.
fn drain(socket: i32) -> io::Result<()> {
    let mut changed = false;
    let mut buffer = [0; BUFFER];
    loop {
        match recv(socket, &mut buffer, MsgFlags::MSG_DONTWAIT) {
            // Messages were lost for lack of room, which is a change as well.
            Ok(_) | Err(Errno::ENOBUFS) => changed = true,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if changed => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}
