//! Accepts TLS connections: bounded in number, each handshake with a deadline and apart from the others.
//!
//! Anybody can connect; only a token tells a proxy from a stranger. Until a connection has brought a valid one it has
//! little time and few places for its address, so that strangers cannot take the places of proxies.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use leyline_runtime::{Drain, spawn};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::{Span, debug, info_span, warn};

use crate::auth::Peer;

/// One connection of each of some thousand nodes, and some over.
const MAX_CONNECTIONS: usize = 8192;
/// Connections of one address without a valid token: many nodes behind one address that all come back at once.
const MAX_STRANGERS_OF_ADDRESS: usize = 256;
/// A proxy brings its token with its first call, at once.
const TRUST_DEADLINE: Duration = Duration::from_secs(10);
/// A handshake is two round trips.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Handshaken connections that the server has not taken yet; it takes them at once.
const READY: usize = 64;
/// When the process is out of descriptors, trying at once again would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections as the gRPC server takes them.
pub(super) fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    drain: &Drain,
) -> ReceiverStream<io::Result<Admitted>> {
    let (ready, connections) = mpsc::channel(READY);
    let accepting = run(listener, tls, ready, drain.clone());
    drop(spawn("accept", Span::current(), drain, accepting));
    ReceiverStream::new(connections)
}

async fn run(
    listener: TcpListener,
    tls: TlsAcceptor,
    ready: mpsc::Sender<io::Result<Admitted>>,
    drain: Drain,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let strangers = Strangers::default();
    loop {
        let accepted = tokio::select! {
            () = drain.started() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            refused("too_many");
            debug!(%peer, "too many connections");
            continue;
        };
        let Some(stranger) = strangers.enter(peer.ip()) else {
            refused("too_many_of_address");
            debug!(%peer, "too many connections without a token");
            continue;
        };
        let admission = Admission {
            peer: Peer::new(peer),
            slot,
            stranger,
        };
        let handshake = handshake(stream, tls.clone(), admission, ready.clone());
        drop(spawn(
            "handshake",
            info_span!("handshake", %peer),
            &drain,
            handshake,
        ));
    }
}

async fn handshake(
    stream: TcpStream,
    tls: TlsAcceptor,
    admission: Admission,
    ready: mpsc::Sender<io::Result<Admitted>>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "no TCP_NODELAY");
    }
    let refused = match timeout(HANDSHAKE_DEADLINE, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            // The receiver is gone only when the server has stopped.
            let _taken = ready.send(Ok(Admitted::new(stream, admission))).await;
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "deadline".to_owned(),
    };
    self::refused("tls");
    debug!(error = refused, "TLS handshake failed");
}

fn refused(reason: &'static str) {
    metrics::counter!("leyline_controlplane_connections_refused_total", "reason" => reason)
        .increment(1);
}

/// Connections without a valid token, by address.
#[derive(Clone, Default)]
struct Strangers {
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Strangers {
    fn enter(&self, address: IpAddr) -> Option<Stranger> {
        let mut counts = self.counts.lock();
        let count = counts.entry(address).or_insert(0);
        if *count >= MAX_STRANGERS_OF_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Stranger {
            strangers: self.clone(),
            address,
        })
    }
}

/// One of them.
struct Stranger {
    strangers: Strangers,
    address: IpAddr,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut counts = self.strangers.counts.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// What a connection holds while it lasts.
struct Admission {
    peer: Peer,
    slot: OwnedSemaphorePermit,
    stranger: Stranger,
}

/// A connection and its place.
pub(super) struct Admitted {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    /// Until it is trusted: its place among the strangers, and the end of its time.
    probation: Option<(Stranger, Pin<Box<Sleep>>)>,
    _slot: OwnedSemaphorePermit,
}

impl Admitted {
    fn new(stream: TlsStream<TcpStream>, admission: Admission) -> Self {
        Self {
            stream,
            peer: admission.peer,
            probation: Some((admission.stranger, Box::pin(sleep(TRUST_DEADLINE)))),
            _slot: admission.slot,
        }
    }

    /// Fails once the time of a stranger is up.
    fn poll_probation(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Some((_, deadline)) = &mut self.probation else {
            return Ok(());
        };
        if self.peer.is_trusted() {
            self.probation = None;
            return Ok(());
        }
        if deadline.as_mut().poll(context).is_ready() {
            refused("no_token");
            debug!(peer = %self.peer.address, "no valid token in time");
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl Connected for Admitted {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Admitted {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let admitted = self.get_mut();
        admitted.poll_probation(context)?;
        Pin::new(&mut admitted.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Admitted {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
