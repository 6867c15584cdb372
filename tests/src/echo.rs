//! The application of every pod: says over HTTP what it was asked and by whom, and has the TCP ports with which proxies
//! get into trouble (echo, server speaks first, answer only after the client's end of stream).

mod http;
mod tcp;

use std::{
    future::Future,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
};

use anyhow::{Context, Result};
use leyline_net::{ListenOptions, NetNs, listen};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// What the app is told on its command line.
#[derive(Clone, Debug, clap::Args)]
pub struct EchoArgs {
    /// Port that answers HTTP/1.1.
    #[arg(long)]
    pub http: Option<u16>,
    /// Port that sends back what it is sent.
    #[arg(long)]
    pub tcp: Option<u16>,
    /// Port that sends a greeting first and then what it is sent.
    #[arg(long)]
    pub banner: Option<u16>,
    /// Port that reads to the end of the stream and only then answers with length and hash.
    #[arg(long)]
    pub summary: Option<u16>,
    /// Name of the version, for replies.
    #[arg(long, default_value = "")]
    pub version: String,
    /// Status of every HTTP answer, for an app that is broken.
    #[arg(long)]
    pub fail: Option<u16>,
}

/// Who the app is.
#[derive(Debug)]
pub struct Me {
    /// Pod.
    pub pod: String,
    /// Its namespace.
    pub namespace: String,
    /// From [`EchoArgs::version`].
    pub version: String,
    /// From [`EchoArgs::fail`].
    pub fail: Option<u16>,
    /// HTTP requests until now.
    pub requests: AtomicU64,
}

/// What the app says of a request.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Description {
    /// Answering pod.
    pub pod: String,
    /// Its namespace.
    pub namespace: String,
    /// Its version.
    pub version: String,
    /// How many HTTP requests it was sent, this one included.
    pub requests: u64,
    /// Who connected, as the app's socket sees it.
    pub peer: SocketAddr,
    /// To which address, as the app's socket sees it.
    pub local: SocketAddr,
    /// Version of HTTP.
    pub protocol: String,
    /// Request method.
    pub method: String,
    /// Request path and query.
    pub path: String,
    /// Request headers.
    pub headers: Vec<(String, String)>,
    /// Bytes of the request body.
    pub body_bytes: u64,
    /// Their SHA-256.
    pub body_sha256: String,
}

/// Listens on every port that was asked for and serves until cancelled.
pub async fn serve(me: Me, args: &EchoArgs) -> Result<()> {
    let me = Arc::new(me);
    let mut servers = JoinSet::new();
    if let Some(port) = args.tcp {
        servers.spawn(accept(bind(port)?, tcp::echo));
    }
    if let Some(port) = args.banner {
        let me = me.clone();
        servers.spawn(accept(bind(port)?, move |s| tcp::banner(s, me.clone())));
    }
    if let Some(port) = args.summary {
        servers.spawn(accept(bind(port)?, tcp::summary));
    }
    // Last: who reaches this port can rely on the others.
    if let Some(port) = args.http {
        servers.spawn(accept(bind(port)?, move |s| http::serve(s, me.clone())));
    }
    while let Some(ended) = servers.join_next().await {
        ended??;
    }
    Ok(())
}

fn bind(port: u16) -> Result<TcpListener> {
    listen(&NetNs::current()?, port, &ListenOptions::default())
        .with_context(|| format!("listening on port {port}"))
}

async fn accept<H, Fut>(listener: TcpListener, handle: H) -> Result<()>
where
    H: Fn(TcpStream) -> Fut,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let (stream, peer) = listener.accept().await.context("accepting")?;
        stream.set_nodelay(true)?;
        let connection = handle(stream);
        connections.spawn(async move {
            // A client may go away whenever it likes.
            if let Err(e) = connection.await {
                tracing::debug!(%peer, error = format!("{e:#}"), "connection ended");
            }
        });
        while connections.try_join_next().is_some() {}
    }
}
