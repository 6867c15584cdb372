//! The two handshakes of a tunnel. The proxies call them with a connected socket and a deadline, and get a stream whose
//! peer is known by identity.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use leyline_net::ReadAhead;
use leyline_types::{Identity, TrustDomain};
use rustls::{CommonState, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::{
    certificate::WorkloadCertificate,
    error::{Refusal, TlsError},
    provider::ALPN_H2,
    revocation::{Reporter, Revoked, Tracked, cut, withdrawn},
    spiffe::identity_in,
    standing::{Leaving, Standing},
    verify::OutboundVerifier,
};

/// How long a refused peer may take to read the alert and close: a round trip across a continent.
const ALERT_LINGER: Duration = Duration::from_millis(200);
/// How much a refused peer may still send meanwhile: its first HTTP/2 frames, not more.
const ALERT_LINGER_BYTES: usize = 16 * 1024;

/// Encrypted bytes of a tunnel that may wait for the socket: a whole read of a TCP connection with the heads of its TLS
/// records, so that it leaves in one system call. rustls' own 64 KiB cut it in four, at a fifth of the throughput.
const SEND_BUFFER: usize = 272 << 10;

/// The server side of a tunnel. Breaks when the peer's certificate is revoked, or its root withdrawn.
#[derive(Debug)]
pub struct ServerTls {
    io: server::TlsStream<ReadAhead>,
    peer: Peer,
}

/// The client side of a tunnel. Remembers the alert with which a server refuses our certificate, which in TLS 1.3
/// arrives only after [`connect`] has returned. Breaks when the peer's certificate is revoked, or its root withdrawn.
#[derive(Debug)]
pub struct ClientTls<IO = ReadAhead> {
    io: client::TlsStream<IO>,
    peer: Peer,
    verdict: Verdict,
}

/// What ends the trust in a peer that was verified once.
#[derive(Debug)]
struct Peer {
    revocation: Tracked,
    standing: Standing,
}

/// What a server said about our certificate, readable after the stream has been given away.
#[derive(Clone, Debug, Default)]
pub struct Verdict(Arc<OnceLock<Refusal>>);

/// Accepts a tunnel for the workload that owns `cert`, from a peer of the same trust domain or of one of `aliases`. The
/// roots are the same for all. On refusal the peer is told why by an alert. Not cancel safe: dropping the future closes the connection.
///
/// # Errors
/// When the peer is slow, not acceptable or does not accept us.
pub async fn accept(
    cert: &Arc<WorkloadCertificate>,
    stream: TcpStream,
    aliases: &[TrustDomain],
    deadline: Duration,
) -> Result<(ServerTls, Identity), TlsError> {
    let config = cert.server_config(aliases).map_err(TlsError::Parameters)?;
    let acceptor = TlsAcceptor::from(config);
    let (error, stream) = match timeout(
        deadline,
        acceptor.accept(ReadAhead::new(stream)).into_fallible(),
    )
    .await
    {
        Err(_elapsed) => return Err(TlsError::Deadline(deadline)),
        Ok(Ok(tls)) => return authenticated(cert, tls),
        Ok(Err((error, stream))) => (TlsError::from_handshake(error), stream),
    };
    if error.was_told() {
        // On the heap because it is rare, and each accepting task would carry its buffer.
        Box::pin(let_alert_arrive(stream.into_inner())).await;
    }
    Err(error)
}

/// Takes the peer's identity out of a finished handshake.
fn authenticated(
    cert: &WorkloadCertificate,
    mut io: server::TlsStream<ReadAhead>,
) -> Result<(ServerTls, Identity), TlsError> {
    let session = io.get_ref().1;
    require_h2(session.alpn_protocol())?;
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let identity = identity_in(leaf.ok_or(TlsError::NoCertificate)?)
        .map_err(|error| TlsError::NotSpiffe(error.to_string()))?;
    let peer = track(cert, Reporter::Destination, session)?;
    io.get_mut().1.set_buffer_limit(Some(SEND_BUFFER));
    Ok((ServerTls { io, peer }, identity))
}

/// Opens a tunnel from the workload that owns `cert` to a peer that must be one of `expected`. Not cancel safe:
/// dropping the future closes the connection.
///
/// # Errors
/// When the peer is slow, not acceptable or does not accept us.
pub async fn connect(
    cert: &Arc<WorkloadCertificate>,
    stream: TcpStream,
    expected: &[Identity],
    deadline: Duration,
) -> Result<(ClientTls, Identity), TlsError> {
    connect_over(cert, ReadAhead::new(stream), expected, deadline).await
}

/// The same over any stream: a tunnel within a tunnel. Not cancel safe: dropping the future closes the connection.
///
/// # Errors
/// When the peer is slow, not acceptable or does not accept us.
pub async fn connect_over<IO: AsyncRead + AsyncWrite + Unpin>(
    cert: &Arc<WorkloadCertificate>,
    stream: IO,
    expected: &[Identity],
    deadline: Duration,
) -> Result<(ClientTls<IO>, Identity), TlsError> {
    let verifier = Arc::new(OutboundVerifier::new(
        Arc::clone(cert.trusted()),
        cert.issuers().clone(),
        expected,
    ));
    let connector = TlsConnector::from(cert.client_config(Arc::clone(&verifier)));
    // rustls wants a name; it is neither sent (no SNI) nor looked at by our verifier.
    let unused = ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let mut io = match timeout(deadline, connector.connect(unused, stream)).await {
        Err(_elapsed) => return Err(TlsError::Deadline(deadline)),
        Ok(result) => result.map_err(TlsError::from_handshake)?,
    };
    require_h2(io.get_ref().1.alpn_protocol())?;
    let identity = verifier.verified().ok_or(TlsError::NoCertificate)?;
    io.get_mut().1.set_buffer_limit(Some(SEND_BUFFER));
    let peer = track(cert, Reporter::Source, io.get_ref().1)?;
    let verdict = Verdict::default();
    Ok((ClientTls { io, peer, verdict }, identity))
}

/// From here on a list, or other roots, can cut the tunnel.
fn track(
    cert: &WorkloadCertificate,
    reporter: Reporter,
    session: &CommonState,
) -> Result<Peer, TlsError> {
    let chain = session.peer_certificates();
    let tracked = cert.issuers().track(reporter, chain);
    Ok(Peer {
        revocation: tracked.map_err(|Revoked| TlsError::Revoked)?,
        standing: Standing::of(cert, reporter),
    })
}

impl Peer {
    /// An error once it is not trusted any more; wakes the caller then.
    fn poll_trusted(&mut self, cx: &mut Context<'_>, session: &CommonState) -> io::Result<()> {
        if self.revocation.poll_cut(cx).is_ready() {
            return Err(cut());
        }
        match self.standing.poll_cut(cx, session.peer_certificates()) {
            Poll::Ready(()) => Err(withdrawn()),
            Poll::Pending => Ok(()),
        }
    }

    /// The same for who writes, as last seen by who reads.
    fn trusted(&self) -> io::Result<()> {
        if self.revocation.is_cut() {
            return Err(cut());
        }
        if self.standing.is_cut() {
            return Err(withdrawn());
        }
        Ok(())
    }
}

fn require_h2(alpn: Option<&[u8]>) -> Result<(), TlsError> {
    match alpn {
        Some(ALPN_H2) => Ok(()),
        _ => Err(TlsError::Alpn),
    }
}

/// A socket that is closed with unread bytes answers with RST, and RST can overtake the alert that says why. So the
/// write side is closed first, and what the peer still sends is thrown away for a moment.
async fn let_alert_arrive(mut stream: TcpStream) {
    let drain = async {
        stream.shutdown().await?;
        let mut scratch = [0; 1024];
        let mut left = ALERT_LINGER_BYTES;
        while left > 0 {
            match stream.read(&mut scratch).await? {
                0 => break,
                n => left = left.saturating_sub(n),
            }
        }
        Ok::<_, io::Error>(())
    };
    // Whatever happens here, the peer has been refused and the socket is closed next.
    match timeout(ALERT_LINGER, drain).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::trace!(%error, "refused peer went away"),
    }
}

