//! A peer with a certificate of the mesh that does whatever a test wants: HTTP/2 by a library, or frames by hand.

use std::{fs, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{Builder, SendRequest},
};
use http::{Method, Request, StatusCode};
use leyline_net::{ConnectOptions, NetNs, Source, connect};
use leyline_tests::{certificates::Authority, mesh::Mesh};
use leyline_tls::{ClientTls, Revocation, WorkloadCertificate};
use leyline_types::Identity;
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

const DEADLINE: Duration = Duration::from_secs(20);
const GATEWAY: &str = "partner/gateway";
const GATEWAY_ID: &str = "spiffe://cluster.local/ns/partner/sa/gateway";
pub(crate) const SERVER_ID: &str = "spiffe://cluster.local/ns/shop/sa/server";

/// In the pod of the partner's gateway, which is not enrolled, and with its certificate.
pub(crate) struct Peer {
    namespace: NetNs,
    certificate: Arc<WorkloadCertificate>,
}

/// A tunnel; it ends when this is dropped.
pub(crate) struct Tunnel {
    requests: SendRequest<Bytes>,
    _driver: JoinSet<Result<(), h2::Error>>,
}

/// An answered CONNECT.
pub(crate) struct Stream {
    pub(crate) status: StatusCode,
    /// Dropping them would reset the stream.
    _send: SendStream<Bytes>,
    receive: RecvStream,
}

impl Peer {
    pub(crate) fn new(mesh: &Mesh) -> Self {
        Self::named(mesh, GATEWAY_ID)
    }

    /// With a certificate of the mesh's CA for any identity.
    pub(crate) fn named(mesh: &Mesh, id: &str) -> Self {
        leyline_tls::install_crypto_provider();
        let run = mesh.cluster().run();
        let authority = Authority::of_mesh(&run.state_dir()).unwrap();
        let issued = authority.issue(&run.secrets_dir(), "peer", id).unwrap();
        let read = |path| fs::read_to_string(path).unwrap();
        let chain = [
            read(issued.certificate),
            read(run.state_dir().join("root-cert.pem")),
        ];
        let key = PrivateKeyDer::from_pem_slice(read(issued.key).as_bytes()).unwrap();
        let identity: Identity = id.parse().unwrap();
        let namespace = mesh.cluster().pod(GATEWAY).unwrap().namespace().clone();
        Self {
            namespace,
            certificate: Arc::new(
                WorkloadCertificate::from_pem(&identity, &chain, key, &Revocation::off()).unwrap(),
            ),
        }
    }

    /// A connection to port 15008 that says nothing.
    pub(crate) async fn silent(&self, target: IpAddr) -> anyhow::Result<TcpStream> {
        silent(&self.namespace, target).await
    }

    /// The handshake with the proxy of a server pod.
    pub(crate) async fn tls(&self, target: IpAddr) -> anyhow::Result<ClientTls> {
        let stream = self.silent(target).await?;
        let expected: Identity = SERVER_ID.parse().unwrap();
        let (stream, _identity) =
            leyline_tls::connect(&self.certificate, stream, &[expected], DEADLINE).await?;
        Ok(stream)
    }

    /// A tunnel.
    pub(crate) async fn tunnel(&self, target: IpAddr) -> anyhow::Result<Tunnel> {
        let stream = self.tls(target).await?;
        let (requests, connection) = Builder::new().handshake(stream).await?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Ok(Tunnel {
            requests,
            _driver: driver,
        })
    }

    /// A tunnel for frames by hand.
    pub(crate) async fn raw(&self, target: IpAddr) -> anyhow::Result<Raw> {
        let mut io = self.tls(target).await?;
        io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        let mut raw = Raw { io };
        raw.send(&frame(SETTINGS, 0, 0, &[])).await?;
        Ok(raw)
    }
}

/// A connection to port 15008 from some namespace.
pub(crate) async fn silent(namespace: &NetNs, target: IpAddr) -> anyhow::Result<TcpStream> {
    let options = ConnectOptions {
        mark: None,
        source: Source::Routed,
        deadline: DEADLINE,
        keepalive: None,
        announce: None,
    };
    Ok(connect(namespace, (target, 15008).into(), &options).await?)
}

impl Tunnel {
    /// CONNECT, and its answer.
    pub(crate) async fn connect(&self, authority: &str) -> anyhow::Result<Stream> {
        self.connect_with(authority, "").await
    }

    /// CONNECT with a header that makes it large.
    pub(crate) async fn connect_with(
        &self,
        authority: &str,
        padding: &str,
    ) -> anyhow::Result<Stream> {
        let headers = [("x-padding", padding)];
        let most = usize::from(!padding.is_empty());
        self.connect_saying(authority, &headers[..most]).await
    }

    /// CONNECT with these headers.
    pub(crate) async fn connect_saying(
        &self,
        authority: &str,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<Stream> {
        let mut request = Request::builder().method(Method::CONNECT).uri(authority);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut requests = self.requests.clone().ready().await?;
        let (response, send) = requests.send_request(request.body(())?, false)?;
        let (head, receive) = tokio::time::timeout(DEADLINE, response)
            .await??
            .into_parts();
        Ok(Stream {
            status: head.status,
            _send: send,
            receive,
        })
    }
}

impl Stream {
    /// Waits for its end, of whatever kind.
    pub(crate) async fn ended(mut self) {
        while let Some(Ok(_data)) = self.receive.data().await {}
    }
}

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const END_HEADERS: u8 = 4;

/// HTTP/2 by hand.
pub(crate) struct Raw {
    io: ClientTls,
}

impl Raw {
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.io.write_all(bytes).await?;
        self.io.flush().await
    }

    /// Reads until the other side ends.
    pub(crate) async fn drain(&mut self) {
        let mut sink = vec![0; 1 << 16];
        while self.io.read(&mut sink).await.is_ok_and(|read| read > 0) {}
    }
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The header block of a CONNECT, as literals.
pub(crate) fn connect_block(authority: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [(":method", "CONNECT"), (":authority", authority)] {
        block.push(0);
        for text in [name, value] {
            // Lengths of up to 126 fit the prefix.
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}
