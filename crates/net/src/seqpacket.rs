//! Client of a Unix socket that keeps packets apart (`SOCK_SEQPACKET`) and passes descriptors: istio-cni's (facts A5).

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::Path,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg, send,
};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{io::Interest, net::UnixStream};

/// Descriptors that one packet can bring: more than any should, so that a wrong number is seen and all are closed.
const DESCRIPTORS: usize = 4;

/// A connected socket.
#[derive(Debug)]
pub struct SeqPacket {
    /// Registered with the runtime under a name that is not its kind's: only its readiness is used.
    socket: UnixStream,
}

/// What one packet brought.
#[derive(Debug)]
pub struct Packet {
    /// Bytes of the buffer that are the packet's; 0 at the end of the connection, or of an empty packet.
    pub length: usize,
    /// Descriptors that came with it; closed on exec.
    pub descriptors: Vec<OwnedFd>,
    /// Whether something did not fit.
    pub completeness: Completeness,
}

/// Whether a packet fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completeness {
    /// All of it was received.
    Whole,
    /// It was longer than the buffer, or brought too many descriptors.
    Truncated,
}

impl SeqPacket {
    /// Connects; a Unix socket answers at once or not at all.
    ///
    /// # Errors
    /// When nobody listens there, or its queue is full.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking().cloexec(), None)?;
        socket.connect(&SockAddr::unix(path)?)?;
        Self::from_socket(socket)
    }

    fn from_socket(socket: Socket) -> io::Result<Self> {
        Ok(Self {
            socket: UnixStream::from_std(socket.into())?,
        })
    }

    /// Sends one packet. Cancel safe: it is sent as a whole or not.
    ///
    /// # Errors
    /// When the peer is gone.
    pub async fn send(&self, packet: &[u8]) -> io::Result<()> {
        let sent = self.socket.async_io(Interest::WRITABLE, || {
            Ok(send(&self.socket, packet, SendFlags::NOSIGNAL)?)
        });
        let sent = sent.await?;
        if sent == packet.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// Receives one packet. Cancel safe.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<Packet> {
        self.socket
            .async_io(Interest::READABLE, || receive_now(&self.socket, buffer))
            .await
    }
}

fn receive_now(socket: &UnixStream, buffer: &mut [u8]) -> io::Result<Packet> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(buffer)];
    let received = recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let lost = ReturnFlags::TRUNC | ReturnFlags::CTRUNC;
    Ok(Packet {
        length: received.bytes,
        descriptors,
        completeness: if received.flags.intersects(lost) {
            Completeness::Truncated
        } else {
            Completeness::Whole
        },
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, sendmsg};

    use super::*;

    fn pair() -> (SeqPacket, Socket) {
        let kind = Type::SEQPACKET.nonblocking().cloexec();
        let (ours, theirs) = Socket::pair(Domain::UNIX, kind, None).unwrap();
        (SeqPacket::from_socket(ours).unwrap(), theirs)
    }

    fn send_with(socket: &Socket, bytes: &[u8], descriptors: usize) {
        let file = std::fs::File::open("/proc/self/ns/net").unwrap();
        let all = vec![file.as_fd(); descriptors];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if descriptors > 0 {
            assert!(control.push(SendAncillaryMessage::ScmRights(&all)));
        }
        let data = [io::IoSlice::new(bytes)];
        sendmsg(socket, &data, &mut control, SendFlags::empty()).unwrap();
    }

    #[tokio::test]
    async fn packets_stay_apart_and_bring_their_descriptors() {
        let (ours, theirs) = pair();
        send_with(&theirs, b"one", 0);
        send_with(&theirs, b"second", 1);
        let mut buffer = [0; 16];
        let first = ours.receive(&mut buffer).await.unwrap();
        assert_eq!(
            (&buffer[..first.length], first.descriptors.len()),
            (&b"one"[..], 0)
        );
        let second = ours.receive(&mut buffer).await.unwrap();
        assert_eq!(
            (&buffer[..second.length], second.descriptors.len()),
            (&b"second"[..], 1)
        );
        assert_eq!(second.completeness, Completeness::Whole);
        ours.send(b"answer").await.unwrap();
        let mut answer = [0; 16];
        let length = rustix::net::recv(&theirs, &mut answer, RecvFlags::empty()).unwrap();
        assert_eq!(&answer[..length.0], b"answer");
        drop(theirs);
        assert_eq!(ours.receive(&mut buffer).await.unwrap().length, 0);
        assert!(ours.send(b"nobody").await.is_err());
    }

    #[tokio::test]
    async fn what_does_not_fit_is_told() {
        let (ours, theirs) = pair();
        let mut buffer = [0; 4];
        for (bytes, descriptors) in [(&b"longer than four"[..], 0), (b"abc", 2 * DESCRIPTORS)] {
            send_with(&theirs, bytes, descriptors);
            let packet = ours.receive(&mut buffer).await.unwrap();
            assert_eq!(packet.completeness, Completeness::Truncated);
        }
    }
}