impl ServerTls {
    /// Tells when no new connections are to be begun in the tunnel.
    pub fn leaving(&self) -> Leaving {
        self.peer.standing.leaving()
    }

    #[cfg(test)]
    pub(crate) fn standing(&self) -> &Standing {
        &self.peer.standing
    }

    /// The connection that carries the tunnel.
    pub fn socket(&self) -> &TcpStream {
        self.io.get_ref().0.get_ref()
    }
}

impl ClientTls {
    /// The connection that carries the tunnel.
    pub fn socket(&self) -> &TcpStream {
        self.io.get_ref().0.get_ref()
    }
}

impl<IO> ClientTls<IO> {
    /// A handle on what the server says about our certificate.
    pub fn verdict(&self) -> Verdict {
        self.verdict.clone()
    }
}

impl Verdict {
    /// The refusal that arrived, if one did.
    pub fn refusal(&self) -> Option<Refusal> {
        self.0.get().copied()
    }

    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && let Some(refusal) = Refusal::in_io(error)
        {
            self.0.get_or_init(|| refusal);
        }
        result
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for ClientTls<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { io, peer, .. } = &mut *self;
        peer.poll_trusted(cx, io.get_ref().1)?;
        let result = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        Poll::Ready(self.verdict.note(result))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClientTls<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.peer.trusted()?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.peer.trusted()?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl AsyncRead for ServerTls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { io, peer } = &mut *self;
        peer.poll_trusted(cx, io.get_ref().1)?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for ServerTls {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.peer.trusted()?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.peer.trusted()?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
