//! The near end of an outbound connection: an application whose connect was captured, or one that asked by SOCKS5 and
//! waits to be told what became of it.
//!
//! Invariant: no byte of the far end reaches a client before [`Client::welcome`], which is called when the far end has
//! taken the connection.

use std::{io, net::SocketAddr, time::Duration};

use leyline_state::Workload;
use leyline_telemetry::traffic::{Refusal, ResponseFlag};
use leyline_types::{OrigDst, PeerAddr};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{forward, socks5::Reply};

/// For ten bytes into a send buffer that is empty, so that only a machine in trouble needs longer.
const REPLY_DEADLINE: Duration = Duration::from_secs(5);

/// A client, until bytes flow.
#[derive(Debug)]
pub(super) struct Client {
    stream: TcpStream,
    asked: Asked,
}

/// How it said where it wants to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    ByConnecting,
    BySocks5,
}

impl Client {
    /// One whose connection was captured, and is open as far as it knows.
    pub(super) fn captured(stream: TcpStream) -> Self {
        let asked = Asked::ByConnecting;
        Self { stream, asked }
    }

    /// One that has sent a SOCKS5 request.
    pub(super) fn by_socks5(stream: TcpStream) -> Self {
        let asked = Asked::BySocks5;
        Self { stream, asked }
    }

    /// As whom the mesh sees it: who asks over loopback is its pod, at the address that fits the destination.
    pub(super) fn seen_as(&self, peer: PeerAddr, source: &Workload, to: OrigDst) -> PeerAddr {
        match self.asked {
            Asked::ByConnecting => peer,
            Asked::BySocks5 => {
                let all = &source.addresses;
                let fits = all.iter().find(|ip| ip.is_ipv4() == to.ip().is_ipv4());
                let ip = fits.or_else(|| all.first()).copied();
                PeerAddr::new(SocketAddr::new(
                    ip.unwrap_or_else(|| peer.ip()),
                    peer.port(),
                ))
            }
        }
    }

    /// The far end has taken the connection: from here on bytes flow.
    ///
    /// # Errors
    /// When the client is gone.
    pub(super) async fn welcome(mut self) -> io::Result<TcpStream> {
        match self.asked {
            Asked::ByConnecting => {}
            Asked::BySocks5 => send(&mut self.stream, Reply::Succeeded).await?,
        }
        Ok(self.stream)
    }

    /// There will be no connection.
    pub(super) async fn turn_away(mut self, why: impl Into<Reply>) {
        match self.asked {
            Asked::ByConnecting => forward::reset(self.stream),
            Asked::BySocks5 => {
                // A reset could overtake the reply. A client that is gone needs neither.
                if send(&mut self.stream, why.into()).await.is_ok() {
                    self.stream.shutdown().await.ok();
                }
            }
        }
    }
}

/// How a connection ends whose client did not stay for the answer.
pub(super) fn client_gone(error: &io::Error) -> (ResponseFlag, String) {
    let error = format!("the client was gone when its connection was open: {error}");
    (ResponseFlag::None, error)
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), reply: Reply) -> io::Result<()> {
    let bytes = reply.encode();
    let sent = timeout(REPLY_DEADLINE, stream.write_all(&bytes)).await;
    sent.map_err(|_elapsed| io::ErrorKind::TimedOut)?
}

impl From<Refusal> for Reply {
    fn from(why: Refusal) -> Self {
        match why {
            Refusal::SelfCall | Refusal::EnrolmentPending => Self::NotAllowed,
            Refusal::UnknownDestination
            | Refusal::UnknownWaypoint
            | Refusal::NoHealthyUpstream
            | Refusal::UnknownHost => Self::HostUnreachable,
            // The others are of inbound connections, or our own trouble.
            _ => Self::GeneralFailure,
        }
    }
}

impl From<ResponseFlag> for Reply {
    fn from(why: ResponseFlag) -> Self {
        match why {
            ResponseFlag::Deny => Self::NotAllowed,
            ResponseFlag::NetworkPolicy => Self::HostUnreachable,
            ResponseFlag::Connect => Self::ConnectionRefused,
            ResponseFlag::None
            | ResponseFlag::TlsFailure
            | ResponseFlag::H2HandshakeFailure
            | ResponseFlag::IdentityError
            | ResponseFlag::CertRevoked => Self::GeneralFailure,
        }
    }
}
