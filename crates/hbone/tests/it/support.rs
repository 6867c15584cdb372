//! A pool and a server joined by in-memory pipes, and small things to say over them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use leyline_hbone::{
    ConnectRequest, DialError, HboneConfig, HboneError, HboneReader, HboneStream, HboneWriter,
    Opened, Pool, PoolKey,
    server::{self, BadRequest, Request},
};
use leyline_net::copy::{Reader, Writer};
use leyline_runtime::{Drain, spawn};
use leyline_types::WorkloadUid;
use parking_lot::Mutex;
use tokio::io::DuplexStream;
use tracing::Span;

/// Bytes that the pipe between the ends holds.
pub(crate) const PIPE: usize = 64 << 10;

/// The far end: a server for each dial.
#[derive(Clone)]
pub(crate) struct Far {
    pub(crate) cfg: HboneConfig,
    pub(crate) drain: Drain,
    pub(crate) dials: Arc<AtomicUsize>,
    pub(crate) refused: Arc<Mutex<Vec<BadRequest>>>,
    pub(crate) results: Arc<Mutex<Vec<Result<(), HboneError>>>>,
}

impl Far {
    pub(crate) fn new(cfg: &HboneConfig) -> Self {
        Self {
            cfg: cfg.clone(),
            drain: Drain::new(),
            dials: Arc::default(),
            refused: Arc::default(),
            results: Arc::default(),
        }
    }

    /// Serves one end of a pipe with `handler`, and gives the other.
    pub(crate) fn connect<H, F>(&self, handler: H) -> DuplexStream
    where
        H: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let (near, far) = tokio::io::duplex(PIPE);
        self.dials.fetch_add(1, Ordering::Relaxed);
        let this = self.clone();
        drop(spawn("far end", Span::none(), &self.drain, async move {
            let refused = |reason| this.refused.lock().push(reason);
            let result = server::serve(far, &this.cfg, &this.drain, handler, refused).await;
            this.results.lock().push(result);
        }));
        near
    }

    pub(crate) fn dials(&self) -> usize {
        self.dials.load(Ordering::Relaxed)
    }

    /// Opens a stream through `pool` to a server that echoes.
    pub(crate) async fn open(&self, pool: &Pool, key: &PoolKey) -> Result<Opened, HboneError> {
        let far = self.clone();
        pool.open(key, request(), move || async move {
            Ok::<_, DialError>(far.connect(echo))
        })
        .await
    }
}

pub(crate) fn key(last: u8) -> PoolKey {
    PoolKey {
        source: "spiffe://cluster.local/ns/a/sa/client".parse().unwrap(),
        destinations: vec!["spiffe://cluster.local/ns/a/sa/server".parse().unwrap()],
        target: ([10, 0, 0, last], 15008).into(),
        source_ip: IpAddr::V4(Ipv4Addr::new(10, 0, 1, 1)),
        workload: WorkloadUid::new("cluster//Pod/a/server"),
    }
}

pub(crate) fn request() -> ConnectRequest {
    ConnectRequest {
        authority: "10.0.0.1:80".parse().unwrap(),
        forwarded_for: "10.0.1.1:4000".parse().unwrap(),
        forwarded_host: None,
        baggage: None,
        forwarded_network: None,
    }
}

pub(crate) fn pool(cfg: &HboneConfig) -> Pool {
    Pool::new(cfg.clone(), Drain::new())
}

pub(crate) async fn echo(request: Request) {
    let Ok(stream) = request.accept(None) else {
        return;
    };
    let (mut reader, mut writer) = stream.into_split();
    loop {
        match reader.read().await {
            Ok(Some(data)) => {
                if writer.write(data).await.is_err() {
                    return;
                }
            }
            Ok(None) => {
                let _peer_is_gone = writer.finish().await;
                return;
            }
            Err(_) => return,
        }
    }
}

/// All bytes up to the end.
pub(crate) async fn read_all(reader: &mut HboneReader) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(data) = reader.read().await? {
        all.extend_from_slice(&data);
    }
    Ok(all)
}

/// Exactly as many bytes as `want` has, compared with it.
pub(crate) async fn expect(reader: &mut HboneReader, want: &[u8]) {
    let mut got = Vec::new();
    while got.len() < want.len() {
        got.extend_from_slice(&reader.read().await.unwrap().expect("stream ended early"));
    }
    assert_eq!(got, want);
}

pub(crate) async fn ping_pong(reader: &mut HboneReader, writer: &mut HboneWriter) {
    writer.write(Bytes::from_static(b"ping")).await.unwrap();
    expect(reader, b"ping").await;
}

pub(crate) async fn works(stream: HboneStream) -> (HboneReader, HboneWriter) {
    let (mut reader, mut writer) = stream.into_split();
    ping_pong(&mut reader, &mut writer).await;
    (reader, writer)
}

/// Waits for `condition`, which something under way makes true.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}
