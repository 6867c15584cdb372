//! The sockets of a pod's DNS proxy.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use leyline_net::{
    Accepted, ListenOptions, NetNs, Peers, accept, listen, orig_dst,
    udp::{Datagrams, Received},
};
use leyline_runtime::spawn;
use leyline_telemetry::dns::{DnsDrop, DnsProtocol, dns_dropped};
use leyline_types::ports;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tracing::{Span, error};

use super::{
    DnsProxy,
    query::{Parsed, Query},
};
use crate::{config::ProxyConfig, proxy::Pod};

/// Queries by datagram that one pod may have under way. A resolver that answers in 10 ms gives 50,000 a second with it.
const MAX_QUERIES: usize = 512;
/// Connections that one pod may have open; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 64;
/// Longest query: a name has at most 255 bytes, and the rest are options.
const MAX_QUERY: usize = 4096;
/// How long a connection may wait for a query, or an answer to be taken (DNS-7).
const IDLE: Duration = Duration::from_secs(5);
/// Pause after an error of the socket that is not one datagram's.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// The sockets, open in the pod's namespace.
pub(crate) struct DnsListeners {
    udp: Datagrams,
    tcp: TcpListener,
}

impl DnsListeners {
    /// Reachable from within the pod only: a pod is no resolver for others.
    pub(crate) fn open(netns: &NetNs, config: &ProxyConfig) -> io::Result<Self> {
        let mark = config.application_mark();
        let options = ListenOptions {
            mark: Some(mark),
            transparent: true,
            reuse_port: true,
            loopback_only: true,
            peers: Peers::Local,
            keepalive: None,
            families: config.families,
        };
        Ok(Self {
            udp: Datagrams::open(netns, ports::DNS, config.families, mark, config.bypass_mark)?,
            tcp: listen(netns, ports::DNS, &options)?,
        })
    }

    pub(crate) fn udp_fd(&self) -> BorrowedFd<'_> {
        self.udp.as_fd()
    }

    pub(crate) fn tcp_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }

    /// Answers until the pod drains. What is given back answers the pod's own proxy.
    pub(in crate::proxy) fn serve(self, pod: &Arc<Pod>) -> Arc<DnsProxy> {
        let proxy = Arc::new(DnsProxy::new(Arc::clone(pod)));
        let Self { udp, tcp } = self;
        let datagrams = serve_datagrams(Arc::clone(&proxy), Arc::new(udp));
        spawn("dns over udp", Span::none(), &pod.drain, datagrams);
        let connections = serve_connections(Arc::clone(&proxy), tcp);
        spawn("dns over tcp", Span::none(), &pod.drain, connections);
        proxy
    }
}

impl DnsProxy {
    /// What a guest asks over TCP.
    pub(in crate::proxy) async fn serve_guest(&self, stream: TcpStream) {
        // However it ends, the guest sees it and asks anew.
        answer_connection(self, stream).await.ok();
    }
}

async fn serve_datagrams(proxy: Arc<DnsProxy>, socket: Arc<Datagrams>) {
    let places = Arc::new(Semaphore::new(MAX_QUERIES));
    let drain = proxy.pod.drain.clone();
    let mut draining = std::pin::pin!(drain.started());
    let mut buffer = vec![0; MAX_QUERY];
    loop {
        let received = tokio::select! {
            () = &mut draining => return,
            received = socket.receive(&mut buffer) => received,
        };
        let received = match received {
            Ok(received) => received,
            Err(error) => {
                error!(pod = %proxy.pod.name, %error, "a DNS query cannot be read");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        let message = buffer.get(..received.length).unwrap_or_default();
        let query = match Query::parse(message, DnsProtocol::Udp) {
            Parsed::Query(query) if !received.is_cut => query,
            Parsed::Refused(response) => {
                dns_dropped(DnsDrop::Malformed);
                socket.answer(&response, &received).await.ok();
                continue;
            }
            Parsed::Query(_) | Parsed::Malformed => {
                dns_dropped(DnsDrop::Malformed);
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            // The client asks again.
            dns_dropped(DnsDrop::TooMany);
            continue;
        };
        let (proxy, socket) = (Arc::clone(&proxy), Arc::clone(&socket));
        let drain = drain.clone();
        spawn("dns query", Span::none(), &drain, async move {
            answer_datagram(&proxy, &socket, &query, &received).await;
            drop(place);
        });
    }
}

async fn answer_datagram(proxy: &DnsProxy, socket: &Datagrams, query: &Query, received: &Received) {
    let Some(response) = proxy.answer(query, resolver(received.to)).await else {
        return dns_dropped(DnsDrop::Unsendable);
    };
    if socket.answer(&response, received).await.is_err() {
        dns_dropped(DnsDrop::Unsendable);
    }
}

/// Redirected by iptables, a query comes to loopback, and whom it was for is lost.
fn resolver(asked: IpAddr) -> Option<IpAddr> {
    (!asked.is_loopback()).then_some(asked)
}

async fn serve_connections(proxy: Arc<DnsProxy>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let drain = proxy.pod.drain.clone();
    let mut draining = std::pin::pin!(drain.started());
    loop {
        let accepted = tokio::select! {
            () = &mut draining => return,
            accepted = async {
                let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
                Ok::<_, io::Error>((accept(&listener).await?, place))
            } => accepted,
        };
        let (Accepted { stream, .. }, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                error!(pod = %proxy.pod.name, %error, "DNS listener is broken; it accepts no more");
                return;
            }
        };
        let proxy = Arc::clone(&proxy);
        let drain = drain.clone();
        spawn("dns connection", Span::none(), &drain, async move {
            // However it ends, the client sees it and asks anew.
            answer_connection(&proxy, stream).await.ok();
            drop(place);
        });
    }
}

/// Answers one query after the other (RFC 7766).
async fn answer_connection(proxy: &DnsProxy, mut stream: TcpStream) -> io::Result<()> {
    let redirection = proxy.pod.shared.config.redirection;
    let asked = orig_dst::of_redirected(&stream, redirection)?.addr();
    // Called by our own port, nobody else was meant.
    let asked = resolver(asked.ip()).filter(|_| asked.port() != ports::DNS);
    let drain = &proxy.pod.drain;
    loop {
        let length = tokio::select! {
            () = drain.started() => return Ok(()),
            length = timeout(IDLE, stream.read_u16()) => usize::from(length??),
        };
        if length > MAX_QUERY {
            dns_dropped(DnsDrop::Malformed);
            return Ok(());
        }
        let mut message = vec![0; length];
        timeout(IDLE, stream.read_exact(&mut message)).await??;
        let response = match Query::parse(&message, DnsProtocol::Tcp) {
            Parsed::Query(query) => proxy.answer(&query, asked).await,
            Parsed::Refused(response) => {
                dns_dropped(DnsDrop::Malformed);
                Some(response)
            }
            Parsed::Malformed => {
                dns_dropped(DnsDrop::Malformed);
                return Ok(());
            }
        };
        let Some(response) = response else {
            dns_dropped(DnsDrop::Unsendable);
            return Ok(());
        };
        let length = u16::try_from(response.len()).map_err(io::Error::other)?;
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&response);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}
