//! A client inside a pod: connections are opened in the pod's namespace, as its application would.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use leyline_net::{ConnectOptions, NetNs, Source, connect};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use crate::echo::Description;

/// Opens connections from one namespace.
#[derive(Clone, Debug)]
pub struct Client {
    namespace: NetNs,
}

/// An HTTP response.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Status.
    pub status: StatusCode,
    /// Whole body.
    pub body: Bytes,
}

impl Reply {
    /// What the echo app says of the request.
    pub fn description(&self) -> Result<Description> {
        serde_json::from_slice(&self.body).context("reading the reply of the echo app")
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer has sent its end of stream.
    Finished,
    /// The peer, or a proxy, has cut it.
    Reset,
}

impl Client {
    /// A client in `namespace`.
    pub fn new(namespace: NetNs) -> Self {
        Self { namespace }
    }

    /// Connects. Behind capture this succeeds at once, whatever becomes of it.
    pub async fn connect(&self, target: SocketAddr, deadline: Duration) -> Result<Connection> {
        let options = ConnectOptions {
            mark: None,
            source: Source::Routed,
            deadline,
            keepalive: None,
            announce: None,
        };
        let stream = connect(&self.namespace, target, &options)
            .await
            .with_context(|| format!("connecting to {target}"))?;
        Ok(Connection { stream, deadline })
    }

    /// Connects for several requests of HTTP/1.1, each of which has the deadline of the connect.
    pub async fn keep(&self, target: SocketAddr, deadline: Duration) -> Result<Kept> {
        let Connection { stream, .. } = self.connect(target, deadline).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Ok(Kept {
            sender,
            host: target.to_string(),
            deadline,
            _driver: driver,
        })
    }

    /// `GET path`.
    pub async fn get(&self, target: SocketAddr, path: &str, deadline: Duration) -> Result<Reply> {
        self.request("GET", target, path, Bytes::new(), deadline)
            .await
    }

    /// `POST path` with a body.
    pub async fn post(
        &self,
        target: SocketAddr,
        path: &str,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Reply> {
        self.request("POST", target, path, body, deadline).await
    }

    /// Any other request.
    pub async fn request(
        &self,
        method: &str,
        target: SocketAddr,
        path: &str,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Reply> {
        let Connection { stream, .. } = self.connect(target, deadline).await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, target.to_string())
            .body(Full::new(body))?;
        timeout(deadline, exchange(stream, request))
            .await
            .with_context(|| format!("no answer from {target} within {deadline:?}"))?
            .with_context(|| format!("{method} http://{target}{path}"))
    }
}

async fn exchange(stream: TcpStream, request: Request<Full<Bytes>>) -> Result<Reply> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with this function.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let (head, body) = sender.send_request(request).await?.into_parts();
    Ok(Reply {
        status: head.status,
        body: body.collect().await?.to_bytes(),
    })
}

/// An HTTP connection that stays open between requests.
#[derive(Debug)]
pub struct Kept {
    sender: http1::SendRequest<Full<Bytes>>,
    host: String,
    deadline: Duration,
    /// Ends with it.
    _driver: JoinSet<hyper::Result<()>>,
}

impl Kept {
    /// `GET path`: status and headers.
    pub async fn get(&mut self, path: &str) -> Result<http::response::Parts> {
        let request = Request::builder()
            .uri(path)
            .header(header::HOST, &self.host)
            .body(Full::default())?;
        let answered = async {
            self.sender.ready().await?;
            let (head, body) = self.sender.send_request(request).await?.into_parts();
            body.collect().await?;
            anyhow::Ok(head)
        };
        timeout(self.deadline, answered)
            .await
            .with_context(|| format!("no answer from {} in time", self.host))?
    }
}

/// An open connection; each operation has the deadline of the connect.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    deadline: Duration,
}

impl Connection {
    /// Sends `data` and expects it back, as from the echo port.
    pub async fn echo(&mut self, data: &[u8]) -> Result<()> {
        self.write(data).await?;
        let back = self.read(data.len()).await?;
        ensure!(back == data, "{} other bytes came back", data.len());
        Ok(())
    }

    /// Sends `data`.
    pub async fn write(&mut self, data: &[u8]) -> Result<()> {
        timeout(self.deadline, self.stream.write_all(data))
            .await
            .with_context(|| format!("cannot send within {:?}", self.deadline))?
            .context("sending")
    }

    /// Receives exactly `length` bytes.
    pub async fn read(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut data = vec![0; length];
        timeout(self.deadline, self.stream.read_exact(&mut data))
            .await
            .with_context(|| format!("nothing received within {:?}", self.deadline))?
            .context("receiving")?;
        Ok(data)
    }

    /// Ends our half.
    pub async fn finish(&mut self) -> Result<()> {
        self.stream.shutdown().await.context("ending our half")
    }

    /// Receives until the peer ends its half.
    pub async fn read_to_end(&mut self) -> Result<Vec<u8>> {
        let mut data = Vec::new();
        timeout(self.deadline, self.stream.read_to_end(&mut data))
            .await
            .with_context(|| format!("no end of stream within {:?}", self.deadline))?
            .context("receiving")?;
        Ok(data)
    }

    /// Waits until the other side ends the connection; data is an error.
    pub async fn ended(&mut self, deadline: Duration) -> Result<End> {
        let mut byte = [0];
        let read = timeout(deadline, self.stream.read(&mut byte))
            .await
            .with_context(|| format!("the connection is still open after {deadline:?}"))?;
        match read {
            Ok(0) => Ok(End::Finished),
            Ok(_) => bail!("data on a connection that should have ended"),
            Err(_reset) => Ok(End::Reset),
        }
    }

    /// For who speaks a protocol of its own on it.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// The address that the peer sees.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        Ok(self.stream.local_addr()?)
    }
}
