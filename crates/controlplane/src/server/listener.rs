//! Accepts TLS connections: bounded in number, each handshake with a deadline and apart from the others.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use leyline_runtime::{Drain, spawn};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tracing::{Span, debug, info_span, warn};

/// One connection of each of some thousand nodes, and some over.
const MAX_CONNECTIONS: usize = 8192;
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
            metrics::counter!("leyline_controlplane_connections_refused_total", "reason" => "too_many").increment(1);
            debug!(%peer, "too many connections");
            continue;
        };
        let handshake = handshake(stream, tls.clone(), slot, ready.clone());
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
    slot: OwnedSemaphorePermit,
    ready: mpsc::Sender<io::Result<Admitted>>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "no TCP_NODELAY");
    }
    let refused = match timeout(HANDSHAKE_DEADLINE, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            // The receiver is gone only when the server has stopped.
            let _taken = ready
                .send(Ok(Admitted {
                    stream,
                    _slot: slot,
                }))
                .await;
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "deadline".to_owned(),
    };
    metrics::counter!("leyline_controlplane_connections_refused_total", "reason" => "tls")
        .increment(1);
    debug!(error = refused, "TLS handshake failed");
}

/// A connection and its slot.
pub(super) struct Admitted {
    stream: TlsStream<TcpStream>,
    _slot: OwnedSemaphorePermit,
}

impl Connected for Admitted {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.get_ref().0.connect_info()
    }
}

impl AsyncRead for Admitted {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
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
